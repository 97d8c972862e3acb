"""Bodies beyond the plain cases: what a fold must not lose, names that collide, iterations that differ."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.backend.test.case.node import collect_testcases

from tests.builders import Masked, run
from tests.structure.bodies import parsed
from tests.structure.checking import check
from ucpe_onnx.analysis.counts import model_stats
from ucpe_onnx.analysis.graph import GraphView
from ucpe_onnx.analysis.trace import trace
from ucpe_onnx.model.bodies import fold, unfold
from ucpe_onnx.model.bodies.markers import has_bodies
from ucpe_onnx.model.naming import node_names
from ucpe_onnx.passes import emit
from ucpe_onnx.planning.checks import check_plan
from ucpe_onnx.planning.make import Settings, make_plan
from ucpe_onnx.runtime.target import Target

BRANCHES = """
    [a] a = MatMul(x, w)
    [if] y = If(c) <
        then_branch = t () => (float[1,2] p) { [n] p = MatMul(a, k) },
        else_branch = e () => (float[1,2] q) { [m] r = Relu(a) [n] q = MatMul(r, l) }>
    [z] v = MatMul(a, u)"""


def branching(ir_version: int = 8) -> onnx.ModelProto:
    """Two layers in two branches, of the same name, and one beside them read what a layer makes."""
    outputs = "float[1,2] y, float[1,4] v"
    weights = {"w": (3, 8), "k": (8, 2), "l": (8, 2), "u": (8, 4)}
    return parsed("float[1,3] x, bool c", outputs, BRANCHES, ir_version=ir_version, **weights)


def both_ways(shape: tuple[int, ...] = (1, 3)) -> list[dict[str, np.ndarray]]:
    x = np.random.default_rng(5).standard_normal(shape).astype(np.float32)
    return [{"x": x, "c": np.array(way)} for way in (True, False)]


def body_of(model: onnx.ModelProto, control: str, attribute: str) -> onnx.GraphProto:
    node = next(node for node in model.graph.node if node.name == control)
    return next(each.g for each in node.attribute if each.name == attribute)


def assert_comes_back(model: onnx.ModelProto) -> None:
    """Unfolded and folded again the model is the same, byte by byte."""
    for node, name in zip(model.graph.node, node_names(model.graph.node), strict=True):
        node.name = name
    unfolding = unfold(model)
    assert unfolding.bodies and not any(has_bodies(node) for node in unfolding.model.graph.node)
    draft = onnx.ModelProto()
    draft.CopyFrom(unfolding.model)
    fold(draft, unfolding)
    assert draft.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)


# What a fold must not lose


@pytest.mark.parametrize(
    "declared",
    [
        helper.make_tensor_value_info("k", TensorProto.FLOAT, [8, 2]),
        helper.make_tensor_value_info("p", TensorProto.FLOAT, ["other", 2]),
        onnx.ValueInfoProto(name="p", doc_string="without a type"),
    ],
    ids=["initializer", "output declared twice", "no type"],
)
def test_what_a_body_declares_comes_back(declared: onnx.ValueInfoProto) -> None:
    model = branching()
    body = body_of(model, "if", "then_branch")
    stored = next(tensor for tensor in model.graph.initializer if tensor.name == "k")
    body.initializer.append(stored)
    model.graph.initializer.remove(stored)
    body.value_info.append(declared)
    assert_comes_back(model)


def test_names_that_are_empty_or_missing_come_back() -> None:
    model = branching()
    body_of(model, "if", "then_branch").node[0].ClearField("name")
    body_of(model, "if", "else_branch").node[0].name = ""
    assert_comes_back(model)


def test_what_the_outer_graph_declares_of_nothing_stays_there() -> None:
    """It bears the name of a tensor in a body."""
    model = branching()
    model.graph.value_info.append(helper.make_tensor_value_info("r", TensorProto.FLOAT, [7, 7]))
    assert_comes_back(model)


def followed_cases() -> list[tuple[str, onnx.ModelProto]]:
    """The models of ONNX's own tests with bodies that are all followed."""
    cases = [(case.name, case.model) for case in collect_testcases(None) if case.model is not None]
    held = [(name, model) for name, model in cases if any(has_bodies(node) for node in model.graph.node)]
    return [(name, model) for name, model in held if unfold(model).bodies]


