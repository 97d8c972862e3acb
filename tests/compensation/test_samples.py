"""Which sample an entry of a tensor belongs to."""

from __future__ import annotations

import numpy as np
import pytest

from tests.builders import Net
from ucpe_onnx.compensation.samples import SampleNumbers, takes_nan
from ucpe_onnx.errors import DataError


def feed(count: int, **more: np.ndarray) -> dict[str, np.ndarray]:
    return {"x": np.zeros((count, 3), np.float32), **more}


def test_samples_are_counted_across_feeds():
    samples = SampleNumbers([feed(2), feed(3)], None, "the data")
    assert samples.count == 5
    assert samples.numbers(0, 2).tolist() == [0, 1] and samples.numbers(1, 3).tolist() == [2, 3, 4]


def test_samples_may_have_several_rows():
    samples = SampleNumbers([feed(2), feed(2)], None, "the data")
    assert samples.numbers(1, 6).tolist() == [2, 2, 2, 3, 3, 3]


def test_padding_is_cut_off():
    samples = SampleNumbers([feed(4), feed(4)], [4, 1], "the data")
    assert samples.count == 5
    assert samples.numbers(1, 4).tolist() == [4] and samples.numbers(1, 8).tolist() == [4, 4]


def test_an_axis_that_samples_do_not_divide_counts_by_itself():
    samples = SampleNumbers([feed(4), feed(4)], [4, 1], "the data")
    assert samples.numbers(0, 3).tolist() == [0, 1, 2] and samples.numbers(1, 1).tolist() == [4]


def test_inputs_without_a_common_axis_are_one_sample():
    feeds = [feed(4, y=np.zeros((2, 2))), feed(4, y=np.zeros(()))]
    assert SampleNumbers(feeds, None, "d").count == 2
    assert SampleNumbers(feeds, [1, 1], "d").numbers(1, 3).tolist() == [1, 1, 1]
    assert SampleNumbers([{}], None, "d").count == 1


def test_nan_is_told_with_input_sample_and_source():
    feeds = [feed(3), feed(3)]
    feeds[1]["x"][1, 2] = np.nan
    with pytest.raises(
        DataError, match=r"input 'x' is NaN or infinite on sample 4 of d\.npz .*; leave that sample out"
    ):
        SampleNumbers(feeds, None, "d.npz").check_inputs(feeds)
    feeds[1]["x"][1, 2] = -np.inf  # as masks of attention have it
    SampleNumbers(feeds, None, "d.npz").check_inputs(feeds)
    scalar = [{"x": np.array(np.nan)}]
    with pytest.raises(DataError, match="sample 0"):
        SampleNumbers(scalar, None, "d.npz").check_inputs(scalar)


def test_tensors_are_checked_by_their_rows():
    samples = SampleNumbers([feed(2)], None, "d.npz")
    value = np.zeros((4, 3), np.float32)
    samples.check("tensor 't'", value, samples.numbers(0, 4))
    value[3, 0] = np.inf
    with pytest.raises(DataError, match=r"tensor 't' is NaN or infinite on sample 1 of d\.npz"):
        samples.check("tensor 't'", value, samples.numbers(0, 4))


def test_models_that_look_for_nan():
    net = Net()
    net.output(net.op("IsNaN", net.input()))
    assert takes_nan(net.model())
