"""The random graphs hold every operator that the analysis has a rule for."""

from __future__ import annotations

import numpy as np

from tests.builders import Net
from tests.properties.graphs import THEMES, Grower
from tests.properties.layers import _OPSETS
from ucpe_onnx.analysis.rules import RULES

NOT_DRAWN = {
    "Affine": "onnx no longer knows it",
    "Crop": "onnx no longer knows it",
    "ImageScaler": "onnx no longer knows it",
    **dict.fromkeys((op for op in RULES if op.startswith("ucpe.bodies")), "they stand for If, Loop and Scan"),
    "ParametricSoftplus": "onnx no longer knows it",
    "Scale": "onnx no longer knows it",
    "ScaledTanh": "onnx no longer knows it",
    "SimplifiedLayerNormalization": "only onnxruntime knows it, though it stands in the domain of onnx",
    "com.microsoft::ScaledSiLU": "onnxruntime knows it since 1.32",
}
"""Operators that no step draws, and why; they have tests of their own."""


def drawn_by(step: str, opset: int, seed: int) -> set[str]:
    """The operators that a step appends to a small graph that has tensors of several ranks."""
    random = np.random.default_rng(seed)
    net = Net(opset=opset, ir_version=10)
    grower = Grower(lambda below: int(random.integers(below)), net)
    x = net.input("input", (1, 8, 4, 4))
    tensors = [x, net.op("Flatten", x), net.reshape(x, 1, 8, 16)]
    # the one that fits and comes last is drawn most: several of four axes, and one with room for every operator
    grower.keep(*tensors, net.conv(x, 1), net.conv(x, 12), net.op("Relu", x))
    before = len(net.nodes)
    getattr(grower, step)()
    return {f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in net.nodes[before:]}


def test_every_operator_with_a_rule_is_drawn() -> None:
    drawn: set[str] = set()
    for step in dict.fromkeys(step for theme in THEMES for step in theme):
        of_step = set[str]()
        for seed in range(500 if step == "any_unary" else 45):  # that one has the most to draw from
            of_step |= drawn_by(step, _OPSETS[seed % len(_OPSETS)], seed)
        assert of_step, f"{step} appends nothing"
        drawn |= of_step
    assert RULES.keys() - drawn == NOT_DRAWN.keys()
