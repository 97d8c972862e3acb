"""Random tensors that are made, not computed from data: filled, repeated and spread to lengths known at run time."""

from __future__ import annotations

import numpy as np
from onnx import numpy_helper

from tests.properties.layers import _CHANNELS
from tests.properties.lengths import Lengths
from tests.properties.sequences import Sequences

WEIGHTS = {
    "class_token": 3, "filled": 3, "spread_channel": 3, "shared_heads": 2, "repeated_channels": 1,
}  # fmt: skip
"""Steps of this module, with how often they are drawn."""


class Made(Lengths, Sequences):
    """Adds tensors that others are joined with."""

    def target(self, x: str, lengths: tuple[int, ...], shape: tuple[int, ...]) -> str:
        """A shape as exporters compute it: its first length is that of a tensor, or all are constants.

        Args:
            x: the tensor.
            lengths: the other lengths; -1 where an axis keeps its own, which then is replaced by 1.
            shape: the whole shape, without -1.
        """
        if self.flag():
            return self.net.ints(*shape)
        joined = self.net.op("Concat", self.length(x, 0), self.net.ints(*lengths), axis=0)
        if -1 not in lengths:
            return joined
        one = numpy_helper.from_array(np.array([1], dtype=np.int64))
        ones = self.net.op("ConstantOfShape", self.net.ints(len(shape)), value=one)
        marked = self.net.op("Equal", joined, self.net.op("Mul", ones, self.net.weight(np.int64(-1))))
        return self.net.op("Where", marked, ones, joined)

    def class_token(self) -> None:
        """One more token, the same for every sample."""
        x = self.sequence()
        if x is None:
            return
        n, _, width = self.shape(x)
        token = self.hidden(self.net.normal(1, 1, width))
        kind = self.pick(["Expand", "Expand", "Tile", "zeros"] if self.net.opset >= 11 else ["Expand", "Tile"])
        if kind == "Expand":
            target = self.target(x, self.pick([(1, width), (-1, -1), (1, -1)]), (n, 1, width))
            (token,) = self.net.ops("Expand", token, target, shapes=[(n, 1, width)])
        elif kind == "Tile":
            (token,) = self.net.ops("Tile", token, self.target(x, (1, 1), (n, 1, 1)), shapes=[(n, 1, width)])
        else:
            (zeros,) = self.net.ops(
                "ConstantOfShape", self.target(x, (1, width), (n, 1, width)), shapes=[(n, 1, width)]
            )
            token = self.net.op("Add", zeros, token)
        self.keep(self.net.op("Concat", *self.permuted([token, x]), axis=1))

    def filled(self) -> None:
        """A tensor with one value, as large as another or with channels of its own, that joins it."""
        x = self.tensor(4)
        if x is None:
            return
        n, c, h, w = self.shape(x)
        value = numpy_helper.from_array(np.array([self.pick([0, 0.5])], dtype=np.float32))
        kind = self.pick(["Add", "Mul", "Concat", "Concat", "Where"])
        channels = self.pick(_CHANNELS) if kind == "Concat" else c
        if channels == c and self.flag():
            target = self.net.op("Shape", x)
        else:
            space = self.net.slice(self.net.op("Shape", x), [0], [2], [4])
            target = self.net.op("Concat", self.length(x, 0), self.net.ints(channels), space, axis=0)
        (made,) = self.net.ops("ConstantOfShape", target, shapes=[(n, channels, h, w)], value=value)
        if kind == "Concat":
            self.keep(self.net.op(kind, *self.permuted([x, made]), axis=1))
        elif kind == "Where":
            condition = self.net.weight(self.net.random.random((c, 1, 1)) < 0.5)
            self.keep(self.net.op(kind, condition, *self.permuted([x, made])))
        else:
            self.keep(self.net.op(kind, *self.permuted([x, made])))

    def spread_channel(self) -> None:
        """One channel as many, to be joined with as many or to be read as they are."""
        x = self.tensor(4)
        if x is None:
            return
        n, c, h, w = self.shape(x)
        one = self.net.op("Sigmoid", self.net.conv(x, 1))
        if self.flag():
            (many,) = self.net.ops("Expand", one, self.target(x, (c, h, w), (n, c, h, w)), shapes=[(n, c, h, w)])
        else:
            repeats = self.net.ints(1, c, 1, 1)
            if self.flag():
                repeats = self.net.op("Concat", self.length(one, 1), self.net.ints(c, 1, 1), axis=0)
            (many,) = self.net.ops("Tile", one, repeats, shapes=[(n, c, h, w)])
        self.keep(many if self.flag() else self.net.op("Mul", *self.permuted([x, many])))

    def repeated_channels(self) -> None:
        """All channels again and again, as often as the batch has samples or by a constant."""
        x = self.tensor(4, lambda s: s[0] == 1)
        if x is not None:
            n, c, h, w = self.shape(x)
            count = self.int(2, 3)
            times = self.net.op("Add", self.length(x, 0), self.net.ints(count - 1))
            repeats = self.pick(
                [
                    self.net.ints(1, count, 1, 1),
                    self.net.op("Concat", self.net.ints(1), times, self.net.ints(1, 1), axis=0),
                ]
            )
            self.keep(*self.net.ops("Tile", x, repeats, shapes=[(n, c * count, h, w)]))

    def shared_heads(self) -> None:
        """Heads of keys and values, repeated by an Expand to a target in any form."""
        x = self.sequence()
        if x is None:
            return
        groups, each, size = self.int(1, 2), self.int(1, 3), self.int(1, 3)
        n, t, _ = self.shape(x)
        q = self.heads(self.project(x, groups * each * size), groups * each)
        shared = []
        for _ in range(2):
            y = self.net.unsqueeze(self.heads(self.project(x, groups * size), groups), [2])
            shape = (n, groups, each, t, size)
            if self.flag():
                target = self.net.op("Mul", self.net.op("Shape", y), self.net.ints(1, 1, each, 1, 1))
            else:
                target = self.target(x, self.pick([shape[1:], (groups, each, -1, -1)]), shape)
            (y,) = self.net.ops("Expand", y, target, shapes=[shape])
            shared.append(self.net.reshape(y, 0, groups * each, t, size))
        self.keep(self.attended(q, self.net.op("Transpose", shared[0], perm=[0, 1, 3, 2]), shared[1]))
