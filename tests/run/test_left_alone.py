"""A segment whose emission does not verify is left alone, and the rest goes on."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Collection

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from rich.console import Console

from tests.builders import Masked, Net
from tests.models_small import latency
from ucpe_onnx import VerificationError, prune
from ucpe_onnx.errors import ModelError
from ucpe_onnx.model import offload
from ucpe_onnx.passes import emit
from ucpe_onnx.plan import Plan
from ucpe_onnx.report.html import render_html
from ucpe_onnx.report.summary import print_summary
from ucpe_onnx.run import budget as budget_stage
from ucpe_onnx.run import context, trials, verified
from ucpe_onnx.runtime.session import as_session

SAID = verified.said
LAYERS = 8
OPTIONS = {"bench_seconds": 0, "ratio": 0.5}


def chain() -> onnx.ModelProto:
    """c0 -> c1 -> ... -> c7, each but the first the only consumer of its segment."""
    net = Net()
    x = net.input("x", (1, 3, 6, 6))
    for index in range(LAYERS):
        x = net.op("Relu", net.conv(x, 64, name=f"c{index}"))
    return net.output(net.conv(x, 4, name="last")).model()


def changed(plan: Plan, name: str) -> bool:
    """Whether a consumer loses channels that it read."""
    return len(plan.consumers[name].read) < plan.consumers[name].channels


def weights_of(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    node = next(node for node in model.graph.node if node.name == name)
    return next(tensor for tensor in model.graph.initializer if tensor.name == node.input[1])


def wrong_weights(model: onnx.ModelProto, name: str) -> None:
    """What a pass would do that takes the wrong channels."""
    tensor = weights_of(model, name)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[:, ::-1].copy() + 0.1, tensor.name))


def invalid_node(model: onnx.ModelProto, name: str) -> None:
    """What a rule would do that forgets an attribute's meaning: the node is refused by checker and runtime."""
    node = next(node for node in model.graph.node if node.name == name)
    node.attribute.append(onnx.helper.make_attribute("kernel_shape", [7, 7, 7]))


def unloadable(model: onnx.ModelProto, name: str) -> None:
    """An operator that no runtime knows, which the checker lets pass."""
    node = next(node for node in model.graph.node if node.name == name)
    node.op_type, node.domain = "Unheard", "of.by.anybody"
    model.opset_import.append(onnx.helper.make_opsetid("of.by.anybody", 1))


def crash(model: onnx.ModelProto, name: str) -> None:
    raise IndexError(f"list index out of range at {name}")


@pytest.fixture(autouse=True)
def defects_are_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere a test in which something is left alone fails."""
    monkeypatch.setattr(verified, "said", SAID)


@pytest.fixture
def defect(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Makes emission wrong for some consumers whenever their segment is pruned; returns a growing list of trials."""

    def install(names: Collection[str], spoil: Callable[[onnx.ModelProto, str], None]) -> list[int]:
        tries: list[int] = []

        def emitted(model: onnx.ModelProto, traced: object, plan: Plan, *rest: object) -> onnx.ModelProto:
            tries.append(1)
            made = emit(model, traced, plan, *rest)  # type: ignore[arg-type]
            for name in names:
                if changed(plan, name):
                    spoil(made, name)
            return made

        monkeypatch.setattr(trials, "emit", emitted)
        return tries

    return install


@pytest.mark.parametrize("spoil", [wrong_weights, invalid_node, unloadable, crash])
@pytest.mark.parametrize("culprits", [["c3"], ["c1"], ["last"], ["c2", "c6"]])
def test_the_culprits_are_left_alone_and_others_pruned(defect, spoil, culprits: list[str]) -> None:
    tries = defect(culprits, spoil)
    result = prune(chain(), **OPTIONS)
    assert [each.consumers for each in result.report.left_alone] == [(name,) for name in culprits]
    for name, consumer in result.plan.consumers.items():
        whole = name in culprits or name == "c0"  # the input is frozen
        assert (len(consumer.keep) == consumer.channels) == whole, name
    assert len(tries) <= 2 + len(culprits) * 4
    Masked(chain(), result.plan.masks()).check(result.model)


