import numpy as np
import pytest

from ucpe_onnx.runtime.compare import compare


def floats(*values, dtype=np.float32):
    return np.array(values, dtype)


def test_bound_is_relative_to_the_largest_value_of_the_reference():
    right = floats(0.0, 100.0)
    assert compare(floats(0.009, 100.0), right).passed
    wrong = compare(floats(0.02, 100.0), right)
    assert not wrong.passed and wrong.bound == pytest.approx(1e-2) and wrong.error == pytest.approx(0.02)


def test_bound_is_absolute_below_one():
    assert compare(floats(9e-5), floats(0.0)).passed
    assert compare(floats(2e-4), floats(0.0)).severity == pytest.approx(2)
    assert not compare(floats(2e-4), floats(0.0)).passed


def test_half_precision_has_a_wider_default_but_obeys_the_user():
    a, b = floats(1.004, dtype=np.float16), floats(1.0, dtype=np.float16)
    assert compare(a, b).passed
    assert not compare(a, b, rtol=1e-4, atol=1e-4).passed


def test_tolerances_of_zero_ask_for_equality():
    assert compare(floats(1.0), floats(1.0), rtol=0, atol=0).passed
    one_off = compare(floats(1.0000001), floats(1.0), rtol=0, atol=0)
    assert not one_off.passed and one_off.severity == np.inf


@pytest.mark.parametrize(
    ("a", "b", "passed"),
    [
        (floats(np.nan, 1), floats(np.nan, 1), True),
        (floats(np.inf, -np.inf), floats(np.inf, -np.inf), True),
        (floats(np.inf), floats(-np.inf), False),
        (floats(1.0), floats(np.nan), False),
        (floats(np.nan), floats(1.0), False),
        (floats(np.inf, 1), floats(1.0, 1), False),
        (floats(np.nan, 5), floats(np.nan, 6), False),
    ],
)
def test_nan_and_infinities_must_agree(a, b, passed):
    assert compare(a, b).passed is passed


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (np.array([2**60]), np.array([2**60 + 1])),
        (np.array([True]), np.array([False])),
        (np.array(["a"], object), np.array(["b"], object)),
    ],
)
def test_what_is_no_float_must_be_equal(a, b):
    assert compare(b, b).passed
    assert compare(a, b).problem == "has 1 of 1 values that are not equal"


def test_type_and_shape_must_be_equal():
    assert compare(floats(1), floats(1, dtype=np.float64)).problem == (
        "is float32 of shape (1,) instead of float64 of shape (1,)"
    )
    assert "shape (1,) instead of float32 of shape (2,)" in compare(floats(1), floats(1, 1)).problem


def test_empty_outputs_pass():
    assert compare(floats(), floats()).passed and compare([], []).passed and compare(None, None).passed


@pytest.mark.parametrize(
    ("a", "b", "problem"),
    [
        ([floats(1), floats(2)], [floats(1), floats(2)], ""),
        ([{"cat": 0.5}], [{"cat": 0.5}], ""),
        ([floats(1)], [floats(1), floats(2)], "is a list of 1 instead of a list of 2"),
        (None, [floats(1)], "is a NoneType instead of a list of 1"),
        ([{"cat": 0.5}], [{"dog": 0.5}], "has other map keys"),
        ([[floats(1)]], [[floats(np.nan)]], "has NaN or infinities at other places than the reference"),
    ],
)
def test_sequences_and_maps_are_compared_element_by_element(a, b, problem):
    assert compare(a, b).problem == problem


def test_the_worst_element_counts():
    assert compare([floats(1), floats(3), floats(1)], [floats(1), floats(2), floats(1)]).error == 1
    assert compare({"a": 1.0, "b": 2.5}, {"a": 1.0, "b": 2.0}).error == 0.5
