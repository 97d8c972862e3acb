"""Models of one operator with attributes that hypothesis draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st

from tests.builders import Net

Draw = st.DrawFn
AUTO_PADS = ("NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")


def sizes(draw: Draw, rank: int, low: int, high: int) -> list[int]:
    return draw(st.lists(st.integers(low, high), min_size=rank, max_size=rank))


def windows(draw: Draw, rank: int, *, dilated: bool = True, gaps: bool = False) -> tuple[list[int], dict[str, Any]]:
    """A kernel, and the attributes that say where it goes.

    With SAME there is no dilation, and gaps between the windows of convolutions only: onnxruntime's pools fail on them.
    """
    kernel = sizes(draw, rank, 1, 3)
    kind = draw(st.sampled_from(AUTO_PADS))
    options: dict[str, Any] = {"kernel_shape": kernel}
    if draw(st.booleans()):
        strides = sizes(draw, rank, 1, 3)
        options["strides"] = strides if gaps or kind[:4] != "SAME" else list(map(min, strides, kernel))
    if dilated and not kind.startswith("SAME") and draw(st.booleans()):
        options["dilations"] = sizes(draw, rank, 1, 2)
    if kind != "NOTSET":
        options["auto_pad"] = kind
    elif draw(st.booleans()):
        options["pads"] = [draw(st.integers(0, k - 1)) for k in kernel * 2]
    return kernel, options


@st.composite
def convolutions(draw: Draw) -> onnx.ModelProto:
    net, rank = Net(), draw(st.integers(1, 3))
    kernel, options = windows(draw, rank, gaps=True)
    groups, each, out = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
    x = net.input("x", (2, groups * each, *sizes(draw, rank, 5, 8)))
    given = [net.weight(net.normal(groups * out, each, *kernel))]
    if draw(st.booleans()):
        given.append(net.weight(net.normal(groups * out)))
    return net.output(net.op("Conv", x, *given, group=groups, **options)).model()


@st.composite
def transposed(draw: Draw) -> onnx.ModelProto:
    net, rank = Net(), draw(st.integers(1, 3))
    kernel, options = windows(draw, rank, gaps=True)
    groups, each, out = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
    space = sizes(draw, rank, 3, 5)
    x = net.input("x", (2, groups * each, *space))
    strides = options.get("strides", [1] * rank)
    if draw(st.booleans()):
        options["output_padding"] = [draw(st.integers(0, s - 1)) for s in strides]
    if "pads" not in options and options.get("auto_pad") != "VALID" and draw(st.booleans()):
        options["output_shape"] = [size * s - draw(st.integers(0, 1)) for size, s in zip(space, strides, strict=True)]
        options.pop("output_padding", None)
    given = [net.weight(net.normal(groups * each, out, *kernel))]
    if draw(st.booleans()):
        given.append(net.weight(net.normal(groups * out)))
    y = net.op("ConvTranspose", x, *given, group=groups, **options)
    return net.output(y).model()


@st.composite
def max_pools(draw: Draw) -> onnx.ModelProto:
    net, rank = Net(), draw(st.integers(1, 3))
    _, options = windows(draw, rank)
    x = net.input("x", (2, 3, *sizes(draw, rank, 5, 8)))
    return net.output(net.op("MaxPool", x, ceil_mode=draw(st.integers(0, 1)), **options)).model()


@st.composite
def average_pools(draw: Draw) -> onnx.ModelProto:
    opset = draw(st.sampled_from([11, 19]))
    net, rank = Net(opset=opset, ir_version=9), draw(st.integers(1, 3))
    _, options = windows(draw, rank, dilated=opset == 19)
    x = net.input("x", (2, 3, *sizes(draw, rank, 5, 8)))
    options |= {"ceil_mode": draw(st.integers(0, 1)), "count_include_pad": draw(st.integers(0, 1))}
    return net.output(net.op("AveragePool", x, **options)).model()


@st.composite
def lp_pools(draw: Draw) -> onnx.ModelProto:
    net, rank = Net(opset=18, ir_version=9), draw(st.integers(1, 3))
    _, options = windows(draw, rank)
    x = net.input("x", (2, 3, *sizes(draw, rank, 5, 8)))
    return net.output(net.op("LpPool", x, p=draw(st.integers(1, 3)), **options)).model()


@st.composite
def pads(draw: Draw) -> onnx.ModelProto:
    opset = draw(st.sampled_from([10, 17, 19]))
    net = Net(opset=opset, ir_version=9)
    modes = ["constant", "reflect", "edge", *(["wrap"] if opset == 19 else [])]
    mode = draw(st.sampled_from(modes))
    lowest = -1 if mode == "constant" else 0
    widths = sizes(draw, 8, lowest, 2)
    x = net.input("x", (3, 3, 4, 5))
    if opset == 10:
        return net.output(net.op("Pad", x, pads=widths, mode=mode, value=0.5)).model()
    value = net.constant(0.7) if draw(st.booleans()) else ""
    if opset == 19 and draw(st.booleans()):
        y = net.op("Pad", x, net.ints(*widths[:4]), value, net.ints(-1, 1), mode=mode)
    else:
        y = net.op("Pad", x, net.ints(*widths), value, mode=mode)
    return net.output(y).model()


@st.composite
def resizes(draw: Draw) -> onnx.ModelProto:
    net = Net(opset=draw(st.sampled_from([11, 13, 19])), ir_version=9)
    mode = draw(st.sampled_from(["nearest", "linear", "cubic"]))
    coordinates = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"]
    coordinates += ["half_pixel_symmetric"] if net.opset == 19 else []
    options: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": draw(st.sampled_from(coordinates))}
    if mode == "nearest":
        kinds = ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]
        options["nearest_mode"] = draw(st.sampled_from(kinds))
    if mode == "cubic":
        options |= {"cubic_coeff_a": draw(st.sampled_from([-0.5, -0.75])), "exclude_outside": draw(st.integers(0, 1))}
    height, width = sizes(draw, 2, 2, 7)
    x = net.input("x", (1, 2, height, width))
    roi = net.weight(np.zeros(0, np.float32)) if net.opset == 11 else ""
    if draw(st.booleans()):
        scales = draw(st.lists(st.sampled_from([0.5, 0.6, 1.0, 1.5, 2.0, 2.7, 3.0]), min_size=2, max_size=2))
        given = [roi, net.weight(np.array([1, 1, *scales], np.float32))]
    else:
        empty = net.weight(np.zeros(0, np.float32)) if net.opset == 11 else ""
        given = [roi, empty, net.ints(1, 2, *sizes(draw, 2, 1, 12))]
    return net.output(net.ops("Resize", x, *given, shapes=[(1, 2, None, None)], **options)[0]).model()


def recurrent(op_type: str, gates: int, activations: int, states: int) -> Callable[[], st.SearchStrategy[Any]]:
    @st.composite
    def layers(draw: Draw) -> onnx.ModelProto:
        net = Net()
        steps, batch, width, hidden = (draw(st.integers(1, 4)) for _ in range(4))
        direction = draw(st.sampled_from(["forward", "reverse", "bidirectional"]))
        count = 1 + (direction == "bidirectional")
        options: dict[str, Any] = {"hidden_size": hidden, "direction": direction}
        if draw(st.booleans()):
            names = st.sampled_from(["Relu", "Tanh", "Sigmoid", "Softsign", "HardSigmoid"])
            options["activations"] = draw(st.lists(names, min_size=count * activations, max_size=count * activations))
        if draw(st.integers(0, 3)) == 0:
            options["clip"] = 0.6
        if op_type == "GRU":
            options["linear_before_reset"] = draw(st.integers(0, 1))
        if op_type == "LSTM" and draw(st.integers(0, 3)) == 0:
            options["input_forget"] = 1
        x = net.input("x", (steps, batch, width))
        given = [net.weight(net.normal(count, gates * hidden, size)) for size in (width, hidden)]
        given.append(net.weight(net.normal(count, 2 * gates * hidden)) if draw(st.booleans()) else "")
        lengths = np.array([draw(st.integers(1, steps)) for _ in range(batch)], dtype=np.int32)
        given.append(net.weight(lengths) if draw(st.integers(0, 2)) == 0 else "")
        for _ in range(states):
            given.append(net.weight(net.normal(count, batch, hidden)) if draw(st.booleans()) else "")
        if op_type == "LSTM":
            given.append(net.weight(net.normal(count, 3 * hidden)) if draw(st.booleans()) else "")
        shapes = [(steps, count, batch, hidden), *[(count, batch, hidden)] * states]
        return net.output(*net.ops(op_type, x, *given, outputs=1 + states, shapes=shapes, **options)).model()

    return layers


DRAWN = {
    "AveragePool": average_pools(),
    "Conv": convolutions(),
    "ConvTranspose": transposed(),
    "GRU": recurrent("GRU", 3, 2, 1)(),
    "LSTM": recurrent("LSTM", 4, 3, 2)(),
    "LpPool": lp_pools(),
    "MaxPool": max_pools(),
    "Pad": pads(),
    "RNN": recurrent("RNN", 1, 1, 1)(),
    "Resize": resizes(),
}
"""What draws a model of each operator; types of elements don't matter to these, and are float32."""
