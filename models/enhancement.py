"""Speech freed from noise by DTLN (Westhausen and Meyer 2020): two cores of LSTMs, each of which makes a mask."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .builder import Net
from .emitter import Value

_EPSILON = 1e-7


@dataclass(frozen=True)
class Dtln:
    """A waveform to a waveform: a mask for magnitudes of frequencies, then one for features that are learnt.

    Frames are taken, and added up where they overlap, by convolutions of one axis. Normalisation is instant: each frame
    by itself, over its features.

    Attributes:
        frame: Samples of a frame.
        shift: Samples from one frame to the next.
        features: That are learnt.
        hidden: Units of each LSTM.
        layers: LSTMs of a core.
    """

    frame: int = 512
    shift: int = 128
    features: int = 256
    hidden: int = 128
    layers: int = 2

    @property
    def parameters(self) -> int:
        """Number of parameters; the Fourier transforms count, they are weights of convolutions."""
        bins = self.frame // 2 + 1
        transforms = 2 * bins * self.frame * 2 + 2 * self.frame * self.features + self.frame**2
        norms = 2 * (bins + self.features)
        return transforms + norms + self._core(bins) + self._core(self.features)

    def _core(self, width: int) -> int:
        widths = [width, *[self.hidden] * (self.layers - 1)]
        recurrent = sum(4 * self.hidden * (size + self.hidden + 2) for size in widths)
        return recurrent + (self.hidden + 1) * width

    def __call__(self, net: Net) -> Value:
        """Write the network."""
        bins = self.frame // 2 + 1
        x = net.unsqueeze(net.input, 1, "stft")
        x = net.conv(x, "stft", 2 * bins, self.frame, stride=self.shift, padding=0, bias=False)
        real, imaginary = net.emit_split(x, "stft", 2, axis=1)
        two = net.constant(2.0, "stft")
        power = net.add(*(net.emit("Pow", [part, two], "stft") for part in (real, imaginary)), "stft")
        magnitude = net.emit(
            "Sqrt", [net.emit("Add", [power, net.constant(_EPSILON, "stft")], "stft")], "stft", power=1.0
        )
        logarithm = net.emit("Log", [net.emit("Add", [magnitude, net.constant(_EPSILON, "stft")], "stft")], "stft")
        mask = self._mask(net, logarithm, "separation_1", bins)
        x = net.concat([net.gate(part, mask, "istft") for part in (real, imaginary)], "istft")
        x = net.conv(x, "istft", self.frame, 1, bias=False)
        encoded = net.conv(x, "encoder", self.features, 1, bias=False)
        x = net.gate(encoded, self._mask(net, encoded, "separation_2", self.features), "decoder")
        x = net.conv(x, "decoder", self.frame, 1, bias=False)
        return self._added(net, x)

    def _mask(self, net: Net, x: Value, module: str, width: int) -> Value:
        """Between 0 and 1 for each feature of each frame, (batch, features, frames) as x."""
        y = _instant_norm(net, net.transpose(x, (0, 2, 1), module), f"{module}.norm")
        y = net.transpose(y, (1, 0, 2), module)
        for index in range(self.layers):
            y = net.recurrent(y, f"{module}.rnn{index + 1}", "LSTM", self.hidden, bidirectional=False)
        y = net.linear(net.transpose(y, (1, 0, 2), module), f"{module}.dense", width)
        return net.transpose(net.sigmoid(y, module), (0, 2, 1), module)

    def _added(self, net: Net, x: Value) -> Value:
        """Frames to a waveform: where they overlap they are added."""
        frames = int(x.shape[2])
        weight = net.parameter("overlap.weight", net.normal((self.frame, 1, self.frame), self.frame**-0.5))
        samples = (frames - 1) * self.shift + self.frame
        y = net.emit(
            "ConvTranspose",
            [x, weight],
            "overlap",
            shape=(x.shape[0], 1, samples),
            power=1.0,
            dilations=[1],
            group=1,
            kernel_shape=[self.frame],
            pads=[0, 0],
            strides=[self.shift],
        )
        axis = net.constant(np.array([1], dtype=np.int64), "overlap")
        return net.emit("Squeeze", [y, axis], "overlap", shape=(x.shape[0], samples))


def _instant_norm(net: Net, x: Value, module: str) -> Value:
    """Subtract the mean of the last axis and divide by its deviation, written out."""
    width = int(x.shape[-1])
    centred = net.emit("Sub", [x, net.reduce("ReduceMean", x, module, [-1], keepdims=True)], module)
    squared = net.emit("Mul", [centred, centred], module)
    variance = net.reduce("ReduceMean", squared, module, [-1], keepdims=True)
    deviation = net.emit("Sqrt", [net.emit("Add", [variance, net.constant(_EPSILON, module)], module)], module)
    y = net.emit("Div", [centred, deviation], module)
    y = net.emit("Mul", [y, net.parameter(f"{module}.gamma", net.uniform(width, 0.5, 1.5))], module)
    return replace(net.emit("Add", [y, net.parameter(f"{module}.beta", net.normal([width], 0.1))], module), power=1.1)
