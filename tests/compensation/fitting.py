"""Networks refitted layer by layer, and how far from the original they end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from tests.builders import Array, Net, feeds_for, run
from ucpe_onnx.analysis.trace import trace
from ucpe_onnx.compensation.sequential import Compensation, compensate
from ucpe_onnx.masked import masked_model
from ucpe_onnx.masks import Mask
from ucpe_onnx.model.new_weights import NewWeight, with_weights
from ucpe_onnx.runtime.session import RunOptions

OPTIONS = RunOptions(threads=1)


def masks_of(model: onnx.ModelProto, kept: Mapping[str, Sequence[int]]) -> dict[str, Mask]:
    consumers = trace(model).consumers
    return {name: np.isin(np.arange(consumers[name].channels), list(k)) for name, k in kept.items()}


def batches(model: onnx.ModelProto, count: int, size: int = 8) -> list[dict[str, Array]]:
    return [feeds_for(model, 10 + seed, dynamic=size) for seed in range(count)]


def compensated(
    model: onnx.ModelProto, masks: Mapping[str, Mask], feeds: Sequence[Mapping[str, Array]]
) -> Compensation:
    before = model.SerializeToString(deterministic=True)
    found = compensate(trace(model), masks, feeds, OPTIONS)
    assert model.SerializeToString(deterministic=True) == before
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, value in found.weights.items():
        assert value.dtype == np.float32 and value.shape == tuple(stored[name].dims) and np.isfinite(value).all()
    return found


def plain_and_fitted(
    model: onnx.ModelProto, masks: Mapping[str, Mask], found: Compensation
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    weights = {name: NewWeight.of(value) for name, value in found.weights.items()}
    return masked_model(model, masks), masked_model(with_weights(model, weights), masks)


def errors(
    model: onnx.ModelProto, masks: Mapping[str, Mask], found: Compensation, feeds: Sequence[Mapping[str, Array]]
) -> tuple[float, float]:
    """Squared distance from the original's first output, over its variance: as masked, and with the new weights."""
    made = []
    for other in plain_and_fitted(model, masks, found):
        pairs = [(run(other, feed)[0], run(model, feed)[0]) for feed in feeds]
        wanted = np.concatenate([b.reshape(-1) for _, b in pairs])
        made.append(sum(float(np.square(a - b).sum()) for a, b in pairs) / (wanted.size * wanted.var() + 1e-30))
    return made[0], made[1]


def check(
    model: onnx.ModelProto, kept: Mapping[str, Sequence[int]], better: float = 0.8, count: int = 8
) -> Compensation:
    """On samples that were not fitted to, the error falls to less than a share of what it was."""
    masks, feeds = masks_of(model, kept), batches(model, count)
    found = compensated(model, masks, feeds)
    plain, fitted = errors(model, masks, found, batches(model, count + 2)[count:])
    assert fitted < better * plain
    return found


def straight(channels: int = 12, **more: object) -> onnx.ModelProto:
    net = Net()
    a = net.op("Relu", net.conv(net.input("x", ("n", 3, 6, 6)), channels, 3, name="a"))
    return net.output(net.conv(a, 4, 3, name="b", **more)).model()


def residual(product: bool = False) -> onnx.ModelProto:
    """A block behind a layer that loses channels: its shortcut lacks something that its layers can make up for."""
    net = Net()
    if product:
        a = net.op("Relu", net.op("MatMul", net.input("x", ("n", 5, 6)), net.weight(net.normal(6, 12)), name="a"))
        b = net.op("MatMul", a, net.weight(net.normal(12, 8)), name="b")
        c = net.op("MatMul", net.op("Relu", b), net.weight(net.normal(8, 8)), name="c")
        return net.output(net.op("Add", net.op("Add", c, net.weight(net.normal(8))), b)).model()
    a = net.op("Relu", net.conv(net.input("x", ("n", 3, 6, 6)), 12, 3, name="a"))
    b = net.conv(a, 8, 3, name="b")
    c = net.batch_norm(net.conv(net.op("Relu", b), 8, 3, bias=False, name="c"))
    return net.output(net.op("Add", b, c)).model()