def test_given_masks_are_honoured_where_a_segment_is_left_alone(defect) -> None:
    defect(["c3"], wrong_weights)
    masks = {name: np.arange(64) < 32 for name in ("c2", "c3", "c5")}
    result = prune(chain(), masks=masks, **OPTIONS)
    assert {name: mask.tolist() for name, mask in result.plan.masks().items()} == {
        name: mask.tolist() for name, mask in masks.items()
    }
    assert [changed(result.plan, name) for name in ("c2", "c3", "c5")] == [True, False, True]
    Masked(chain(), masks).check(result.model)


def test_the_plan_repeats_the_result(defect, tmp_path) -> None:
    tries = defect(["c3"], wrong_weights)
    result = prune(chain(), **OPTIONS)
    result.plan.save(tmp_path / "plan.json")
    tries.clear()
    again = prune(chain(), plan=tmp_path / "plan.json", bench_seconds=0)
    assert len(tries) == 1 and not again.report.left_alone
    assert again.model == result.model and again.plan == result.plan


def test_what_was_left_alone_is_told(defect) -> None:
    defect(["c3"], wrong_weights)
    result = prune(chain(), **OPTIONS)
    (entry,) = result.report.to_dict()["left_alone"]
    assert (entry["producers"], entry["consumers"]) == (("c2",), ("c3",))
    assert entry["reason"].startswith("output 't") and "don't use" not in entry["reason"]
    stream = io.StringIO()
    print_summary(result.report, Console(file=stream, width=500, markup=False))
    text = stream.getvalue()
    assert f"left alone: segment {entry['segment']}, made by c2, read by c3: output" in text
    assert "please report it" in text and "or were left alone" in text
    page = render_html(result.report, result.plan)
    assert "<h2>Left alone</h2>" in page and "made by c2, read by c3" in page


def test_nothing_is_told_where_everything_verifies() -> None:
    result = prune(chain(), **OPTIONS)
    assert result.report.to_dict()["left_alone"] == [] and not result.report.left_alone


def test_what_a_refused_trial_has_put_into_files_is_removed(defect, monkeypatch) -> None:
    monkeypatch.setattr(offload, "LEAST_MODEL", 0)
    monkeypatch.setattr(offload, "LEAST_TENSOR", 2**10)
    there: list[list[bool]] = []
    emitted: list[onnx.ModelProto] = []

    def checked(model, where, **options):
        there.append([os.path.exists(file) for each in emitted[:1] for file in files_of(each) - files_of(model)])
        emitted.append(model)

    monkeypatch.setattr(trials, "check_model", checked)
    defect(["c3"], wrong_weights)
    assert prune(chain(), **OPTIONS).report.left_alone
    assert files_of(emitted[0]) and there[1] and not any(there[1]), "the first, which was refused"


def files_of(model: onnx.ModelProto) -> set[str]:
    """Where weights are kept."""
    return {
        entry.value for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"
    }


def test_many_culprits_take_a_bounded_number_of_trials(defect) -> None:
    names = [f"c{index}" for index in range(1, LAYERS)]
    tries = defect(names, wrong_weights)
    result = prune(chain(), **OPTIONS)
    assert [name for each in result.report.left_alone for name in each.consumers] == [*names, "last"]
    assert result.report.left_alone[-1].reason.startswith("not tried")
    assert not result.plan.masks()
    assert len(tries) <= 2 + 4 * 4


