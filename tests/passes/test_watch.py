"""``--verify-each`` names the pass that breaks the draft, ``--dump-after`` writes what it had made."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import pytest

from tests.builders import Net
from tests.models_small import branches, wide, write
from ucpe_onnx import ModelError, UsageError, passes, prune
from ucpe_onnx.analysis.trace import trace
from ucpe_onnx.cli import build_parser, main
from ucpe_onnx.passes import PASS_NAMES, Emission, Watch, emission_passes, emission_steps, emit
from ucpe_onnx.plan import Plan

MASKS = {"left": list(range(32)), "right": list(range(16, 48)), "head": list(range(48, 64))}


def planned(model: onnx.ModelProto) -> Plan:
    return prune(model, masks=MASKS, bench_seconds=0, mode="unconstrained").plan


def test_the_names_are_those_of_the_passes() -> None:
    model = wide()
    emission = Emission(trace(model), planned(model))
    assert tuple(step.name for step in emission_passes(emission)) == PASS_NAMES
    assert emission_passes(emission) == tuple(one for step in emission_steps(emission) for one in step)
    text = "".join(build_parser().format_help().split())  # lines break after hyphens
    assert all(name in text for name in PASS_NAMES)


def with_declared_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    return onnx.shape_inference.infer_shapes(model)


def old() -> onnx.ModelProto:
    """Of IR version 3: whatever constant is new has to be declared by the last pass."""
    net = Net(opset=9, ir_version=3)
    a = net.conv(net.input("x", (1, 3, 8, 8)), 64, name="stem")
    b = net.conv(a, 64, name="left")
    return net.output(net.conv(b, 64, name="right"), net.conv(b, 5, name="head"), net.conv(a, 8)).model()


def grouped() -> onnx.ModelProto:
    """Half-way through, the number of groups and the reshape's target contradict the weights."""
    net = Net()
    a = net.conv(net.input("x", (1, 3, 8, 8)), 64, name="stem")
    b = net.op("Conv", a, net.weight(net.normal(64, 1, 3, 3)), group=64, pads=[1, 1, 1, 1], name="depthwise")
    c = net.reshape(net.conv(b, 64, name="left"), 1, 64, 64)
    d = net.reshape(c, 1, 64, 8, 8)
    return net.output(net.conv(d, 64, name="right"), net.conv(d, 5, name="head")).model()


@pytest.mark.parametrize("lowering", ["auto", "gather", "slice", "union"])
@pytest.mark.parametrize("make", [wide, grouped, old])
def test_sound_passes_are_found_sound(make, lowering) -> None:
    model = with_declared_shapes(make())
    plain = prune(model, masks=MASKS, bench_seconds=0, lowering=lowering)
    watched = prune(model, masks=MASKS, bench_seconds=0, lowering=lowering, verify_each=True)
    assert watched.model == plain.model


def breaks(kind: str, draft: onnx.ModelProto) -> None:
    node = next(n for n in draft.graph.node if n.name == "right")
    if kind == "structure":
        node.input[1] = "nowhere"
    else:
        draft.graph.value_info.append(onnx.helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, [7]))


@pytest.mark.parametrize(
    "case",
    [
        ("PruneWeights", "structure", "after pass prune-weights: onnx.checker refuses it"),
        ("RouteChannels", "structure", "after pass route-channels: onnx.checker refuses it"),
        ("RemoveOrphans", "structure", "after pass remove-orphans: onnx.checker refuses it"),
        ("RemoveOrphans", "shapes", "after pass remove-orphans: onnx.checker refuses it"),
        (
            "AdaptNodes",
            "shapes",
            "after pass refresh-shapes (with prune-weights, adapt-nodes, route-channels, fix-lengths):",
        ),
    ],
)
def test_the_pass_that_breaks_the_draft_is_named(monkeypatch, capfd, tmp_path, case) -> None:
    name, kind, words = case
    sound = getattr(passes, name).run

    def unsound(self, draft):
        result = sound(self, draft)
        breaks(kind, draft)
        return result

    monkeypatch.setattr(f"ucpe_onnx.passes.{name}.run", unsound)
    with pytest.raises(ModelError) as error:
        prune(wide(), masks=MASKS, bench_seconds=0, verify_each=True)
    assert words in str(error.value) and "\n" not in str(error.value)
    assert f"; {words.split()[2].rstrip(':')} changed " in str(error.value)
    write(wide(), tmp_path / "in.onnx")
    arguments = [str(tmp_path / "in.onnx"), str(tmp_path / "out.onnx"), "--bench-seconds", "0", "--verify-each"]
    assert main([*arguments, "--ratio", "0.5"]) == 1
    assert words in capfd.readouterr().err and os.listdir(tmp_path) == ["in.onnx"]


