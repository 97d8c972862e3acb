"""LSTM, GRU and RNN: features that they read, hidden units that they make and read themselves, and their states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.analysis.operator_cases import PLAIN
from tests.analysis.rules.cases import made_by
from tests.builders import Net, check_emission, prune
from ucpe_onnx.analysis.layer_ops import GATES
from ucpe_onnx.analysis.trace import trace
from ucpe_onnx.errors import MaskError
from ucpe_onnx.model.naming import RECURRENT
from ucpe_onnx.planning.checks import check_plan

every_layer = pytest.mark.parametrize("op_type", GATES)
every_direction = pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])

STEPS, BATCH, UNITS = 6, 2, 5


def layer(
    net: Net, op_type: str, x: str, *more: str, name: str = "r", bias: bool = True, outputs: int = 2, **attributes: Any
) -> list[str]:
    """A recurrent layer of five units; ``more`` are its inputs from the lengths of sequences on."""
    count, rows = 1 + (attributes.get("direction") == "bidirectional"), GATES[op_type] * UNITS
    weights = [net.weight(net.normal(count, rows, size)) for size in (net.shapes[x][2], UNITS)]
    given = [x, *weights, net.weight(net.normal(count, 2 * rows)) if bias else "", *more]
    return net.ops(op_type, *given, hidden_size=UNITS, name=name, outputs=outputs, **attributes)


def read(net: Net, x: str, name: str) -> str:
    return net.op("MatMul", x, net.weight(net.normal(net.shapes[x][-1], 2)), name=name)


def sequence(net: Net, features: int = 3) -> str:
    return net.input("x", (STEPS, BATCH, features))


def unit_sizes(model: onnx.ModelProto, name: str = "r") -> dict[str, int]:
    """What a layer says of its hidden units: the attribute, rows of W by gate, columns of R."""
    (node,) = [node for node in model.graph.node if node.name == name]
    (size,) = [attribute.i for attribute in node.attribute if attribute.name == "hidden_size"]
    shapes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    rows, columns = shapes[node.input[1]][1] / GATES[node.op_type], shapes[node.input[2]][2]
    return {"attribute": size, "rows": rows, "columns": columns}


def assert_units(model: onnx.ModelProto, units: int, name: str = "r") -> None:
    assert set(unit_sizes(model, name).values()) == {units}


def reasons_of(model: onnx.ModelProto, consumer: str) -> str:
    traced = trace(model)
    return "; ".join(traced.segments[traced.consumers[consumer].segment].reasons)


def test_the_tables_of_names_and_of_rules_hold_the_same_layers() -> None:
    assert GATES.keys() == RECURRENT


@every_layer
def test_features(op_type: str) -> None:
    net = Net()
    a = net.op("MatMul", sequence(net), net.weight(net.normal(3, 8)), name="a")
    model = net.output(layer(net, op_type, a, direction="bidirectional")[0]).model()
    emitted = check_emission(model, {"r": [0, 3, 4]}, target=PLAIN)
    assert (made_by(emitted, "a", 1), made_by(emitted, "r", 2)) == (3, 3)


@every_direction
@every_layer
def test_a_unit_goes_when_its_readers_and_the_recurrence_drop_it(op_type: str, direction: str) -> None:
    net = Net()
    every, last = layer(net, op_type, sequence(net), direction=direction)
    model = net.output(read(net, every, "b"), read(net, last, "c")).model()
    assert trace(model).consumers["r/recurrence"].prunable.all()
    emitted = check_emission(model, {"r/recurrence": [1, 2], "b": [2, 3], "c": [1]}, target=PLAIN)
    assert_units(emitted, 3)


@every_layer
def test_a_unit_stays_that_anybody_reads(op_type: str) -> None:
    net = Net()
    model = net.output(read(net, layer(net, op_type, sequence(net))[0], "b")).model()
    assert_units(check_emission(model, {"b": [1, 4]}, target=PLAIN), UNITS)
    assert_units(check_emission(model, {"r/recurrence": [1, 4]}, target=PLAIN), UNITS)


@every_layer
def test_directions_side_by_side(op_type: str) -> None:
    """Unit 0 is read in one of the directions, unit 3 in the other; units 2 and 4 in none."""
    net = Net()
    y = layer(net, op_type, sequence(net), direction="bidirectional")[0]
    y = net.reshape(net.op("Transpose", y, perm=[0, 2, 1, 3]), STEPS, BATCH, -1)
    model = net.output(layer(net, op_type, y, name="s")[0]).model()
    emitted = check_emission(model, {"r/recurrence": [1], "s": [0, 1, UNITS + 3]}, target=PLAIN)
    assert_units(emitted, 3)
    assert made_by(emitted, "s", 2) == 6


def test_a_stack_of_layers() -> None:
    net = Net()
    x = sequence(net)
    for index, op_type in enumerate(GATES):
        x = net.op("Squeeze", layer(net, op_type, x, name=f"r{index}")[0], net.ints(1))
    model = net.output(read(net, x, "b")).model()
    kept = {"r0/recurrence": [0, 1], "r1": [0, 1], "r1/recurrence": [2], "r2": [2, 4], "r2/recurrence": [3], "b": [3]}
    emitted = check_emission(model, kept, target=PLAIN)
    for index, units in enumerate((2, 2, 1)):
        assert_units(emitted, units, f"r{index}")


FORMS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "functions that are not 0 at 0": ("LSTM", {"activations": ["HardSigmoid", "Sigmoid", "Softplus"]}),
    "coupled gates": ("LSTM", {"input_forget": 1}),
    "clipped": ("LSTM", {"clip": 0.3}),
    "reset behind the product": ("GRU", {"linear_before_reset": 1}),
    "reset in front of the product": ("GRU", {"linear_before_reset": 0}),
    "rectified": ("RNN", {"activations": ["Relu"]}),
}


@pytest.mark.parametrize("form", FORMS)
def test_whatever_is_done_unit_by_unit(form: str) -> None:
    op_type, attributes = FORMS[form]
    net = Net()
    lengths = net.weight(np.array([4, 6], np.int32))
    every, last = layer(net, op_type, sequence(net), lengths, bias=form != "clipped", **attributes)
    model = net.output(read(net, every, "b"), read(net, last, "c")).model()
    kept = {"r/recurrence": [0, 3], "b": [0], "c": [0, 3]}
    assert_units(check_emission(model, kept, target=PLAIN), 2)


def test_peepholes_and_cells() -> None:
    net = Net()
    peepholes = net.weight(net.normal(1, 3 * UNITS))
    _, _, cell = layer(net, "LSTM", sequence(net), "", "", "", peepholes, outputs=3)
    model = net.output(read(net, cell, "b")).model()
    emitted = check_emission(model, {"r/recurrence": [0, 3], "b": [3]}, target=PLAIN)
    assert_units(emitted, 2)
    assert list({t.name: t.dims for t in emitted.graph.initializer}[peepholes]) == [1, 6]


# Initial states


def with_states(net: Net, op_type: str, *states: str) -> onnx.ModelProto:
    every = layer(net, op_type, sequence(net), "", *states)[0]
    return net.output(read(net, every, "b")).model()


KEPT = {"r/recurrence": [0, 3], "b": [3, 4]}


def test_constant_states_are_cut() -> None:
    net = Net()
    states = [net.weight(net.normal(1, BATCH, UNITS)) for _ in range(2)]
    emitted = check_emission(with_states(net, "LSTM", *states), KEPT, target=PLAIN)
    assert_units(emitted, 3)
    assert [list(t.dims) for t in emitted.graph.initializer if t.name in states] == [[1, BATCH, 3]] * 2


def zeros(net: Net, batch: int, value: float = 0.0) -> str:
    """A state for as many samples as the input has."""
    net.input("samples", ("N",))
    shape = net.op("Concat", net.ints(1), net.op("Shape", "samples"), net.ints(UNITS), axis=0)
    filler = numpy_helper.from_array(np.array([value], np.float32))
    return net.op("ConstantOfShape", shape, shapes=[(1, batch, UNITS)], value=filler)


@every_layer
def test_zeros_of_a_length_that_is_known_at_run_time_are_left_out(op_type: str) -> None:
    net = Net()
    state = net.op("Slice", zeros(net, BATCH), net.ints(0), net.ints(1), net.ints(0))
    model = with_states(net, op_type, *[state] * (1 + (op_type == "LSTM")))
    emitted = check_emission(model, KEPT, target=PLAIN)
    assert_units(emitted, 3)
    assert not {"ConstantOfShape", "Slice"} & {node.op_type for node in emitted.graph.node}
    assert list(next(node for node in emitted.graph.node if node.name == "r").input[4:]) == []


@pytest.mark.parametrize("spread", [False, True])
def test_zeros_that_callers_may_override_are_not_left_out(spread: bool) -> None:
    net = Net()
    given = net.weight(np.zeros((1, 1 if spread else BATCH, UNITS)))
    net.declare(given)
    state = given
    if spread:
        batch = net.op("Slice", net.op("Shape", net.input("samples", ("N",))), net.ints(0), net.ints(1))
        (state,) = net.ops(
            "Expand", given, net.op("Concat", net.ints(1), batch, net.ints(1), axis=0), shapes=[(1, BATCH, UNITS)]
        )
    emitted = check_emission(with_states(net, "RNN", state), KEPT, target=PLAIN)
    assert next(node for node in emitted.graph.node if node.name == "r").input[5] == state


def test_a_state_that_is_computed_brings_its_units_along() -> None:
    """Both of the encoder's states start the decoder, and one of them is projected on the way to a third layer."""
    net = Net()
    _, hidden, cell = layer(net, "LSTM", sequence(net), name="encoder", outputs=3)
    decoded = layer(net, "LSTM", net.input("y", (4, BATCH, 3)), "", hidden, cell, name="decoder")[0]
    start = net.op("MatMul", hidden, net.weight(net.normal(UNITS, UNITS)), name="start")
    third = layer(net, "GRU", net.input("z", (4, BATCH, 3)), "", start, name="third")[0]
    model = net.output(read(net, decoded, "b"), read(net, third, "c")).model()
    traced = trace(model)
    assert traced.consumers["encoder/recurrence"].segment == traced.consumers["decoder/recurrence"].segment
    kept = {"encoder/recurrence": [0, 1], "decoder/recurrence": [1], "b": [1], "start": [2]}
    emitted = check_emission(model, {**kept, "third/recurrence": [3], "c": [3, 4]}, target=PLAIN)
    for name, units in (("encoder", 3), ("decoder", 3), ("third", 2)):
        assert_units(emitted, units, name)
    assert made_by(emitted, "start", 1) == 2


