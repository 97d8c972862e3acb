"""A walk through a network sees the tensors that one run of it makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, assume, given, settings
from onnx import TensorProto, helper, numpy_helper

from tests.builders import Array, Net, feeds_for, run
from tests.properties.graphs import Case, models
from tests.properties.running import close, runs, runs_optimised
from ucpe_onnx.activations.store import Store
from ucpe_onnx.activations.walk import Walk
from ucpe_onnx.analysis.graph import GraphView
from ucpe_onnx.errors import ModelError
from ucpe_onnx.masked import masked_model
from ucpe_onnx.runtime.session import RunOptions

OPTIONS = RunOptions(threads=1, opt_level="disable")


def full_run(model: onnx.ModelProto, feed: Mapping[str, Array], names: Sequence[str]) -> dict[str, Array]:
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return dict(zip(names, run(copy, feed, optimise=False), strict=True))


def check(
    model: onnx.ModelProto,
    feeds: Sequence[Mapping[str, Array]],
    stops: Sequence[int] | None = None,
    budget: int = 2**20,
) -> None:
    """Stop in front of every node, or of some, and at the end: all tensors that are read later are the right ones."""
    graph = GraphView(model)
    inside = graph.unfolding.inside
    made = [name for node in graph.nodes for name in node.outputs if name and name not in inside]
    wanted = [full_run(model, feed, made) for feed in feeds]
    with Store(budget) as store:
        walk = Walk(graph, feeds, store, OPTIONS)
        for stop in [*range(len(graph.nodes)), len(graph.nodes)] if stops is None else stops:
            if any(graph.unfolding.outermost(node.proto) for node in graph.nodes[stop : stop + 1]):
                continue  # an If runs as a whole
            before = [name for node in graph.nodes[:stop] for name in node.outputs if name and name not in inside]
            ahead = {name for node in graph.nodes[stop:] for name in node.inputs}
            walk.advance(stop, before if stop == len(graph.nodes) and stops is not None else before[-1:])
            for name in before:
                assert walk.has(name) or name not in ahead
            for name in (name for name in before if walk.has(name)):
                assert close(list(walk.arrays(name)), [found[name] for found in wanted])
        assert made[-1:] == [] or walk.has(made[-1])


def test_branches_and_joins():
    net = Net()
    a = net.op("Relu", net.conv(net.input("x", (2, 3, 5, 5)), 6, 3))
    b = net.op("Add", net.conv(a, 4, 3), net.conv(a, 4))
    model = net.output(net.gemm(net.op("Flatten", net.op("GlobalAveragePool", b)), 3), a).model()
    feeds = [feeds_for(model, seed) for seed in range(3)]
    check(model, feeds)
    check(model, feeds, [2, 3, len(GraphView(model).nodes)])
    check(model, feeds, budget=0)


def test_feeds_of_several_sizes_and_inputs():
    net = Net()
    a = net.conv(net.input("x", ("n", 3, "h", "w")), 4, 3)
    b = net.op("Add", a, net.op("Unsqueeze", net.input("offset", ("n", 4)), net.ints(2, 3)))
    model = net.output(net.op("Mul", b, net.input("factor", ()))).model()
    feeds = [
        {
            "x": np.random.default_rng(size).standard_normal((size, 3, size + 2, 4)).astype(np.float32),
            "offset": np.ones((size, 4), np.float32),
            "factor": np.array(size, np.float32),
        }
        for size in (1, 3)
    ]
    check(model, feeds)


def test_shape_arithmetic():
    net = Net()
    a = net.conv(net.input("x", ("n", 3, 4, 4)), 4)
    length = net.op("Gather", net.op("Shape", a), net.weight(np.int64(0)))
    shape = net.op("Concat", net.op("Unsqueeze", length, net.ints(0)), net.ints(-1), axis=0)
    flat = net.ops("Reshape", a, shape, shapes=[("n", 64)])[0]
    model = net.output(net.op("Mul", net.gemm(flat, 3), net.constant(np.float32(2)))).model()
    check(model, [feeds_for(model, 0, dynamic=3), feeds_for(model, 1, dynamic=1)])


def test_subgraphs_that_capture_tensors_and_weights():
    net = Net()
    a = net.conv(net.input("x", (1, 3, 4, 4)), 4, name="a")
    b = net.op("Relu", a)
    factor = net.weight(np.float32(3))
    bodies = [
        helper.make_graph(
            [helper.make_node(op_type, [a, factor], [f"{op_type}_out"])],
            "body",
            [],
            [helper.make_tensor_value_info(f"{op_type}_out", TensorProto.FLOAT, (1, 4, 4, 4))],
        )
        for op_type in ("Mul", "Add")
    ]
    (c,) = net.ops(
        "If", net.weight(np.bool_(True)), shapes=[(1, 4, 4, 4)], then_branch=bodies[0], else_branch=bodies[1]
    )
    body = helper.make_graph(
        [
            helper.make_node("Add", ["carried", a], ["next"]),
            helper.make_node("Identity", ["condition"], ["go"]),
        ],
        "loop",
        [
            helper.make_tensor_value_info("step", TensorProto.INT64, ()),
            helper.make_tensor_value_info("condition", TensorProto.BOOL, ()),
            helper.make_tensor_value_info("carried", TensorProto.FLOAT, (1, 4, 4, 4)),
        ],
        [
            helper.make_tensor_value_info("go", TensorProto.BOOL, ()),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, (1, 4, 4, 4)),
        ],
    )
    trips, condition = net.weight(np.int64(3)), net.weight(np.bool_(True))
    (d,) = net.ops("Loop", trips, condition, net.op("Add", b, c), shapes=[(1, 4, 4, 4)], body=body)
    model = net.output(net.conv(d, 2)).model()
    check(model, [feeds_for(model, seed) for seed in range(2)])


def test_weights_that_are_inputs_too_or_sparse():
    net = Net()
    x, weight = net.input("x", (2, 3)), net.weight(net.normal(3, 4))
    net.declare(weight)
    y = net.op("MatMul", x, weight)
    model = net.output(net.op("MatMul", y, net.weight(np.eye(4, dtype=np.float32), name="eye"))).model()
    values = numpy_helper.from_array(np.float32([2, 3]), "eye")
    places = numpy_helper.from_array(np.int64([1, 6]), "places")
    kept = [tensor for tensor in model.graph.initializer if tensor.name != "eye"]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [4, 4]))
    check(model, [{"x": np.ones((2, 3), np.float32)}])


def test_weights_may_change_ahead():
    net = Net()
    a = net.conv(net.input("x", (1, 3, 4, 4)), 4, name="a")
    b = net.conv(net.op("Relu", a), 5, name="b")
    model = net.output(b).model()
    graph, feed = GraphView(model), feeds_for(model)
    weights: dict[str, Array] = {}
    with Store() as store:
        walk = Walk(graph, [feed], store, OPTIONS, weights=weights)
        walk.advance(1, [a])
        before = next(walk.arrays(a))
        name = graph.nodes[2].inputs[1]
        weights[name] = 2 * np.asarray(graph.value(name))
        walk.advance(3, [b])
        (found,) = walk.arrays(b)
    changed = onnx.ModelProto.FromString(model.SerializeToString())
    (tensor,) = (tensor for tensor in changed.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(weights[name], name))
    assert close([found, before], list(full_run(changed, feed, [b, a]).values()))


def test_another_models_initializers():
    """Weights that several nodes share get copies of their own in a masked model."""
    net = Net()
    x, weight = net.input(), net.weight(net.normal(8, 8, 1, 1))
    b = net.conv_with(net.conv_with(x, weight, name="a"), weight, name="b")
    model = net.output(b).model()
    masked = masked_model(model, {"b": np.arange(8) < 3})
    feed = feeds_for(model)
    with Store() as store:
        walk = Walk(GraphView(model), [feed], store, OPTIONS, model=masked)
        walk.advance(2, [b])
        assert close(list(walk.arrays(b)), run(masked, feed))


def test_what_is_read_no_more_is_dropped():
    net = Net()
    a = net.conv(net.input("x", (1, 3, 4, 4)), 4)
    b = net.op("Relu", a)
    model = net.output(net.op("Neg", b), b).model()
    with Store() as store:
        walk = Walk(GraphView(model), [feeds_for(model)], store, OPTIONS)
        walk.advance(2)
        assert walk.has(b) and not walk.has(a) and not walk.has("x")
        walk.advance(3)
        assert not walk.has(b)


@pytest.mark.parametrize("stops", [[1, 2, 3, 4], [2], [3], [4]], ids=str)
def test_sequences_of_parts_are_put_together_again(stops):
    """Wherever one stops between the split and those who take parts out."""
    net = Net()
    first = net.op("Relu", net.input("x", (1, 5)))
    (parts,) = net.ops("SplitToSequence", first, net.ints(2, 3), axis=1, shapes=[(1,)], outputs=["parts"])
    a, b = (
        net.ops("SequenceAt", parts, net.weight(np.int64(at)), shapes=[(1, size)])[0] for at, size in ((0, 2), (1, 3))
    )
    net.op("Concat", b, a, axis=1)
    model = net.output(net.nodes[-1].output[0]).model()
    feed = {"x": np.arange(-2, 3, dtype=np.float32)[None]}
    with Store() as store:
        walk = Walk(GraphView(model), [feed], store, OPTIONS)
        for stop in stops:
            walk.advance(stop)
        walk.advance(5, [model.graph.output[0].name])
        (found,) = walk.arrays(model.graph.output[0].name)
        assert found.tolist() == [[0, 1, 2, 0, 0]]


def test_sequences_are_refused_with_their_name():
    net = Net()
    x = net.input("x", (1, 3))
    (two,) = net.ops("SequenceConstruct", x, x, shapes=[(1,)], outputs=["two"])
    (items,) = net.ops("SequenceInsert", two, x, shapes=[(1,)], outputs=["items"])
    net.ops("SequenceAt", items, net.weight(np.int64(0)), shapes=[(1, 3)], outputs=["y"])
    graph = onnx.ModelProto.FromString(net_model(net, "y"))
    with Store() as store:
        walk = Walk(GraphView(graph), [{"x": np.ones((1, 3), np.float32)}], store, OPTIONS)
        with pytest.raises(ModelError, match="'items' is no tensor"):
            walk.advance(2)
    with Store() as store, pytest.raises(ModelError, match="input 'x' is no tensor"):
        Walk(GraphView(graph), [{"x": [np.ones(3)]}], store, OPTIONS)  # type: ignore[dict-item]


def net_model(net: Net, output: str) -> bytes:
    """A model that the builder's own check of types does not know."""
    graph = helper.make_graph(
        net.nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3))],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, (1, 3))],
        list(net.initializers.values()),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def test_a_part_that_fails_says_so():
    net = Net()
    net.ops(
        "Reshape", net.input("x", (1, 4)), net.input("shape", (1,), TensorProto.INT64), outputs=["y"], shapes=[("n",)]
    )
    model = net.output("y").model()
    feed = {"x": np.ones((1, 4), np.float32), "shape": np.array([3])}
    with Store() as store, pytest.raises(ModelError, match="a part of the model can't be run by itself"):
        Walk(GraphView(model), [feed], store, OPTIONS).advance(1, ["y"])


@settings(max_examples=25, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(case=models(8))
def test_any_graph(case: Case) -> None:
    model, shapes = case
    feeds = feeds_for(model, 1, shapes=shapes)
    assume(runs_optimised(model) and runs(model, feeds, optimise=False))
    count = len(GraphView(model).nodes)
    check(model, [feeds, feeds_for(model, 2, shapes=shapes)], [count // 3, 2 * count // 3, count])
