"""CONTRIBUTING.md shows code as it is: a block below the name of a file stands in that file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")

QUOTED = re.findall(r"^ *`([\w/]+\.py)`:\n\n( *)```python\n(.*?)^\2```$", TEXT, flags=re.DOTALL | re.MULTILINE)
"""File, indentation of the block in the text, and code."""


def pieces(code: str, indent: str) -> list[str]:
    """What stands together in the file; ``# ...`` leaves something out."""
    lines = [line.removeprefix(indent) for line in code.splitlines()]
    return [piece.strip("\n") for piece in "\n".join(lines).split("\n# ...\n")]


@pytest.mark.parametrize(("file", "indent", "code"), QUOTED, ids=[f"{i} {file}" for i, (file, *_) in enumerate(QUOTED)])
def test_what_is_quoted_is_what_is_there(file: str, indent: str, code: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    for piece in pieces(code, indent):
        assert f"\n{piece}\n" in f"\n{text}", f"{file} has changed: change CONTRIBUTING.md too\n{piece}"


def test_the_worked_pass_is_a_whole_file() -> None:
    code = next(code for file, _, code in QUOTED if file.endswith("refresh_shapes.py"))
    assert code == (ROOT / "ucpe_onnx/passes/refresh_shapes.py").read_text(encoding="utf-8")


def test_every_recipe_quotes_its_subject() -> None:
    """Otherwise a change of the text's form would leave nothing to compare."""
    assert [file for file, *_ in QUOTED] == [
        *("ucpe_onnx/runtime/session.py", "ucpe_onnx/runtime/target.py", "ucpe_onnx/options/options.py"),
        *("ucpe_onnx/passes/refresh_shapes.py", "ucpe_onnx/passes/emit.py", "tests/passes/test_emission_passes.py"),
    ]
