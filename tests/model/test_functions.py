"""Local functions are expanded on loading: the model computes the same, and the analysis sees through them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from tests.builders import feeds_for, run
from ucpe_onnx import ModelError, inspect, masked_model, prune
from ucpe_onnx.model.functions import check_functions, inline_functions

HEAD = '<ir_version: 8, opset_import: ["" : 17, "local" : 1]>'
SCALE = """
<domain: "local", opset_import: ["" : 17]>
Scale <factor: float = 1.5> (X) => (Y) {
    k = Constant <value_float: float = @factor> () [times] m = Mul(X, k)
    Y = Relu(m)
}
"""

MODELS = {
    "default value, given value, called twice": """
        (float[2,3] x) => (float[2,3] y) { a = local.Scale (x) y = local.Scale <factor = -2.0> (a) }
    """,
    "nested, with the attribute handed down": """
        (float[2,3] x) => (float[2,3] y) { y = local.Outer <outer = 3.0> (x) }
        <domain: "local", opset_import: ["" : 17, "local" : 1]>
        Outer <outer: float> (X) => (Y) { t = local.Scale <factor: float = @outer> (X) Y = Add(t, X) }
    """,
    "nested, with an attribute that is not given: the inner default holds": """
        (float[2,3] x) => (float[2,3] y) { y = local.Outer (x) }
        <domain: "local", opset_import: ["" : 17, "local" : 1]>
        Outer <outer> (X) => (Y) { t = local.Scale <factor: float = @outer> (X) Y = Add(t, X) }
    """,
    "in both branches of an If": """
        (float[2,3] x, bool c) => (float[2,3] y) {
            y = If (c) <then_branch = t () => (float[2,3] a) { a = local.Scale (x) },
                        else_branch = e () => (float[2,3] a) { b = local.Scale <factor = 4.0> (x) a = Neg (b) }> }
    """,
    "with an If of its own, whose names are those of the graph": """
        (float[2,3] x, bool c) => (float[2,3] y) { a = Neg (x) b = local.Choose (a, c) y = Add (a, b) }
        <domain: "local", opset_import: ["" : 17, "local" : 1]>
        Choose (b, c) => (Y) {
            x = Exp (b)
            Y = If (c) <then_branch = t () => (float[2,3] a) { a = Add (x, b) },
                        else_branch = e () => (float[2,3] a) { y = local.Scale (x) a = Abs (y) }> }
    """,
    "outputs that are left out": """
        (float[2,3] x) => (float[2,3] y) { , y = local.Many (x) }
        <domain: "local", opset_import: ["" : 17]>
        Many (X) => (A, B) { A = Neg (X) B = Exp (A) }
    """,
    "optional inputs that are left out": """
        (float[2,3] x) => (float[2,3] y) <float low = {0.5}> { y = local.Cut (x, low) }
        <domain: "local", opset_import: ["" : 17]>
        Cut (X, L, H) => (Y) { Y = Clip (X, L, H) }
    """,
    "an operator that is the same in the function's older version": """
        (float[2,3] x) => (float[2,3] y) { y = local.Old (x) }
        <domain: "local", opset_import: ["" : 16]>
        Old (X) => (Y) { Y = Relu (X) }
    """,
}


def parsed(text: str) -> onnx.ModelProto:
    model = parser.parse_model(f"{HEAD} graph {text} {SCALE}")
    onnx.checker.check_model(model, full_check=True)
    return model


def names(model: onnx.ModelProto) -> list[str]:
    return [node.name for node in model.graph.node]


@pytest.mark.parametrize("case", MODELS)
def test_expanded_models_compute_the_same(case: str) -> None:
    model = parsed(MODELS[case])
    before = model.SerializeToString()
    check_functions(model, "m")
    expanded = inline_functions(model)
    assert model.SerializeToString() == before and expanded is not model
    onnx.checker.check_model(expanded, full_check=True)
    assert not any(node.domain == "local" for node in expanded.graph.node) and len(set(names(expanded))) == len(
        expanded.graph.node
    )
    for seed in (0, 1):
        feeds = feeds_for(model, seed)
        for flag in (False, True) if "c" in feeds else (None,):
            feeds = feeds if flag is None else {**feeds, "c": np.array(flag)}
            for got, wanted in zip(run(expanded, feeds), run(model, feeds), strict=True):
                assert np.array_equal(got, wanted), case


def test_an_output_that_is_an_input() -> None:
    """onnxruntime refuses such a function, onnx.checker does not."""
    model = parsed("""(float[2,3] x) => (float[2,3] y, float[2,3] z) { y, z = local.Both (x) }
        <domain: "local", opset_import: ["" : 17]> Both (X) => (X, A) { A = Neg (X) }""")
    feeds = feeds_for(model)
    y, z = run(inline_functions(model), feeds)
    assert np.array_equal(y, feeds["x"]) and np.array_equal(z, -feeds["x"])


def test_names_are_the_calls_and_the_functions() -> None:
    model = parsed("(float[2,3] x) => (float[2,3] y) { [first] a = local.Scale (x) b = local.Scale (a) y = Neg (b) }")
    assert names(inline_functions(model)) == [
        *("first/Constant_0", "first/times", "first/Relu_2"),
        *("Scale_1/Constant_0", "Scale_1/times", "Scale_1/Relu_2"),
        "Neg_2",  # as it would be called without functions around it
    ]


def test_new_names_avoid_what_is_there() -> None:
    model = parsed("(float[2,3] x) => (float[2,3] y) { [f] a = local.Scale (x) [n] y = Neg (a) }")
    model.graph.node[1].name = "f/times"
    model.graph.node[1].output[0] = model.graph.output[0].name = "f/m"
    expanded = inline_functions(model)
    assert names(expanded) == ["f/Constant_0", "f/times_1", "f/Relu_2", "f/times"]
    feeds = feeds_for(model)
    assert np.array_equal(run(expanded, feeds)[0], run(model, feeds)[0])


def test_all_else_stays() -> None:
    """Definitions go once nothing calls them; what nothing called before, and what that calls, is the user's own."""
    model = parsed("""(float[2,3] x) => (float[2,3] y) { a = local.Outer (x) y = local.Alone (a) }
        <domain: "local", opset_import: ["" : 17, "local" : 1]> Outer (X) => (Y) { Y = local.Scale (X) }
        <domain: "local", opset_import: ["" : 17, "needed" : 3]> Alone (X) => (Y) { Y = Neg (X) }
        <domain: "local", opset_import: ["" : 17, "local" : 1]> Uncalled (X) => (Y) { Y = local.Scale (X) }
        <domain: "local", opset_import: ["" : 17]> Lonely (X) => (Y) { Y = Neg (X) }
    """)
    model.metadata_props.add(key="author", value="somebody")
    model.producer_name, model.doc_string, model.graph.doc_string = "exporter", "what for", "the graph"
    model.graph.quantization_annotation.add(tensor_name="a")
    model.functions[-1].node[1].doc_string = "line 7"
    expanded = inline_functions(model)
    assert [f.name for f in expanded.functions] == ["Uncalled", "Lonely", "Scale"]
    assert [node.doc_string for node in expanded.graph.node] == ["", "line 7", "", ""]
    assert {o.domain: o.version for o in expanded.opset_import} == {"": 17, "local": 1, "needed": 3}
    for message, other in ((expanded, model), (expanded.graph, model.graph)):
        for field, value in other.ListFields():
            if field.name not in ("graph", "node", "functions", "opset_import"):
                assert getattr(message, field.name) == value, field.name


