"""Output shapes that depend on partly known values."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import TypeAlias

import numpy as np

from ucpe_onnx.analysis.layer_ops import LAYER_OPS
from ucpe_onnx.analysis.shapes.partial import (
    NO_END,
    Dim,
    Facts,
    Item,
    Shape,
    combine,
    product,
    slice_options,
    sliced,
    split_sizes,
)

INT64 = np.dtype(np.int64)
_LONGEST = 2**31 - 1
"""Slice ends from here on mean the end of the axis in exported graphs; no axis is that long."""


def output_shapes(facts: Facts) -> Sequence[Shape | None]:
    """What a node's inputs tell about its outputs' shapes.

    Returns:
        One entry for each output that something is known of; a dimension that may differ between runs is None.
    """
    return by_rule(_RULES, facts)


def by_rule(rules: Mapping[str, Rule], facts: Facts) -> Sequence[Shape | None]:
    """What the rule for an operator says, in a list; nothing without a rule."""
    rule = rules.get(facts.op)
    if rule is None:
        return ()
    made = rule(facts)
    return made if isinstance(made, list) else [made]


def broadcast(*shapes: Shape | None) -> Shape | None:
    """The shape of an element-wise result: a length above 1 decides, the only length that runs with it."""
    if any(shape is None for shape in shapes):
        return None
    reversed_dims = zip_longest(*(reversed(shape) for shape in shapes if shape is not None), fillvalue=1)
    return tuple(_common(dims) for dims in reversed_dims)[::-1]


def _common(dims: Sequence[Dim]) -> Dim:
    lengths = {dim for dim in dims if dim != 1}
    numbers = [dim for dim in lengths if isinstance(dim, int)]
    if len(numbers) == 1:
        return numbers[0]
    if not lengths:
        return 1
    return lengths.pop() if len(lengths) == 1 else None


def _agreed(dims: Sequence[Dim]) -> Dim:
    """One of several lengths that have to be equal: a number before a symbol before None."""
    known = [dim for dim in dims if dim is not None]
    return min(known, key=lambda dim: isinstance(dim, str), default=None)


def dimension(item: Item) -> Dim:
    """An element of a shape as a dimension; what stands for "to be found out" is unknown."""
    if isinstance(item, str):
        return item
    return int(item) if item is not None and item >= 0 else None


def _from_items(facts: Facts, index: int, name: str) -> list[Item] | None:
    """Elements of a shape input; all unknown if only their number is known."""
    if (items := facts.option(name, index)) is not None:
        return list(items)
    length = facts.shape(index)
    return [None] * length[0] if length is not None and len(length) == 1 and isinstance(length[0], int) else None


def _unknown_like(shape: Shape | None) -> Shape | None:
    return None if shape is None else (None,) * len(shape)


def elementwise(facts: Facts) -> Shape | None:
    """The shape of operands that are broadcast against each other."""
    return facts.shape(0) if facts.opset < 7 else broadcast(*facts.shapes)


def like_first(facts: Facts) -> Shape | None:
    """The first input's shape."""
    return facts.shape(0)


def _like_first_all(facts: Facts) -> list[Shape | None]:
    return [facts.shape(0)] * facts.outputs


def _reshape(facts: Facts) -> Shape | None:
    source, target = facts.shape(0), _from_items(facts, 1, "shape")
    if target is None:
        return None
    copies = not facts.attributes.get("allowzero", 0)
    dims: list[Dim] = [dimension(item) for item in target]
    # Lengths are compared as tokens: a symbol, or the axis that an unknown length is copied from.
    tokens: list[Item | tuple[int]] = list(dims)
    given = None if source is None else [(i,) if dim is None else dim for i, dim in enumerate(source)]
    for i, item in enumerate(target):
        if item == 0 and copies:
            dims[i] = source[i] if source is not None and i < len(source) else None
            tokens[i] = given[i] if given is not None and i < len(given) else None
    free = [i for i, token in enumerate(tokens) if token is None]
    if len(free) == 1 and given is not None:
        others = [token for token in tokens if token is not None]
        dims[free[0]] = _left_over(given, others)
    return tuple(dims)


