"""Packages import downwards only: the order in which the line is built, from what knows nothing to the doors."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import ucpe_onnx

ORDER = (
    *("version", "errors", "flags", "solve", "model", "samples", "masks", "lowerings", "analysis", "plan"),
    *("masked", "runtime", "passes", "activations", "selection", "compensation", "planning", "calibration", "budget"),
    *("options", "commands", "run", "report", "pipeline", "train"),
    *("__init__", "cli", "inspect", "bench", "pdp", "__main__"),
)
"""Every module or package of the top level, each of which imports only what stands before it, and itself."""

PACKAGE = Path(ucpe_onnx.__file__).parent


def imports() -> Iterator[tuple[str, str, str]]:
    """Every import within the package: the file, its room, and the room that it imports from."""
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE)
        room = place.parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            named = [node.module] if isinstance(node, ast.ImportFrom) else []
            named += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in named:
                assert name is not None, f"{place}: relative import"
                if name.split(".")[0] == "ucpe_onnx":
                    yield str(place), room, name.split(".")[1] if "." in name else "__init__"


def test_every_room_has_its_place_in_the_order():
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert rooms == set(ORDER)


def test_packages_import_downwards_only():
    upwards = [
        f"{place} imports {other}"
        for place, room, other in imports()
        if other != room and ORDER.index(other) >= ORDER.index(room)
    ]
    assert not upwards