def test_nothing_to_expand_is_no_copy() -> None:
    uncalled = parsed("(float[2,3] x) => (float[2,3] y) { y = Neg (x) }")
    other_version = parsed("""(float[2,3] x) => (float[1,1] y) { y = local.Old (x) }
        <domain: "local", opset_import: ["" : 13]> Old (X) => (Y) { Y = ReduceMax (X) }""")
    other_version.opset_import[0].version = 18  # where the axes of ReduceMax became an input
    assert inline_functions(uncalled) is uncalled and inline_functions(other_version) is other_version


# The whole line


def block() -> onnx.ModelProto:
    """Two calls of a function with two convolutions, whose weights are its inputs; a convolution behind them."""
    random = np.random.default_rng(0)
    sizes = {"a": (64, 3), "b": (32, 64), "c": (64, 32), "d": (32, 64), "e": (4, 32)}
    weights = [
        numpy_helper.from_array(random.standard_normal((*s, 1, 1)).astype(np.float32), k) for k, s in sizes.items()
    ]
    body = [
        helper.make_node("Conv", ["X", "V"], ["h"], name="up"),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Conv", ["r", "W"], ["Y"], name="down"),
    ]
    function = helper.make_function("my.blocks", "Block", ["X", "V", "W"], ["Y"], body, [helper.make_opsetid("", 17)])
    nodes = [
        helper.make_node("Block", ["x", "a", "b"], ["p"], domain="my.blocks", name="/layer1"),
        helper.make_node("Block", ["p", "c", "d"], ["q"], domain="my.blocks", name="/layer2"),
        helper.make_node("Conv", ["q", "e"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, c, 5, 5]) for n, c in (("x", 3), ("y", 4))]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], weights)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("my.blocks", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=[function])


