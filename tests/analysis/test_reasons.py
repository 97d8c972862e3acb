"""The reasons that users read name what really freezes channels, and account for each of them once."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

from tests.builders import Net
from tests.explaining import assert_explained
from ucpe_onnx.analysis.trace import Segment, Trace, trace


def segment_of(traced: Trace, producer: str) -> Segment:
    return next(segment for segment in traced.segments if producer in segment.producers)


def heads(net: Net, x: str) -> str:
    """Channels of a product, as eight heads."""
    return net.op("Reshape", net.op("MatMul", x, net.weight(net.normal(3, 32)), name="a"), net.ints(0, 0, 8, 4))


def test_a_split_axis_stays_because_of_what_is_behind_the_split() -> None:
    """The Reshape could be followed; both new axes end in an operator that nothing is known of."""
    net = Net()
    y = heads(net, net.input("x", (1, 5, 3)))
    (z,) = net.ops("Odd", y, domain="com.example", shapes=[(1, 5, 8, 4)], name="odd")
    traced = trace(net.output(z).model())
    assert segment_of(traced, "a").frozen_by == {"operator without a rule: com.example::Odd at odd": 32}
    assert_explained(traced)


def test_a_merged_axis_stays_because_of_what_is_in_front() -> None:
    """What a Softmax has frozen on the way to the Reshape, which could not be followed anyhow, stays behind it."""
    net = Net()
    x = net.op("MatMul", net.input("x", (1, 2, 3)), net.weight(net.normal(3, 6)), name="a")
    y = net.op("Softmax", x, axis=2, name="soft")
    z = net.op("MatMul", net.reshape(y, 1, 12), net.weight(net.normal(12, 2)), name="b")
    traced = trace(net.output(z).model())
    (segment,) = [s for s in traced.segments if "b" in s.consumers]
    assert segment.frozen_by == {"channel-mixing op Softmax at soft": 12}


def test_a_tensor_of_unknown_rank_is_blamed_on_who_makes_it() -> None:
    net = Net()
    x = net.op("MatMul", net.input("x", (1, 4, 3)), net.weight(net.normal(3, 8)), name="a")
    net.ops("Odd", net.input("other", (2, 2)), domain="com.example", shapes=[(1, 4, 8)], name="odd")
    odd = net.nodes[-1].output[0]
    y = net.op("Add", x, net.op("Neg", odd), name="sum")
    model = net.output(net.op("MatMul", y, net.weight(net.normal(8, 2)), name="b")).model()
    del model.graph.value_info[:]
    assert "tensor of unknown rank: com.example::Odd at odd" in segment_of(trace(model), "a").reasons


def test_channels_that_are_frozen_twice_count_once() -> None:
    net = Net()
    x = net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a")
    parts = net.split(x, [5, 3])
    y = net.op("Softmax", parts[0], axis=1)
    traced = trace(net.output(net.conv(x, 4, name="b"), y).model())
    segment = segment_of(traced, "a")
    assert list(segment.frozen_by.values()) == [5, 0] and segment.frozen.sum() == 5
    assert segment.reasons[1].startswith("graph output")


@pytest.mark.parametrize("frozen", [False, True])
def test_free_channels_have_no_reason(frozen: bool) -> None:
    net = Net()
    x = net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a")
    x = net.op("LRN", x, size=3) if frozen else x
    segment = segment_of(trace(net.output(net.conv(x, 4, name="b")).model()), "a")
    assert bool(segment.frozen_by) == frozen == bool(np.all(segment.frozen))


def test_a_weight_that_is_computed_from_lengths_is_none() -> None:
    """Its value is known for these inputs, but the reference has no weight to set to zero there."""
    net = Net()
    x = net.op("MatMul", net.input("x", (1, 4, 3)), net.weight(net.normal(3, 4)), name="a")
    lengths = net.op("Cast", net.op("Shape", net.op("Identity", x)), to=TensorProto.FLOAT)
    matrix = net.op("Expand", net.unsqueeze(net.slice(lengths, [0], [1], [2]), [0]), net.ints(4, 2))
    model = net.output(net.op("MatMul", x, matrix, name="b")).model()
    traced = trace(model)
    assert traced.graph.constants.measured and "b" not in traced.consumers
    assert "weight computed from lengths: MatMul at b" in segment_of(traced, "a").reasons