def test_models_of_onnx_come_back() -> None:
    cases = followed_cases()
    assert len(cases) > 30
    for _, model in cases:
        assert_comes_back(model)


def test_a_body_that_declares_what_it_captures_is_not_followed() -> None:
    """The declared shape would be wrong where the captured tensor shrinks."""
    model = branching()
    body_of(model, "if", "then_branch").value_info.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, [1, 8]))
    check(model, pruned=[], whole=["a"], feeds=both_ways())


# Names


def test_layers_of_one_name_in_both_branches() -> None:
    traced = check(branching(), pruned=["a"], feeds=both_ways())
    assert {"if/then_branch/n", "if/else_branch/n"} < set(traced.consumers)


def test_an_outer_node_that_is_called_as_one_in_a_body() -> None:
    """Masks could not tell them apart, so the bodies are not followed."""
    model = branching()
    model.graph.node[0].name = "if/then_branch/n"
    check(model, pruned=[], whole=["if/then_branch/n"], feeds=both_ways())


@pytest.mark.parametrize("name", ["loop/enter", "loop"])
def test_a_loop_that_is_called_as_a_marker(name: str) -> None:
    nodes = """
        [a] a = MatMul(x, w)
        [name] y = Loop(n, , a) <body = b (int64 i, bool g, float[1,8] s) => (bool h, float[1,8] t) {
            h = Identity(g) [r] t = MatMul(s, k) }>
        [b] z = MatMul(y, v)"""
    model = parsed("float[1,3] x", "float[1,2] z", nodes, w=(3, 8), k=(8, 8), v=(8, 2), n=np.array(2))
    model.graph.node[1].name = name
    model.graph.node[0].name = {"loop": "loop/enter"}.get(name, "a")
    check(model, pruned=[model.graph.node[0].name] if name != "loop" else [])


def test_a_weight_of_layers_in_all_graphs() -> None:
    """Each keeps other channels of it; none of the copies may bear the name of one further out."""
    nodes = """
        [a] a = MatMul(x, w)
        [if] y = If(c) <
            then_branch = t () => (float[1,2] p) { [n] p = MatMul(a, k) },
            else_branch = e () => (float[1,2] q) { [o] r = MatMul(a, k) [if] q = If(d) <
                then_branch = t2 () => (float[1,2] p2) { [n] p2 = MatMul(a, k) },
                else_branch = e2 () => (float[1,2] q2) { [m] q2 = Identity(r) }> }>
        [z] v = MatMul(a, k)"""
    weights = {"w": (3, 8), "k": (8, 2), "d": np.array(True)}
    model = parsed("float[1,3] x, bool c", "float[1,2] y, float[1,2] v", nodes, **weights)
    traced = check(model, pruned=[], feeds=both_ways())
    assert "if/else_branch/if/then_branch/n" in traced.consumers


# Iterations


def test_a_loop_that_may_not_run_hands_on_what_it_got() -> None:
    """What it makes has five rows if it runs, and two if it does not: nobody may write five down."""
    nodes = """
        [a] a = MatMul(x, w)
        [loop] s = Loop(n, , a) <body = b (int64 i, bool g, float[p,q] s0) => (bool h, float[r,t] s1) {
            h = Identity(g) s1 = Concat<axis = 0>(a, more) }>
        [b] d = MatMul(s, v)
        shape = Shape(d)
        z = Expand(one, shape)"""
    weights = {"w": (3, 8), "v": (8, 4), "more": (3, 8), "one": (1, 1)}
    model = parsed("int64 n, float[2,3] x", "float[i,j] d, float[k,l] z", nodes, **weights)
    x = both_ways((2, 3))[0]["x"]
    feeds = [{"n": np.array(trips), "x": x} for trips in (0, 1)]
    check(model, pruned=["a"], feeds=feeds)
    assert [run(model, feed)[1].shape for feed in feeds] == [(2, 4), (5, 4)]