def _left_over(given: Sequence[Item | tuple[int]], taken: Sequence[Item | tuple[int]]) -> Dim:
    """The length that an unknown dimension has when all the elements are to find a place."""
    left = Counter(x for x in given if not isinstance(x, int))
    right = Counter(x for x in taken if not isinstance(x, int))
    size = math.prod(x for x in given if isinstance(x, int))
    divisor = math.prod(x for x in taken if isinstance(x, int))
    if right - left or divisor == 0 or size % divisor:
        return None
    rest = list((left - right).elements())
    if not rest:
        return size // divisor
    return rest[0] if len(rest) == 1 and isinstance(rest[0], str) and size == divisor else None


def _flatten(facts: Facts) -> Shape | None:
    if (shape := facts.shape(0)) is None:
        return (None, None)
    axis = facts.attributes.get("axis", 1)
    axis += len(shape) if axis < 0 else 0
    return dimension(product(shape[:axis])), dimension(product(shape[axis:]))


def _expand(facts: Facts) -> Shape | None:
    target = _from_items(facts, 1, "shape")
    return None if target is None else broadcast(facts.shape(0), tuple(dimension(item) for item in target))


def _tile(facts: Facts) -> Shape | None:
    shape, repeats = facts.shape(0), _from_items(facts, 1, "repeats")
    if shape is None or repeats is None or len(repeats) != len(shape):
        return _unknown_like(shape)
    return tuple(dimension(combine("Mul", INT64, dim, repeat)) for dim, repeat in zip(shape, repeats, strict=True))


