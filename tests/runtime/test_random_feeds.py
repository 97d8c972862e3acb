import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.runtime.builders import make_model, node, two_inputs, unary, value
from ucpe_onnx.errors import ModelError, UsageError
from ucpe_onnx.runtime import random_feeds as module
from ucpe_onnx.runtime.random_feeds import find_feeds, input_shapes, parse_input_shapes, random_feeds
from ucpe_onnx.samples.inputs import InputSpec, input_specs


def spec(name, shape, dtype=np.float32):
    return InputSpec(name, np.dtype(dtype), shape)


def shapes(feed):
    return {name: array.shape for name, array in feed.items()}


def test_parse_input_shapes():
    assert parse_input_shapes(["x:[1,3,224,224]", "in:0:[2]", "s:[]", "p: (1, 2)", "q:[1x3]"]) == {
        "x": (1, 3, 224, 224),
        "in:0": (2,),
        "s": (),
        "p": (1, 2),
        "q": (1, 3),
    }


@pytest.mark.parametrize("text", ["x", "x:1,3", "x:[a]", ":[1]", "x:[-1]"])
def test_parse_input_shapes_refuses(text):
    with pytest.raises(UsageError, match=r"can't read .*; write name:\[1,3,224,224\]"):
        parse_input_shapes([text])


def test_parse_input_shapes_refuses_doubles():
    with pytest.raises(UsageError, match="'x' is given twice"):
        parse_input_shapes(["x:[1]", "x:[2]"])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8, np.uint8, np.int64, np.bool_, object])
@pytest.mark.parametrize("shape", [(), (2, 3)])
def test_random_values_have_the_declared_type_and_depend_on_the_seed_only(dtype, shape):
    specs = [spec("x", shape, dtype)]
    array = random_feeds(specs, seed=1)["x"]
    assert array.dtype == dtype and array.shape == shape
    np.testing.assert_array_equal(array, random_feeds(specs, seed=1)["x"])
    if array.dtype.kind in "iu":
        assert array.min() >= 0 and array.max() < module.INT_LIMITS[0]


def test_masks_of_integers_are_ones():
    assert (random_feeds([spec("attention_mask", (4, 9), np.int64)])["attention_mask"] == 1).all()


def test_open_axes():
    specs = [spec("a", ("N", 3, "h")), spec("b", ("h", "N")), spec("c", (None, 2)), spec("d", (7, "batch_size"))]
    got = shapes(random_feeds(specs, overrides={"a": (4, 3, 8)}, batch=2))
    assert got == {"a": (4, 3, 8), "b": (8, 4), "c": (2, 2), "d": (7, 2)}
    assert input_shapes([spec("x", ("N", 3, "h", None))], size=9) == {"x": (1, 3, 9, 9)}


@pytest.mark.parametrize(
    ("specs", "overrides", "error", "message"),
    [
        ([spec("x", ("N", 3, "h", "w"))], {}, ModelError, r"open: \[N,3,h,w\].*--input-shapes x:\[1,3,224,224\]"),
        ([spec("x", ("N", "t"))], {}, ModelError, r"--input-shapes x:\[1,128\]"),
        ([spec("x", None)], {}, ModelError, "declares no shape; pass one, as --input-shapes x:"),
        ([InputSpec("s", None, (1,), "bfloat16 tensor")], {}, ModelError, "'s' is a bfloat16 tensor.*--data"),
        ([spec("x", (1, 3))], {"z": (1, 3)}, UsageError, "no input 'z'; its inputs are x"),
        ([spec("x", ("N", 3))], {"x": (1, 4)}, UsageError, r"x:\[1, 4\] does not fit the declared shape \[N,3\]"),
        ([spec("x", ("N", 3))], {"x": (3,)}, UsageError, "does not fit"),
    ],
)
def test_what_cannot_be_made_up(specs, overrides, error, message):
    with pytest.raises(error, match=message):
        random_feeds(specs, overrides=overrides)


def test_override_gives_rank_to_an_undeclared_shape():
    assert shapes(random_feeds([spec("x", None)], overrides={"x": (2, 5)})) == {"x": (2, 5)}


def image_model(inner: int) -> onnx.ModelProto:
    """Runs only if an image has exactly inner x inner pixels."""
    weights = {"w": np.ones((3 * inner * inner, 2), np.float32)}
    nodes = [node("Flatten", "x", "f"), node("MatMul", "f w")]
    return make_model(nodes, [value("x", ["N", 3, "h", "w"])], [value("y", ["N", 2])], weights)


@pytest.mark.parametrize("inner", [224, 64, 8])
def test_find_feeds_guesses_sizes(inner, capfd):
    assert shapes(find_feeds(image_model(inner), batch=2)) == {"x": (2, 3, inner, inner)}
    assert capfd.readouterr() == ("", "")


def test_find_feeds_gives_equal_names_equal_sizes():
    assert shapes(find_feeds(two_inputs(["N", "t"], ["N", "t"]))) == {"a": (1, 224), "b": (1, 224)}


def test_find_feeds_guesses_a_first_axis_that_is_no_batch():
    model = make_model(
        [node("MatMul", "w x")], [value("x", ["t", 3])], [value("y", [2, 3])], {"w": np.ones((2, 16), np.float32)}
    )
    assert shapes(find_feeds(model)) == {"x": (16, 3)}


def test_find_feeds_makes_integers_small_enough_for_an_embedding():
    table = {"w": np.ones((2, 4), np.float32)}
    model = make_model([node("Gather", "w i")], [value("i", ["N", "t"], TensorProto.INT64)], [value("y", None)], table)
    assert set(np.unique(find_feeds(model)["i"])) <= {0, 1}


def test_find_feeds_keeps_overrides():
    assert shapes(find_feeds(unary(shape=["N", "t"]), overrides={"x": (3, 5)})) == {"x": (3, 5)}


def test_find_feeds_gives_up_with_the_option_to_use():
    with pytest.raises(
        ModelError, match=r"tiny: onnxruntime can't run it: .*--input-shapes x:\[1,3,224,224\]"
    ) as error:
        find_feeds(image_model(77))
    assert "\n" not in str(error.value)


def test_find_feeds_does_not_try_gigabytes(monkeypatch):
    monkeypatch.setattr(module, "LARGEST_INPUT", 1000)
    assert shapes(find_feeds(unary(shape=["N", "d", "h", "w"]))) == {"x": (1, 8, 8, 8)}
    monkeypatch.setattr(module, "LARGEST_INPUT", 0)
    with pytest.raises(ModelError, match="every size tried makes an input too large; pass shapes"):
        find_feeds(unary(shape=["N", "w"]))


def test_find_feeds_of_a_sequence_input_asks_for_data():
    sequence = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)
    model = make_model([node("SequenceLength", "s")], [sequence], [value("y", [], TensorProto.INT64)])
    assert input_specs(model)[0].dtype is None
    with pytest.raises(ModelError, match="'s' is a sequence, which can't be made up; pass --data module:callable"):
        find_feeds(model)
