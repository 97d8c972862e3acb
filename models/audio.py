"""Speech and sound: M5 (Dai et al. 2017), Deep Speech 2 (Amodei et al. 2016), Conformer (Gulati et al. 2020)."""

from __future__ import annotations

from .attention import attend, join_heads
from .builder import Net
from .emitter import Value

_EPSILON = 1e-5
_CONFORMER_WIDTH = 144
_CONFORMER_HEADS = 4
_CONFORMER_LAYERS = 4
_RECURRENT_WIDTH = 256


def m5(net: Net) -> Value:
    """Four convolutions over a waveform, the first 80 samples wide."""
    x = net.input
    for index, (width, kernel, stride) in enumerate(((32, 80, 16), (32, 3, 1), (64, 3, 1), (64, 3, 1)), start=1):
        x = net.conv_bn(x, f"conv{index}", f"bn{index}", width, kernel, stride=stride, padding=0, bias=True)
        x = net.max_pool(net.relu(x, ""), f"pool{index}", 4, 4)
    x = net.transpose(net.average_pool(x, "", x.size), (0, 2, 1))
    x = net.emit("LogSoftmax", [net.linear(x, "fc1", net.classes)], axis=2)
    return x


def deepspeech2_gru(net: Net) -> Value:
    """Two convolutions over a spectrogram of 161 bins, two bidirectional GRUs, letters for every step."""
    x = net.input
    for index, (kernel, stride) in enumerate((((41, 11), (2, 2)), ((21, 11), (2, 1)))):
        x = net.conv_bn(x, f"conv.{3 * index}", f"conv.{3 * index + 1}", 32, kernel, stride=stride, bias=True)
        limits = [net.constant(0.0, "conv"), net.constant(20.0, "conv")]
        x = net.emit("Clip", [x, *limits], f"conv.{3 * index + 2}", power=0.34 * x.power)
    width, steps = x.channels * x.size, int(x.shape[3])
    x = net.transpose(net.reshape(x, [width, steps]), (2, 0, 1))
    for index in range(2):
        x = net.recurrent(x, f"rnns.{index}.rnn", "GRU", _RECURRENT_WIDTH, bidirectional=True)
    return net.linear(net.transpose(x, (1, 0, 2)), "fc", net.classes)


def lstm_acoustic(net: Net) -> Value:
    """A linear layer over frames of 80 features, three LSTMs, a class for every frame."""
    x = net.relu(net.linear(net.input, "input", _RECURRENT_WIDTH), "")
    x = net.transpose(x, (1, 0, 2), "lstm")
    for index in range(3):
        x = net.recurrent(x, f"lstm.{index}", "LSTM", _RECURRENT_WIDTH, bidirectional=False)
    return net.linear(net.transpose(x, (1, 0, 2), "lstm"), "output", net.classes)


def conformer(net: Net) -> Value:
    """The small Conformer with 4 of its 16 layers, over frames of 80 features."""
    x = net.unsqueeze(net.input, 1, "subsampling")
    for index in (0, 2):
        x = net.conv(x, f"subsampling.conv.{index}", _CONFORMER_WIDTH, 3, stride=2, padding=0)
        x = net.relu(x, f"subsampling.conv.{index + 1}")
    steps, bins = x.size, int(x.shape[3])
    x = net.reshape(net.transpose(x, (0, 2, 1, 3), "subsampling"), [steps, x.channels * bins], "subsampling")
    x = net.linear(x, "subsampling.out", _CONFORMER_WIDTH)
    for index in range(_CONFORMER_LAYERS):
        x = _conformer_layer(net, x, f"layers.{index}")
    return net.linear(x, "fc", net.classes)


def _conformer_layer(net: Net, x: Value, module: str) -> Value:
    x = _half_step(net, x, f"{module}.ffn1")
    x = net.add(x, _attention(net, x, f"{module}.self_attn"), module)
    x = net.add(x, _convolution(net, x, f"{module}.conv_module"), module)
    x = _half_step(net, x, f"{module}.ffn2")
    return net.layer_norm(x, f"{module}.final_layer_norm", epsilon=_EPSILON)


def _half_step(net: Net, x: Value, module: str) -> Value:
    y = net.layer_norm(x, f"{module}.sequential.0", epsilon=_EPSILON)
    y = net.silu(net.linear(y, f"{module}.sequential.1", 4 * _CONFORMER_WIDTH), f"{module}.sequential.2")
    y = net.linear(y, f"{module}.sequential.4", _CONFORMER_WIDTH)
    return net.add(net.scale(y, 0.5, module), x, module)


def _attention(net: Net, x: Value, module: str) -> Value:
    width, length = _CONFORMER_WIDTH, int(x.shape[1])
    x = net.layer_norm(x, f"{module}_layer_norm", epsilon=_EPSILON)
    heads = []
    for name in ("q", "k", "v"):
        y = net.linear(x, f"{module}.linear_{name}", width)
        y = net.reshape(y, [length, _CONFORMER_HEADS, width // _CONFORMER_HEADS], module)
        heads.append(net.transpose(y, (0, 2, 1, 3), module))
    y = join_heads(net, attend(net, heads, module, scaled="scores"), module)
    return net.linear(y, f"{module}.linear_out", width)


def _convolution(net: Net, x: Value, module: str) -> Value:
    """Gated linear unit, depthwise convolution and Swish between two pointwise convolutions."""
    width, layers = _CONFORMER_WIDTH, f"{module}.sequential"
    y = net.transpose(net.layer_norm(x, f"{module}.layer_norm", epsilon=_EPSILON), (0, 2, 1), module)
    linear, gate = net.emit_split(net.conv(y, f"{layers}.0", 2 * width), f"{layers}.1", 2, axis=1)
    y = net.emit("Mul", [linear, net.sigmoid(gate, f"{layers}.1")], f"{layers}.1", power=0.27 * linear.power)
    y = net.conv_bn(y, f"{layers}.2", f"{layers}.3", width, 31, groups=width, bias=True)
    y = net.conv(net.silu(y, f"{layers}.4"), f"{layers}.5", width)
    return net.transpose(y, (0, 2, 1), module)
