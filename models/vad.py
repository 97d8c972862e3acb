"""Detection of speech, in the form of Silero VAD 5: a network for each sampling rate, chosen by an If."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from .builder import Net
from .emitter import Value

_HIGH_RATE = 16000
_LAYERS = ((128, 1), (64, 2), (64, 2), (128, 1))
"""Channels and stride of each convolution of the encoder."""


@dataclass(frozen=True)
class Vad:
    """A window of samples and the state of an LSTM to the chance that somebody speaks, and the next state.

    The spectrum is a strided convolution whose channels are the real and the imaginary parts; a fixed basis in the
    original, random here. Everything lies within the branches of an If, which take turns by the sampling rate.

    Attributes:
        window: Samples of a frame at 16 kHz; half of them at 8 kHz.
        hidden: Units of the LSTM.
    """

    window: int = 256
    hidden: int = 128

    @property
    def parameters(self) -> int:
        """Number of parameters, of both networks."""
        return sum(self._parameters(window) for window in (self.window, self.window // 2))

    def _parameters(self, window: int) -> int:
        bins = window // 2 + 1
        widths = [bins, *(width for width, _ in _LAYERS)]
        encoder = sum(3 * a * b + b for a, b in pairwise(widths))
        recurrent = 4 * self.hidden * (widths[-1] + self.hidden + 2)
        return 2 * bins * window + encoder + recurrent + self.hidden + 1

    def __call__(self, net: Net) -> list[Value]:
        """Write the network."""
        state = net.add_input("state", (2, net.batch, self.hidden), np.float32)
        rate = net.add_input("sr", (), np.int64)
        high = net.emit("Equal", [rate, net.constant(np.int64(_HIGH_RATE))], shape=())
        first, outputs = net.body("then_branch", lambda: self._network(net, net.input, state, "_model", self.window))
        second, _ = net.body("else_branch", lambda: self._low(net, state))
        return net.emit_many("If", [high], "", outputs, then_branch=first, else_branch=second)

    def _low(self, net: Net, state: Value) -> Sequence[Value]:
        half = net.slice(net.input, "_model_8k", 1, (0, None), 2)
        return self._network(net, half, state, "_model_8k", self.window // 2)

    def _network(self, net: Net, samples: Value, state: Value, module: str, window: int) -> Sequence[Value]:
        x = self._spectrum(net, samples, f"{module}.stft", window)
        for index, (width, stride) in enumerate(_LAYERS):
            name = f"{module}.encoder.{index}"
            x = net.relu(net.conv(x, f"{name}.reparam_conv", width, 3, stride=stride, padding=1), f"{name}.activation")
        last = f"{module}.decoder"
        x = net.reduce("ReduceMean", x, last, [-1], keepdims=False)
        before = [net.unsqueeze(net.take(state, last, 0, index), 0, last) for index in range(2)]
        y, *after = net.recurrent_states(
            net.unsqueeze(x, 0, last), f"{last}.rnn", "LSTM", self.hidden, bidirectional=False, states=before
        )
        axis = net.constant(np.array([0], dtype=np.int64), last)
        y = net.emit("Squeeze", [y, axis], last, shape=y.shape[1:])
        y = net.relu(net.unsqueeze(y, 2, last), f"{last}.decoder.1")
        y = net.sigmoid(net.conv(y, f"{last}.decoder.2", 1, 1), f"{last}.decoder.3")
        y = net.reduce("ReduceMean", y, last, [-1], keepdims=False)
        return [net.concat(after, last, axis=0), y]

    def _spectrum(self, net: Net, samples: Value, module: str, window: int) -> Value:
        """Magnitudes of the frequencies of each frame, (batch, bins, frames)."""
        bins = window // 2 + 1
        room = (samples.shape[0], int(samples.shape[1]) + window // 4)
        pads = net.constant(np.array([0, 0, 0, window // 4], dtype=np.int64), module)
        x = net.unsqueeze(net.emit("Pad", [samples, pads], module, shape=room, mode="reflect"), 1, module)
        x = net.conv(x, f"{module}.basis", 2 * bins, window, stride=window // 2, padding=0, bias=False)
        two = net.constant(2.0, module)
        squares = [
            net.emit("Pow", [net.slice(x, module, 1, bounds), two], module) for bounds in ((0, bins), (bins, None))
        ]
        return net.emit("Sqrt", [net.add(*squares, module)], module, power=0.5)