def test_a_state_that_is_given_keeps_its_units() -> None:
    net = Net()
    model = with_states(net, "GRU", net.input("h", (1, BATCH, UNITS)))
    assert not trace(model).consumers["r/recurrence"].prunable.any()
    assert reasons_of(model, "b") == "graph input h"
    assert_units(check_emission(model, KEPT, target=PLAIN), UNITS)


def test_a_state_of_other_numbers_is_not_left_out() -> None:
    net = Net()
    state = zeros(net, BATCH, 0.5)
    emitted = check_emission(with_states(net, "RNN", state), KEPT, target=PLAIN)
    assert next(node for node in emitted.graph.node if node.name == "r").input[5] == state


def test_a_state_that_is_an_output_keeps_its_units() -> None:
    net = Net()
    every, last = layer(net, "GRU", sequence(net))
    model = net.output(read(net, every, "b"), last).model()
    assert reasons_of(model, "b") == f"graph output {last}"
    assert_units(check_emission(model, KEPT, target=PLAIN), UNITS)


# What stays


@pytest.mark.parametrize("place, reason", [(1, "weight computed"), (2, "weight computed"), (3, "bias computed")])
def test_weights_that_are_computed_at_run_time(place: int, reason: str) -> None:
    net = Net()
    model = net.output(read(net, layer(net, "GRU", sequence(net))[0], "b")).model()
    weight = model.graph.node[0].input[place]
    model.graph.node.insert(0, helper.make_node("Mul", [weight, "factor"], ["scaled"], name="scale"))
    model.graph.node[1].input[place] = "scaled"
    model.graph.input.append(helper.make_tensor_value_info("factor", onnx.TensorProto.FLOAT, [1]))
    assert reason in reasons_of(model, "b")
    assert not trace(model).consumers["b"].prunable.any()


