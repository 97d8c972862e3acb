"""Text of the HTML report: escaping, and numbers as people read them."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

_NAME_LIMIT = 300
"""Longest text of the user's that is shown; some exporters name nodes by a whole stack trace."""


def escape(text: Any) -> str:
    """Text that can stand in an element or in a quoted attribute."""
    clean = str(text).encode("utf-8", "replace").decode()  # file names may hold what UTF-8 can't
    if len(clean) > _NAME_LIMIT:
        clean = f"{clean[: _NAME_LIMIT // 2]} … {clean[-_NAME_LIMIT // 2 :]}"
    return html.escape(clean)


def name(text: str, limit: int = 40) -> str:
    """A node's name, shortened from the left, where exporters put the path; the whole name is in the tooltip."""
    if len(text) <= limit:
        return f"<code>{escape(text)}</code>"
    return f'<code title="{escape(text)}">…{escape(text[-limit + 1 :])}</code>'


def names(texts: Iterable[str], limit: int = 40) -> str:
    """Whole names, one after another, the first so many of them."""
    given = list(texts)
    shown = ", ".join(f"<code>{escape(text)}</code>" for text in given[:limit])
    return shown + (f" and {len(given) - limit:,} more" if len(given) > limit else "") if given else "none"


def change(before: float | None, after: float | None) -> str:
    """Relative change in percent; nothing where it has no meaning."""
    if not before or after is None:
        return ""
    return signed(f"{(after - before) / before:+.1%}")


def signed(number: str) -> str:
    """A number with a typographic minus, and without a sign where it is zero."""
    return number.lstrip("+-") if not number.strip("+-0.% ") else number.replace("-", "−")


def count(value: int | None) -> str:
    """A number of things: exact while short, then in thousands, millions, billions."""
    if value is None:
        return "unknown"
    for unit, suffix in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= 10 * unit or value >= unit > 1e3:
            return f"{value / unit:,.4g}{suffix}"
    return f"{value:,}"


def size(value: int, like: int = 0) -> str:
    """A number of bytes, in the unit that suits the greater of it and of another, beside which it stands."""
    for unit, suffix in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if max(value, like) >= unit:
            return f"{value / unit:,.2f} {suffix}"
    return f"{value:,} bytes"


def milliseconds(value: float) -> str:
    """A latency, with as many digits as matter."""
    return f"{value:,.1f} ms" if value >= 100 else f"{value:.2f} ms" if value >= 10 else f"{value:.3f} ms"


def seconds(value: float) -> str:
    """A duration, in the unit that suits it."""
    return f"{value:,.1f} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def sentence(text: str) -> str:
    """Text of the user's that begins as a sentence does."""
    return escape(text[:1].upper() + text[1:])


def listed(texts: Sequence[str]) -> str:
    """All of several names in plain text, after their number; a single one as it is."""
    return (f"{len(texts)}: " if len(texts) > 1 else "") + ", ".join(texts)


def plural(number: int, thing: str) -> str:
    """``1 segment``, ``2 segments``."""
    return f"{number:,} {thing}" + ("" if number == 1 else "s")
