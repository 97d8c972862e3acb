"""Files written at once: a reader sees the old content or the new, never half; several appear together or not at all.

What is written goes to a file beside its place first. When a block of :func:`all_or_nothing` ends well, all of them are
put in their places, models last, since a model names the file of its weights: whenever the process dies, what is there
fits together. If a file can't be put in its place, those before it get their old content back.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from ucpe_onnx.errors import UcpeError, UsageError

_numbers = itertools.count()
_pending: ContextVar[list[_Pending] | None] = ContextVar("_pending", default=None)
"""What waits for the block of :func:`all_or_nothing` to end."""

_written: list[Path] = []


@dataclass(frozen=True)
class _Pending:
    """A complete file that waits for its place."""

    partial: Path | None
    """None: the file goes, once all others are in their places."""
    file: Path


def written_files() -> tuple[Path, ...]:
    """All files that this process has put in their places so far: no message may deny them."""
    return tuple(_written)


@contextmanager
def all_or_nothing() -> Iterator[None]:
    """Files that the block writes appear when it ends well, models last; if it does not, none of them does.

    Raises:
        UcpeError: a file can't be put in its place; the others are as they were.
    """
    if _pending.get() is not None:
        yield
        return
    pending: list[_Pending] = []
    token = _pending.set(pending)
    try:
        yield
        complete = [(one.partial, one.file) for one in pending if one.partial is not None]
        _put_in_place(sorted(complete, key=lambda pair: pair[1].suffix == ".onnx"))
        for one in pending:
            if one.partial is None:
                with suppress(OSError):
                    one.file.unlink()
    finally:
        _pending.reset(token)
        for one in pending:
            if one.partial is not None:
                one.partial.unlink(missing_ok=True)


def removed_afterwards(files: Iterable[Path]) -> None:
    """Remove files once the block of :func:`all_or_nothing` has ended well, which nothing refers to any more then."""
    pending = _pending.get()
    assert pending is not None, "there is a block"
    pending.extend(_Pending(None, file) for file in files)


def _put_in_place(complete: Sequence[tuple[Path, Path]]) -> None:
    """Give all complete files their names, or none of them."""
    done: list[tuple[Path, Path | None]] = []
    try:
        for partial, file in complete:
            try:
                done.append((file, _kept(file)))
                os.replace(partial, file)
            except OSError as error:
                raise UcpeError(f"{file}: can't be written ({error.strerror}); nothing is") from error
    except BaseException:
        waiting = {file for partial, file in complete if partial.exists()}
        for file, kept in reversed(done):
            if kept is not None:
                os.replace(kept, file)
                kept.unlink(missing_ok=True)  # two names of one file are not replaced by each other
            elif file not in waiting:
                file.unlink(missing_ok=True)
        raise
    for _, kept in done:
        if kept is not None:
            kept.unlink(missing_ok=True)
    _written.extend(file for _, file in complete)


def _kept(file: Path) -> Path | None:
    """Another name for what a file holds now, from which it can be put back; None if there is no file."""
    if not file.exists():
        return None
    kept = _beside(file, "old")
    try:
        os.link(file, kept)
    except OSError:  # no hard links here
        kept.write_bytes(file.read_bytes())
    return kept


def _beside(file: Path, kind: str) -> Path:
    """A name beside a file that nothing else has, and that is short whatever the file's is."""
    return file.with_name(f".ucpe-{os.getpid()}-{next(_numbers)}.{kind}")


@contextmanager
def partial_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path beside ``path`` to write to; renamed to ``path`` if the block ends well, removed if it does not.

    Links stay links, and a file that is replaced keeps its mode and owner. What is no regular file, such as
    ``/dev/null``, is written to directly: renaming would replace it.
    """
    file = Path(path)
    if file.exists() and not file.is_file():
        yield file
        return
    file = Path(os.path.realpath(file))
    partial = _beside(file, "partial")
    pending = _pending.get()
    later = False
    try:
        yield partial
        if not partial.exists():
            return
        _take_after(file, partial)
        if pending is not None:
            later = True
            pending.append(_Pending(partial, file))
        else:
            os.replace(partial, file)
            _written.append(file)
    finally:
        if not later:
            partial.unlink(missing_ok=True)


def _take_after(file: Path, partial: Path) -> None:
    """Give a new file the mode and the owner of the one that it replaces, as far as the user may."""
    with suppress(OSError):
        old = file.stat()
        if (old.st_uid, old.st_gid) != (partial.stat().st_uid, partial.stat().st_gid):
            os.chown(partial, old.st_uid, old.st_gid)
        os.chmod(partial, old.st_mode & 0o7777)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Fail before hours of work, not after, when an output can't be written.

    Raises:
        UsageError: the path is a directory, or its folder does not exist or can't be written to.
    """
    file = Path(path)
    try:
        if file.is_dir():
            raise UsageError(f"{file}: is a directory; give the path of a file to write")
        if not file.parent.is_dir():
            raise UsageError(f"{file}: can't be written, {file.parent} is not a directory; make it first")
        with suppress(FileNotFoundError):
            os.lstat(file)  # a name that is too long says so here
        if not file.exists() or file.is_file():
            draft = _beside(Path(os.path.realpath(file)), "partial")
            draft.touch()
            draft.unlink()
    except OSError as error:
        raise UsageError(f"{file}: can't be written ({error.strerror}); give a path in a writable folder") from error


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file at once.

    Raises:
        UcpeError: the file can't be written.
    """
    try:
        with partial_file(path) as partial:
            partial.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UcpeError(f"{os.fspath(path)}: can't be written ({error.strerror})") from error
