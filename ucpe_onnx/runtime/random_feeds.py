"""Random feeds for a model whose user gave no data, and shapes for inputs that declare none."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from math import prod

import numpy as np
import onnx

from ucpe_onnx.errors import ModelError, UsageError
from ucpe_onnx.runtime.session import RunOptions, Session, as_session, run
from ucpe_onnx.samples.inputs import Array, Feed, InputSpec, input_specs

Shapes = Mapping[str, tuple[int, ...]]
"""Concrete shapes by input name, as ``--input-shapes`` gives them."""

SIZES = (224, 256, 64, 128, 512, 32, 16, 8, 4, 2, 1)
"""Sizes tried for axes that the model leaves open: usual image sizes first, then usual sequence lengths."""

LARGEST_INPUT = 2**24
"""Elements of one input above which a guessed size is not tried; it would take minutes to run."""

INT_LIMITS = (16, 2)
"""Exclusive upper ends tried for integer inputs; only 0 and 1 index even the smallest embedding."""

_WORDS = np.array(["a", "pruned", "model", "runs", "faster"], dtype=object)


def parse_input_shapes(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Parse ``--input-shapes`` values in polygraphy's spelling, ``name:[1,3,224,224]``; ``[]`` is a scalar.

    Raises:
        UsageError: a value is spelled otherwise, or names an input twice.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for text in texts:
        # Names may hold colons ("input:0"), so the last one before the bracket separates.
        match = re.fullmatch(r"(.+):\s*[\[(]([\s\d,x]*)[\])]", text.strip())
        sizes = re.findall(r"\d+", match[2]) if match else []
        if match is None:
            raise UsageError(f"--input-shapes: can't read {text!r}; write name:[1,3,224,224]")
        if match[1] in shapes:
            raise UsageError(f"--input-shapes: {match[1]!r} is given twice; give each input one shape")
        shapes[match[1]] = tuple(int(size) for size in sizes)
    return shapes


def input_shapes(
    specs: Sequence[InputSpec], overrides: Shapes | None = None, batch: int = 1, size: int | None = None
) -> dict[str, tuple[int, ...]]:
    """Give every input a concrete shape.

    An axis that the model leaves open gets the size that the overrides imply for its symbolic name; else ``batch`` if
    it comes first, is called "batch" or shares its name with one that does; else ``size``.

    Args:
        specs: the model's inputs.
        overrides: concrete shapes of some inputs.
        batch: size of batch axes that are open.
        size: size of other axes that are open; None refuses them.

    Raises:
        ModelError: an input has an open axis and no size for it, no declared rank, or a type that numpy can't hold.
        UsageError: an override does not fit the model.
    """
    overrides = overrides or {}
    _check_overrides(specs, overrides)
    bound: dict[int | str | None, int] = {
        dim: batch for spec in specs for axis, dim in enumerate(spec.shape or ()) if is_batch(axis, dim)
    }
    for spec in specs:
        given = zip(spec.shape or (), overrides.get(spec.name, ()), strict=False)
        bound.update({dim: axis_size for dim, axis_size in given if isinstance(dim, str)})
    shapes = {}
    for spec in specs:
        if spec.dtype is None:
            raise ModelError(
                f"input {spec.name!r} is a {spec.kind}, which can't be made up; pass --data module:callable that yields"
                " it, or cast the input inside of the model"
            )
        if spec.name in overrides:
            shapes[spec.name] = tuple(overrides[spec.name])
            continue
        if spec.shape is None:
            raise ModelError(
                f"input {spec.name!r} declares no shape; pass one, as --input-shapes {spec.name}:[1,3,224,224]"
            )
        sizes = [
            dim if isinstance(dim, int) else batch if axis == 0 and dim is None else bound.get(dim, size)
            for axis, dim in enumerate(spec.shape)
        ]
        shapes[spec.name] = tuple(size for size in sizes if size is not None)
        if len(shapes[spec.name]) < len(sizes):
            raise ModelError(
                f"input {spec.name!r} leaves axes open: {_declared(spec)};"
                f" pass sizes, as --input-shapes {_example(spec)}"
            )
    return shapes


def random_feeds(
    specs: Sequence[InputSpec],
    seed: int = 0,
    overrides: Shapes | None = None,
    batch: int = 1,
    *,
    size: int | None = None,
    int_limit: int = INT_LIMITS[0],
) -> Feed:
    """Make one feed of random values, its shapes as ``input_shapes`` gives them.

    Floats are standard normal, integers lie in ``[0, int_limit)``; integer inputs called "...mask..." are all one,
    as the attention mask of a text without padding is.

    Args:
        specs: the model's inputs.
        seed: seed of the random generator.
        overrides: concrete shapes of some inputs.
        batch: size of batch axes that are open.
        size: size of other axes that are open; None refuses them.
        int_limit: exclusive upper end of integers.

    Raises:
        ModelError: an input has no size for an open axis, no declared rank, or a type that numpy can't hold.
        UsageError: an override does not fit the model.
    """
    shapes = input_shapes(specs, overrides, batch, size)
    generator = np.random.default_rng(seed)
    return {spec.name: _random(spec, shapes[spec.name], generator, int_limit) for spec in specs}


def find_feeds(
    model: onnx.ModelProto,
    options: RunOptions | None = None,
    *,
    session: Session | None = None,
    seed: int = 0,
    overrides: Shapes | None = None,
    batch: int = 1,
    where: str | None = None,
) -> Feed:
    """Find a random feed that the model runs on, guessing the sizes that it leaves open.

    If no size works with ``batch`` on the batch axes, these are guessed as well.

    Args:
        model: the model.
        options: how to run it.
        session: a session of the model, if there is one already.
        seed: seed of the random generator.
        overrides: concrete shapes of some inputs.
        batch: size of open batch axes.
        where: what to call the model in messages.

    Returns:
        The first feed that onnxruntime ran.

    Raises:
        ModelError: the model runs on none of them; the message holds onnxruntime's reason and what to pass.
        UsageError: an override does not fit the model.
    """
    where = where or model.graph.name or "the model"
    specs = input_specs(model)
    session = session or as_session(model, options, where=where)
    refusal: ModelError | None = None
    for shapes, int_limit in _guesses(specs, overrides, batch):
        feed = random_feeds(specs, seed, shapes, int_limit=int_limit)
        try:
            run(session, feed, where=where)
        except ModelError as error:
            refusal = refusal or error  # the first is about the likeliest sizes: it tells most
        else:
            return feed
    reason = refusal or f"{where}: every size tried makes an input too large"
    example = " ".join(_example(spec) for spec in specs)
    raise ModelError(f"{reason}; pass shapes that it takes, as --input-shapes {example}, or --data") from refusal


def _guesses(
    specs: Sequence[InputSpec], overrides: Shapes | None, batch: int
) -> Iterator[tuple[dict[str, tuple[int, ...]], int]]:
    """Yield every distinct set of shapes with each limit of integers, the likeliest first."""
    integers = any(spec.dtype is not None and spec.dtype.kind in "iu" for spec in specs)
    tried = []
    for first, size in [*((batch, size) for size in SIZES), *((size, size) for size in SIZES)]:
        shapes = input_shapes(specs, overrides, first, size)
        too_large = any(prod(shape) > LARGEST_INPUT for name, shape in shapes.items() if name not in (overrides or {}))
        if shapes not in tried and not too_large:
            tried.append(shapes)
            yield from ((shapes, limit) for limit in (INT_LIMITS if integers else INT_LIMITS[:1]))


def is_batch(axis: int, dim: int | str | None) -> bool:
    """Whether an axis that a model leaves open counts samples, as far as its place and its name tell."""
    return isinstance(dim, str) and (axis == 0 or "batch" in dim.lower())


def _check_overrides(specs: Sequence[InputSpec], overrides: Shapes) -> None:
    by_name = {spec.name: spec for spec in specs}
    for name, shape in overrides.items():
        if name not in by_name:
            raise UsageError(f"--input-shapes: the model has no input {name!r}; its inputs are {', '.join(by_name)}")
        declared = by_name[name].shape
        if declared is None:
            continue
        fits = len(declared) == len(shape) and all(
            not isinstance(dim, int) or dim == size for dim, size in zip(declared, shape, strict=True)
        )
        if not fits:
            raise UsageError(
                f"--input-shapes: {name}:{list(shape)} does not fit the declared shape {_declared(by_name[name])};"
                " change only the axes that it leaves open"
            )


def _random(spec: InputSpec, shape: tuple[int, ...], generator: np.random.Generator, int_limit: int) -> Array:
    assert spec.dtype is not None, "input_shapes refuses it"
    if spec.dtype.kind == "f":
        return np.asarray(generator.standard_normal(shape)).astype(spec.dtype)
    if spec.dtype.kind == "b":
        return np.asarray(generator.integers(0, 2, shape)).astype(spec.dtype)
    if spec.dtype.kind == "O":
        return np.asarray(_WORDS[generator.integers(0, len(_WORDS), shape)], dtype=object).reshape(shape)
    if "mask" in spec.name.lower():
        return np.ones(shape, spec.dtype)
    return np.asarray(generator.integers(0, int_limit, shape)).astype(spec.dtype)


def _declared(spec: InputSpec) -> str:
    return "[" + ",".join("?" if dim is None else str(dim) for dim in spec.shape or ()) + "]"


def _example(spec: InputSpec) -> str:
    """The option's value with 1 for a first axis and usual sizes for the other open axes."""
    declared = spec.shape if spec.shape is not None else (1, 3, 224, 224)
    usual = 224 if len(declared) > 3 else 128
    sizes = [dim if isinstance(dim, int) else 1 if axis == 0 else usual for axis, dim in enumerate(declared)]
    return f"{spec.name}:{sizes}".replace(" ", "")
