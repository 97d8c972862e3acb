"""Recognition of text by CRNN (Shi et al. 2015): convolutions down to a height of one, then bidirectional LSTMs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import dynamic
from .builder import Net
from .emitter import Value

_POOLED = {0: (2, 0), 1: (2, 0), 3: ((2, 1), (0, 1)), 5: ((2, 1), (0, 1))}
"""Stride and padding of the pool behind a convolution."""
_NORMALISED = (2, 4, 6)
_WIDTHS = (1, 2, 4, 4, 8, 8, 8)


@dataclass(frozen=True)
class Crnn:
    """An image of a line of text, 32 high, to scores of letters for every step.

    Attributes:
        width: Channels of the first convolution; the last has eight times as many.
        hidden: Units of each direction of the two LSTMs.
    """

    width: int = 64
    hidden: int = 256

    def __call__(self, net: Net) -> Value:
        """Write the network."""
        if int(net.input.shape[2]) != 32:
            raise ValueError("crnn: the image is 32 high")
        x = net.input
        for index, factor in enumerate(_WIDTHS):
            conv, channels = f"cnn.conv{index}", factor * self.width
            kernel, padding = (2, 0) if index == len(_WIDTHS) - 1 else (3, 1)
            if index in _NORMALISED:
                x = net.conv_bn(x, conv, f"cnn.batchnorm{index}", channels, kernel, padding=padding, bias=True)
            else:
                x = net.conv(x, conv, channels, kernel, padding=padding)
            x = net.relu(x, f"cnn.relu{index}")
            if index in _POOLED:
                stride, border = _POOLED[index]
                x = net.max_pool(x, f"cnn.pooling{index}", 2, stride, padding=border)
        axis = net.constant(np.array([2], dtype=np.int64))
        x = net.emit("Squeeze", [x, axis], shape=(x.shape[0], x.shape[1], x.shape[3]))
        x = net.transpose(x, (2, 0, 1))
        for index, letters in enumerate((self.hidden, net.classes)):
            x = self._layer(net, x, f"rnn.{index}", letters)
        return net.transpose(x, (1, 0, 2))

    def _layer(self, net: Net, x: Value, module: str, width: int) -> Value:
        """An LSTM in both directions, and a linear layer that sees each step by itself."""
        batch = dynamic.size(net, x, 1, module)
        zero = dynamic.zeros(net, [2, batch, self.hidden], (2, x.shape[1], self.hidden), module)
        y = net.recurrent(x, f"{module}.rnn", "LSTM", self.hidden, bidirectional=True, states=[zero, zero])
        steps = int(x.shape[0])
        rows = steps * x.shape[1] if isinstance(x.shape[1], int) else "steps * batch"
        y = net.linear(
            net.view(y, [-1, 2 * self.hidden], (rows, 2 * self.hidden), module), f"{module}.embedding", width
        )
        return dynamic.view(net, y, [steps, batch, width], (steps, x.shape[1], width), module)
