import sys

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from ucpe_onnx.errors import DataError, UsageError
from ucpe_onnx.samples.dataset import load_data
from ucpe_onnx.samples.inputs import InputSpec


def spec(name="x", shape=("N", 3), dtype=np.float32):
    return InputSpec(name, None if dtype is None else np.dtype(dtype), shape)


def samples(count, *, dtype=np.float32, shape=(3,)):
    return np.arange(count * int(np.prod(shape))).reshape(count, *shape).astype(dtype)


def npz(tmp_path, **arrays):
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)
    return str(path)


def zoo(tmp_path, *sets):
    for number, arrays in enumerate(sets):
        folder = tmp_path / f"test_data_set_{number}"
        folder.mkdir()
        for index, array in enumerate(arrays):
            (folder / f"input_{index}.pb").write_bytes(numpy_helper.from_array(array).SerializeToString())
        (folder / "output_0.pb").write_bytes(b"ignored")
    return str(tmp_path)


@pytest.fixture
def loader(tmp_path, monkeypatch):
    """Write a module in the working directory, as a user would; returns its ``--data`` value."""

    def write(body, call="make"):
        (tmp_path / "my_loader.py").write_text(f"import numpy as np\n{body}\n")
        return f"my_loader:{call}"

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield write
    sys.modules.pop("my_loader", None)


class Reader:
    """What onnxruntime calls a CalibrationDataReader."""

    def __init__(self, feeds):
        self.feeds = iter(feeds)

    def get_next(self):
        return next(self.feeds, None)


def refused(source, *specs):
    """The message of the error; it must be one line."""
    with pytest.raises(DataError) as error:
        load_data(source, specs or (spec(),))
    assert "\n" not in str(error.value)
    return str(error.value)


def sizes(data, *args):
    return [len(feed["x"]) for feed in data.batches(*args)]


# Forms


def test_npz(tmp_path):
    data = load_data(npz(tmp_path, x=samples(5), labels=np.arange(5)), [spec()])
    assert data.samples == 5 and data.labels.tolist() == [0, 1, 2, 3, 4] and data.source.endswith("data.npz")
    assert sizes(data, 2) == [2, 2, 1] and sizes(data, 2) == [2, 2, 1] and sizes(data) == [5]
    np.testing.assert_array_equal(np.concatenate([feed["x"] for feed in data.batches(2)]), samples(5))


def test_zoo_directory_in_numeric_order(tmp_path):
    sets = [[np.float32([[n, n, n]]), np.int64([n])] for n in range(11)]
    data = load_data(zoo(tmp_path, *sets), [spec(), spec("ids", ("N",), np.int64)])
    assert data.samples == 11 and data.labels is None
    assert [int(feed["ids"][0]) for feed in data.batches()] == list(range(11))
    assert load_data(str(tmp_path / "test_data_set_3"), [spec(), spec("ids", ("N",), np.int64)]).samples == 1


def test_callable_in_the_working_directory(loader):
    path = list(sys.path)
    body = "def make():\n    for n in range(3):\n        yield {'x': np.full((2, 3), n, np.float32), 'labels': [n, n]}"
    data = load_data(loader(body), [spec()])
    assert sizes(data) == [2, 2, 2] and data.samples == 6 and data.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert sys.path == path


@pytest.mark.parametrize(
    "body",
    [
        "make = [{'x': np.ones((4, 3), np.float32)}]",
        "def make(): return {'x': np.ones((4, 3), np.float32)}",
        "class make:\n    left = 4\n    def get_next(self):\n        self.left -= 1\n"
        "        return {'x': np.ones((1, 3), np.float32)} if self.left >= 0 else None",
    ],
)
def test_callable_may_give_any_form(loader, body):
    assert load_data(loader(body), [spec()]).samples == 4


