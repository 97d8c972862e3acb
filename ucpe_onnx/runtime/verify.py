"""Does the emitted model compute what the reference model computes? Both run on the same feeds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any, TypeAlias

import numpy as np
import onnx

from ucpe_onnx.errors import DataError, ModelError, VerificationError
from ucpe_onnx.runtime.compare import Difference, compare
from ucpe_onnx.runtime.seeding import seeded, unseeded
from ucpe_onnx.runtime.session import ModelLike, RunOptions, Session, as_session, run
from ucpe_onnx.runtime.ties import explained


@dataclass(frozen=True)
class OutputCheck:
    """The worst of one output over all feeds.

    Attributes:
        name: name of the output.
        worst: the difference on the feed on which it is worst.
        feed: index of this feed.
    """

    name: str
    worst: Difference
    feed: int


@dataclass(frozen=True)
class Verification:
    """What a comparison of two models found.

    Attributes:
        outputs: one check per output, in graph order.
        feeds: number of feeds that the outputs were compared on.
        chaotic: number of feeds left out because the reference does not reproduce its own outputs on them, or these
            are not finite.
        sizes: the shapes of the inputs, by name, each set of them once.
        seeded: number of random operators that had no seed, and were given the same one in both models.
    """

    outputs: tuple[OutputCheck, ...]
    feeds: int
    chaotic: int = 0
    seeded: int = 0
    sizes: tuple[Mapping[str, tuple[int, ...]], ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every output is within its bound on every feed."""
        return all(check.worst.passed for check in self.outputs)

    @property
    def worst(self) -> OutputCheck:
        """The output that is furthest from, or nearest to, failing."""
        return max(self.outputs, key=lambda check: check.worst.severity)

    def raise_if_failed(self, where: str) -> None:
        """Fail if some output differs.

        Args:
            where: what to call the emitted model in the message, usually its path.

        Raises:
            VerificationError: names the worst output, its error, the bound and the feed.
        """
        if self.passed:
            return
        check, worst = self.worst, self.worst.worst
        difference, advice = worst.problem, "don't use the emitted model"
        if not difference:
            difference = f"differs by {worst.error:.3g}, more than the bound {worst.bound:.3g},"
            advice += ", or raise --rtol/--atol if an error of that size is harmless"
        found = f"output {check.name!r} {difference} on feed {check.feed}"
        raise VerificationError(
            f"{where}: {found}; the emitted model does not compute what the masked model computes: {advice}", found
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; an infinite error, which JSON can't hold, is None and has a problem beside it."""
        outputs = [
            {
                "name": check.name,
                "passed": check.worst.passed,
                "error": None if check.worst.error == inf else check.worst.error,
                "bound": check.worst.bound,
                "problem": check.worst.problem,
                "feed": check.feed,
            }
            for check in self.outputs
        ]
        counts = {"feeds": self.feeds, "chaotic": self.chaotic, "seeded": self.seeded}
        sizes = [{name: list(shape) for name, shape in each.items()} for each in self.sizes]
        return {"passed": self.passed, **counts, "sizes": sizes, "outputs": outputs}


def verify(
    emitted: ModelLike | Session,
    reference: ModelLike | Session,
    feeds: Iterable[Mapping[str, Any]],
    options: RunOptions | None = None,
    *,
    rtol: float | None = None,
    atol: float | None = None,
) -> Verification:
    """Run two models on the same feeds and compare every output.

    ``compare.compare`` says what passes. Outputs behind a rounding, such as classes by an ArgMax, may differ where the
    floats in front of it tie; see :mod:`ucpe_onnx.runtime.ties`.

    Where the emitted model fails on a feed, and the reference fails there too,
    compared with itself at another optimisation level, both are compared at that level instead; if they differ there
    as well, the feed is left out: rounding alone decides the outputs, as noise does that is fed to a network with a
    power or a division in it. So is a feed on which the reference's outputs are not finite. One feed must remain.

    Args:
        emitted: the model in question.
        reference: the model that is right by definition.
        feeds: what to run them on.
        options: how to run them.
        rtol: relative tolerance; 1e-4 if None, 1e-2 for float16.
        atol: absolute tolerance; likewise.

    Raises:
        DataError: there are no feeds.
        ModelError: a model can't be loaded, or the reference can't be run.
        VerificationError: the emitted model has other outputs, or fails on a feed that the reference runs on, or the
            reference reproduces its outputs on no feed.
    """
    tolerances = _Tolerances(rtol, atol)
    drawn = unseeded(reference) if isinstance(reference, onnx.ModelProto) else []
    if drawn and isinstance(emitted, onnx.ModelProto) and isinstance(reference, onnx.ModelProto):
        emitted, reference = seeded(emitted), seeded(reference)
    sizes: list[dict[str, tuple[int, ...]]] = []
    names, found, doubts = _compared(emitted, reference, _noted(feeds, sizes), options, tolerances)
    if not found:
        raise DataError("nothing to verify on: there are no feeds; give --data with at least one sample")
    if isinstance(emitted, onnx.ModelProto) and isinstance(reference, onnx.ModelProto):
        failed = {name: None for i in doubts for name, d in zip(names, found[i] or (), strict=True) if not d.passed}
        unsettled = {index: doubt.feed for index, doubt in doubts.items()}
        running = options or RunOptions()
        ties = explained(emitted, reference, list(failed), unsettled, running, rtol=rtol, atol=atol)
        for index, floats in ties.items():  # what is told of an output is how the floats in front of it differ
            found[index] = [floats if not d.passed else d for d in found[index] or ()]
        doubts = {index: doubt for index, doubt in doubts.items() if index not in ties}
    if doubts and not isinstance(reference, Session):  # which can't be loaded at another level
        found |= _as_written(emitted, reference, doubts, options or RunOptions(), tolerances)
    checks = [
        [OutputCheck(name, difference, feed) for name, difference in zip(names, differences, strict=True)]
        for feed, differences in found.items()
        if differences is not None
    ]
    if not checks:
        raise VerificationError(
            "the model does not reproduce its own outputs on random inputs at another optimisation level, or they are"
            " not finite, so that nothing can be verified on them; give --data with real samples"
        )
    worst = tuple(max(outputs, key=lambda check: check.worst.severity) for outputs in zip(*checks, strict=True))
    return Verification(worst, len(checks), len(found) - len(checks), len(drawn), tuple(sizes))


def _noted(feeds: Iterable[Mapping[str, Any]], sizes: list[dict[str, tuple[int, ...]]]) -> Iterator[Mapping[str, Any]]:
    """The feeds; their shapes are noted on the way, each set of them once."""
    for feed in feeds:
        shapes = {name: value.shape for name, value in feed.items() if isinstance(value, np.ndarray | np.generic)}
        if shapes not in sizes:
            sizes.append(shapes)
        yield feed


@dataclass(frozen=True)
class _Tolerances:
    """What counts as equal."""

    rtol: float | None
    atol: float | None

    def differences(self, found: Sequence[Any], expected: Sequence[Any]) -> list[Difference]:
        """One per output."""
        return [compare(a, b, rtol=self.rtol, atol=self.atol) for a, b in zip(found, expected, strict=True)]


_Found: TypeAlias = "dict[int, list[Difference] | None]"
"""How the outputs differ on each feed, by its index; None where nothing can be told."""


@dataclass(frozen=True)
class _Doubt:
    """A feed on which the models differ, and what the reference gives for it."""

    feed: Mapping[str, Any]
    expected: Sequence[Any]


def _compared(
    emitted: ModelLike | Session,
    reference: ModelLike | Session,
    feeds: Iterable[Mapping[str, Any]],
    options: RunOptions | None,
    tolerances: _Tolerances,
) -> tuple[list[str], _Found, dict[int, _Doubt]]:
    """Run both models: names of the outputs, how they differ, and the feeds that are worth another look."""
    reference_session = as_session(reference, options, where="the reference model")
    emitted_session = as_session(emitted, options, where="the emitted model")
    names = [output.name for output in reference_session.get_outputs()]
    emitted_names = [output.name for output in emitted_session.get_outputs()]
    if names != emitted_names:
        raise VerificationError(
            f"the emitted model has the outputs {emitted_names}, the reference model {names};"
            " rewriting must keep their names and order"
        )
    found: _Found = {}
    doubts: dict[int, _Doubt] = {}
    for index, feed in enumerate(feeds):
        expected = run(reference_session, feed, where=f"the reference model, feed {index}")
        differences = tolerances.differences(_run_emitted(emitted_session, feed, index), expected)
        passed = _all_pass(differences)
        found[index] = differences if passed or _finite(expected) else None
        if not passed and found[index]:
            doubts[index] = _Doubt(feed, expected)
    return names, found, doubts


def _as_written(
    emitted: ModelLike | Session,
    reference: ModelLike,
    doubts: Mapping[int, _Doubt],
    options: RunOptions,
    tolerances: _Tolerances,
) -> _Found:
    """How the models differ at another optimisation level, on the feeds on which the reference differs from itself.

    onnxruntime fuses quantised graphs into kernels of other precision, and not always the same in both models. As they
    are written, models that compute the same function agree.

    By now the sessions of the first look are gone, and only one more exists at a time: large models fill the memory.
    """
    other = replace(options, opt_level="all" if options.opt_level == "disable" else "disable")
    session = as_session(reference, other)
    outputs = {index: run(session, doubt.feed, where="the reference model") for index, doubt in doubts.items()}
    unlike = [i for i, doubt in doubts.items() if not _all_pass(tolerances.differences(outputs[i], doubt.expected))]
    del session
    if not unlike:
        return {}
    session = as_session(emitted, other)
    found: _Found = {}
    # On all of them, since random operators go on from run to run.
    again = {index: run(session, doubt.feed, where="the emitted model") for index, doubt in doubts.items()}
    for index in unlike:
        differences = tolerances.differences(again[index], outputs[index])
        found[index] = differences if _all_pass(differences) else None
    return found


def _all_pass(differences: Sequence[Difference]) -> bool:
    return all(difference.passed for difference in differences)


def _finite(outputs: Sequence[Any]) -> bool:
    """Whether no float output holds NaN or infinities; sequences and maps count as finite."""
    arrays = [value for value in outputs if isinstance(value, np.ndarray) and value.dtype.kind == "f"]
    return all(bool(np.isfinite(array).all()) for array in arrays)


def _run_emitted(session: Session, feed: Mapping[str, Any], index: int) -> list[Any]:
    try:
        return run(session, feed, where=f"the emitted model, feed {index}")
    except ModelError as error:
        raise VerificationError(f"{error}; the reference model runs on that feed") from error
