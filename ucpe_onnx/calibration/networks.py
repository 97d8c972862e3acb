"""Rates as they are within a network: kernels of mixed layers, each timed where it stands.

A chain of equal layers runs on warm caches: the code of the kernel was used a moment ago, and its output goes where the
output before the last one was. In a network copies take up to twice as long, and every call some more. So kernels of a
few networks of random layers are profiled, and the rates are fitted to these as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ucpe_onnx.analysis.layer_ops import LAYER_OPS
from ucpe_onnx.calibration.chain import Chain
from ucpe_onnx.calibration.fit import Work
from ucpe_onnx.planning.kernels import Amounts
from ucpe_onnx.runtime.target import Target

Floats = npt.NDArray[np.float64]

_SIZES = ((112, 4), (56, 16), (28, 32), (14, 64), (7, 128))
"""Height and width of a network's maps, and the most channels, in sets of 16."""

_LAYERS = 40
_KINDS = ("pointwise", "spatial", "partial", "depthwise", "depthwise", "select", "select", "stack", "shallow")
_MOST_MFLOP = 50.0

_HEADS = ((64, 1000), (256, 1000), (640, 1000), (1280, 1000), (2048, 1000), (512, 10), (64, 16), (16, 64), (384, 96))
"""Channels that the products of one row read and make, in a network of heads."""

_ADDED = frozenset({"fused", "partial", "partial-spatial"})
"""Families of what a kernel of another family does besides."""

_FAMILIES = {
    "Add": {"add"},
    "BatchNormalization": {"normal"},
    "Concat": {"concat"},
    "Conv": {"depthwise", "plain", "plain-depthwise", "pointwise", "shallow", "spatial"},
    "Gather": {"gather"},
    "Gemm": {"gemm"},
    "Relu": {"straight"},
    "ReorderInput": {"reorder"},
    "ReorderOutput": {"reorder"},
    "Sigmoid": {"curved"},
    "Slice": {"slice"},
}
"""Of the kernels of an operator."""

_SELECTIONS = ("Gather", "Slice")

_OTHER_NAMES = {op.name: op.float_form for op in LAYER_OPS.values() if not op.real} | {
    "FusedConv": "Conv",
    "QLinearAdd": "Add",
    "QLinearConcat": "Concat",
    "QLinearSigmoid": "Sigmoid",
}


@dataclass(frozen=True)
class Profile:
    """What a graph's kernels took, in the order in which they ran.

    Attributes:
        ops: their operators.
        us: their times.
    """

    ops: tuple[str, ...]
    us: Floats


def networks(target: Target, threads: int = 1) -> Iterator[Chain]:
    """Networks of random layers, one for each size of maps, and one of heads; the same ones every time."""
    generator = np.random.default_rng(0)
    for size, most in _SIZES:
        chain = Chain(target, 3, size, threads)
        chain.conv(16 * int(generator.integers(1, 5)), int(generator.choice([3, 7])))
        for _ in range(_LAYERS):
            _add_layer(chain, str(generator.choice(_KINDS)), most, generator)
        chain.conv(16)
        yield chain
    if target.precision == "float32":
        heads = Chain(target, _HEADS[0][0], 1, threads)
        for cin, cout in _HEADS:
            heads.product(cin)
            heads.product(cout)
        yield heads


def _add_layer(chain: Chain, kind: str, most: int, generator: np.random.Generator) -> None:
    """One to five kernels, at most a few hundred microseconds each."""
    if kind == "depthwise":
        chain.depthwise(int(generator.choice([1, 1, 3, 5])))
        if chain.target.blocked and generator.random() < 0.5:
            chain.clip()
        return
    if kind == "shallow":
        chain.conv(int(generator.choice([4, 8, 12])))
    chain.conv(_width(chain, kind, most, generator))
    if kind == "spatial":
        chain.conv(chain.channels, 3)
    elif kind == "partial":
        chain.partial()
    elif kind == "stack":
        chain.stack()
    elif kind == "select":
        _select(chain, generator)


def _width(chain: Chain, kind: str, most: int, generator: np.random.Generator) -> int:
    """How many channels a layer begins with, so that none of its kernels takes too long."""
    limit = _MOST_MFLOP * 1e6 / (2 * chain.positions)
    widest = limit / chain.channels
    if kind in ("partial", "spatial"):
        widest = min(widest, math.sqrt(limit / (9 if kind == "spatial" else 1)))
    return 16 * int(generator.integers(1, max(1, min(most, int(widest / 16))) + 1))


def _select(chain: Chain, generator: np.random.Generator) -> None:
    """A selection, and maybe something that runs on it outside of the convolutions' layout."""
    if generator.random() < 0.5 and chain.channels > 16:
        chain.slice_(chain.channels - 4 * int(generator.integers(1, chain.channels // 8)))
    else:
        chain.gather()
    behind = generator.choice(["nothing", "nothing", "activation", "curved", "normalise"])
    if behind == "activation":
        chain.activation()
    elif behind == "curved":
        chain.curved()
    elif behind == "normalise" and chain.target.precision == "float32":
        chain.normalise()


def kernel_work(chain: Chain) -> list[Work]:
    """The work of each of a chain's kernels."""
    found: list[list[tuple[str, Amounts]]] = []
    for family, amounts in chain.work:
        if family in _ADDED:
            found[-1].append((family, amounts))
        else:
            found.append([(family, amounts)])
    return list(found)


def timed_kernels(chains: Sequence[Chain], profiles: Sequence[Profile | None]) -> tuple[list[Work], Floats]:
    """Work and times of the kernels of networks; those that did not run as expected are left out."""
    work: list[Work] = []
    times: list[float] = []
    for chain, profile in zip(chains, profiles, strict=True):
        noted = kernel_work(chain)
        known = [] if profile is None else _known(profile, chain.target)
        if len(known) == len(noted) and all(
            entry[0][0] in families for entry, (families, _) in zip(noted, known, strict=True)
        ):
            work += noted
            times += [us for _, us in known]
    return work, np.array(times)


def _known(profile: Profile, target: Target) -> list[tuple[set[str], float]]:
    """Families and times of the kernels that a chain notes; its output leaves the layout unnoted.

    Quantised convolutions work on channels last, and a selection that does not comes with a Transpose on either side.
    """
    ops = [_OTHER_NAMES.get(op, op) for op in profile.ops]
    us = profile.us.tolist()
    if target.blocked and ops and ops[-1] == "ReorderOutput":
        ops.pop()
    for place, op in enumerate(ops):
        if op == "Transpose":
            beside = [near for near in (place + 1, place - 1) if ops[near % len(ops)] in _SELECTIONS]
            for near in beside[:1]:
                us[near] += us[place]
    return [(_FAMILIES[op], took) for op, took in zip(ops, us, strict=False) if op in _FAMILIES]