def test_weights_that_do_not_fit_each_other() -> None:
    net = Net()
    model = net.output(read(net, layer(net, "GRU", sequence(net))[0], "b")).model()
    (bias,) = [tensor for tensor in model.graph.initializer if tensor.name == model.graph.node[0].input[3]]
    bias.CopyFrom(numpy_helper.from_array(np.zeros((1, 7), np.float32), bias.name))
    assert "weights that don't fit each other: GRU at r" in reasons_of(model, "b")


def test_a_recurrence_cannot_select() -> None:
    net = Net()
    model = net.output(read(net, layer(net, "GRU", sequence(net))[0], "b")).model()
    traced, plan, _ = prune(model, {"r/recurrence": [0, 3], "b": [3, 4]}, target=PLAIN)
    raw = plan.to_dict()
    segment = raw["segments"][plan.consumers["b"].segment]
    segment["lowerings"]["r/recurrence"] = "gather"
    raw["consumers"]["r/recurrence"]["read"] = [0, 3]
    with pytest.raises(MaskError, match=r"'r/recurrence': its channels .* are its own hidden units"):
        check_plan(type(plan).from_dict(raw), traced, "")


@pytest.mark.parametrize("lowering", ["gather", "slice", "partial", "concat", "duplicate"])
def test_others_select_from_the_units_that_are_left(lowering: str) -> None:
    net = Net()
    every, last = layer(net, "LSTM", sequence(net), direction="bidirectional")
    model = net.output(read(net, every, "b"), read(net, last, "c")).model()
    kept: Mapping[str, Sequence[int]] = {"r/recurrence": [0, 1, 4], "b": [0, 1], "c": [4]}
    assert_units(check_emission(model, kept, target=PLAIN, lowering=lowering), 3)


