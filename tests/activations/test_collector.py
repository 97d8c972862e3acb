"""Statistics of what consumers read, against plain loops over samples and positions."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto

from tests.builders import Net
from tests.builders import run as outputs_of
from ucpe_onnx.activations import collector, grams
from ucpe_onnx.activations.collector import collect
from ucpe_onnx.activations.statistics import Statistics
from ucpe_onnx.analysis.trace import trace
from ucpe_onnx.errors import DataError, UcpeError
from ucpe_onnx.runtime.session import RunOptions
from ucpe_onnx.samples.dataset import Dataset, load_data
from ucpe_onnx.samples.inputs import input_specs

Array = npt.NDArray[Any]
OPTIONS = RunOptions(threads=1)


def normal(*shape: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def dataset(model: onnx.ModelProto, source: Any) -> Dataset:
    return load_data({"x": source} if isinstance(source, np.ndarray) else source, input_specs(model))


def gathered(model: onnx.ModelProto, source: Any, **options: Any) -> Statistics:
    return collect(model, trace(model), dataset(model, source), OPTIONS, **options)


def read_by(model: onnx.ModelProto, tensor: str, x: Array) -> Array:
    """A tensor within the model, computed one sample at a time."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    copy.graph.output.append(onnx.ValueInfoProto(name=tensor))
    return np.concatenate([outputs_of(copy, {"x": sample[None]})[-1] for sample in x])