def test_channels_inside_of_functions_are_pruned() -> None:
    model = block()
    listed = {c["name"]: len(c["prunable"]) for c in inspect.listing(model)["consumers"]}
    assert listed == {"/layer1/up": 0, "/layer1/down": 64, "/layer2/up": 32, "/layer2/down": 64, "Conv_2": 32}
    masks = {"/layer1/down": range(32), "/layer2/up": range(5, 21), "/layer2/down": range(16), "Conv_2": range(16)}
    result = prune(model, masks={name: list(kept) for name, kept in masks.items()}, bench_seconds=0)
    assert not result.model.functions and result.report.verification.passed
    shapes = {t.name: tuple(t.dims[:2]) for t in result.model.graph.initializer}
    assert shapes == {"a": (32, 3), "b": (16, 32), "c": (16, 16), "d": (16, 16), "e": (4, 16)}
    again = prune(model, plan=result.plan, bench_seconds=0)
    assert again.model.SerializeToString() == result.model.SerializeToString()


def test_the_reference_of_a_model_with_functions() -> None:
    model = block()
    mask = np.array([True, False] * 32)
    reference = masked_model(inline_functions(model), {"/layer1/down": mask})
    by_hand = block()
    weight = by_hand.graph.initializer[1]
    value = numpy_helper.to_array(weight).copy()
    value[:, ~mask] = 0
    weight.CopyFrom(numpy_helper.from_array(value, weight.name))
    feeds = feeds_for(model)
    assert np.array_equal(run(reference, feeds)[0], run(by_hand, feeds)[0])


# Functions that no model has


def chained(count: int, body: str) -> onnx.ModelProto:
    """F0 calls F1 calls F2 ...; the last one calls nothing."""
    functions = "".join(
        f'<domain: "local", opset_import: ["" : 17, "local" : 1]> F{k} (X) => (Y) {{ {body.format(k + 1)} }}'
        for k in range(count)
    )
    return parser.parse_model(
        f"{HEAD} graph (float[2,3] x) => (float[2,3] y) {{ y = local.F0 (x) }}"
        f'{functions} <domain: "local", opset_import: ["" : 17]> F{count} (X) => (Y) {{ Y = Neg (X) }}'
    )


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda: chained(60, "a = local.F{0} (X) Y = local.F{0} (a)"), "expand to 1,152,921,504,606,846,976 nodes"),
        (lambda: chained(3000, "Y = local.F{0} (X)"), "3001 calls"),
    ],
)
def test_functions_that_explode_are_refused(model, words) -> None:
    with pytest.raises(ModelError, match=words):
        prune(model())


def test_functions_that_call_themselves_are_refused() -> None:
    model = chained(2, "Y = local.F{0} (X)")
    model.functions[2].node[0].op_type, model.functions[2].node[0].domain = "F1", "local"
    with pytest.raises(ModelError, match=r"call themselves \(F[12] -> F[12] -> F[12]\)"):
        prune(model)


def test_a_long_chain_of_functions_is_expanded() -> None:
    model = chained(90, "Y = local.F{0} (X)")
    expanded = inline_functions(model)
    assert [node.op_type for node in expanded.graph.node] == ["Neg"] and not expanded.functions