def test_objects_through_the_api(tmp_path):
    feeds = [{"x": samples(2)}, {"x": samples(1)}]
    for source in (feeds, iter(feeds), Reader(feeds), {"x": samples(3)}):
        data = load_data(source, [spec()])
        assert data.samples == 3 and load_data(data, [spec()]) is data
    assert load_data(npz(tmp_path, x=samples(2)), [spec()]).samples == 2


def test_the_callers_dicts_are_left_alone():
    source = {"x": samples(2), "labels": np.arange(2)}
    load_data(source, [spec()])
    assert set(source) == {"x", "labels"}


def test_an_input_may_be_called_labels():
    data = load_data({"x": samples(2), "labels": samples(2)}, [spec(), spec("labels")])
    assert data.labels is None and set(next(data.batches())) == {"x", "labels"}


# Batches


def test_fixed_batch_of_one_goes_sample_by_sample():
    assert sizes(load_data({"x": samples(3)}, [spec(shape=(1, 3))]), 32) == [1, 1, 1]


def test_fixed_batch_is_padded_with_the_last_sample_and_counted():
    data = load_data({"x": samples(5)}, [spec(shape=(4, 3))])
    (first, real), (last, rest) = data.counted_batches()
    assert (real, rest) == (4, 1)
    np.testing.assert_array_equal(first["x"], samples(5)[:4])
    np.testing.assert_array_equal(last["x"], samples(5)[[4, 4, 4, 4]])


def test_fixed_batch_holds_for_feeds_too():
    data = load_data([{"x": samples(3)}, {"x": samples(2)}], [spec(shape=(2, 3))])
    assert [real for _, real in data.counted_batches()] == [2, 1, 2] and sizes(data) == [2, 2, 2]


def test_feeds_stay_as_they_are_where_the_batch_is_open():
    data = load_data([{"x": samples(7)}, {"x": samples(2)}], [spec()])
    assert sizes(data, 1) == [7, 2]


def test_feed_with_unequal_first_axes_is_one_batch():
    specs = [spec(shape=(2, 3)), spec("scale", (), np.float32), spec("boxes", ("boxes", 4))]
    data = load_data([{"x": samples(2), "scale": np.float32(1), "boxes": samples(9, shape=(4,))}], specs)
    assert data.samples == 1 and next(data.batches())["boxes"].shape == (9, 4)
    data = load_data([{"x": samples(2), "boxes": samples(9, shape=(4,))}], [specs[0], specs[2]])
    assert data.samples == 2 and next(data.batches())["boxes"].shape == (9, 4)


def test_batch_size_must_be_positive():
    with pytest.raises(UsageError, match="batch size 0 is below 1"):
        list(load_data({"x": samples(2)}, [spec()]).batches(0))


def test_inputs_that_numpy_cannot_hold():
    data = load_data([{"s": [samples(1), samples(2)]}], [InputSpec("s", None, None, "sequence")])
    assert data.samples == 1 and len(next(data.batches())["s"]) == 2
    half = InputSpec("h", None, ("N",), "bfloat16 tensor")
    assert "'h' is a bfloat16 tensor, which onnxruntime can't be fed" in refused({"h": samples(1)}, half)


def test_strings():
    text = spec("x", ("N",), object)
    assert next(load_data({"x": np.array(["a", "b"])}, [text]).batches())["x"].tolist() == ["a", "b"]
    assert "'x' is int64, the model takes strings; convert it to str" in refused({"x": np.arange(2)}, text)


# Errors


def test_single_input_of_another_name(tmp_path):
    message = refused(npz(tmp_path, images=samples(2), labels=np.arange(2)))
    assert message.endswith("data.npz: array 'images' is not an input of the model; rename it to 'x'")