def test_the_message_tells_what_the_passes_of_the_step_did(monkeypatch) -> None:
    sound = passes.RefreshShapes.run

    def unsound(self, draft):
        breaks("shapes", draft)
        return sound(self, draft)

    model = with_declared_shapes(wide())
    plan = planned(model)
    monkeypatch.setattr("ucpe_onnx.passes.RefreshShapes.run", unsound)
    with pytest.raises(ModelError) as error:
        emit(model, trace(model), plan, Watch(verify=True))
    account = str(error.value).split("; ")[1:]
    assert [part.split()[0] for part in account] == list(PASS_NAMES[1:6])
    assert account[1] == "adapt-nodes changed nothing"


def test_off_by_default(monkeypatch) -> None:
    def no(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr("ucpe_onnx.passes.watch.check_model", no)
    monkeypatch.setattr("ucpe_onnx.passes.watch.save_model", no)
    model = wide()
    emit(model, trace(model), planned(model))
    with pytest.raises(AssertionError):
        emit(model, trace(model), planned(model), Watch(verify=True))


# Dumps


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write(wide(), tmp_path / "in.onnx")
    return tmp_path


RUN = ["in.onnx", "out.onnx", "--bench-seconds", "0", "-q", "--mode", "unconstrained", "--ratio", "0.5"]


def test_drafts_are_written_beside_the_output(folder) -> None:
    assert main([*RUN, "--dump-after", "prune-weights", "--dump-after", "name-nodes"]) == 0
    assert set(os.listdir(folder)) == {
        *("in.onnx", "out.onnx", "out.after-prune-weights.onnx", "out.after-name-nodes.onnx")
    }
    first, second = onnx.load("out.after-name-nodes.onnx"), onnx.load("out.after-prune-weights.onnx")
    assert first.graph.initializer == onnx.load("in.onnx").graph.initializer
    assert {t.name: t.dims[0] for t in second.graph.initializer} != {t.name: t.dims[0] for t in first.graph.initializer}
    assert second.graph.node == first.graph.node


def test_all_drafts(folder) -> None:
    assert main([*RUN, "--dump-after", "all", "--verify-each"]) == 0
    assert set(os.listdir(folder)) == {"in.onnx", "out.onnx", *(f"out.after-{name}.onnx" for name in PASS_NAMES)}
    assert onnx.load(f"out.after-{PASS_NAMES[-1]}.onnx") == onnx.load("out.onnx")


def test_drafts_are_there_when_the_run_fails(folder, monkeypatch) -> None:
    def broken(*_: object) -> None:
        raise IndexError

    monkeypatch.setattr("ucpe_onnx.passes.AdaptNodes.run", broken)
    assert main([*RUN, "--dump-after", "all"]) == 1
    assert set(os.listdir(folder)) == {"in.onnx", "out.after-name-nodes.onnx", "out.after-prune-weights.onnx"}


def test_drafts_from_python(folder) -> None:
    prune(branches(), bench_seconds=0, dump_after="refresh-shapes", dump_beside=folder / "drafts")
    assert (folder / "drafts.after-refresh-shapes.onnx").exists()
    with pytest.raises(UsageError, match="unknown 'nope'; choose from all, name-nodes"):
        prune(branches(), dump_after=["nope"], dump_beside="x")
    with pytest.raises(UsageError, match="give dump_beside"):
        prune(branches(), dump_after=["all"])


def test_unknown_names_and_what_would_be_overwritten_are_usage_errors(folder, capfd) -> None:
    with pytest.raises(SystemExit) as error:
        main([*RUN, "--dump-after", "nope"])
    assert error.value.code == 2 and "prune-weights" in capfd.readouterr().err
    write(wide(), folder / "out.after-name-nodes.onnx")
    assert main(["out.after-name-nodes.onnx", *RUN[1:], "--dump-after", "all"]) == 2
    assert "--dump-after name-nodes would overwrite in.onnx" in capfd.readouterr().err
    (folder / "c.toml").write_text('dump-after = ["name-nodes"]\nverify-each = true\n')
    assert main([*RUN, "--config", "c.toml"]) == 0 and (folder / "out.after-name-nodes.onnx").exists()
