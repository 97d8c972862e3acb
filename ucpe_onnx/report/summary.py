"""The table at the end of a run."""

from __future__ import annotations

from collections import Counter
from pathlib import PurePath

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ucpe_onnx.report.html_text import listed, plural
from ucpe_onnx.report.report import Report, SegmentReport
from ucpe_onnx.report.sections import ABOUT_LAYOUT, ABOUT_MASKS, Warnings
from ucpe_onnx.runtime.latency import LatencyReport

_NAMED = 3
"""Inputs, and sizes of each, that the summary names."""

LARGE_LOSS = 10.0
"""Points of accuracy above which a loss is worth a warning."""


def print_summary(report: Report, console: Console, *, verbose: bool = False) -> None:
    """Print what a run has changed, what it checked, and what had to stay.

    Args:
        report: the account of the run.
        console: where to print.
        verbose: list every segment too.
    """
    console.print(_numbers(report))
    _print_checks(report, console)
    _print_frozen(report, console)
    _print_warnings(report, console)
    if verbose:
        console.print(f"predictions: {report.rates or 'none'}")
        console.print(_segments(report))


def _numbers(report: Report) -> Table:
    before, after = report.before, report.after
    name = PurePath(report.source).name or report.source
    table = Table(title=f"{name}: {report.mode}, {report.kept:.0%} of the channels kept")
    for column in ("", "before", "after", "change"):
        table.add_column(column, justify="left" if not column else "right")
    table.add_row(
        "parameters", f"{before.parameters:,}", f"{after.parameters:,}", _change(before.parameters, after.parameters)
    )
    table.add_row("MACs", _count(before.macs), _count(after.macs), _change(before.macs, after.macs))
    table.add_row("file size", _size(before.bytes), _size(after.bytes), _change(before.bytes, after.bytes))
    table.add_row("nodes", f"{before.nodes:,}", f"{after.nodes:,}", f"{after.nodes - before.nodes:+d}")
    copies = ", ".join(f"{count:+d} {op}" for op, count in report.copies_added().items()) or "none added"
    table.add_row("memory copies", str(sum(before.copies.values())), str(sum(after.copies.values())), copies)
    if report.accuracy is not None:
        old, new = report.accuracy["before"], report.accuracy["after"]
        table.add_row("top-1 accuracy", f"{old:.1%}", f"{new:.1%}", f"{(new - old) * 100:+.1f} points")
    if report.latency is not None:
        old_latency, new_latency = report.latency["input"], report.latency["output"]
        if new_latency.trusted:
            interval = f"x{new_latency.ratio:.3f} ({new_latency.low:.3f} to {new_latency.high:.3f})"
            table.add_row("latency", f"{old_latency.median_ms:.3f} ms", f"{new_latency.median_ms:.3f} ms", interval)
        else:
            table.add_row("latency", "", "", "busy: undecided")
    return table


def _print_checks(report: Report, console: Console) -> None:
    worst = report.verification.worst.worst
    console.print(
        f"verified on {report.verification.feeds} inputs{_sizes(report)}: equal to the masked model"
        f" ({worst.error:.1e}, allowed {worst.bound:.1e})"
    )
    if drawn := report.verification.seeded:
        console.print(f"{plural(drawn, 'random operator')} without a seed got one for the comparison")
    if report.asked is not None and report.asked > 1 - report.kept + 0.01:
        why = "cost nothing by staying" + (" or were left alone" if report.left_alone else "")
        console.print(f"{report.asked:.0%} of the channels were to go, {1 - report.kept:.0%} went; the others {why}")
    for section in (*ABOUT_MASKS, *reversed(ABOUT_LAYOUT)):
        found = report.section(section)
        for line in () if found is None else found.lines(report):
            console.print(line)
    if report.latency is not None:
        console.print(_how_measured(report.latency, report.threads))