def test_missing_and_superfluous_inputs():
    ids = spec("ids", ("N",), np.int64)
    assert refused({"x": samples(2)}, spec(), ids).endswith("no array for the input 'ids'; add it (the data holds x)")
    assert refused({}) == "the data: no array for the input 'x'; add it (the data holds nothing)"
    assert "array 'z' is not an input; remove it (the model takes x)" in refused({"x": samples(2), "z": samples(2)})


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (samples(2, dtype=np.float64), "'x' is float64, the model takes float32; cast it to float32"),
        (samples(2, dtype=np.uint8), "'x' is uint8, the model takes float32; cast it to float32 after the scaling"),
        (samples(2, shape=(4,)), "'x' has shape (2, 4), the model takes (N, 3); reshape or transpose it"),
        (samples(2, shape=(1, 3)), "'x' has shape (2, 1, 3), the model takes (N, 3); reshape or transpose it"),
        (np.float32(1), "'x' has shape (), the model takes (N, 3)"),
        (samples(0), "the data: holds no samples; give at least one"),
    ],
)
def test_arrays_that_do_not_fit(array, expected):
    assert expected in refused({"x": array})


def test_any_shape_goes_where_none_is_declared():
    assert load_data({"x": samples(2, shape=(4, 5))}, [spec(shape=None)]).samples == 2


def test_samples_must_agree_between_inputs():
    message = refused({"x": samples(2), "z": samples(3)}, spec(), spec("z"))
    assert "the first axis counts samples but differs between inputs ('x' 2, 'z' 3)" in message
    message = refused({"x": samples(2), "z": np.float32(1)}, spec(), spec("z", ()))
    assert "('x' 2, 'z' none)" in message and "module:callable" in message


def test_feed_that_fixed_first_axes_refuse():
    specs = spec(shape=(1, 3)), spec("boxes", (9, 4))
    fits = {"x": samples(1), "boxes": samples(9, shape=(4,))}
    assert load_data([fits], specs).samples == 1
    message = refused([fits, {"x": samples(1), "boxes": samples(8, shape=(4,))}], *specs)
    assert message.startswith("the data, item 1: 'boxes' has shape (8, 4), the model takes (9, 4)")


def test_labels_must_fit():
    assert "has 2 samples, 'labels' has 3; give one per sample" in refused({"x": samples(2), "labels": np.arange(3)})
    assert "'labels' has a single value" in refused({"x": samples(2), "labels": np.int64(3)})
    feeds = [{"x": samples(1), "labels": [1]}, {"x": samples(1)}]
    assert "1 of 2 items have 'labels'; give all of them, or none" in refused(feeds)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ([], "the data: holds no samples"),
        (Reader([]), "the data: holds no samples"),
        ([{"x": samples(1)}, {"x": samples(0)}], "the data, item 1: holds no samples"),
        ([samples(2)], "item 0 is a ndarray; yield dicts of input name to array"),
        (samples(2), "is a ndarray; give an iterable of dicts of input name to array"),
        (7, "is a int; give an iterable of dicts"),
    ],
)
def test_objects_that_are_no_data(source, expected):
    assert expected in refused(source)


def test_paths_that_are_no_data(tmp_path):
    assert refused("no/where").startswith("no/where: no such file or directory; give an .npz file, a directory")
    assert refused("no/where.npz").startswith("no/where.npz: no such file; give an .npz file, a directory")
    (tmp_path / "x.csv").write_text("1,2")
    assert "can't read a .csv file; give an .npz file" in refused(tmp_path / "x.csv")
    assert "no test_data_set_N/input_M.pb in it" in refused(tmp_path)


def test_broken_npz(tmp_path):
    path = tmp_path / "data.npz"
    for content in (b"", b"not a zip", b"PK\x03\x04 truncated"):
        path.write_bytes(content)
        assert "data.npz: not a readable .npz file" in refused(path)
    np.save(path.open("wb"), samples(2))
    assert "not a readable .npz file" in refused(path)
    np.savez(path, x=np.array([{}], object))
    assert "not a readable .npz file (ValueError: Object arrays cannot be loaded" in refused(path)


