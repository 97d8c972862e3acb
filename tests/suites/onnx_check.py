"""What must hold for the model of a case: it passes whole, or pruned and equal to the masked model, or is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from tests.comparing import Feed, differences, run_model
from tests.suites.onnx_cases import Case
from ucpe_onnx import DataError, UcpeError, VerificationError, masked_model, prune
from ucpe_onnx.analysis.trace import Trace, trace
from ucpe_onnx.masks import Mask
from ucpe_onnx.model.naming import node_names
from ucpe_onnx.passes import emit
from ucpe_onnx.planning.lower import LOWERING_RULES
from ucpe_onnx.planning.make import Settings, make_plan
from ucpe_onnx.runtime.target import Target

NOT_RUN, REFUSED, WHOLE, PRUNED, DEFECT = "not run", "refused", "whole", "pruned", "defect"


@dataclass(frozen=True)
class Outcome:
    """How a case ended.

    Attributes:
        kind: NOT_RUN: onnx or onnxruntime refuses the model itself; REFUSED: the tool does; WHOLE: nothing could be
            pruned, nothing has changed; PRUNED: equal to the masked model; DEFECT: anything else.
        reason: why, of all but the good ends.
    """

    kind: str
    reason: str = ""


def check_case(case: Case, ratio: float = 0.3) -> Outcome:
    """Prune a case's model by ratio, and with random masks in every lowering."""
    try:
        feed = case.feed()
        onnx.checker.check_model(case.model, full_check=True)
        wanted = run_model(case.model, feed)
        again = run_model(case.model, feed, optimise=False)
    except Exception as error:  # the checker's, shape inference's and onnxruntime's own
        return Outcome(NOT_RUN, _line(error))
    if differences(wanted, again):
        return Outcome(NOT_RUN, "onnxruntime comes to other outputs at another optimisation level")
    agreed = case.expected is not None and not differences(wanted, case.expected, rtol=case.rtol, atol=case.atol)
    before = case.model.SerializeToString(deterministic=True)
    try:
        outcome = _check_ratio(case, ratio, feed, case.expected if agreed else None)
        if outcome.kind in (WHOLE, PRUNED):
            masked = check_masks(case.model, feed, seed=len(case.name))
            outcome = outcome if masked.kind == WHOLE else masked
    except Exception as error:  # whatever it is, it is no clear refusal
        return Outcome(DEFECT, f"{type(error).__name__}: {_line(error)}")
    if case.model.SerializeToString(deterministic=True) != before:
        return Outcome(DEFECT, "the input model was changed")
    return outcome


def _check_ratio(case: Case, ratio: float, feed: Feed, expected: tuple[Any, ...] | None) -> Outcome:
    try:
        try:
            result = prune(case.model, ratio=ratio, mode="unconstrained", bench_seconds=0, data=[dict(feed)])
        except DataError:  # the inputs have no common batch axis: no samples, then
            result = prune(case.model, ratio=ratio, mode="unconstrained", bench_seconds=0)
    except VerificationError as error:
        if "does not reproduce its own outputs" in str(error):
            return Outcome(REFUSED, _line(error))
        return Outcome(DEFECT, _line(error))
    except UcpeError as error:
        return Outcome(REFUSED, _line(error))
    for left in result.report.left_alone:
        raise AssertionError(f"segment {left.segment} was left alone: {left.reason}")
    masks = result.plan.masks()
    emitted = result.model
    onnx.checker.check_model(emitted, full_check=True)
    if not masks:
        if nameless(emitted) != nameless(case.model):
            return Outcome(DEFECT, "nothing was pruned, but the model has changed")
        wanted = run_model(case.model, feed) if expected is None else expected
        problem = differences(run_model(emitted, feed), wanted, rtol=case.rtol, atol=case.atol)
        return Outcome(DEFECT, problem) if problem else Outcome(WHOLE)
    problem = changed_interface(emitted, case.model) or _unlike_masked(
        result.plan.weighted(case.model), emitted, masks, feed
    )
    return Outcome(DEFECT, problem) if problem else Outcome(PRUNED)


def check_masks(model: onnx.ModelProto, feed: Feed, seed: int = 0) -> Outcome:
    """Emit with random masks in every lowering."""
    traced = trace(model)
    masks = random_masks(traced, seed)
    kind = WHOLE
    for lowering in LOWERING_RULES if masks else ():
        plan = make_plan(traced, masks, Settings(Target(blocked=False), lowering))
        emitted = emit(model, traced, plan)
        onnx.checker.check_model(emitted, full_check=True)
        problem = changed_interface(emitted, model) or _unlike_masked(model, emitted, plan.masks(), feed)
        if problem:
            return Outcome(DEFECT, f"random masks, lowering {lowering}: {problem}")
        if weights(emitted) < weights(model):
            kind = PRUNED
    return Outcome(kind)


def weights(model: onnx.ModelProto) -> int:
    """Number of elements of all initializers."""
    return sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)


def random_masks(traced: Trace, seed: int) -> dict[str, Mask]:
    """About half of the channels of every consumer, frozen or not, one at least."""
    random = np.random.default_rng(seed)
    masks = {}
    for name, consumer in traced.consumers.items():
        mask = random.random(consumer.channels) < 0.6
        mask[random.integers(consumer.channels)] = True
        masks[name] = mask
    return masks


def nameless(model: onnx.ModelProto) -> bytes:
    """The model without its nodes' names; as bytes, for which NaN equals itself."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in copy.graph.node:
        node.ClearField("name")
    return copy.SerializeToString(deterministic=True)


def changed_interface(emitted: onnx.ModelProto, model: onnx.ModelProto) -> str:
    """What a caller of the model would notice; nothing if all is as it was."""
    stored = {tensor.name for tensor in model.graph.initializer}  # these may be declared as inputs, and shrink
    before, after = ([v for v in m.graph.input if v.name not in stored] for m in (model, emitted))
    if before != after:
        return "the inputs have changed"
    if list(model.graph.output) != list(emitted.graph.output):
        return "the outputs have changed"
    names = node_names(model.graph.node)
    left = {node.name for node in emitted.graph.node}
    if [n.name for n in emitted.graph.node if n.name in set(names)] != [name for name in names if name in left]:
        return "the nodes have another order"
    fields = ("ir_version", "opset_import", "functions", "metadata_props", "producer_name")
    changed = [field for field in fields if getattr(emitted, field) != getattr(model, field)]
    return f"{changed[0]} has changed" if changed else ""


def _unlike_masked(model: onnx.ModelProto, emitted: onnx.ModelProto, masks: dict[str, Mask], feed: Feed) -> str:
    reference = masked_model(model, masks)
    wanted = run_model(reference, feed)
    problem = differences(run_model(emitted, feed), wanted)
    if problem and not _finite([*wanted, *run_model(model, feed)]):
        return ""  # 0 * inf is NaN: zero weights don't remove what pruning does
    if problem and differences(run_model(reference, feed, optimise=False), wanted):
        return ""  # rounding alone decides these outputs
    return f"unlike the masked model, {problem}" if problem else ""


def _finite(values: list[Any]) -> bool:
    floats = [value for value in values if isinstance(value, np.ndarray) and value.dtype.kind == "f"]
    return all(np.isfinite(value).all() for value in floats)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