def test_one_weight_for_two_layers_stays_one() -> None:
    net = Net()
    weights = [net.weight(net.normal(1, *shape)) for shape in ((20, 3), (20, UNITS), (40,))]
    outs = [
        net.ops("LSTM", net.input(x, (4, 1, 3)), *weights, hidden_size=UNITS, name=f"r{x}", outputs=2)[1] for x in "xy"
    ]
    model = net.output(read(net, net.op("Add", *outs), "b")).model()
    kept = {"rx/recurrence": [0, 2], "ry/recurrence": [0, 2], "b": [0]}
    emitted = check_emission(model, kept, target=PLAIN)
    assert [list(t.dims) for t in emitted.graph.initializer if t.name in weights] == [[1, 8, 3], [1, 8, 2], [1, 16]]
    assert_units(check_emission(model, {**kept, "ry/recurrence": [2, 3]}, target=PLAIN), 3, "rx")


def test_a_reversed_sequence_keeps_its_channels_apart() -> None:
    net = Net()
    every = net.op("Squeeze", layer(net, "GRU", sequence(net))[0], net.ints(1))
    turned = net.op("ReverseSequence", every, net.ints(3, 6), time_axis=0, batch_axis=1)
    model = net.output(read(net, turned, "b")).model()
    assert_units(check_emission(model, KEPT, target=PLAIN), 3)


def test_a_reversed_channel_axis_stays() -> None:
    net = Net()
    a = net.op("MatMul", net.input("x", (2, 3)), net.weight(net.normal(3, 8)), name="a")
    turned = net.op("ReverseSequence", a, net.ints(3, 6), time_axis=1, batch_axis=0)
    model = net.output(read(net, turned, "b")).model()
    assert "time or batch of ReverseSequence" in reasons_of(model, "b")
    assert made_by(check_emission(model, {"b": [1, 2]}, target=PLAIN), "a", 1) == 8


def test_units_that_stay_are_offered_to_other_readers_only() -> None:
    net = Net()
    traced = trace(with_states(net, "GRU", net.input("h", (1, BATCH, UNITS)))).offering(["r/recurrence", "b"])
    assert not traced.consumers["r/recurrence"].prunable.any()
    assert traced.consumers["b"].prunable.all()