def test_states_that_turn_out_to_vary_one_after_the_other() -> None:
    """Each takes over what the one before it was: in the end none has a known length."""
    count = 8
    states = range(count)
    inside = ", ".join(f"float[u{i},v{i}] s{i}" for i in states)
    outside = ", ".join(f"float[p{i},q{i}] t{i}" for i in states)
    moves = " ".join(f"t{i} = Identity(s{i - 1})" for i in states[1:])
    nodes = f"""
        [loop] {", ".join(f"y{i}" for i in states)} = Loop(n, , {", ".join("x" for _ in states)}) <
            body = b (int64 i, bool g, {inside}) => (bool h, {outside}) {{
                h = Identity(g) t0 = Concat<axis = 0>(s0, w) {moves} }}>"""
    outputs = ", ".join(f"float[a{i},b{i}] y{i}" for i in states)
    graph = GraphView(parsed("int64 n, float[2,6] x", outputs, nodes, w=(1, 6)))
    shapes = [graph.shape(f"{name}{i}") for name in "sty" for i in states]
    assert not any(shape is not None and isinstance(shape[0], int) for shape in shapes)


def test_a_state_may_vary_along_one_axis_and_hold_channels_along_another() -> None:
    nodes = """
        [a] a = MatMul(x, w)
        [loop] y = Loop(n, , a) <body = b (int64 i, bool g, float[p,8] s) => (bool h, float[q,8] t) {
            h = Identity(g) t = Concat<axis = 0>(s, a) }>
        [b] z = MatMul(y, v)"""
    model = parsed("float[1,3] x", "float[r,2] z", nodes, w=(3, 8), v=(8, 2), n=np.array(2))
    check(model, pruned=["a"])


def test_a_value_that_is_scanned_is_not_known() -> None:
    nodes = """
        [scan] y = Scan<num_scan_inputs = 1, body = b (int64[2] n) => (float[p,q] t) { t = Reshape(x, n) }>(k)"""
    graph = GraphView(parsed("float[1,6] x", "float[a,b,c] y", nodes, k=np.array([[2, 3], [2, 3]])))
    assert not any(isinstance(dim, int) for name in ("t", "y") for dim in (graph.shape(name) or ())[-2:])


def test_a_scan_of_which_only_the_lengths_are_read() -> None:
    """Once these are written down nothing reads the slices, which the Scan hands to its body nevertheless."""
    nodes = """
        [a] h = MatMul(x, w)
        [scan] y = Scan<num_scan_inputs = 1, body = b (float[1,8] s) => (float[1] t) {
            shape = Shape(s) first = Gather<axis = 0>(shape, zero) f = Cast<to = 1>(first) t = Mul(f, r) }>(h)
        [c] z = MatMul(h, v)"""
    weights = {"w": (6, 8), "v": (8, 3), "zero": np.array([0]), "r": (1,)}
    model = parsed("float[4,1,6] x", "float[4,1] y, float[4,1,3] z", nodes, **weights)
    check(model, pruned=["a"])


def test_what_is_the_same_in_every_iteration_is_selected_once() -> None:
    """In the body of the loop a Gather would run in every iteration."""
    nodes = """
        [a] a = MatMul(x, w)
        [loop] y = Loop(n, , zero) <body = b (int64 i, bool g, float[1,6] s) => (bool h, float[1,6] t) {
            h = Identity(g) [in] u = MatMul(a, k) t = Add(s, u) }>
        [c] z = MatMul(a, v)"""
    weights = {"w": (3, 8), "k": (8, 6), "v": (8, 2), "zero": np.zeros((1, 6), np.float32), "n": np.array(2)}
    model = parsed("float[1,3] x", "float[1,6] y, float[1,2] z", nodes, **weights)
    check(model, pruned=[])
    traced = trace(model)
    masks = {"loop/body/in": np.arange(8) % 2 == 0, "c": np.arange(8) < 4}
    emitted = emit(model, traced, make_plan(traced, masks, Settings(Target(blocked=False), "gather")))
    assert [node.op_type for node in body_of(emitted, "loop", "body").node] == ["Identity", "MatMul", "Add"]
    assert [node.op_type for node in emitted.graph.node] == ["MatMul", "Slice", "Gather", "Loop", "MatMul"]


