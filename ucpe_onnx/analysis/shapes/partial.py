"""Small tensors of which some elements are known before the model runs: shapes on their way to a Reshape or Resize."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Dim: TypeAlias = "int | str | None"
Shape: TypeAlias = "tuple[Dim, ...]"
"""Known dimensions as integers, symbolic ones by their name, unknown ones as None."""

Item: TypeAlias = "int | float | str | None"
"""An element: its value, the symbol of the dimension that it is the length of, or None."""

LARGEST = 128
"""Elements of the largest tensor that is followed: twice the rank of a tensor is a small number."""

NO_END = (2**31 - 1, 2**63 - 1)
"""Ends of a Slice that stand for the end of the axis, in onnxruntime also where it runs backwards."""


@dataclass(frozen=True, eq=False)
class Partial:
    """A tensor of known shape and partly known elements.

    Attributes:
        items: its elements, an object array of :data:`Item`.
        dtype: its element type.
    """

    items: npt.NDArray[np.object_]
    dtype: np.dtype[Any]

    @staticmethod
    def of(array: npt.NDArray[Any]) -> Partial:
        """All of a known array."""
        return Partial(array.astype(object), array.dtype)

    @staticmethod
    def unknown(shape: Sequence[int], dtype: np.dtype[Any]) -> Partial:
        """No element known."""
        return Partial(np.full(shape, None, dtype=object), dtype)

    @property
    def flat(self) -> list[Item]:
        """The elements in order."""
        return list(self.items.flat)

    def known(self) -> npt.NDArray[Any] | None:
        """The array, if every element is known."""
        return self.items.astype(self.dtype) if all(map(is_number, self.items.flat)) else None


@dataclass(frozen=True)
class Facts:
    """What is known about a node's inputs.

    Attributes:
        op: the operator, without its domain.
        opset: version of its operator set.
        attributes: by name, strings as bytes.
        given: for each input whether it is there.
        shapes: shape of each input, None for an unknown rank.
        values: elements of each input that is small, if anything is known of them.
        outputs: number of outputs.
    """

    op: str
    opset: int
    attributes: Mapping[str, Any]
    given: Sequence[bool]
    shapes: Sequence[Shape | None]
    values: Sequence[Partial | None]
    outputs: int

    def has(self, index: int) -> bool:
        """Whether an input is there and not left out."""
        return index < len(self.given) and self.given[index]

    def shape(self, index: int) -> Shape | None:
        """Shape of an input; None if its rank is unknown or it is left out."""
        return self.shapes[index] if index < len(self.shapes) else None

    def value(self, index: int) -> Partial | None:
        """Elements of an input; None if nothing is known of them or it is left out."""
        return self.values[index] if index < len(self.values) else None

    def option(self, name: str, index: int, default: Sequence[Item] | None = None) -> Sequence[Item] | None:
        """A list that older operator sets give as an attribute and newer ones as an input.

        Args:
            name: name of the attribute.
            index: index of the input.
            default: what holds if neither is there.

        Returns:
            The items, or None if the input is there and nothing is known of it.
        """
        if self.has(index):
            value = self.value(index)
            return None if value is None else value.flat
        attribute = self.attributes.get(name)
        return default if attribute is None else list(attribute)

    def whole(self, name: str, index: int, default: Sequence[int] = ()) -> list[int] | None:
        """The same list, if every item of it is a known integer."""
        items = self.option(name, index, default)
        if items is None or not all(map(is_number, items)):
            return None
        return [int(item) for item in items]  # type: ignore[arg-type]


def is_number(item: object) -> bool:
    """Whether an item is a value, not a symbol or None."""
    return item is not None and not isinstance(item, str)


def product(dims: Iterable[Item]) -> Item:
    """The product of lengths: a number, the one symbol among ones, or None."""
    one: Item = 1
    return reduce(lambda a, b: combine("Mul", np.dtype(np.int64), a, b), dims, one)


def sliced(start: int, end: int, step: int, length: int) -> range:
    """The positions that Slice takes of an axis, clamped as onnxruntime does."""
    if step < 0 and end in NO_END:
        end = -length - 1
    start, end = (at + length if at < 0 else at for at in (start, end))
    start = min(max(start, 0), length - (step < 0))
    end = min(max(end, -1 if step < 0 else 0), length)
    return range(start, end, step)


def slice_options(facts: Facts, rank: int) -> dict[int, tuple[Item, Item, Item]] | None:
    """Start, end and step of each axis that Slice cuts, None if the axes are unknown."""
    starts, ends = facts.option("starts", 1), facts.option("ends", 2)
    size = next((len(items) for items in (starts, ends) if items is not None), None)
    axes = facts.whole("axes", 3, range(size or 0))
    if axes is None or (size is None and not facts.has(3)):
        return None
    steps = facts.option("steps", 4, [1] * len(axes))
    unknown: Sequence[Item] = [None] * len(axes)
    cuts = zip(axes, starts or unknown, ends or unknown, steps or unknown, strict=True)
    return {axis % rank: (start, end, step) for axis, start, end, step in cuts}


def split_sizes(facts: Facts, length: Dim) -> Sequence[Item]:
    """Length of each output of Split."""
    sizes = facts.option("split", 1, [])
    unknown: Sequence[Item] = [None] * facts.outputs
    if sizes is None or sizes:
        return sizes if sizes is not None and len(sizes) == facts.outputs else unknown
    if not isinstance(length, int):
        return unknown
    part = -(-length // facts.outputs)  # from opset 18 on the last one may be shorter
    last = length - part * (facts.outputs - 1)
    return [*[part] * (facts.outputs - 1), last] if last >= 0 else unknown


_NEUTRAL: dict[str, tuple[int | None, int | None]] = {"Add": (0, 0), "Sub": (None, 0), "Mul": (1, 1), "Div": (None, 1)}
"""The left and the right operand that leave the other one as it is."""


def _shortcut(op: str, a: Item, b: Item) -> Item:
    """What an operation gives though not both operands are numbers."""
    left, right = _NEUTRAL.get(op, (None, None))
    if right is not None and b == right:
        return a
    if left is not None and a == left:
        return b
    if isinstance(a, str) and a == b:
        of_equals: dict[str, Item] = {"Min": a, "Max": a, "Sub": 0, "Equal": True}
        return of_equals.get(op)
    if op == "Equal" and (_is_length(a, b) or _is_length(b, a)):
        return False
    decisive = {"And": False, "Or": True}.get(op)
    return decisive if decisive is not None and decisive in (a, b) else None


def _is_length(symbol: Item, number: Item) -> bool:
    """Whether a length is compared with a negative number, as exported graphs do to find the -1 of an Expand."""
    return isinstance(symbol, str) and isinstance(number, int) and number < 0


def _divide(a: Any, b: Any) -> Any:
    if not isinstance(a, int):
        return a / b
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient  # truncates, unlike Python


EXACT: dict[str, Callable[[Any, Any], Any]] = {
    "Add": lambda a, b: a + b,
    "Sub": lambda a, b: a - b,
    "Mul": lambda a, b: a * b,
    "Div": _divide,
    "Min": min,
    "Max": max,
    "Equal": lambda a, b: bool(a == b),
    "Less": lambda a, b: bool(a < b),
    "LessOrEqual": lambda a, b: bool(a <= b),
    "Greater": lambda a, b: bool(a > b),
    "GreaterOrEqual": lambda a, b: bool(a >= b),
    "And": lambda a, b: bool(a and b),
    "Or": lambda a, b: bool(a or b),
    "Mod": lambda a, b: a % b,  # of integers, with the sign of the divisor
    "FMod": lambda a, b: a - b * _divide(a, b) if isinstance(a, int) else np.fmod(a, b),
}


def combine(op: str, dtype: np.dtype[Any], a: Item, b: Item) -> Item:
    """The result of a binary operator on two elements of a type, computed as onnxruntime does; None if unknown."""
    if not (is_number(a) and is_number(b)):
        return _shortcut(op, a, b)
    if op in ("Div", "Mod", "FMod") and b == 0:
        return None
    if dtype.kind == "f":
        return _finite(EXACT[op](dtype.type(a), dtype.type(b)))
    result = EXACT[op](a, b)
    return result if isinstance(result, bool) else _fitting(int(result), dtype)


def _finite(number: Any) -> Item:
    item: Item = number.item() if isinstance(number, np.generic) else number
    return item if item is not None and math.isfinite(item) else None  # type: ignore[arg-type]


def _fitting(number: int, dtype: np.dtype[Any]) -> Item:
    limits = np.iinfo(dtype) if dtype.kind in "iu" else None
    return number if limits is None or limits.min <= number <= limits.max else None


def cast(item: Item, dtype: np.dtype[Any]) -> Item:
    """An element cast to another type; None where that is not exact."""
    if item is None or isinstance(item, str):
        return item if dtype in (np.int32, np.int64, np.float64) else None  # float32 rounds long lengths
    if dtype.kind == "b":
        return bool(item)
    if dtype.kind == "f":
        return _finite(dtype.type(item))
    return _fitting(int(item), dtype)
