"""Networks beside onnxruntime, and gradients beside differences."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping

import numpy as np
import onnx
import torch
from torch import Tensor

from tests.builders import Array, Net, run
from ucpe_onnx.train.network import Network


def tensors(feeds: Mapping[str, Array]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.array(value)) for name, value in feeds.items()}


def uniform_feeds(model: onnx.ModelProto, low: float = -2.0, high: float = 2.0, seed: int = 0) -> dict[str, Array]:
    """Uniform values for the inputs, whose shapes are fixed."""
    random = np.random.default_rng(seed)
    stored = {tensor.name for tensor in model.graph.initializer}
    feeds = {}
    for value in model.graph.input:
        if value.name not in stored:
            shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
            dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            feeds[value.name] = random.uniform(low, high, shape).astype(dtype)
    return feeds


def outputs_of(network: Network, feeds: Mapping[str, Array]) -> list[Array]:
    with torch.no_grad():
        return [tensor.numpy() for tensor in network.eval()(tensors(feeds)).values()]


def error(got: Array, wanted: Array) -> float:
    """The largest difference, as a part of the largest value or of one."""
    assert got.shape == wanted.shape, (got.shape, wanted.shape)
    finite = np.isfinite(wanted)
    assert np.array_equal(np.isfinite(got), finite)
    difference = np.abs(got[finite].astype(np.float64) - wanted[finite].astype(np.float64))
    largest = float(np.abs(wanted[finite].astype(np.float64)).max(initial=1.0))
    return float(difference.max(initial=0.0)) / largest


def check_equal(model: onnx.ModelProto, feeds: Mapping[str, Array], limit: float = 1e-4) -> Network:
    """All outputs are onnxruntime's; returns the network."""
    network = Network(model)
    wanted = run(model, feeds, optimise=False)
    got = outputs_of(network, feeds)
    assert len(got) == len(wanted)
    errors = [error(*pair) for pair in zip(got, wanted, strict=True)]
    assert max(errors) <= limit, errors
    return network


def projected(outputs: Mapping[str, Tensor], seed: int = 0) -> Tensor:
    """A scalar that every element of every float output goes into."""
    random = torch.Generator().manual_seed(seed)
    total = torch.zeros((), dtype=torch.float64)
    for tensor in outputs.values():
        if tensor.is_floating_point():
            factors = torch.randn(tensor.shape, generator=random, dtype=torch.float64)
            total = total + (factors * tensor).sum() / math.sqrt(max(1, tensor.numel()))
    return total


def check_gradients(
    model: onnx.ModelProto,
    feeds: Mapping[str, Array],
    prepare: Callable[[Network], None] = lambda network: None,
    *,
    all_matter: bool = True,
) -> Network:
    """The gradient of each weight along a random direction is the central difference of float64 losses.

    Args:
        model: the model.
        feeds: its inputs.
        prepare: what to do to the network first.
        all_matter: whether each weight must make a difference.
    """
    network = Network(model).double().eval()
    prepare(network)
    given = tensors(feeds)
    projected(network(given)).backward()
    parameters = dict(network.weights.named_parameters())
    assert parameters
    random = torch.Generator().manual_seed(1)
    for name, parameter in parameters.items():
        assert parameter.grad is not None, name
        direction = torch.randn(parameter.shape, generator=random, dtype=torch.float64)
        analytic = float((parameter.grad * direction).sum())
        losses = []
        for step in (1e-7, -1e-7):  # short, lest a Relu changes sides on the way
            moved = copy.deepcopy(network)
            with torch.no_grad():
                moved.weights.get_parameter(name).add_(step * direction)
                losses.append(float(projected(moved(given))))
        numeric = (losses[0] - losses[1]) / 2e-7
        assert abs(numeric) > 1e-9 or not all_matter, f"{name} does not matter"
        assert abs(analytic - numeric) <= 1e-5 * max(1.0, abs(numeric)), (name, analytic, numeric)
    return network


def scaled(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its input "x" multiplied by weights, so that gradients have to pass all of it."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph = changed.graph
    (value,) = (value for value in graph.input if value.name == "x")
    value.name = "raw"
    shape = [size.dim_value for size in value.type.tensor_type.shape.dim]
    factors = np.random.default_rng(5).uniform(0.9, 1.1, shape[1:]).astype(np.float32)
    graph.initializer.append(onnx.numpy_helper.from_array(factors, "factors"))
    nodes = [onnx.helper.make_node("Mul", ["raw", "factors"], ["x"]), *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    return changed


def classifier(*, batch_norm: bool = True, seed: int = 0) -> onnx.ModelProto:
    """A small network of convolutions, with or without normalisations, whose batch is two."""
    net = Net(seed=seed)
    x = net.input("x", (2, 3, 8, 8))
    y = net.conv(x, 6, 3, bias=not batch_norm)
    y = net.op("Relu", net.batch_norm(y) if batch_norm else y)
    z = net.conv(y, 6, 3, bias=not batch_norm)
    z = net.batch_norm(z) if batch_norm else z
    y = net.op("Relu", net.op("Add", y, z))
    y = net.op("Flatten", net.op("GlobalAveragePool", y))
    return net.output(net.gemm(y, 4)).model()
