"""More shapes for a model that leaves axes open: what holds at one length need not hold at another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from math import prod

from ucpe_onnx.errors import ModelError
from ucpe_onnx.runtime.random_feeds import Shapes, is_batch, random_feeds
from ucpe_onnx.runtime.session import Session, run
from ucpe_onnx.samples.inputs import Feed, InputSpec

MOST = 2
"""Feeds of other sizes, besides the first."""

_MOST_WORK, _ALWAYS_FINE = 4, 2**16
"""Times the elements of the first feed, and elements, above which sizes are not tried: they would take too long."""

_CHANGES: tuple[Callable[[int], int], ...] = (
    lambda size: max(size // 2, 1),
    lambda size: size + 7,
    lambda size: 2 * size,
    lambda size: size,
)
"""What becomes of an open length: whole networks of convolutions take only some."""

_TOTAL = "total"
"""In the name of an axis: as long as what is past and what is new together."""

Axis = str | tuple[str, int]
"""An open axis: its symbolic name, or the input and the place of one without."""


def feeds_of_other_sizes(
    specs: Sequence[InputSpec], first: Feed, session: Session, seed: int, fixed: Shapes | None = None
) -> list[Feed]:
    """Random feeds with other lengths of the open axes, on which the model runs too.

    Args:
        specs: the model's inputs.
        first: a feed that it runs on.
        session: the model.
        seed: seed of the random generator.
        fixed: shapes that the user has asked for, which stay.

    Returns:
        At most two feeds; none if no axis is open, or an input is no tensor.
    """
    if any(spec.dtype is None or spec.shape is None for spec in specs):
        return []
    known = {spec.name: first[spec.name].shape for spec in specs}
    open_axes = _open_axes(specs, known, set(fixed or ()))
    found: list[Feed] = []
    tried = [known]
    for choices in _choices(open_axes, specs):
        for sizes in choices:
            shapes = _with_sizes(specs, known, sizes)
            if shapes in tried or _elements(shapes) > max(_ALWAYS_FINE, _MOST_WORK * _elements(known)):
                continue
            tried.append(shapes)
            feed = random_feeds(specs, seed + len(tried), shapes, int_limit=2)
            with suppress(ModelError):
                run(session, feed)
                found.append(feed)
                break
        if len(found) == MOST:
            break
    return found


def _elements(shapes: Shapes) -> int:
    return sum(prod(shape) for shape in shapes.values())


def _axis(spec: InputSpec, place: int) -> Axis | None:
    dim = (spec.shape or ())[place]
    return None if isinstance(dim, int) else dim or (spec.name, place)


def _open_axes(specs: Sequence[InputSpec], known: Shapes, fixed: set[str]) -> dict[Axis, int]:
    """The open axes with their lengths; none of those that an input with a given shape has."""
    axes = {
        axis: known[spec.name][place]
        for spec in specs
        for place in range(len(spec.shape or ()))
        if (axis := _axis(spec, place)) is not None
    }
    held = {_axis(spec, place) for spec in specs if spec.name in fixed for place in range(len(spec.shape or ()))}
    return {axis: size for axis, size in axes.items() if axis not in held}


def _choices(axes: Mapping[Axis, int], specs: Sequence[InputSpec]) -> Iterator[list[dict[Axis, int]]]:
    """Other lengths; of each list one is enough, and the likeliest to work stands first."""
    batches: set[int | str | Axis | None] = {(spec.name, 0) for spec in specs if spec.shape and spec.shape[0] is None}
    batches |= {dim for spec in specs for place, dim in enumerate(spec.shape or ()) if is_batch(place, dim)}
    for change in _CHANGES:
        choices = []
        for batch in (2, 1, 3):
            sizes = {axis: batch if axis in batches else change(size) for axis, size in axes.items()}
            choices += [_with_totals(sizes), sizes]
        yield choices


def _with_totals(sizes: Mapping[Axis, int]) -> dict[Axis, int]:
    """The same in which totals are sums of the lengths that they are made of, as far as names tell."""
    parts = [size for axis, size in sizes.items() if isinstance(axis, str) and _is_length(axis)]
    return {axis: sum(parts) if isinstance(axis, str) and _TOTAL in axis else size for axis, size in sizes.items()}


def _is_length(name: str) -> bool:
    return _TOTAL not in name and ("past" in name or "seq" in name)


def _with_sizes(specs: Sequence[InputSpec], known: Shapes, sizes: Mapping[Axis, int]) -> dict[str, tuple[int, ...]]:
    return {
        spec.name: tuple(
            size if (axis := _axis(spec, place)) is None else sizes.get(axis, size)
            for place, size in enumerate(known[spec.name])
        )
        for spec in specs
    }