def test_broken_zoo_directory(tmp_path):
    folder = zoo(tmp_path, [samples(1)])
    message = refused(folder, spec(), spec("ids"))
    assert "test_data_set_0: holds 1 input_M.pb files; give one per model input, in order: x, ids" in message
    (tmp_path / "test_data_set_0" / "input_0.pb").write_bytes(b"\xff\xff")
    assert "input_0.pb: not a readable TensorProto" in refused(folder)
    onnx.save_tensor(numpy_helper.from_array(samples(1)), str(tmp_path / "test_data_set_0" / "input_0.pb"))
    assert load_data(folder, [spec()]).samples == 1


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("def other(): pass", "module my_loader has no 'make'; name a function of it"),
        ("import no_such_package", "can't import my_loader (ModuleNotFoundError: No module named 'no_such_package')"),
        ("1 / 0", "importing my_loader raised ZeroDivisionError: division by zero; fix the module"),
        ("def make(path): pass", "raised TypeError: make() missing 1 required"),
        ("def make():\n    yield {}\n    raise OSError('disk\\ngone')", "raised OSError: disk gone while it was read"),
        ("def make(): pass", "is a NoneType; give an iterable of dicts"),
    ],
)
def test_broken_callable(loader, body, expected):
    message = refused(loader(body))
    assert message.startswith("my_loader:make: ") and expected in message


def test_missing_module(loader):
    assert "no_loader:make: can't import no_loader (ModuleNotFoundError" in refused("no_loader:make")


# Parts of the samples


def values(data):
    return [feed["x"][:, 0].tolist() for feed in data.batches()]


def test_first_samples(tmp_path):
    data = load_data(npz(tmp_path, x=samples(10), labels=np.arange(10)), [spec()])
    some = data.first(4)
    assert some.samples == 4 and some.labels.tolist() == [0, 1, 2, 3] and values(some) == [[0.0, 3.0, 6.0, 9.0]]
    assert data.first(100).samples == 10 and data.samples == 10
    assert data.first(4).first(2).samples == 2


def test_first_feeds_stay_whole():
    feeds = [{"x": samples(count), "labels": np.full(count, count)} for count in (3, 4, 2)]
    data = load_data(feeds, [spec()])
    assert [data.first(count).counts for count in (1, 3, 4, 7, 8)] == [(3,), (3,), (3, 4), (3, 4), (3, 4, 2)]
    some = data.first(4)
    assert some.samples == 7 and sizes(some) == [3, 4] and some.labels.tolist() == [3] * 3 + [4] * 4


def test_first_of_a_fixed_batch():
    data = load_data({"x": samples(10)}, [spec(shape=(4, 3))])
    some = data.first(6)
    assert [(len(feed["x"]), real) for feed, real in some.counted_batches()] == [(4, 4), (4, 2)]


def test_split(tmp_path):
    data = load_data(npz(tmp_path, x=samples(9), labels=np.arange(9)), [spec()])
    most, some = data.split(4)
    assert most.labels.tolist() == [0, 1, 2, 4, 5, 6, 8] and some.labels.tolist() == [3, 7]
    assert values(some) == [[9.0, 21.0]] and most.samples + some.samples == 9
    most, some = load_data({"x": samples(3)}, [spec()]).split(4)
    assert (most.samples, some.samples) == (3, 0) and some.labels is None and values(some) == []


def test_split_of_feeds_by_feeds():
    data = load_data([{"x": samples(count), "labels": np.full(count, count)} for count in (3, 5, 2, 4, 1)], [spec()])
    most, some = data.split(2)
    assert (most.counts, some.counts) == ((3, 2, 1), (5, 4))
    assert sizes(some) == [5, 4] and some.labels.tolist() == [5] * 5 + [4] * 4
    assert load_data([{"x": samples(8)}], [spec()]).split(2)[1].samples == 0


def test_split_of_feeds_that_cannot_be_cut():
    feeds = [{"x": samples(2), "y": samples(3) + i} for i in range(4)]
    data = load_data(feeds, [spec(), spec("y")])
    most, some = data.split(2)
    assert [feed["y"][0, 0] for feed in some.batches()] == [1.0, 3.0] and len(most.parts) == 2