def naive_rows(value: Array, kernel: int, stride: int, pads: tuple[int, ...], dilation: int, *, groups: int) -> Array:
    """Rows of features of a two-dimensional convolution, shape (groups, rows, features), one number at a time."""
    samples, channels, height, width = value.shape
    reach = (kernel - 1) * dilation + 1
    tall, wide = ((n + a + b - reach) // stride + 1 for n, a, b in ((height, *pads[::2]), (width, *pads[1::2])))
    rows = []
    for sample, i, j in itertools.product(range(samples), range(tall), range(wide)):
        row = []
        for channel, di, dj in itertools.product(range(channels), range(kernel), range(kernel)):
            y, x = i * stride - pads[0] + di * dilation, j * stride - pads[1] + dj * dilation
            row.append(float(value[sample, channel, y, x]) if 0 <= y < height and 0 <= x < width else 0.0)
        rows.append(row)
    return np.moveaxis(np.array(rows).reshape(len(rows), groups, -1), 1, 0)


def convolutions(batch: int | str = "N", **options: Any) -> onnx.ModelProto:
    """x -> stem (6 channels) -> Relu -> read (what the options say)."""
    net = Net()
    a = net.op("Relu", net.conv(net.input("x", (batch, 3, 7, 6)), 6, 3, name="stem"))
    kernel, groups = options.pop("kernel", 3), options.pop("groups", 1)
    return net.output(net.conv(a, 4, kernel, groups=groups, name="read", **options)).model()


def relu_of(model: onnx.ModelProto) -> str:
    return next(node.output[0] for node in model.graph.node if node.op_type == "Relu")


@pytest.mark.parametrize(
    ("kernel", "stride", "pads", "dilation", "groups"),
    [
        (3, 1, (1, 1, 1, 1), 1, 1),
        (3, 2, (0, 1, 2, 0), 1, 1),
        (2, 1, (0, 0, 0, 0), 2, 1),
        (3, 1, (1, 1, 1, 1), 1, 2),
        (1, 2, (0, 0, 0, 0), 1, 1),
    ],
)
def test_moments_of_windows(kernel: int, stride: int, pads: tuple[int, ...], dilation: int, groups: int) -> None:
    model = convolutions(kernel=kernel, groups=groups, strides=[stride] * 2, pads=list(pads), dilations=[dilation] * 2)
    x = normal(5, 3, 7, 6)
    found = gathered(model, x).consumers["read"]
    rows = naive_rows(read_by(model, relu_of(model), x), kernel, stride, pads, dilation, groups=groups)
    assert found.gram is not None and found.feature_mean is not None and found.covariance is not None
    assert np.allclose(found.gram, np.matmul(rows.swapaxes(1, 2), rows) / rows.shape[1], rtol=1e-5, atol=1e-6)
    assert np.allclose(found.feature_mean, rows.mean(axis=1), rtol=1e-5, atol=1e-6)
    for group, covariance in zip(rows, found.covariance, strict=True):
        assert np.allclose(covariance, np.cov(group.T, bias=True), rtol=1e-4, atol=1e-5)


def test_moments_of_channels_are_over_samples_and_positions() -> None:
    model, x = convolutions(), normal(5, 3, 7, 6)
    statistics = gathered(model, x)
    found = statistics.consumers["read"]
    value = read_by(model, relu_of(model), x).astype(np.float64)
    assert (statistics.samples, found.samples, found.values) == (5, 5, 5 * 7 * 6)
    assert list(statistics.consumers) == ["read"], "the stem has no channel that may be pruned"
    assert np.allclose(found.mean, value.mean(axis=(0, 2, 3)), rtol=1e-6)
    assert np.allclose(found.energy, np.square(value).mean(axis=(0, 2, 3)), rtol=1e-6)
    assert np.allclose(found.variance, value.var(axis=(0, 2, 3)), rtol=1e-5)
    assert found.rank is None


def test_large_means_do_not_hide_what_varies() -> None:
    net = Net()
    bias = net.weight(np.full(6, 1000.0, np.float32))
    a = net.op("Relu", net.op("Conv", net.input("x", ("N", 3, 5, 5)), net.weight(net.normal(6, 3, 1, 1)), bias))
    model, x = net.output(net.conv(a, 4, 1, name="read")).model(), normal(200, 3, 5, 5)
    found = gathered(model, x).consumers["read"]
    value = np.moveaxis(read_by(model, relu_of(model), x), 1, -1).reshape(-1, 6).astype(np.float64)
    assert found.covariance is not None
    assert np.allclose(found.covariance[0], np.cov(value.T, bias=True), atol=1e-5)


def test_named_consumers_may_read_graph_inputs() -> None:
    model, x = convolutions(), normal(5, 3, 7, 6)
    statistics = gathered(model, x, names=["stem"])
    assert list(statistics.consumers) == ["stem"]
    assert np.allclose(statistics.consumers["stem"].mean, x.mean(axis=(0, 2, 3)), atol=1e-6)


def test_a_model_without_prunable_channels() -> None:
    net = Net()
    model = net.output(net.conv(net.input("x", (1, 3, 4, 4)), 2)).model()
    statistics = gathered(model, normal(2, 3, 4, 4))
    assert (dict(statistics.consumers), statistics.samples) == ({}, 2)


def products() -> onnx.ModelProto:
    """x -> MatMul (5 channels) -> Relu -> MatMul (4 channels), over sequences."""
    net = Net()
    a = net.op("MatMul", net.input("x", ("N", 4, 3)), net.weight(net.normal(3, 5)), name="stem")
    return net.output(net.op("MatMul", net.op("Relu", a), net.weight(net.normal(5, 4)), name="read")).model()


def test_moments_of_a_product() -> None:
    model, x = products(), normal(3, 4, 3)
    found = gathered(model, x).consumers["read"]
    rows = read_by(model, relu_of(model), x).reshape(-1, 5).astype(np.float64)
    assert found.gram is not None
    assert np.allclose(found.gram[0], rows.T @ rows / len(rows), rtol=1e-5)
    assert np.allclose(found.mean, rows.mean(axis=0), rtol=1e-5)


def assert_same(ours: Statistics, theirs: Statistics) -> None:
    assert ours.samples == theirs.samples and list(ours.consumers) == list(theirs.consumers)
    for one, other in zip(ours.consumers.values(), theirs.consumers.values(), strict=True):
        assert (one.samples, one.values) == (other.samples, other.values)
        for kind in ("mean", "energy", "gram", "feature_mean", "rank"):
            left, right = getattr(one, kind), getattr(other, kind)
            assert (left is None) == (right is None)
            assert left is None or np.allclose(left, right, rtol=1e-5, atol=1e-6)


def test_several_batches_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = convolutions(), normal(11, 3, 7, 6)
    whole = gathered(model, x, ranks=True)
    monkeypatch.setattr(collector, "_MOST_BATCH", 4)
    monkeypatch.setattr(collector, "_PIECE", 300)
    monkeypatch.setattr(grams, "_ROW_BYTES", 5000)
    shares: list[float] = []
    assert_same(gathered(model, x, ranks=True, progress=shares.append), whole)
    assert shares == [4 / 11, 8 / 11, 1.0]


@pytest.mark.parametrize("build", [convolutions, lambda batch: convolutions(batch, kernel=1)])
def test_padding_of_the_last_batch_does_not_count(build: Any) -> None:
    x = normal(7, 3, 7, 6)
    assert_same(gathered(build(4), x, ranks=True), gathered(build("N"), x, ranks=True))


def test_padding_where_samples_are_merged_with_positions_or_second() -> None:
    def model(batch: int) -> onnx.ModelProto:
        net = Net()
        a = net.op("MatMul", net.input("x", (batch, 6, 3)), net.weight(net.normal(3, 5)))
        merged = net.op("MatMul", net.reshape(a, -1, 5), net.weight(net.normal(5, 4)), name="merged")
        second = net.op("MatMul", net.op("Transpose", a, perm=[1, 0, 2]), net.weight(net.normal(5, 4)), name="second")
        return net.output(merged, second).model()

    x = normal(6, 6, 3)
    assert_same(gathered(model(4), x), gathered(model(6), x))


def test_feeds_that_the_user_cut_are_taken_as_they_are() -> None:
    model, x = convolutions(), normal(5, 3, 7, 6)
    assert_same(gathered(model, [{"x": x[:2]}, {"x": x[2:]}]), gathered(model, x))


def test_a_batch_fits_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = convolutions(), normal(6, 3, 7, 6)
    monkeypatch.setattr(collector, "_BATCH_BYTES", 2 * 4 * 7 * 6 * (6 + 4))
    shares: list[float] = []
    gathered(model, x, progress=shares.append)
    assert len(shares) == 3


def test_channels_alone_are_told_apart_where_features_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = convolutions(groups=2, strides=[2, 2]), normal(5, 3, 7, 6)
    value = read_by(model, relu_of(model), x).reshape(5, 2, 3, -1).transpose(1, 0, 3, 2).reshape(2, -1, 3)
    for limit, bound in (("MOST_FEATURES", 26), ("MOST_GRAM_BYTES", 8 * 2 * 27**2 - 1)):
        with monkeypatch.context() as limited:
            limited.setattr(grams, limit, bound)
            found = gathered(model, x).consumers["read"]
        assert found.gram is not None and found.feature_mean is not None
        assert np.allclose(found.gram, value.swapaxes(1, 2) @ value / value.shape[1], rtol=1e-5)
        assert np.allclose(found.feature_mean, value.mean(axis=1), rtol=1e-5)
    monkeypatch.setattr(grams, "MOST_GRAM_BYTES", 0)
    monkeypatch.setattr(grams, "MOST_CHANNELS", 2)
    found = gathered(model, x).consumers["read"]
    assert found.gram is None and found.feature_mean is None and found.mean.shape == (6,)


def test_consumers_that_read_the_same_share_a_gram() -> None:
    net = Net()
    a = net.op("Relu", net.conv(net.input("x", ("N", 3, 5, 5)), 6, 3))
    model = net.output(net.conv(a, 4, 3, name="b"), net.conv(a, 5, 3, name="c"), net.conv(a, 5, 1, name="d")).model()
    found = gathered(model, normal(2, 3, 5, 5)).consumers
    assert found["b"].gram is found["c"].gram
    assert found["d"].gram is not None and found["d"].gram.shape == (1, 6, 6)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("taps", [True, False])
def test_positions_are_sampled_where_there_are_too_many(
    kernel: int, taps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = convolutions(kernel=kernel), normal(40, 3, 7, 6)
    monkeypatch.setattr(grams, "MOST_FEATURES", 2048 if taps else 0)
    whole = gathered(model, x).consumers["read"].gram
    width = 6 * kernel**2 if taps else 6
    monkeypatch.setattr(grams, "_MOST_WORK", 2.0 * width**2 * 40 * 21)
    monkeypatch.setattr(grams, "_ROWS_PER_FEATURE", 0)
    first, again, other = (gathered(model, x, seed=seed).consumers["read"].gram for seed in (0, 0, 1))
    assert whole is not None and first is not None and again is not None and other is not None
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert not np.allclose(first, whole, rtol=1e-3)
    assert np.linalg.norm(first - whole) < 0.2 * np.linalg.norm(whole)


def test_sampled_positions_are_spread_evenly() -> None:
    positions = grams._spread(100, 10, np.random.default_rng(0))
    assert (positions // 10).tolist() == list(range(10))


def test_ranks_of_maps() -> None:
    model, x = convolutions(), normal(5, 3, 7, 6)
    x[:, :, 3:] = 0.0
    found = gathered(model, x, ranks=True).consumers["read"]
    value = read_by(model, relu_of(model), x)
    naive = [np.mean([np.linalg.matrix_rank(sample[channel]) for sample in value]) for channel in range(6)]
    assert found.rank is not None and found.rank.tolist() == pytest.approx(naive)
    assert gathered(products(), normal(3, 4, 3), ranks=True).consumers["read"].rank is None


def test_ranks_are_of_the_first_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = convolutions(), normal(5, 3, 7, 6)
    x[3:] = 0.0
    monkeypatch.setattr(collector, "MOST_RANKED", 3)
    monkeypatch.setattr(collector, "_MOST_BATCH", 2)
    found, first = (gathered(model, data, ranks=True).consumers["read"].rank for data in (x, x[:3]))
    assert found is not None and first is not None and np.array_equal(found, first)


def integers(zero: int) -> onnx.ModelProto:
    """x -> stem (4 channels) -> QuantizeLinear -> QLinearConv."""
    net = Net()
    a = net.conv(net.input("x", ("N", 3, 5, 5)), 4, 3)
    coding = net.weight(np.float32(0.05)), net.weight(np.uint8(zero))
    codes = net.op("QuantizeLinear", a, *coding)
    weight = net.weight(np.random.default_rng(0).integers(0, 255, (2, 4, 1, 1)).astype(np.uint8))
    inputs = [codes, *coding, weight, *coding, *coding]
    return net.output(net.op("QLinearConv", *inputs, name="read")).model()


def test_integers_count_as_what_they_stand_for() -> None:
    model, x = integers(120), normal(4, 3, 5, 5)
    found = gathered(model, x).consumers["read"]
    codes = next(node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear")
    value = 0.05 * (read_by(model, codes, x).astype(np.float64) - 120)
    assert np.allclose(found.mean, value.mean(axis=(0, 2, 3)), atol=1e-6)
    assert np.allclose(found.energy, np.square(value).mean(axis=(0, 2, 3)), rtol=1e-5)
    assert found.gram is None


def test_features_of_a_recurrent_layer() -> None:
    net = Net()
    a = net.op("MatMul", net.input("x", (4, 2, 3)), net.weight(net.normal(3, 5)))
    weights = [net.weight(net.normal(1, 6, width)) for width in (5, 6)]
    y = net.ops("RNN", a, *weights, outputs=1, hidden_size=6, name="read")[0]
    model = net.output(y).model()
    x = normal(4, 2, 3)
    found = gathered(model, [{"x": x}]).consumers["read"]
    assert found.gram is None
    assert np.allclose(found.mean, (x @ np.asarray(net.constants["w0"])).mean(axis=(0, 1)), atol=1e-6)


@pytest.mark.parametrize(("bad", "batch"), [(np.nan, "N"), (np.inf, "N"), (np.nan, 2)])
def test_a_tensor_that_is_not_finite(bad: float, batch: int | str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = convolutions(batch), normal(5, 3, 7, 6)
    x[3] = bad
    monkeypatch.setattr(collector, "_MOST_BATCH", 2)
    with pytest.raises(DataError, match=r"^tensor '.*' is NaN or infinite on sample 3 of the data .*leave") as caught:
        gathered(model, x)
    assert "\n" not in str(caught.value)


def test_no_samples() -> None:
    model = convolutions()
    empty = Dataset("data.npz", (), (), 0, None, None, False)
    with pytest.raises(DataError, match=r"^data.npz: holds no samples"):
        collect(model, trace(model), empty, OPTIONS)


def test_one_sample_and_constant_inputs() -> None:
    model = products()
    one = gathered(model, normal(1, 4, 3)).consumers["read"]
    same = gathered(model, np.full((6, 4, 3), 0.3, np.float32)).consumers["read"]
    assert one.gram is not None and np.isfinite(one.gram).all()
    assert same.covariance is not None and np.abs(same.covariance).max() < 1e-6
    assert same.variance.max() < 1e-12


def test_a_tensor_that_is_an_output_already() -> None:
    net = Net()
    a = net.conv(net.input("x", ("N", 3, 5, 5)), 6, 3)
    model = net.output(a, net.conv(a, 4, 3, name="read")).model()
    assert gathered(model, normal(2, 3, 5, 5), names=["read"]).consumers["read"].values == 50


def test_half_precision() -> None:
    net = Net()
    first, second = (net.weight(net.normal(*shape).astype(np.float16)) for shape in ((6, 3, 1, 1), (4, 6, 1, 1)))
    a = net.op("Conv", net.input("x", ("N", 3, 5, 5), TensorProto.FLOAT16), first)
    model = net.output(net.op("Conv", a, second, name="read")).model()
    found = gathered(model, normal(2, 3, 5, 5).astype(np.float16), ranks=True).consumers["read"]
    assert found.gram is None and found.rank is not None and np.isfinite(found.energy).all()


def test_statistics_of_a_file_are_those_that_were_saved(tmp_path: Path) -> None:
    net = Net()
    a = net.op("Relu", net.conv(net.input("x", ("N", 3, 5, 5)), 6, 3))
    model = net.output(net.conv(a, 4, 3, name="/b/Conv"), net.conv(a, 5, 3, name="c")).model()
    saved = gathered(model, normal(2, 3, 5, 5), ranks=True)
    saved.save(tmp_path / "stats.npz")
    loaded = Statistics.load(tmp_path / "stats.npz")
    assert_same(loaded, saved)
    assert loaded.consumers["/b/Conv"].gram is loaded.consumers["c"].gram, "written once"
    assert [path.name for path in tmp_path.iterdir()] == ["stats.npz"]


@pytest.mark.parametrize("content", [b"", b"no archive", {"header": np.array("{}")}, {"x": np.zeros(3)}])
def test_a_file_that_holds_no_statistics(content: bytes | Mapping[str, Array], tmp_path: Path) -> None:
    path = tmp_path / "stats.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.savez(path, **content)
    with pytest.raises(DataError, match=r"stats.npz: holds no statistics"):
        Statistics.load(path)


def test_files_that_are_missing_or_can_not_be_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        Statistics.load(tmp_path / "stats.npz")
    with pytest.raises(UcpeError, match="can't be written"):
        Statistics({}, 0).save(tmp_path / "missing" / "stats.npz")