def in_parts(model: onnx.ModelProto) -> onnx.ModelProto:
    """Emitted with everything in two blocks, and the layers in bodies as sums over them; equal to the masked model."""
    traced = trace(model)
    masks = {name: np.ones(consumer.channels, bool) for name, consumer in traced.consumers.items()}
    plan = make_plan(traced, masks, Settings(Target(blocked=False), "union"))
    segments = []
    for segment in plan.segments:
        blocks = (segment.order[:3], segment.order[3:])
        lowerings = {name: "partial" if "/" in name else "concat" for name in segment.lowerings}
        segments.append(replace(segment, blocks=blocks, lowerings=lowerings, split=True) if blocks[1] else segment)
    emitted = emit(model, traced, check_plan(replace(plan, segments=tuple(segments)), traced, ""))
    Masked(model, masks).check(emitted)
    return emitted


SCANNING = """
    [a] a = Conv(x, w)
    [scan] y = Scan<num_scan_inputs = 1, body = b (float[1,6,1,1] s, float[2] i) => (float[1,6,1,1] t) {
        [in] t = Conv(source, k) }>(zero, slices)
    [c] z = Conv(y, v)"""


@pytest.mark.parametrize("source", ["x", "a"])
def test_what_a_body_hands_out_is_made_in_it(source: str) -> None:
    """Even if all that it is joined from, or summed, would be the same in every iteration."""
    weights = {"w": (8, 6, 1, 1), "k": (6, {"x": 6, "a": 8}[source], 1, 1), "v": (2, 6, 1, 1), "slices": (2, 2)}
    zero = np.zeros((1, 6, 1, 1), np.float32)
    model = parsed("float[1,6,1,1] x", "float[1,2,1,1] z", SCANNING.replace("source", source), zero=zero, **weights)
    body = body_of(in_parts(model), "scan", "body")
    assert body.output[0].name in {name for node in body.node for name in node.output}


def test_a_selection_for_a_branch_is_made_in_it() -> None:
    """The other branch does without."""
    model = branching()
    traced = trace(model)
    masks = {"if/then_branch/n": np.arange(8) % 2 == 0, "if/else_branch/n": np.arange(8) < 4, "z": np.arange(8) > 3}
    emitted = emit(model, traced, make_plan(traced, masks, Settings(Target(blocked=False), "gather")))
    operators = [node.op_type for node in body_of(emitted, "if", "then_branch").node]
    assert operators == ["Gather", "MatMul"]


# Bodies in bodies, and forms of Loop and Scan

LOOP = """{out} = Loop(n, , {init}) <body = {name} (int64 {name}i, bool {name}g, float[1,8] {name}s)
    => (bool {name}h, float[1,8] {name}t) {{ {name}h = Identity({name}g) {inside} }}>"""
IF = """{out} = If(c) <then_branch = {name}1 () => (float[1,8] {name}t) {{ {inside} }},
    else_branch = {name}2 () => (float[1,8] {name}e) {{ {name}e = Neg({init}) }}>"""
SCAN = """{out} = Scan<num_scan_inputs = 1, body = {name} (float[1,8] {name}s, float[2] {name}i)
    => (float[1,8] {name}t) {{ {inside} }}>({init}, slices)"""


@pytest.mark.parametrize("outer", [LOOP, IF, SCAN], ids=["loop", "if", "scan"])
@pytest.mark.parametrize("inner", [LOOP, IF, SCAN], ids=["loop", "if", "scan"])
def test_bodies_in_bodies(outer: str, inner: str) -> None:
    """The inner one reads a layer's channels two graphs further out, and the state of the outer one."""
    state = "a" if outer == IF else "os"
    deepest = f"pm = MatMul({state if inner == IF else 'ps'}, k) pr = Relu(pm) pn = MatMul(pr, k2) pt = Add(pn, b)"
    made = inner.format(out="ou", init=state, name="p", inside=deepest)
    nodes = "[a] a = MatMul(x, w) [b] b = MatMul(x, w2)" + outer.format(
        out="y", init="a", name="o", inside=f"{made} ot = Add(ou, a)"
    )
    weights = {"w": (3, 8), "w2": (3, 8), "k": (8, 6), "k2": (6, 8), "v": (8, 2), "slices": (2, 2), "n": np.array(2)}
    model = parsed("float[1,3] x, bool c", "float[1,2] z", f"{nodes} [c] z = MatMul(y, v)", **weights)
    traced = check(model, pruned=[], feeds=both_ways())
    assert sum(name.count("/") == 4 for name in traced.consumers) == 2
    assert all(consumer.prunable.all() for name, consumer in traced.consumers.items() if name not in ("a", "b"))
    assert_comes_back(model)