def test_other_layouts_that_do_not_verify_are_left_out(defect, monkeypatch) -> None:
    """Zero weights for all, and copies for all, are tried beside the plan that was asked for."""
    real = trials.carry_out

    def refusing(run, name, plan):
        if name != "auto":
            raise ModelError("the emitted model: onnx.checker refuses it")
        return real(run, name, plan)

    monkeypatch.setattr(verified, "carry_out", refusing)
    net = Net()
    a = net.conv(net.input("x", (1, 3, 6, 6)), 64, name="a")
    model = net.output(net.conv(a, 8, name="b"), net.conv(a, 8, name="c")).model()
    masks = {"b": np.arange(64) < 16, "c": np.arange(64) >= 48}
    report = prune(model, masks=masks, bench_seconds=0.01).report
    assert report.layout == "auto" and not report.left_alone
    refused = report.to_dict()["refused_layouts"]
    assert refused and set(refused.values()) == {"the emitted model: onnx.checker refuses it"}


@pytest.mark.parametrize("ratio, trials_made", [(0.5, 2), (0.0, 1)])
def test_the_job_is_refused_if_leaving_everything_alone_does_not_help(monkeypatch, ratio, trials_made) -> None:
    """The error is that of the plan, and it takes one more trial to know, if there is anything to leave alone."""
    tries = []

    def unsteady(model, traced, plan, *rest):
        tries.append(1)
        made = emit(model, traced, plan, *rest)
        wrong_weights(made, "c0")
        return made

    monkeypatch.setattr(trials, "emit", unsteady)
    with pytest.raises(VerificationError, match="does not compute what the masked model computes"):
        prune(chain(), ratio=ratio, bench_seconds=0)
    assert len(tries) == trials_made


@pytest.mark.parametrize("options", [{"verify_each": True}, {"dump_after": ("all",)}])
def test_who_looks_for_a_defect_gets_the_error(defect, tmp_path, options) -> None:
    tries = defect(["c3"], invalid_node)
    with pytest.raises(ModelError, match=r"the emitted model: onnx\.checker refuses it"):
        prune(chain(), dump_beside=tmp_path / "out.onnx", **OPTIONS, **options)
    assert len(tries) == 1


def test_weights_that_were_refitted_stay_with_their_masks(defect) -> None:
    """A segment that only fails with new weights keeps its mask: the others were refitted to that."""
    names = ["c3"]
    tries = defect([], wrong_weights)
    data = {"x": np.random.default_rng(0).normal(size=(24, 3, 6, 6)).astype(np.float32)}
    plain = prune(chain(), data=data, **OPTIONS)
    assert plain.plan.weights and len(tries) == 2

    def only_with_new_weights(model: onnx.ModelProto, name: str) -> None:
        if len(tries) > 1:
            wrong_weights(model, name)

    tries.clear()
    tries = defect(names, only_with_new_weights)
    result = prune(chain(), data=data, **OPTIONS)
    assert [each.consumers for each in result.report.left_alone] == [("c3",)]
    assert result.plan.consumers["c3"].keep == plain.plan.consumers["c3"].keep
    assert not changed(result.plan, "c3") and changed(result.plan, "c4")


@pytest.mark.parametrize("spoil", [wrong_weights, unloadable, crash])
@pytest.mark.parametrize("budget", [{"target_params": 0.3}, {"target_latency": 0.8, "bench_seconds": 0.1}])
def test_a_budget_goes_on_without_the_culprit(defect, monkeypatch, spoil, budget: dict[str, float]) -> None:
    defect(["c4"], spoil)
    monkeypatch.setattr(budget_stage, "emit", trials.emit)

    def measured(models, feed, options, **_):
        for model in models.values():
            as_session(model, options)
        return latency(0.8, names=models)

    monkeypatch.setattr(context, "measure", measured)
    report = prune(chain(), **{"bench_seconds": 0, **budget}).report
    assert [each.consumers for each in report.left_alone] == [("c4",)]
    if "target_params" in budget:
        assert report.budget is not None
        assert report.budget.reached == pytest.approx(report.after.parameters / report.before.parameters)
