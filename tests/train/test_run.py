"""Training from an ONNX file: what goes, what comes back, and that a run can be continued."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from tests.builders import Net
from ucpe_onnx import masked_model
from ucpe_onnx.analysis.trace import trace
from ucpe_onnx.errors import DataError, ModelError, UsageError
from ucpe_onnx.train.loop import Epoch
from ucpe_onnx.train.run import Trained, train

COUNT = 96


def network() -> onnx.ModelProto:
    """A block with a shortcut whose channels two layers read, a grouped convolution, and four classes."""
    net = Net()
    a = net.op("Relu", net.conv(net.input("x", ("N", 3, 8, 8)), 32, 3, name="stem", pads=[1, 1, 1, 1]))
    b = net.op("Relu", net.conv(a, 32, 3, name="left", pads=[1, 1, 1, 1], groups=2))
    c = net.op("Relu", net.op("Add", net.conv(b, 32, name="right"), a))
    head = net.op("Relu", net.conv(c, 24, name="head"))
    pooled = net.op("Flatten", net.op("GlobalAveragePool", head))
    weight, bias = net.weight(net.normal(4, 24), "fc.weight"), net.weight(np.zeros(4), "fc.bias")
    net.ops("Gemm", pooled, weight, bias, transB=1, name="fc", outputs=["y"])
    return net.output("y").model()


def samples(*, labelled: bool = True) -> dict[str, Any]:
    """Images whose class is which of three colours is bright, if any."""
    random = np.random.default_rng(0)
    labels = np.arange(COUNT) % 4
    x = random.normal(size=(COUNT, 3, 8, 8)).astype(np.float32) / 2
    for image, label in zip(x, labels, strict=True):
        image[label : label + 1] += 1
    return {"x": x, "labels": labels} if labelled else {"x": x}


def quick(model: onnx.ModelProto | None = None, data: Any = None, **options: Any) -> Trained:
    given = {"epochs": 3, "batch": 16, "lr": 0.05, "ratio": 0.5, "threads": 1, **options}
    return train(network() if model is None else model, samples() if data is None else data, **given)


def outputs(model: onnx.ModelProto, x: Any) -> Any:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def prunable(model: onnx.ModelProto) -> int:
    return sum(int(consumer.prunable.sum()) for consumer in trace(model).consumers.values())


@pytest.mark.parametrize("method", ["pdp", "gradual", "one-shot"])
@pytest.mark.parametrize("granularity", ["channel", "filter", "segment"])
def test_what_masks_drop_is_zero_in_the_weights(granularity: str, method: str) -> None:
    result = quick(granularity=granularity, method=method)
    x = samples()["x"]
    masked = masked_model(result.model, result.masks)
    assert np.array_equal(outputs(masked, x), outputs(result.model, x)), "the masks drop what is not zero"
    assert result.sparsity == pytest.approx(0.5, abs=0.03)
    gone = sum(int((~mask).sum()) for mask in result.masks.values())
    assert gone == pytest.approx(0.5 * prunable(result.model), rel=0.15)


@pytest.mark.parametrize("granularity", ["filter", "segment"])
def test_constrained_masks_agree_between_readers(granularity: str) -> None:
    result = quick(granularity=granularity)
    traced = trace(result.model)
    kept: dict[tuple[int, int], bool] = {}
    for name, mask in result.masks.items():
        consumer = traced.consumers[name]
        for slot, keep in zip(consumer.slots.tolist(), mask.tolist(), strict=True):
            assert kept.setdefault((consumer.segment, slot), keep) == keep
    assert len(set(kept.values())) == 2


def test_unconstrained_masks_need_not() -> None:
    masks = quick(granularity="channel", scope="local").masks
    assert not np.array_equal(masks["left"], masks["head"])
    assert {name: int((~mask).sum()) for name, mask in masks.items()} == {"left": 16, "right": 16, "head": 16, "fc": 12}


def test_filters_are_judged_by_what_makes_them() -> None:
    model = network()
    stem = next(t for t in model.graph.initializer if list(t.dims) == [32, 3, 3, 3])
    right = next(t for t in model.graph.initializer if list(t.dims) == [32, 32, 1, 1])
    for tensor in (stem, right):
        value = onnx.numpy_helper.to_array(tensor).copy()
        value[5] = 0
        tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    masks = quick(model, granularity="filter", method="one-shot", epochs=1, ratio=0.05).masks
    assert not masks["head"][5] and not masks["left"][5]


@pytest.mark.parametrize("granularity", ["unstructured", "2:4", "1:4"])
def test_single_weights(granularity: str) -> None:
    result = quick(granularity=granularity, ratio=0.75)
    assert not result.masks and set(result.weight_masks) >= {"fc.weight"}
    values = {t.name: onnx.numpy_helper.to_array(t) for t in result.model.graph.initializer}
    for name, mask in result.weight_masks.items():
        assert mask.shape == values[name].shape and not values[name][~mask].any() and values[name][mask].all()
    if granularity == "unstructured":
        assert result.sparsity == pytest.approx(0.75, abs=0.01)
    else:
        kept = int(granularity[0])
        blocks = result.weight_masks["fc.weight"].reshape(4, 6, 4)
        assert (blocks.sum(axis=2) == kept).all()


def test_blocks_need_inputs_to_run_along() -> None:
    """A weight of one axis is a scale for each channel: N:M has nothing to choose from in it."""
    net = Net()
    a = net.op("Relu", net.conv(net.input("x", ("N", 3, 8, 8)), 16, name="stem"))
    flat = net.op("Flatten", net.op("GlobalAveragePool", net.op("Relu", net.conv(a, 16, name="head"))))
    scored = net.ops("Einsum", flat, net.weight(net.normal(16), "scale"), equation="ni,i->n", name="score")[0]
    net.ops("Unsqueeze", scored, net.ints(1), outputs=["y"])
    model, labels = net.output("y").model(), samples()["labels"].astype(np.float32)
    data = {"x": samples()["x"], "labels": labels}
    found = quick(model, data, granularity="2:4", loss="mse", epochs=1)
    assert "scale" not in found.weight_masks and len(found.weight_masks) == 2
    assert found.left == {"score": "score: its weight has one axis, along which there are no blocks"}
    assert "scale" in quick(model, data, granularity="unstructured", loss="mse", epochs=1).weight_masks


def test_nothing_but_weights_changes() -> None:
    model = network()
    model.metadata_props.add(key="who", value="me")
    model.graph.doc_string = "a graph"
    before = onnx.ModelProto.FromString(model.SerializeToString())
    result = quick(model)
    assert model == before, "the model that was given has changed"
    after = onnx.ModelProto.FromString(result.model.SerializeToString())
    assert [(t.name, list(t.dims), t.data_type) for t in after.graph.initializer] == [
        (t.name, list(t.dims), t.data_type) for t in before.graph.initializer
    ]
    for each in (before, after):
        del each.graph.initializer[:]
    assert after == before


def test_it_learns() -> None:
    result = quick(epochs=12)
    assert result.measure == "accuracy" and result.after > max(result.before + 0.2, 0.6)
    assert result.epochs[-1].loss < result.epochs[0].loss


def test_without_labels_the_unpruned_network_teaches() -> None:
    result = quick(data=samples(labelled=False), epochs=6, ratio=0.3)
    assert result.measure == "loss"
    assert result.before == pytest.approx(0, abs=1e-5) and result.after < 0.1
    untrained = quick(data=samples(labelled=False), epochs=1, lr=1e-9, ratio=0.3, method="one-shot")
    assert result.after < untrained.after


def test_the_compiler_cuts_away_what_went() -> None:
    result = quick(granularity="channel", ratio=0.6, scope="local")
    compiled = result.compiled(threads=1, bench_seconds=0.0, opt_level="extended")  # widths are not rounded there
    x = samples()["x"]
    assert np.allclose(outputs(compiled.model, x), outputs(result.model, x), atol=1e-4)
    assert compiled.report.source == "the model, trained"
    assert compiled.report.after.parameters < 0.8 * compiled.report.before.parameters


def test_a_seed_says_everything() -> None:
    one, same, other = (quick(seed=seed, augment=("flip", "crop")) for seed in (1, 1, 2))
    weights = [[t.raw_data for t in result.model.graph.initializer] for result in (one, same, other)]
    assert weights[0] == weights[1] != weights[2]


def test_a_stopped_run_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    whole = quick(epochs=4)

    class Stop(Exception):
        pass

    def stop(stage: str, share: float, epoch: Epoch | None) -> None:
        if stage == "train" and share > 0.6 and epoch is None:
            raise Stop

    path = tmp_path / "run.pt"
    with pytest.raises(Stop):
        quick(epochs=4, checkpoint=path, progress=stop)
    rest = quick(epochs=4, checkpoint=path)
    assert [epoch.number for epoch in rest.epochs] == [1, 2, 3, 4]
    for one, other in zip(whole.model.graph.initializer, rest.model.graph.initializer, strict=True):
        assert one.raw_data == other.raw_data
    with pytest.raises(DataError, match="belongs to a run with another ratio"):
        quick(epochs=4, checkpoint=path, ratio=0.4)


def test_patience() -> None:
    result = quick(epochs=30, lr=1e-6, patience=2, ramp=0.1)
    assert 3 <= len(result.epochs) < 30 and result.sparsity == pytest.approx(0.5, abs=0.03)


def test_streams() -> None:
    data = samples()

    def stream() -> Any:
        return ({name: value[i : i + 16] for name, value in data.items()} for i in range(0, COUNT, 16))

    result = quick(data=stream, validation=data)
    assert len(result.epochs) == 3 and result.measure == "accuracy"


def test_layers_that_stay_whole() -> None:
    result = quick(exclude=("l*t", "fc"))
    assert set(result.masks) == {"right", "head"}
    with pytest.raises(UsageError, match="--exclude 'nope' matches no consumer"):
        quick(exclude=("nope",))
    with pytest.raises(UsageError, match="there is no layer to prune"):
        quick(exclude=("*",))


def test_layers_that_share_a_weight_have_one_mask() -> None:
    net = Net()
    shared = net.weight(net.normal(8, 8, 1, 1))
    a = net.op("Relu", net.conv(net.input("x", ("N", 3, 8, 8)), 8, name="stem"))
    b = net.op("Relu", net.conv_with(a, shared, name="once"))
    c = net.op("Relu", net.conv_with(b, shared, name="twice"))
    net.ops("Flatten", net.op("GlobalAveragePool", net.conv(c, 4, name="head")), outputs=["y"])
    result = quick(net.output("y").model(), scope="local")
    assert np.array_equal(result.masks["once"], result.masks["twice"]) and not result.masks["once"].all()
    segments = quick(net.model(), granularity="segment", scope="local")
    assert "once" not in {name for name, mask in segments.masks.items() if not mask.all()}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lr": 1e12, "clip": 0.0}, ModelError, "the loss is .* in epoch 1: take a smaller --lr"),
        ({"data": {"x": samples()["x"][:1]}}, DataError, "1 samples are too few to hold every 10th out"),
        ({"labels": "nothing.npy"}, DataError, "nothing.npy: holds no labels"),
        (
            {"data": {**samples(), "x": samples()["x"] * np.float32("nan")}},
            DataError,
            "'x' holds NaN or infinite values; leave out",
        ),
        ({"data": samples() | {"labels": np.full(COUNT, 4)}}, DataError, "the model knows classes 0 to 3"),
        ({"device": "cuda"}, UsageError, "torch sees no CUDA device"),
    ],
)
def test_what_is_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    if options.get("device") == "cuda" and __import__("torch").cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(error, match=message):
        quick(**options)


def test_a_model_of_one_sample_at_a_time() -> None:
    model = network()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    assert len(quick(model).epochs) == 3, "a fixed batch axis does not matter where nothing inside fixes it"
    net = Net()
    a = net.op("Relu", net.conv(net.input("x", (1, 3, 8, 8)), 16, name="stem"))
    pooled = net.op("GlobalAveragePool", net.op("Relu", net.conv(a, 16, name="last")))
    flat = net.op("Reshape", pooled, net.ints(1, 16))
    net.ops("Gemm", flat, net.weight(net.normal(4, 16)), transB=1, name="fc", outputs=["y"])
    fixed = net.output("y").model()
    with pytest.raises(DataError, match="export it with a dynamic batch axis, or take --batch 1"):
        quick(fixed)
    assert len(quick(fixed, batch=1, epochs=1).epochs) == 1


@pytest.mark.parametrize("granularity", ["channel", "filter", "segment", "unstructured"])
def test_hidden_units(granularity: str) -> None:
    net = Net()
    weights = [net.weight(net.normal(2, *shape)) for shape in ((48, 3), (48, 16), (96,))]
    x = net.op("Transpose", net.input("x", ("N", 5, 3)), perm=[1, 0, 2])
    _, last = net.ops("GRU", x, *weights, hidden_size=16, direction="bidirectional", name="r", outputs=2)
    mean = net.op("ReduceMean", last, axes=[0], keepdims=0)
    net.ops("MatMul", mean, net.weight(net.normal(16, 4)), name="fc", outputs=["y"])
    random = np.random.default_rng(0)
    data = {"x": random.normal(size=(COUNT, 5, 3)).astype(np.float32), "labels": np.arange(COUNT) % 4}
    result = quick(net.output("y").model(), data, granularity=granularity)
    assert np.array_equal(
        outputs(masked_model(result.model, result.masks), data["x"]), outputs(result.model, data["x"])
    )
    assert result.sparsity == pytest.approx(0.5, abs=0.05)
    if granularity in ("filter", "segment"):
        assert np.array_equal(result.masks["r/recurrence"], result.masks["fc"])
        compiled = result.compiled(threads=1, bench_seconds=0.0, opt_level="extended")
        shapes = {tuple(tensor.dims) for tensor in compiled.model.graph.initializer}
        assert {(2, 24, 3), (2, 24, 8), (2, 48)} <= shapes