def _pad(facts: Facts) -> Shape | None:
    pads = facts.option("pads", 1, facts.attributes.get("paddings"))
    if (shape := facts.shape(0)) is None:
        return (None,) * (len(pads) // 2) if pads is not None and not facts.has(3) else None
    axes = facts.whole("axes", 3, range(len(shape)))
    if pads is None or axes is None or len(pads) != 2 * len(axes):
        return _unknown_like(shape)
    dims = list(shape)
    for i, axis in enumerate(axes):
        added = combine("Add", INT64, pads[i], pads[len(axes) + i])
        dims[axis] = dimension(combine("Add", INT64, dims[axis], added))
    return tuple(dims)


def _slice(facts: Facts) -> Shape | None:
    shape = facts.shape(0)
    cuts = None if shape is None else slice_options(facts, len(shape))
    if shape is None or cuts is None:
        return _unknown_like(shape)
    return tuple(_cut(dim, *cuts[axis]) if axis in cuts else dim for axis, dim in enumerate(shape))


def _cut(dim: Dim, start: Item, end: Item, step: Item) -> Dim:
    if isinstance(dim, int) and isinstance(start, int) and isinstance(end, int) and isinstance(step, int):
        return len(sliced(start, end, step, dim))
    forward = step == 1 and start == 0 and (end == dim if isinstance(end, str) else end is not None and end >= _LONGEST)
    backward = step == -1 and start == -1 and isinstance(end, int) and (end in NO_END or end <= -_LONGEST)
    return dim if forward or backward else None


def _split(facts: Facts) -> list[Shape | None]:
    if (shape := facts.shape(0)) is None:
        return []
    axis = facts.attributes.get("axis", 0) % len(shape)
    return [(*shape[:axis], dimension(size), *shape[axis + 1 :]) for size in split_sizes(facts, shape[axis])]


def concat(facts: Facts) -> Shape | None:
    """Lengths along the axis add up; the others agree."""
    known = [shape for shape in facts.shapes if shape is not None]
    if not known or any(len(shape) != len(known[0]) for shape in known):
        return None
    axis = facts.attributes.get("axis", 1) % len(known[0])
    dims = [_agreed(parts) for parts in zip(*known, strict=True)]
    total: Item = 0
    for part in known:
        total = combine("Add", INT64, total, part[axis])
    dims[axis] = dimension(total) if len(known) == len(facts.shapes) else None
    return tuple(dims)


def _constant_of_shape(facts: Facts) -> Shape | None:
    items = _from_items(facts, 0, "shape")
    return None if items is None else tuple(dimension(item) for item in items)


def _range(facts: Facts) -> Shape | None:
    start, limit, delta = (None if value is None else value.flat[0] for value in facts.values)
    if isinstance(start, int) and isinstance(limit, int) and isinstance(delta, int) and delta:
        return (len(range(start, limit, delta)),)
    return (limit if isinstance(limit, str) and start == 0 and delta == 1 else None,)


def _resize(facts: Facts) -> Shape | None:
    if (shape := facts.shape(0)) is None:
        return None
    axes = [axis % len(shape) for axis in facts.attributes.get("axes", range(len(shape)))]
    old = facts.op == "Upsample" or facts.opset < 11  # inputs: X, scales; before opset 9 scales are an attribute
    sizes = None if old else facts.value(3)
    scales = facts.option("scales", 1 if old else 2, [])
    by_crop = facts.attributes.get("coordinate_transformation_mode") == b"tf_crop_and_resize"
    fitted = facts.attributes.get("keep_aspect_ratio_policy", b"stretch") != b"stretch"
    dims = list(shape)
    for i, axis in enumerate(axes):
        dims[axis] = None
        if sizes is not None and not fitted and len(sizes.flat) == len(axes):
            dims[axis] = dimension(sizes.flat[i])
        elif scales and len(scales) == len(axes) and not by_crop and not facts.has(3):
            dims[axis] = _scaled(shape[axis], scales[i])
    return tuple(dims)


def _scaled(dim: Dim, scale: Item) -> Dim:
    if scale == 1:
        return dim
    if not isinstance(dim, int) or scale is None or isinstance(scale, str):
        return None
    return int(np.float32(dim) * np.float32(scale))  # onnxruntime truncates the float32 product


def _window(facts: Facts, shape: Shape | None, kernel: Sequence[Dim]) -> list[Dim]:
    """Lengths of sliding over the spatial axes where they stay what they are; the others are onnx's to compute."""
    count = len(kernel)
    dims: Sequence[Dim] = shape[2:] if shape is not None and len(shape) == count + 2 else [None] * count
    strides = facts.attributes.get("strides") or [1] * count
    dilations = facts.attributes.get("dilations") or [1] * count
    pads = facts.attributes.get("pads") or [0] * (2 * count)
    auto = facts.attributes.get("auto_pad", b"NOTSET")
    lengths: list[Dim] = []
    for i, (dim, size) in enumerate(zip(dims, kernel, strict=True)):
        padding = 0 if auto == b"VALID" else pads[i] + pads[count + i]
        keeps = isinstance(size, int) and (auto.startswith(b"SAME") or padding == dilations[i] * (size - 1))
        lengths.append(dim if keeps and strides[i] == 1 else None)
    return lengths


def conv(facts: Facts) -> Shape | None:
    """What a convolution makes: (batch, channels made, lengths)."""
    shape, weight = facts.shape(0), facts.shape(1)
    if weight is None:
        return _unknown_like(shape)
    batch = shape[0] if shape is not None else None
    return (batch, weight[0], *_window(facts, shape, weight[2:]))


def _conv_transpose(facts: Facts) -> Shape | None:
    shape, weight = facts.shape(0), facts.shape(1)
    if weight is None:
        return _unknown_like(shape)
    channels = combine("Mul", INT64, weight[1], facts.attributes.get("group", 1))
    return (shape[0] if shape is not None else None, dimension(channels), *[None] * (len(weight) - 2))


def pool(facts: Facts) -> list[Shape | None]:
    """What a pool makes, its indices too."""
    shape, kernel = facts.shape(0), facts.attributes["kernel_shape"]
    first: Shape = (None, None) if shape is None else shape[:2]
    return [(*first, *_window(facts, shape, kernel))] * facts.outputs


def gemm(facts: Facts) -> Shape | None:
    """Rows of the left matrix, columns of the right one."""
    left, right = (shape if shape is not None else (None, None) for shape in (facts.shape(0), facts.shape(1)))
    rows = left[1 if facts.attributes.get("transA") else 0]
    return rows, right[0 if facts.attributes.get("transB") else 1]


def matmul(facts: Facts) -> Shape | None:
    """Leading axes are broadcast; rows of the left matrices, columns of the right ones."""
    left, right = facts.shape(0), facts.shape(1)
    if left is None or right is None or facts.attributes.get("transBatchA") or facts.attributes.get("transBatchB"):
        return None
    left = (*left[:-2], left[-1], left[-2]) if facts.attributes.get("transA") and len(left) > 1 else left
    right = (*right[:-2], right[-1], right[-2]) if facts.attributes.get("transB") and len(right) > 1 else right
    batch = broadcast(left[:-2], right[:-2])
    return (*(batch or ()), *left[-2:-1], *(right[-1:] if len(right) > 1 else ()))


def of_integers(rule: Callable[[Facts], Shape | None], op_type: str) -> Callable[[Facts], Shape | None]:
    """The rule of a layer in real numbers for its form in integers."""
    op = LAYER_OPS[op_type]
    return lambda facts: rule(replace(facts, shapes=(facts.shape(op.data), facts.shape(op.weight))))


def _crop(facts: Facts) -> Shape | None:
    """ONNX's old experimental Crop, of NCHW images; onnxruntime still runs it."""
    if (shape := facts.shape(0)) is None or len(shape) != 4:
        return (None,) * 4
    if "scale" in facts.attributes:
        return (*shape[:2], *facts.attributes["scale"])
    left, top, right, bottom = facts.attributes["border"]
    borders = (0, 0, -top - bottom, -left - right)
    return tuple(dimension(combine("Add", INT64, dim, less)) for dim, less in zip(shape, borders, strict=True))


Rule: TypeAlias = "Callable[[Facts], Shape | None] | Callable[[Facts], list[Shape | None]]"

_ARITHMETIC = ("Add", "Sub", "Mul", "Div", "Pow", "Mod", "Min", "Max", "Sum", "Mean", "BitShift")
_LOGIC = ("And", "Or", "Xor", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Where")

_KEEP_SHAPE = (
    *(
        "Celu",
        "Clip",
        "Elu",
        "Gelu",
        "HardSwish",
        "LeakyRelu",
        "Mish",
        "Relu",
        "Selu",
        "Shrink",
        "Softplus",
        "Softsign",
    ),
    *("Swish", "ThresholdedRelu", "Softmax", "LogSoftmax", "GroupNormalization", "LayerNormalization"),
    *("MeanVarianceNormalization", "RMSNormalization", "SimplifiedLayerNormalization"),
)
"""Operators that newer opsets define by functions, through which onnx's inference may not see."""

_RULES: dict[str, Rule] = {
    **dict.fromkeys(_KEEP_SHAPE, like_first),
    **dict.fromkeys((*_ARITHMETIC, *_LOGIC), elementwise),
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool"), pool),
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    **dict.fromkeys(("Conv", "ConvInteger"), conv),
    **dict.fromkeys(
        ("Affine", "ImageScaler", "ParametricSoftplus", "Scale", "ScaledTanh"), like_first
    ),  # once experimental
    "Concat": concat,
    "ConstantOfShape": _constant_of_shape,
    "ConvTranspose": _conv_transpose,
    "Crop": _crop,
    "Dropout": _like_first_all,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gemm": gemm,
    "MatMul": matmul,
    "Pad": _pad,
    "QLinearConv": of_integers(conv, "QLinearConv"),
    "Range": _range,
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _split,
    "Tile": _tile,
}
