"""Modules stay short enough to be read at once."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MOST_LINES = 400


@pytest.mark.parametrize("folder", ["ucpe_onnx", "tests", "benchmarks", "models"])
def test_no_module_is_longer_than_400_lines(folder: str) -> None:
    modules = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / folder).rglob("*.py")}
    assert modules, "no modules: is the folder there?"
    assert not {str(path.relative_to(ROOT)): lines for path, lines in modules.items() if lines > MOST_LINES}
