"""Other lengths of the axes that a model leaves open."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from tests.runtime.builders import FakeSession
from ucpe_onnx.errors import ModelError
from ucpe_onnx.runtime.other_sizes import feeds_of_other_sizes
from ucpe_onnx.runtime.verify import verify
from ucpe_onnx.samples.inputs import InputSpec

FLOAT, INT = np.dtype(np.float32), np.dtype(np.int64)


def spec(name: str, *shape: int | str | None, dtype: Any = FLOAT) -> InputSpec:
    return InputSpec(name, dtype, shape)


def first(specs: list[InputSpec], **lengths: int) -> dict[str, np.ndarray]:
    return {
        s.name: np.zeros([d if isinstance(d, int) else lengths.get(str(d), 8) for d in s.shape or ()], s.dtype)
        for s in specs
    }


def found(specs: list[InputSpec], takes: Any = lambda feed: True, fixed: Any = None, **lengths: int) -> list[Any]:
    """The shapes that are found for a model that takes what a function says."""

    def running(feed: dict[str, np.ndarray]) -> list[Any]:
        if not takes({name: array.shape for name, array in feed.items()}):
            raise ModelError("no")
        return []

    feeds = feeds_of_other_sizes(specs, first(specs, **lengths), FakeSession(running), 0, fixed)
    return [{name: array.shape for name, array in feed.items()} for feed in feeds]


def test_batch_and_lengths_change_together():
    assert found([spec("x", "n", 4, "time")], n=1, time=8) == [{"x": (2, 4, 4)}, {"x": (2, 4, 15)}]


def test_networks_that_take_only_some_lengths():
    shapes = found([spec("x", None, 3, "h", "w")], lambda s: s["x"][2] % 32 == 0, None, h=64, w=64)
    assert shapes[0] == {"x": (2, 3, 32, 32)} and len(shapes) == 2
    assert found([spec("x", 1, 3, "h", "w")], lambda s: s["x"][2] == 64, h=64, w=64) == []


def test_what_is_past_and_what_is_new_make_the_total():
    specs = [
        spec("ids", "batch", "sequence_length", dtype=INT),
        spec("attention_mask", "batch", "total_sequence_length", dtype=INT),
        spec("past", "batch", 2, "past_sequence_length", 4),
    ]

    def adds_up(shapes: dict[str, tuple[int, ...]]) -> bool:
        return shapes["attention_mask"][1] == shapes["ids"][1] + shapes["past"][2]

    lengths = {"batch": 1, "sequence_length": 4, "past_sequence_length": 4, "total_sequence_length": 8}
    shapes = found(specs, adds_up, **lengths)
    assert shapes[0] == {"ids": (2, 2), "attention_mask": (2, 4), "past": (2, 2, 2, 4)} and len(shapes) == 2


def test_what_the_user_has_fixed_stays():
    specs = [spec("x", "n", "time"), spec("y", "n", "other")]
    shapes = found(specs, fixed={"x": (1, 8)}, n=1)
    assert {each["x"] for each in shapes} == {(1, 8)} and all(each["y"][0] == 1 for each in shapes)
    assert {each["y"][1] for each in shapes} == {4, 15}


@pytest.mark.parametrize("specs", [[spec("x", 1, 3)], [InputSpec("s", None, None)], [InputSpec("x", FLOAT, None)]])
def test_nothing_is_open(specs: list[InputSpec]):
    session = FakeSession(lambda feed: [])
    assert feeds_of_other_sizes(specs, {"x": np.zeros((1, 3), np.float32)}, session, 0) == []


def test_verification_tells_the_sizes():
    feeds = [{"x": np.ones(shape, np.float32)} for shape in ((1, 3), (2, 3), (1, 3))]
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[n, 3] x) => (float[n, 3] y) {y = Relu(x)}'
    )
    result = verify(model, model, feeds)
    assert result.sizes == ({"x": (1, 3)}, {"x": (2, 3)})
    assert result.to_dict()["sizes"] == [{"x": [1, 3]}, {"x": [2, 3]}]