@pytest.mark.parametrize("axis", [1, -1])
def test_a_scan_along_other_axes_and_backwards(axis: int) -> None:
    """It runs along the second axis, and puts its slices together along the last but one or the last."""
    more = f"scan_input_axes = [1], scan_output_axes = [{axis}], scan_input_directions = [1]"
    nodes = f"""
        [a] a = MatMul(x, w)
        [scan] s, y = Scan<num_scan_inputs = 1, {more}, body = b (float[2,8] s0, float[2,8] i)
            => (float[2,8] s1, float[2,8] t) {{ [in] m = MatMul(i, k) s1 = Add(s0, m) t = Tanh(s1) }}>(zero, a)
        [s] s2 = MatMul(s, v)
        back = Transpose<perm = {[0, 1, 2] if axis == 1 else [0, 2, 1]}>(y)
        [y] y2 = MatMul(back, u)"""
    weights = {"w": (3, 8), "k": (8, 8), "v": (8, 2), "u": (8, 2), "zero": np.zeros((2, 8), np.float32)}
    model = parsed("float[2,4,3] x", "float[2,2] s2, float[2,4,2] y2", nodes, **weights)
    traced = check(model, pruned=["a"])
    assert traced.consumers["y"].prunable.all() and traced.consumers["y"].segment == traced.consumers["s"].segment


def test_a_loop_that_runs_as_long_as_its_channels_say() -> None:
    """The condition reads the state's channels through a layer of its own."""
    nodes = """
        [a] a = MatMul(x, w)
        [loop] y = Loop(, c, a) <body = b (int64 i, bool g, float[1,8] s) => (bool h, float[1,8] t) {
            [next] t = MatMul(s, k) [judge] j = MatMul(t, one) total = ReduceSum<keepdims = 0>(j)
            small = Less(total, bound) few = Less(i, three) h = And(small, few) }>
        [z] z = MatMul(y, v)"""
    weights = {
        "w": (3, 8),
        "k": (8, 8),
        "one": (8, 1),
        "v": (8, 2),
        "three": np.array(3),
        "bound": np.array(0.5, np.float32),
    }
    model = parsed("float[1,3] x, bool c", "float[1,2] z", nodes, **weights)
    traced = check(model, pruned=[], feeds=both_ways())
    assert all(consumer.prunable.all() for name, consumer in traced.consumers.items() if name != "a")


def test_old_models_whose_bodies_hold_constants_as_nodes() -> None:
    """Models of IR version 3 have no initializers that are not inputs, and get none."""
    nodes = """
        [a] a = MatMul(x, w)
        [if] y = If(c) <then_branch = t () => (float[1,2] p) { [n] p = MatMul(a, k) },
            else_branch = e () => (float[1,2] q) { k2 = Neg(k) [m] q = MatMul(a, k2) }>"""
    inputs = "float[1,3] x, bool c, float[3,8] w, float[8,2] k"
    model = parsed(inputs, "float[1,2] y", nodes, ir_version=3, w=(3, 8), k=(8, 2))
    model.opset_import[0].version = 11
    traced = check(model, pruned=["a"], feeds=both_ways())
    assert {"if/then_branch/n", "if/else_branch/m"} <= set(traced.consumers)


# Counts


def test_nodes_in_bodies_count() -> None:
    nodes = BRANCHES.replace("p = MatMul(a, k)", "s = Gather<axis = 1>(a, i) p = MatMul(s, k)")
    weights = {"w": (3, 8), "k": (2, 2), "l": (8, 2), "u": (8, 4), "i": np.array([0, 1])}
    model = parsed("float[1,3] x, bool c", "float[1,2] y, float[1,4] v", nodes, **weights)
    stats = model_stats(model, {"x": (1, 3), "c": ()})
    assert (stats.nodes, stats.copies["Gather"]) == (7, 1)
    assert stats.macs == 3 * 8 + 2 * 2 + 8 * 2 + 8 * 4
