"""The nine architectures that onnx ships without their weights, with seeded random ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.backend import test as suite

FOLDER = Path(suite.__file__).parent / "data" / "light"
NAMES = tuple(sorted(file.stem.removeprefix("light_") for file in FOLDER.glob("light_*.onnx")))
LARGE = frozenset({"bvlc_alexnet", "vgg19", "zfnet512"})
"""Those with hundreds of megabytes of weights, in their last layers."""


def light_model(name: str, seed: int = 0) -> onnx.ModelProto:
    """An architecture with weights such that values don't vanish, and without its softmax, which would flatten them.

    The files make each weight of its shape by ConstantOfShape, or store it if it is small. Here every float among them
    is an initializer of its own, and a graph input besides, as their IR version wants it.
    """
    model = onnx.load(str(FOLDER / f"light_{name}.onnx"))
    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    roles = _roles(graph)
    random = np.random.default_rng(seed)
    made = [node for node in graph.node if node.op_type == "ConstantOfShape"]
    shapes = {node.output[0]: numpy_helper.to_array(stored[node.input[0]]).tolist() for node in made}
    shapes |= {t.name: list(t.dims) for t in graph.initializer if t.data_type == TensorProto.FLOAT}
    gone = set(shapes) | {node.input[0] for node in made}
    kept = [tensor for tensor in graph.initializer if tensor.name not in gone]
    inputs = [value for value in graph.input if value.name not in gone]
    weights = [
        numpy_helper.from_array(_weight(shape, roles.get(tensor, ""), random), tensor)
        for tensor, shape in shapes.items()
    ]
    nodes = [node for node in graph.node if node.op_type != "ConstantOfShape"]
    outputs = list(graph.output)
    if nodes[-1].op_type == "Softmax":
        outputs[0].name = nodes.pop().input[0]
    declared = [helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in weights]
    fresh = helper.make_graph(nodes, graph.name or name, [*inputs, *declared], outputs, [*kept, *weights])
    return helper.make_model(fresh, opset_imports=model.opset_import, ir_version=model.ir_version)


def _roles(graph: onnx.GraphProto) -> dict[str, str]:
    """What tensors are to the nodes that read them: "scale", "variance", or nothing special."""
    roles = {}
    aliases = {n.output[0]: n.input[0] for n in graph.node if n.op_type in ("Unsqueeze", "Reshape")}
    for node in graph.node:
        if node.op_type == "BatchNormalization":
            roles[node.input[1]], roles[node.input[4]] = "scale", "variance"
        elif node.op_type == "Mul":
            roles.update({aliases.get(name, name): "scale" for name in node.input})
    return roles


def _weight(shape: list[int], role: str, random: np.random.Generator) -> np.ndarray:
    if role:
        return random.uniform(0.5, 1.5, shape).astype(np.float32)
    values = random.standard_normal(shape, dtype=np.float32)
    if len(shape) < 2:
        return values * np.float32(0.1)
    return values * np.float32(np.sqrt(2 / np.prod(shape[1:])))
