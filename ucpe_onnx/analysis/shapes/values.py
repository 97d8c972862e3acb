"""How values pass through the operators that compute shapes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from itertools import accumulate, pairwise
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from ucpe_onnx.analysis.shapes.partial import (
    EXACT,
    LARGEST,
    Facts,
    Item,
    Partial,
    cast,
    combine,
    is_number,
    product,
    slice_options,
    sliced,
    split_sizes,
)


def propagate(facts: Facts) -> Sequence[Partial | None]:
    """The values of a node's outputs, as far as those of its inputs tell.

    Exact: an element that depends on an unknown one is None, and a symbol stays one only where it is copied.

    Returns:
        One entry for each output that something may be known of.
    """
    rule = _RULES.get(facts.op)
    if rule is None:
        return ()
    made = rule(facts)
    made = made if isinstance(made, list) else [made]
    return [None if value is None or value.items.size > LARGEST else value for value in made]


def follows(op: str) -> bool:
    """Whether values are known to pass through an operator."""
    return op in _RULES


def _map(dtype: np.dtype[Any], function: Callable[..., Item], *operands: Partial) -> Partial:
    arrays = np.broadcast_arrays(*(operand.items for operand in operands))
    items = np.empty(arrays[0].shape, dtype=object)
    with np.errstate(all="ignore"):
        for at in np.ndindex(items.shape):
            items[at] = function(*(array[at] for array in arrays))
    return Partial(items, dtype)


def _all_values(facts: Facts) -> list[Partial] | None:
    values = [value for value in facts.values if value is not None]
    return values if values and len(values) == len(facts.values) else None


def _binary(facts: Facts) -> Partial | None:
    if (operands := _all_values(facts)) is None or (facts.opset < 7 and "broadcast" in facts.attributes):
        return None
    op = "FMod" if facts.op == "Mod" and facts.attributes.get("fmod") else facts.op
    dtype = operands[0].dtype
    truth = op in ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or")
    made = np.dtype(bool) if truth else dtype
    return reduce(lambda a, b: _map(made, lambda x, y: combine(op, dtype, x, y), a, b), operands)


_UNARY: dict[str, Callable[[Any], Any]] = {
    "Floor": math.floor,
    "Ceil": math.ceil,
    "Neg": lambda a: -a,
    "Abs": abs,
    "Not": lambda a: not a,
}


def _unary(facts: Facts) -> Partial | None:
    if (value := facts.value(0)) is None:
        return None
    function = _UNARY[facts.op]
    kind = float if value.dtype.kind == "f" else lambda number: number
    return _map(value.dtype, lambda a: kind(function(a)) if is_number(a) else None, value)


def _where(facts: Facts) -> Partial | None:
    if (operands := _all_values(facts)) is None:
        return None

    def choose(condition: Item, yes: Item, no: Item) -> Item:
        if condition is None:
            return yes if yes == no else None
        return yes if condition else no

    return _map(operands[1].dtype, choose, *operands)


def _cast_to(facts: Facts) -> Partial | None:
    value = facts.value(0)
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(facts.attributes["to"]))
    if value is None or not (dtype.kind in "biu" or dtype in (np.float32, np.float64)):
        return None
    return _map(dtype, lambda item: cast(item, dtype), value)


def _shape_of(facts: Facts) -> Partial | None:
    if (shape := facts.shape(0)) is None:
        return None
    return _vector(shape[facts.attributes.get("start", 0) : facts.attributes.get("end")])


def _size_of(facts: Facts) -> Partial | None:
    shape = facts.shape(0)
    return None if shape is None else _same(_vector([product(shape)]), lambda items: items.reshape(()))


def _vector(items: Sequence[Item], dtype: npt.DTypeLike = np.int64) -> Partial:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return Partial(array, np.dtype(dtype))


def _same(value: Partial, move: Callable[[npt.NDArray[np.object_]], Any]) -> Partial:
    """The same elements elsewhere. A single element that numpy takes out of its array is put back into one."""
    moved = move(value.items)
    if not isinstance(moved, np.ndarray):
        moved, element = np.empty((), dtype=object), moved
        moved[()] = element
    return Partial(moved, value.dtype)


def _moving(*options: tuple[str, int]) -> Callable[[Callable[..., Any]], Callable[[Facts], Partial | None]]:
    """Make a rule of a function from elements, options and facts to elements; unknown options tell nothing."""

    def make(move: Callable[..., Any]) -> Callable[[Facts], Partial | None]:
        def rule(facts: Facts) -> Partial | None:
            value, found = facts.value(0), [facts.whole(*option) for option in options]
            if value is None or None in found:
                return None
            return _same(value, lambda items: move(items, *found, facts))

        return rule

    return make


@_moving()
def _identity(items: Any, facts: Facts) -> Any:
    return items


@_moving()
def _transpose(items: Any, facts: Facts) -> Any:
    return items.transpose(facts.attributes.get("perm"))


@_moving(("shape", 1))
def _reshape(items: Any, target: list[int], facts: Facts) -> Any:
    copied = not facts.attributes.get("allowzero", 0)
    return items.reshape([items.shape[i] if dim == 0 and copied else dim for i, dim in enumerate(target)])


@_moving(("axes", 1))
def _squeeze(items: Any, axes: list[int], facts: Facts) -> Any:
    return items.squeeze(tuple(axes) or None)


@_moving(("axes", 1))
def _unsqueeze(items: Any, axes: list[int], facts: Facts) -> Any:
    return np.expand_dims(items, tuple(axes))


@_moving(("shape", 1))
def _expand(items: Any, target: list[int], facts: Facts) -> Any:
    return np.broadcast_to(items, np.broadcast_shapes(items.shape, tuple(target)))


def _tile(facts: Facts) -> Partial | None:
    value, repeats = facts.value(0), facts.whole("repeats", 1)
    if value is None or repeats is None or value.items.size * math.prod(repeats) > LARGEST:
        return None
    return Partial(np.tile(value.items, repeats), value.dtype)


def _gather(facts: Facts) -> Partial | None:
    value, indices = facts.value(0), facts.value(1)
    at = None if indices is None else indices.known()
    if value is None or at is None:
        return None
    return _same(value, lambda items: items.take(at, axis=facts.attributes.get("axis", 0)))


def _concat(facts: Facts) -> Partial | None:
    if (parts := _all_values(facts)) is None:
        return None
    axis = facts.attributes.get("axis", 1)
    return Partial(np.concatenate([part.items for part in parts], axis), parts[0].dtype)


def _slice(facts: Facts) -> Partial | None:
    value = facts.value(0)
    if value is None or (cuts := slice_options(facts, value.items.ndim)) is None:
        return None
    items = value.items
    for axis, (start, end, step) in cuts.items():
        if not (isinstance(start, int) and isinstance(end, int) and isinstance(step, int)):
            return None
        items = items.take(list(sliced(start, end, step, items.shape[axis])), axis)
    return Partial(items, value.dtype)


def _split(facts: Facts) -> list[Partial | None]:
    if (value := facts.value(0)) is None:
        return []
    axis = facts.attributes.get("axis", 0)
    sizes = split_sizes(facts, value.items.shape[axis])
    ends = accumulate((size for size in sizes if isinstance(size, int)), initial=0)
    pieces = [value.items.take(range(a, b), axis) for a, b in pairwise(ends)]
    return [Partial(piece, value.dtype) for piece in pieces] if len(pieces) == facts.outputs else []


def _constant_of_shape(facts: Facts) -> Partial | None:
    shape = facts.whole("shape", 0)
    if shape is None or math.prod(shape) > LARGEST:
        return None
    fill = facts.attributes.get("value")
    one = np.zeros(1, np.float32) if fill is None else numpy_helper.to_array(fill)
    return Partial.of(np.full(shape, one.reshape(-1)[0]))


def _range(facts: Facts) -> Partial | None:
    values = [None if value is None else value.known() for value in facts.values]
    if any(value is None or value.dtype.kind not in "iu" for value in values):
        return None
    steps = range(*(int(value.reshape(-1)[0]) for value in values if value is not None))
    return _vector(steps, values[0].dtype) if len(steps) <= LARGEST else None  # type: ignore[union-attr]


def _clip(facts: Facts) -> Partial | None:
    if (value := facts.value(0)) is None or facts.opset < 11:
        return None
    dtype = value.dtype
    for index, op in ((1, "Max"), (2, "Min")):
        if index < len(facts.given) and facts.given[index]:
            if (bound := facts.value(index)) is None or bound.items.size != 1:
                return None
            value = _map(dtype, lambda a, op=op, limit=bound.flat[0]: combine(op, dtype, a, limit), value)
    return value


_REDUCTIONS = {"ReduceProd": "Mul", "ReduceSum": "Add", "ReduceMax": "Max", "ReduceMin": "Min"}


def _reduced(facts: Facts) -> Partial | None:
    """Over everything and of integers: floating-point sums depend on the order."""
    value, axes = facts.value(0), facts.whole("axes", 1)
    if value is None or axes is None or value.dtype.kind not in "iu" or value.items.size == 0:
        return None
    whole = len(axes) == value.items.ndim or (not axes and not facts.attributes.get("noop_with_empty_axes", 0))
    if not whole:
        return None
    total = reduce(lambda a, b: combine(_REDUCTIONS[facts.op], value.dtype, a, b), value.flat)
    rank = value.items.ndim if facts.attributes.get("keepdims", 1) else 0
    return _same(_vector([total], value.dtype), lambda items: items.reshape([1] * rank))


def _constant(facts: Facts) -> Partial | None:
    for name, made in facts.attributes.items():
        if name == "value" and math.prod(made.dims) <= LARGEST:
            return Partial.of(numpy_helper.to_array(made))
        if name in ("value_int", "value_ints"):
            return Partial.of(np.asarray(made, dtype=np.int64))
        if name in ("value_float", "value_floats"):
            return Partial.of(np.asarray(made, dtype=np.float32))
    return None


_Rule: TypeAlias = "Callable[[Facts], Partial | None] | Callable[[Facts], list[Partial | None]]"

_RULES: dict[str, _Rule] = {
    **dict.fromkeys((op for op in EXACT if op != "FMod"), _binary),
    **dict.fromkeys(_UNARY, _unary),
    **dict.fromkeys(_REDUCTIONS, _reduced),
    "Cast": _cast_to,
    "Clip": _clip,
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Gather": _gather,
    "Identity": _identity,
    "Range": _range,
    "Reshape": _reshape,
    "Shape": _shape_of,
    "Size": _size_of,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
