"""How the tests of bad input run the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Files = dict[str, bytes]
Fails = Callable[..., str]


def snapshot(folder: Path) -> Files:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in sorted(folder.rglob("*"))}


def refused(fails: Fails, *arguments: object, **options: object) -> str:
    """The error of the main job on the good model."""
    return fails("in.onnx", "out.onnx", "--bench-seconds", 0, *arguments, **options)