def _print_warnings(report: Report, console: Console) -> None:
    """Last, where they are read."""
    if report.accuracy is not None:
        lost = (report.accuracy["before"] - report.accuracy["after"]) * 100
        if lost > LARGE_LOSS:
            advice = "; try a lower --ratio" if report.mode in ("unconstrained", "constrained") else ""
            console.print(f"warning: accuracy fell by {lost:.1f} points{advice}", style="yellow")
    warnings = report.section(Warnings)
    for line in () if warnings is None else warnings.lines(report):
        console.print(line, style="yellow")


def _sizes(report: Report) -> str:
    """The shapes that the inputs had, where they had several; those of inputs that never change are left out."""
    sizes = report.verification.sizes
    changing = [name for name in (sizes[0] if sizes else ()) if len({each.get(name) for each in sizes}) > 1]
    told = [", ".join(f"{name} {_shape(each.get(name, ()))}" for name in changing[:_NAMED]) for each in sizes[:_NAMED]]
    return f" of {len(sizes)} sizes ({'; '.join(told)})" if changing else ""


def _shape(sizes: tuple[int, ...]) -> str:
    return f"[{','.join(map(str, sizes))}]"


def _how_measured(latency: LatencyReport, threads: int) -> str:
    """What the latency rests on, or why there is none."""
    if latency.busy:
        return f"latency: busy, undecided: {latency.busy}"
    words = f"latency: ratio of medians, 95 % interval, {plural(latency.rounds, 'interleaved round')}"
    words += f" on {plural(threads, 'thread')}" if threads else ""
    share = latency.interrupted / max(latency.timings, 1)
    return words + (f", {share:.0%} of the timings interrupted by other programs and left out" if share > 0.005 else "")


def _print_frozen(report: Report, console: Console) -> None:
    stuck = [s for s in report.segments if s.frozen and s.consumers]
    if not stuck:
        return
    reasons = Counter({reason: 0 for s in stuck for reason in s.reasons})
    for segment in stuck:
        reasons.update(segment.frozen_by)
    console.print(
        f"frozen: {plural(sum(s.frozen for s in stuck), 'channel')} in {len(stuck)} of"
        f" {plural(len(report.segments), 'segment')}"
    )
    for reason, count in reasons.most_common(5):
        console.print(f"  {reason}: {plural(count, 'channel')}" if count else f"  {reason}")
    if len(reasons) > 5:
        console.print(f"  and {len(reasons) - 5} more reasons: python -m ucpe_onnx.inspect MODEL")


def _segments(report: Report) -> Table:
    """One line per segment where that fits; the producers' names take what width is left."""
    table = Table(title="segments", expand=True)
    for column in ("id", "before", "after", "frozen"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("read by", no_wrap=True)
    table.add_column("layout", no_wrap=True)
    table.add_column("made by", ratio=1, no_wrap=True, overflow="ellipsis")
    for s in report.segments:
        read_by = Text("\n".join(f"{count} {kind}" for kind, count in s.lowerings.items()))
        table.add_row(str(s.id), str(s.slots), str(s.emitted), str(s.frozen), read_by, _order(s), listed(s.producers))
    return table


def _order(segment: SegmentReport) -> str:
    """How good the layout is predicted to be: the best, or within so much of the best, by the solver's bound."""
    if segment.status == "OPTIMAL" or not segment.bound:
        return segment.status.lower()
    return f"within {segment.objective / segment.bound - 1:.0%}"


def _change(before: int | None, after: int | None) -> str:
    if not before or after is None:
        return ""
    return f"{(after - before) / before:+.1%}"


def _count(value: int | None) -> str:
    if value is None:
        return "unknown"
    if value < 1e6:
        return f"{value:,}"
    return f"{value / 1e6:,.1f} M" if value < 1e9 else f"{value / 1e9:,.2f} G"


def _size(value: int) -> str:
    return f"{value / 2**10:,.1f} KiB" if value < 2**20 else f"{value / 2**20:,.2f} MiB"
