"""Names that nobody would choose: none, equal ones, those that the tool itself would make."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.builders import Net
from tests.structure.checking import check
from ucpe_onnx import Plan, load_masks, prune, save_masks
from ucpe_onnx.cli import main


def layers() -> onnx.ModelProto:
    """x -> a -> Relu -> b, c -> Add -> d; a shape input on the way."""
    net = Net()
    a = net.op("Relu", net.reshape(net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a"), 1, 8, 4, 4), name="relu")
    total = net.op("Add", net.conv(a, 6, name="b"), net.conv(a, 6, name="c"), name="add")
    return net.output(net.conv(total, 2, name="d")).model()


def renamed(nodes: dict[str, str], tensors: dict[str, str] | None = None) -> onnx.ModelProto:
    """The layers with other names of nodes and tensors."""
    model, tensors = layers(), tensors or {}
    for node in model.graph.node:
        node.name = nodes.get(node.name, node.name)
        node.input[:] = [tensors.get(name, name) for name in node.input]
        node.output[:] = [tensors.get(name, name) for name in node.output]
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        value.name = tensors.get(value.name, value.name)
    return model


def producers(model: onnx.ModelProto) -> list[str]:
    """The names by which the tool knows the layers that can lose channels: a, b, c."""
    nodes = model.graph.node
    names = [node.name for node in nodes]
    convs = [(index, node) for index, node in enumerate(nodes) if node.op_type == "Conv"][:3]
    return [
        node.name if node.name and names.count(node.name) == 1 else f"{node.op_type}_{index}" for index, node in convs
    ]


NAMINGS = {
    "none": dict.fromkeys(["a", "relu", "b", "add", "c", "d"], ""),
    "all equal": dict.fromkeys(["a", "relu", "b", "add", "c", "d"], "node"),
    "two equal": {"b": "a"},
    "names of others' defaults": {"a": "", "d": "Reshape_1"},
    "slashes": {"a": "/a/Conv", "b": "a/../b", "c": "C:\\c\\Conv"},
    "marks": {"a": "näme \u2603", "b": "b:0", "c": "[red]c[/red]"},
    "blank": {"a": " ", "b": "  ", "c": "\t"},
    "long": {"a": "a" * 5000},
    "wildcards": {"a": "*", "b": "?", "c": "[ab]"},
    "file": {"a": "file", "b": "allow_pickle"},
    "control characters": {"a": "a\nb", "b": "\x1b[31m"},
}


@pytest.mark.parametrize("naming", NAMINGS)
def test_node_names(naming: str) -> None:
    model = renamed(NAMINGS[naming])
    check(model, pruned=producers(model))


@pytest.mark.parametrize("naming", NAMINGS)
def test_names_survive_mask_and_plan_files(naming: str, tmp_path) -> None:
    model = renamed(NAMINGS[naming])
    path = tmp_path / "in.onnx"
    onnx.save_model(model, str(path))
    result = prune(str(path), ratio=0.5, mode="unconstrained", bench_seconds=0)
    masks, channels = result.plan.masks(), {name: c.channels for name, c in result.plan.consumers.items()}
    assert masks
    for file in (tmp_path / "masks.npz", tmp_path / "masks.json"):
        save_masks(file, masks)
        assert {name: mask.tolist() for name, mask in load_masks(file, channels).items()} == {
            name: mask.tolist() for name, mask in masks.items()
        }
    result.plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == result.plan
    flags = ["--plan", str(tmp_path / "plan.json"), "--bench-seconds", "0", "--json", str(tmp_path / "report.json")]
    assert main([str(path), str(tmp_path / "out.onnx"), *flags, "--report", str(tmp_path / "report.html")]) == 0
    assert (tmp_path / "out.onnx").read_bytes() == result.model.SerializeToString()
    json.loads((tmp_path / "report.json").read_text())


def test_nodes_called_like_tensors() -> None:
    model = layers()
    for node in model.graph.node:
        node.name = node.output[0]
    check(model, pruned=producers(model))


def test_tensors_called_like_what_the_tool_would_add() -> None:
    """The emitted model of each lowering is asked for the names it has made; they are then given to the input."""
    plain = layers()
    half = np.arange(8) % 2 == 0
    taken = {t.name for t in plain.graph.initializer} | {o for n in plain.graph.node for o in n.output}
    for lowering in ("gather", "slice"):
        masks = {"b": half, "c": half & (np.arange(8) < 7), "d": np.arange(6) < 4}
        # Without a blocked layout nothing is rounded up, whatever the processor.
        after = prune(plain, masks=masks, lowering=lowering, bench_seconds=0, opt_level="basic").model.graph
        made = {t.name for t in after.initializer} | {o for n in after.node for o in n.output}
        new = sorted(made - taken)
        names = [node.name for node in plain.graph.node]
        added = [node.name for node in after.node if node.name not in names]
        assert new or lowering == "slice"
        old = [node.output[0] for node in plain.graph.node][:-1] + [t.name for t in plain.graph.initializer]
        model = renamed(dict(zip(["relu", "add"], added, strict=False)), dict(zip(old, new, strict=False)))
        check(model, pruned=["a", "b", "c"])


NAMES = st.text(min_size=0, max_size=12)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(nodes=st.lists(NAMES, min_size=6, max_size=6), tensors=st.lists(NAMES.filter(bool), unique=True, min_size=8))
def test_any_names(nodes: list[str], tensors: list[str]) -> None:
    plain = layers()
    old = [node.output[0] for node in plain.graph.node] + ["x", *(t.name for t in plain.graph.initializer)]
    chosen = dict(zip(old, tensors, strict=False))
    if len(set(chosen.values()) | set(old)) < len(old) + len(chosen):
        return  # a name would be borne by two tensors
    model = renamed(dict(zip(["a", "relu", "b", "add", "c", "d"], nodes, strict=True)), chosen)
    check(model, pruned=[], seeds=1)
