"""Layers as linear maps: the rows that a convolution or product reads, and its weights as a matrix.

For a layer of C_in input channels, C_out output channels and a window of K taps (1 for a matrix product) every output
position is ``W f + b`` with the features ``f`` of shape (C_in * K,), channel by channel, and ``W`` of shape
(C_out, C_in * K). A convolution in g groups is g such maps side by side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ucpe_onnx.analysis.graph import GraphView, Node
from ucpe_onnx.analysis.layer_ops import LAYER_OPS, LayerOp

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Layer:
    """A node with a constant float32 weight of its own.

    Attributes:
        node: the node.
        data: name of the tensor that it reads.
        out: name of the tensor that it makes.
        weight: name of the initializer, which nothing else reads.
        channels: C_in, of all groups.
        made: C_out, of all groups.
        groups: groups of the convolution.
        taps: K, taps of the window; 1 for a product.
        window: kernel, strides, pads and dilations of a convolution, pads as they are whatever ``auto_pad`` says; empty
            for a product.
        transposed: the weight is stored with output channels first.
    """

    node: Node
    data: str
    out: str
    weight: str
    channels: int
    made: int
    groups: int = 1
    taps: int = 1
    window: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    transposed: bool = True

    @property
    def name(self) -> str:
        """The node's name."""
        return self.node.name

    @property
    def bias(self) -> str:
        """Name of the bias that is an input of the node; "" if it has none."""
        return self._op.bias_name(self.node.inputs)

    @property
    def takes_bias(self) -> bool:
        """Whether a bias may be an input of the node; that of others is added behind them."""
        return self._op.bias is not None

    @property
    def _op(self) -> LayerOp:
        return LAYER_OPS[self.node.op_type]

    @property
    def features(self) -> int:
        """Features of each group."""
        return self.channels // self.groups * self.taps

    def matrices(self, weight: Array) -> Array:
        """The weight as a matrix for each group, shape (groups, C_out of a group, features)."""
        if not self.transposed:
            weight = weight.T
        return weight.reshape(self.groups, self.made // self.groups, self.features)

    def stored(self, matrices: Array, like: Array) -> Array:
        """The inverse of :meth:`matrices`: in the weight's shape and type."""
        shaped = matrices if self.transposed else matrices.reshape(self.made, self.features).T
        return np.ascontiguousarray(shaped.reshape(like.shape), dtype=like.dtype)

    def rows(self, value: Array, positions: Array | None = None, keep: Array | None = None) -> Array:
        """What the layer reads at output positions.

        Args:
            value: the data tensor, (N, C_in, spatial...) or, of a product, (..., C_in); its only axis is one row.
            positions: which output positions, as :meth:`outputs` counts them; None for all.
            keep: which channels, if the layer has one group; None for all.

        Returns:
            Shape (groups, N, positions, features), of the channels asked for.
        """
        if not self.window:
            flat = _flat(value)
            flat = flat if positions is None else flat[:, positions]
            return (flat if keep is None else flat[..., keep])[None]
        if keep is not None:
            value = value[:, keep]
        found = _windows(value, self.window, positions)
        return np.moveaxis(found.reshape(*found.shape[:2], self.groups, -1), 2, 0)

    def outputs(self, value: Array, positions: Array | None = None) -> Array:
        """An output tensor as (groups, N, output positions, C_out of a group)."""
        flat = np.moveaxis(value.reshape(*value.shape[:2], -1), 1, -1) if self.window else _flat(value)
        flat = flat if positions is None else flat[:, positions]
        return np.moveaxis(flat.reshape(*flat.shape[:2], self.groups, -1), 2, 0)

    def positions(self, shape: tuple[int, ...]) -> int:
        """Output positions of each sample, for data of a shape."""
        if not self.window:
            return math.prod(shape[1:-1])
        kernel, strides, pads, dilations = (self.window[n] for n in ("kernel", "strides", "pads", "dilations"))
        ends, rank = pads[len(kernel) :], len(kernel)
        return math.prod(
            (shape[2 + i] + pads[i] + ends[i] - (kernel[i] - 1) * dilations[i] - 1) // strides[i] + 1
            for i in range(rank)
        )


def find_layers(graph: GraphView) -> dict[str, Layer]:
    """The layers of a model whose weights can be changed one by one, by name in graph order."""
    found = (_layer(graph, node) for node in graph.nodes)
    return {layer.name: layer for layer in found if isinstance(layer, Layer)}


def why_no_layer(graph: GraphView, node: Node) -> str:
    """Why a consumer is not among the layers; empty if it is."""
    found = _layer(graph, node)
    return "" if isinstance(found, Layer) else found


def own_initializer(graph: GraphView, tensor: str) -> bool:
    """Whether a tensor is a float32 initializer that one node alone reads, and that no caller may override."""
    return (
        any(stored.name == tensor for stored in graph.model.graph.initializer)
        and tensor not in graph.constants.overridable
        and len(graph.readers[tensor]) == 1
        and tensor not in graph.captured
        and tensor not in graph.outputs
        and (array := graph.value(tensor)) is not None
        and array.dtype == np.float32
    )


def _layer(graph: GraphView, node: Node) -> Layer | str:
    """The layer, or why it is none."""
    op = LAYER_OPS.get(node.op_type)
    if op is None or not op.linear or op.transposed or len(node.inputs) < 2:
        return f"{node.op_type} is not refitted, only Conv, Gemm and MatMul are"
    if node.name in graph.unfolding.inside:
        return "it stands in the body of an If, Loop or Scan"
    data, weight = node.inputs[op.data], node.inputs[op.weight]
    if data in graph.constants:
        return "its weight stands on the left"
    if not own_initializer(graph, weight):
        return _why_not_own(graph, weight)
    shape = graph.constants.shape(weight) or ()
    if op.convolution:
        return _convolution(graph, node, data, weight, shape)
    return _product(node, data, weight, shape)


def _product(node: Node, data: str, weight: str, shape: tuple[int, ...]) -> Layer | str:
    if len(shape) != 2:
        return f"its weight has {len(shape)} axes"
    attributes = node.attributes
    if attributes.get("transA", 0) or attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0:
        return "it transposes its data, or scales its product or bias"
    reads, makes = LAYER_OPS[node.op_type].weight_axes(attributes)
    return Layer(node, data, node.outputs[0], weight, shape[reads], shape[makes], transposed=makes == 0)


def _why_not_own(graph: GraphView, weight: str) -> str:
    value = graph.value(weight)
    if value is None:
        maker = graph.makers.get(weight)
        quantised = maker is not None and maker.op_type == "DequantizeLinear"
        return "its weight is quantised" if quantised else "its weight is computed at run time"
    if value.dtype != np.float32:
        return f"its weight is {value.dtype}, only float32 is refitted"
    if weight in graph.constants.overridable:
        return "its weight is an input of the model, which callers may override"
    if len(graph.readers[weight]) > 1 or weight in graph.captured or weight in graph.outputs:
        return "its weight is shared"
    return "its weight is computed from constants"


def _convolution(graph: GraphView, node: Node, data: str, weight: str, shape: tuple[int, ...]) -> Layer | str:
    attributes, rank = node.attributes, len(shape) - 2
    if rank < 1:
        return f"its weight has {len(shape)} axes"
    groups = int(attributes.get("group", 1))
    window = {
        "kernel": tuple(shape[2:]),
        "strides": tuple(attributes.get("strides", [1] * rank)),
        "pads": tuple(attributes.get("pads", [0] * 2 * rank)),
        "dilations": tuple(attributes.get("dilations", [1] * rank)),
    }
    padding = attributes.get("auto_pad", b"NOTSET")
    if padding in (b"SAME_UPPER", b"SAME_LOWER"):
        sizes = graph.shape(data)
        if sizes is None or not all(isinstance(size, int) for size in sizes[2:]):
            return "its auto_pad depends on sizes that are not fixed"
        window["pads"] = _same_pads([int(size or 0) for size in sizes[2:]], window, upper=padding == b"SAME_UPPER")
    elif padding == b"VALID":
        window["pads"] = (0,) * 2 * rank
    if min(window["pads"]) < 0:
        return "its pads are negative"
    return Layer(
        node,
        data,
        node.outputs[0],
        weight,
        shape[1] * groups,
        shape[0],
        groups,
        math.prod(shape[2:]),
        window,
    )


def _same_pads(sizes: list[int], window: Mapping[str, tuple[int, ...]], *, upper: bool) -> tuple[int, ...]:
    """Pads with which there are ``ceil(size / stride)`` output positions; an odd one is at the end if ``upper``."""
    each = zip(sizes, window["kernel"], window["strides"], window["dilations"], strict=True)
    totals = [max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0) for n, k, s, d in each]
    less, more = [total // 2 for total in totals], [-(-total // 2) for total in totals]
    return (*less, *more) if upper else (*more, *less)


def _flat(value: Array) -> Array:
    """Any number of axes as (N, positions, channels)."""
    value = value[None] if value.ndim == 1 else value
    return value.reshape(value.shape[0], math.prod(value.shape[1:-1]), value.shape[-1])


def _windows(value: Array, window: Mapping[str, tuple[int, ...]], positions: Array | None) -> Array:
    """The windows of a convolution (im2col): (N, C, spatial...) to (N, output positions, C * K)."""
    kernel, strides, pads, dilations = (window[name] for name in ("kernel", "strides", "pads", "dilations"))
    rank = len(kernel)
    if any(pads):
        value = np.pad(value, ((0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)))
    reach = tuple((size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True))
    views = np.lib.stride_tricks.sliding_window_view(value, reach, axis=tuple(range(2, 2 + rank)))
    at = (slice(None),) * 2 + tuple(slice(None, None, step) for step in (*strides, *dilations))
    moved = np.moveaxis(views[at], 1, 1 + rank)  # (N, out..., C, kernel...)
    if positions is not None:
        places: tuple[Any, ...] = (slice(None), *np.unravel_index(positions, moved.shape[1 : 1 + rank]))
        moved = moved[places]
    positions_each = moved.shape[1] if positions is not None else math.prod(moved.shape[1 : 1 + rank])
    return moved.reshape(value.shape[0], positions_each, value.shape[1] * math.prod(kernel))
