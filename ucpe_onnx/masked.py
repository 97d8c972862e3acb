"""The masked model: the reference that every emitted model must equal.

This module edits initializers and nothing else, and shares no code with the analysis' rules or the rewriter: a mistake
there can't hide here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from ucpe_onnx.analysis.constants import Constants
from ucpe_onnx.masks import Mask, check_masks
from ucpe_onnx.naming import fresh_name, node_names, tensor_names


def masked_model(model: onnx.ModelProto, masks: Mapping[str, Mask]) -> onnx.ModelProto:
    """Set to zero, for every consumer, the slices of its weight that belong to dropped input channels.

    Args:
        model: the model; not changed.
        masks: for each consumer, by node name, a boolean array of shape (C_in,), True = keep. Consumers that are not
            named keep everything.

    Returns:
        A copy of the model with edited initializers. A weight that several nodes read, or that is computed from
        constants, gets an initializer of its own.

    Raises:
        MaskError: a name is no consumer of the model, or a mask has a wrong length or keeps nothing.
    """
    names = node_names(model.graph.node)
    nodes = {name: node for name, node in zip(names, model.graph.node, strict=True) if name in masks}
    constants = Constants(model)
    weights = {name: weight for name, node in nodes.items() if (weight := _weight(node, constants)) is not None}
    channels = {name: _channels(nodes[name], weight) for name, weight in weights.items()}
    masks = check_masks(masks, {name: count for name, count in channels.items() if count})

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    stored = {tensor.name: tensor for tensor in copy.graph.initializer}
    readers = Counter(name for node in model.graph.node for name in node.input)
    readers.update(_read_elsewhere(model.graph))
    taken = tensor_names(model.graph)
    position = {name: index for index, name in enumerate(names)}
    for name, mask in masks.items():
        if mask.all():
            continue
        node = copy.graph.node[position[name]]
        index = weights[name].input
        edited = np.array(weights[name].value)
        _zero(node, index, edited, mask)
        tensor = stored.get(node.input[index])
        if tensor is not None and readers[tensor.name] == 1:
            tensor.CopyFrom(numpy_helper.from_array(edited, tensor.name))
        else:
            node.input[index] = fresh_name(f"{node.input[index]}_masked", taken)
            copy.graph.initializer.append(numpy_helper.from_array(edited, node.input[index]))
    return copy


class _Weight(NamedTuple):
    input: int
    value: npt.NDArray[np.generic]


def _weight(node: onnx.NodeProto, constants: Constants) -> _Weight | None:
    """The constant weight of a consumer; MatMul's may be on the left, all others have theirs second."""
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul") or node.domain not in ("", "ai.onnx"):
        return None
    index = 0 if node.op_type == "MatMul" and node.input[0] in constants else 1
    value = constants.value(node.input[index])
    return None if value is None else _Weight(index, value)


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((a.i for a in node.attribute if a.name == name), default)


def _channels(node: onnx.NodeProto, weight: _Weight) -> int:
    """C_in by the operator's definition of its weight; 0 for a depthwise one, which carries channels along."""
    groups = _attribute(node, "group", 1)
    count = weight.value.shape[_channel_axis(node, weight.input)]
    if node.op_type == "Conv":
        count *= groups
    return 0 if node.op_type in ("Conv", "ConvTranspose") and 1 < groups == count else count


def _channel_axis(node: onnx.NodeProto, weight_input: int) -> int:
    if node.op_type == "Gemm":
        return 1 if _attribute(node, "transB", 0) else 0
    if node.op_type == "MatMul":  # X @ W reads the rows of W, W @ X its columns
        return 0 if weight_input == 1 else 1
    return 0 if node.op_type == "ConvTranspose" else 1


def _zero(node: onnx.NodeProto, index: int, weight: npt.NDArray[np.generic], mask: Mask) -> None:
    """Set the slices of dropped channels to zero, in place."""
    dropped = np.flatnonzero(~mask)
    groups = _attribute(node, "group", 1)
    if node.op_type != "Conv" or groups == 1:
        np.moveaxis(weight, _channel_axis(node, index), 0)[dropped] = 0
        return
    rows, columns = weight.shape[0] // groups, weight.shape[1]
    for channel in dropped:
        group = channel // columns
        weight[group * rows : (group + 1) * rows, channel % columns] = 0


def _read_elsewhere(graph: onnx.GraphProto) -> list[str]:
    """Tensors that graph outputs or subgraphs refer to."""
    names = [value.name for value in graph.output]
    for node in graph.node:
        for attribute in node.attribute:
            bodies = [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs
            for body in bodies:
                names += [name for inner in body.node for name in inner.input] + _read_elsewhere(body)
    return names
