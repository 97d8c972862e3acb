"""Temporary folders of ours, which do not outlive their process for long.

A folder is removed when its block ends. A process that was killed leaves its folders behind; whoever makes the next one
sweeps them. A folder is in use as long as somebody holds a lock on it, which the system lets go of with the process: so
processes of other containers that share the place are safe, whatever their numbers are.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType

try:
    import fcntl
except ImportError:  # Windows: nothing is swept
    fcntl = None  # type: ignore[assignment]

PREFIX = "ucpe-"
_LOCK = ".lock"


class TemporaryFolder:
    """A temporary folder as a block, or until :meth:`cleanup`.

    Attributes:
        name: its path.
    """

    def __init__(self) -> None:
        sweep(Path(tempfile.gettempdir()))
        self._folder = tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True)
        self.name = self._folder.name
        self._lock = _locked(Path(self.name))

    def __enter__(self) -> str:
        return self.name

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cleanup()

    def cleanup(self) -> None:
        """Remove the folder. Windows keeps files that are mapped: these stay."""
        self._folder.cleanup()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def sweep(place: Path) -> None:
    """Remove folders that processes which are no more have left in a place."""
    if fcntl is None:
        return
    for folder in place.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while its process lives
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def _locked(folder: Path) -> int | None:
    """A lock on a folder for as long as this process lives; None where there are no locks."""
    if fcntl is None:
        return None
    with contextlib.suppress(OSError):
        # The file is locked before it has its name, so that nobody finds it unlocked.
        draft = folder / f"{_LOCK}-new"
        lock = os.open(draft, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.rename(draft, folder / _LOCK)
        return lock
    return None
