"""The listing: the public format, and the tables."""

from __future__ import annotations

import json

import numpy as np
import pytest
from onnx import helper

from tests.builders import Net
from tests.models_small import branches, single_consumer, wide, write
from ucpe_onnx.analysis.trace import trace
from ucpe_onnx.inspect import listing, main
from ucpe_onnx.model.source import open_source
from ucpe_onnx.runtime.optimised import read_optimised
from ucpe_onnx.runtime.optimised_pair import attributed
from ucpe_onnx.runtime.session import RunOptions


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(branches(), tmp_path / "in.onnx")
    return tmp_path


def test_the_public_format(folder, capsys):
    assert main(["in.onnx", "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert err == "" and found == listing("in.onnx") == listing(branches())
    weights = {node.name: node.input[1] for node in branches().graph.node if node.name}
    assert found == {
        "consumers": [
            {
                "name": name,
                "op_type": op,
                "weight": weights[name],
                "channels": channels,
                "prunable": prunable,
                "segment": segment,
            }
            for name, op, channels, prunable, segment in (
                ("/a/Conv", "Conv", 3, [], 0),
                ("/b/Conv", "Conv", 16, list(range(16)), 1),
                ("/c/Conv", "Conv", 16, list(range(16)), 1),
                ("fc", "Gemm", 8, list(range(8)), 2),
            )
        ],
        "segments": [
            {
                "id": index,
                "producers": producers,
                "consumers": consumers,
                "slots": slots,
                "frozen": frozen,
                "reason": reason,
                "frozen_by": {reason: len(frozen)} if reason else {},
            }
            for index, (producers, consumers, slots, frozen, reason) in enumerate(
                (
                    ([], ["/a/Conv"], 3, [0, 1, 2], "graph input x"),
                    (["/a/Conv"], ["/b/Conv", "/c/Conv"], 16, [], ""),
                    (["/b/Conv", "/c/Conv"], ["fc"], 8, [], ""),
                    (["fc"], [], 4, [0, 1, 2, 3], "graph output y"),
                )
            )
        ],
        "not_followed": [],
    }


def test_slots_of_one_producer_are_its_output_channels():
    """Also behind operators that mix them up: half of the channels go out, so slots 4 to 7 are frozen."""
    net = Net()
    made = net.conv(net.input("x", (1, 3, 4, 4)), 8, name="producer")
    first, second = net.split(made, [4, 4])
    swapped = net.op("Concat", second, first, axis=1)
    model = net.output(net.conv(swapped, 2, name="consumer"), net.op("Relu", second)).model()
    found = listing(model)
    consumer = next(c for c in found["consumers"] if c["name"] == "consumer")
    segment = found["segments"][consumer["segment"]]
    assert (segment["producers"], segment["slots"], segment["frozen"]) == (["producer"], 8, [4, 5, 6, 7])
    assert consumer["prunable"] == [4, 5, 6, 7] and "graph output" in segment["reason"]


def test_unknown_operators_freeze_and_say_so():
    net = Net()
    a = net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a")
    (b,) = net.ops("Cumulate", a, domain="nobody.knows", shapes=[(1, 8, 4, 4)], name="odd")
    model = net.output(net.conv(b, 4, name="c")).model()
    model.opset_import.append(helper.make_opsetid("nobody.knows", 1))
    made = listing(model)["segments"][1]
    assert made["producers"] == ["a"] and made["frozen"] == list(range(8))
    assert "Cumulate" in made["reason"] and "odd" in made["reason"]


def test_tables(folder, capsys):
    assert main(["in.onnx"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("/a/Conv", "/b/Conv", "fc", "Gemm", "graph input x", "graph output y"))
    assert "100% of the consumers' weights read or make channels that may be pruned" in out
    assert max(map(len, out.splitlines())) <= 80
    weight = branches().graph.node[0].input[1]
    assert f" {weight} " not in out
    main(["in.onnx", "-v"])
    assert f" {weight} " in capsys.readouterr().out


def test_long_names_are_folded_not_cut(folder, capsys):
    name = "/model/backbone/layers.0/blocks.1/attention/output/projection/long_name/Conv"
    write(branches((name, "/b/Conv", "/c/Conv", "fc")), folder / "in.onnx")
    main(["in.onnx"])
    out = capsys.readouterr().out
    start = next(i for i, line in enumerate(out.splitlines()) if "/model" in line)
    cells = [line.split("│")[1].strip() for line in out.splitlines()[start : start + 3] if "│" in line]
    assert "".join(cells).startswith(name) and max(map(len, out.splitlines())) <= 80


def test_json_to_a_file(folder, capsys):
    assert main(["in.onnx", "--json", "out.json", "-q"]) == 0
    assert json.loads((folder / "out.json").read_text()) == listing("in.onnx")
    assert capsys.readouterr() == ("", "")
    assert main(["in.onnx", "--json", "out.json"]) == 0
    assert "consumers" in capsys.readouterr().out
    assert sorted(p.name for p in folder.iterdir()) == ["in.onnx", "out.json"]


def test_json_before_the_model(folder, capsys):
    assert main(["--json", "in.onnx"]) == 0
    assert json.loads(capsys.readouterr().out) == listing("in.onnx")


def test_no_model_is_a_usage_error(capsys):
    for arguments in ([], ["--json"], ["-v"]):
        with pytest.raises(SystemExit) as error:
            main(arguments)
        assert error.value.code == 2 and "in.onnx" in capsys.readouterr().err


def test_nothing_to_prune(folder, capsys):
    write(single_consumer(), folder / "in.onnx")
    assert main(["in.onnx"]) == 0
    assert "0% of the consumers' weights" in capsys.readouterr().out


def test_listing_agrees_with_what_pruning_uses():
    """Every mask within the listed prunable channels is accepted under the listed names."""
    from ucpe_onnx import prune

    random = np.random.default_rng(0)
    masks = {}
    for consumer in listing(wide())["consumers"]:
        mask = np.ones(consumer["channels"], bool)
        mask[[c for c in consumer["prunable"] if random.random() < 0.5]] = False
        masks[consumer["name"]] = mask
    assert prune(wide(), masks=masks, bench_seconds=0).report.verification.passed


def test_recurrences_are_listed_beside_their_layers():
    net = Net()
    weights = [net.weight(net.normal(1, 15, size)) for size in (3, 5)]
    _, last = net.ops("GRU", net.input("x", (4, 1, 3)), *weights, hidden_size=5, name="r", outputs=2)
    found = listing(net.output(net.op("MatMul", last, net.weight(net.normal(5, 2)), name="b")).model())
    listed = [(c["name"], c["op_type"], c["weight"], c["channels"], len(c["prunable"])) for c in found["consumers"]]
    assert listed == [
        ("r", "GRU", weights[0], 3, 0),
        ("r/recurrence", "GRU", weights[1], 5, 5),
        ("b", "MatMul", "w2", 5, 5),
    ]
    assert found["segments"][1]["consumers"] == ["r/recurrence", "b"]


def test_says_why_weights_that_callers_may_override_stay(folder, capsys):
    model = branches()
    assert main([str(write(model, folder / "plain.onnx"))]) == 0
    assert "graph inputs too" not in capsys.readouterr().out
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    assert main([str(write(model, folder / "overridable.onnx"))]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert f"{len(model.graph.initializer)} initializers (" in out and "in its new shape" in out


def test_what_onnxruntime_makes_of_it(folder, capsys):
    assert main(["in.onnx", "--runtime", "--opt-level", "extended", "--input-shapes", "x:[2,3,8,8]"]) == 0
    out = capsys.readouterr().out
    assert "convolutions: 3 in the plain layout; this session has no blocked layout" in " ".join(out.split())
    assert "Adds not fused" in out and max(map(len, out.splitlines())) <= 80
    assert main(["in.onnx", "--runtime", "--opt-level", "extended", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["block"], found["plain"], found["counts"]["copy"]) == (0, 3, 0)
    named = open_source(branches()).model
    assert found == attributed(read_optimised(named, RunOptions(opt_level="extended")), trace(named)).to_dict()


def test_many_findings_are_listed_on_demand(folder, capsys):
    net = Net()
    x = net.input("x", (1, 2, 3, 4))
    for i in range(40):
        x = net.op("Transpose", net.op("Erf", x), perm=[0, 2, 3, 1], name=f"turn{i}")
    write(net.output(x).model(), folder / "turns.onnx")
    main(["turns.onnx", "--runtime", "--opt-level", "disable"])
    out = capsys.readouterr().out
    assert "turn29" in out and "turn30" not in out and "and 10 more: -v" in out
    main(["turns.onnx", "--runtime", "--opt-level", "disable", "-v"])
    assert "turn39" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "word"),
    [(["--providers", "abacus"], "abacus"), (["--input-shapes", "x[1]"], "x[1]"), (["--input-shapes", "z:[1]"], "z")],
)
def test_wrong_options_of_the_runtime(folder, capsys, arguments, word):
    assert main(["in.onnx", "--runtime", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and word in err and len(err.splitlines()) == 1
