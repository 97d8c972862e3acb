"""Models with bodies as text: what onnx's parser reads, with random weights."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper, parser


def parsed(
    inputs: str, outputs: str, nodes: str, *, ir_version: int = 8, **weights: tuple[int, ...] | np.ndarray
) -> onnx.ModelProto:
    """A model from its inputs, outputs and nodes in onnx's text form.

    Args:
        inputs: as ``float[1,3] x``.
        outputs: likewise.
        nodes: one after the other, with names as ``[name] y = Relu(x)``.
        ir_version: the IR version.
        weights: initializers: their values, or shapes for random ones.
    """
    random = np.random.default_rng(0)
    text = f'<ir_version: {ir_version}, opset_import: ["" : 17]> g ({inputs}) => ({outputs}) {{ {nodes} }}'
    model = parser.parse_model(text)
    for name, given in weights.items():
        value = given if isinstance(given, np.ndarray) else random.standard_normal(given).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    return model
