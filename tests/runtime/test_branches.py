"""Inputs that choose a branch take the values at which it turns."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.builders import Array, Net
from ucpe_onnx.runtime.branches import feeds_of_branches
from ucpe_onnx.runtime.session import RunOptions, as_session
from ucpe_onnx.samples.inputs import input_specs

X = np.ones((1, 4), np.float32)


def model(condition: str) -> onnx.ModelProto:
    """``-x`` or ``x + 1``, as an input says: a flag, or a rate that is compared with 16000."""
    net = Net()
    x = net.input("x", (1, 4))
    net.weight(np.ones(4, np.float32), "w")
    outs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 4)) for name in ("t", "e")]
    then = helper.make_graph([helper.make_node("Neg", [x], ["t"])], "then", [], outs[:1])
    other = helper.make_graph([helper.make_node("Add", [x, "w"], ["e"])], "else", [], outs[1:])
    if condition == "flag":
        chosen = net.op("Not", net.input("flag", (), TensorProto.BOOL))
    else:
        rate = net.op("Cast", net.input("rate", (1,), TensorProto.INT64), to=TensorProto.INT32)
        chosen = net.op(condition, net.weight(np.array([16000], np.int32)), rate)
        chosen = net.squeeze(chosen, [0])
    return net.output(net.op("If", chosen, shapes=[(1, 4)], then_branch=then, else_branch=other)).model()


@pytest.mark.parametrize(
    ("condition", "first"), [("flag", np.array(True)), ("Equal", np.array([0])), ("Less", np.array([5]))]
)
def test_both_branches_are_taken(condition: str, first: Array) -> None:
    net, options = model(condition), RunOptions(threads=1)
    session = as_session(net, options)
    name = "flag" if condition == "flag" else "rate"
    feed = {"x": X, name: first}
    feeds = [feed, *feeds_of_branches(net, input_specs(net), feed, session)]
    outputs = {float(session.run(None, each)[0][0, 0]) for each in feeds}
    assert outputs == {-1.0, 2.0}
    assert all(each[name].dtype == first.dtype and each[name].shape == first.shape for each in feeds)


def test_nothing_is_added_where_no_input_decides() -> None:
    net = Net()
    plain = net.output(net.op("Relu", net.input("x", (1, 4)))).model()
    assert feeds_of_branches(plain, input_specs(plain), {"x": X}, as_session(plain, RunOptions(threads=1))) == []
