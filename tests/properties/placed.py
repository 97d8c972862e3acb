"""Random reads and writes at places that indices tell, and sequences of tensors."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from tests.properties.layers import _CHANNELS, Layers

WEIGHTS = {
    "gather_elements": 2, "scatter_elements": 2, "gather_nd": 2, "scatter_nd": 2, "split_sequence": 3,
    "built_sequence": 2, "joined_sequence": 2, "deformable": 2,
}  # fmt: skip
"""Steps of this module, with how often they are drawn."""


class Placed(Layers):
    """Adds operators that pick, place, or take out of a sequence."""

    def places(self, shape: tuple[int, ...], below: int) -> str:
        return self.net.weight(self.net.random.integers(0, below, shape))

    def gather_elements(self) -> None:
        x = self.tensor(good=bool)
        if x is None or self.net.opset < 11:
            return
        shape = list(self.shape(x))
        axis = self.int(0, len(shape) - 1)
        below, shape[axis] = shape[axis], self.int(1, 4)
        if self.flag():
            other = self.int(0, len(shape) - 1)
            shape[other] = self.int(1, shape[other])
        self.keep(self.net.op("GatherElements", x, self.places(tuple(shape), below), axis=self.axis(axis, len(shape))))

    def scatter_elements(self) -> None:
        """Updates that are computed from the data, or constants; into the data, or into zeros."""
        x = self.tensor(good=lambda s: len(s) >= 2)
        if x is None:
            return
        shape, rank = self.shape(x), len(self.shape(x))
        axis = self.int(0, rank - 1)
        data, updates = x, self.pick([self.net.op("Neg", x), self.hidden(self.net.normal(*shape))])
        if self.flag():
            data, updates = self.hidden(self.net.normal(*shape)), x
        places = np.argsort(self.net.random.random(shape), axis=axis)  # none twice: else the order would matter
        op_type = "Scatter" if self.net.opset < 11 else "ScatterElements"
        self.keep(self.net.op(op_type, data, self.net.weight(places), updates, axis=self.axis(axis, rank)))

    def gather_nd(self) -> None:
        x = self.tensor(good=lambda s: len(s) >= 2)
        if x is None or self.net.opset < 12:
            return
        shape = self.shape(x)
        batch = self.int(0, 1)
        width = self.int(1, len(shape) - batch)
        rows = [self.net.random.integers(0, below, (*shape[:batch], 3)) for below in shape[batch : batch + width]]
        self.keep(self.net.op("GatherND", x, self.net.weight(np.stack(rows, axis=-1)), batch_dims=batch))

    def scatter_nd(self) -> None:
        x = self.tensor(good=lambda s: len(s) >= 2)
        if x is None or self.net.opset < 11:
            return
        shape = self.shape(x)
        width = self.int(1, len(shape))
        places = np.array([[self.choose(below) for below in shape[:width]]])
        row = self.net.op("GatherND", x, self.net.weight(places)) if self.net.opset >= 12 and self.flag() else None
        updates = row or self.hidden(self.net.normal(1, *shape[width:]))
        self.keep(self.net.op("ScatterND", x, self.net.weight(places[:, ::1]), updates))

    def deformable(self) -> None:
        """A convolution that reads at places which another one makes."""
        x = self.tensor(4)
        if x is None or not self.knows("DeformConv"):
            return
        channels, out, k = self.shape(x)[1], self.pick(_CHANNELS), self.pick([1, 3])
        shared = self.pick([1, 1, *[g for g in (2, 4) if channels % g == 0]])
        more = [self.net.weight(self.net.normal(out)) if self.flag() else ""]
        more += [self.net.op("Sigmoid", self.net.conv(x, shared * k * k))] if self.flag() else []
        inputs = [self.hidden(self.net.normal(out, channels, k, k)), self.net.conv(x, 2 * shared * k * k), *more]
        attributes = {"name": self.name("DeformConv"), "pads": [k // 2] * 4, "kernel_shape": [k, k]}
        self.keep(self.net.op("DeformConv", x, *inputs, offset_group=shared, **attributes))

    # Sequences

    def taken(self, sequence: str, at: int, shape: tuple[int, ...]) -> str:
        return self.net.ops("SequenceAt", sequence, self.net.weight(np.int64(at)), shapes=[shape])[0]

    def split_sequence(self) -> None:
        """By a length for all, or one for each; some of the parts are taken out, counted from either end."""
        x = self.tensor(good=lambda s: len(s) >= 2 and s[1] > 1)
        if x is None or self.net.opset < 11:
            return
        n, c, *rest = self.shape(x)
        first = self.int(1, c - 1)
        sizes = self.pick([[first, c - first], [min(first, c - start) for start in range(0, c, first)]])
        length = (
            self.net.weight(np.int64(first))
            if len(set(sizes[:-1])) == 1 and sizes[-1] <= first and self.flag()
            else self.net.ints(*sizes)
        )
        (sequence,) = self.net.ops("SplitToSequence", x, length, axis=self.axis(1, len(rest) + 2), shapes=[()])
        for at in dict.fromkeys(self.int(0, len(sizes) - 1) for _ in range(2)):
            self.keep(self.taken(sequence, self.pick([at, at - len(sizes)]), (n, sizes[at], *rest)))
        if not self.choose(4):
            self.keep(*self.net.ops("ConcatFromSequence", sequence, axis=1, shapes=[(n, c, *rest)]))

    def built_sequence(self) -> None:
        """Tensors put into a sequence, and taken out or joined."""
        x = self.tensor(4)
        if x is None or self.net.opset < 11:
            return
        n, _, h, w = self.shape(x)
        items = self.permuted([x, self.net.conv(x, self.pick(_CHANNELS)), self.hidden(self.net.normal(n, 2, h, w))])
        (sequence,) = self.net.ops("SequenceConstruct", *items, shapes=[()])
        if self.flag():
            at = self.choose(3)
            self.keep(self.taken(sequence, at, self.shape(items[at])))
        else:
            channels = sum(self.shape(item)[1] for item in items)
            self.keep(*self.net.ops("ConcatFromSequence", sequence, axis=1, shapes=[(n, channels, h, w)]))

    def joined_sequence(self) -> None:
        """Parts that nobody can follow: picked at run time, or put on an axis of their own."""
        x = self.tensor(4, lambda s: s[1] % 2 == 0)
        if x is None or self.net.opset < 11:
            return
        n, c, h, w = self.shape(x)
        (sequence,) = self.net.ops("SplitToSequence", x, self.net.weight(np.int64(c // 2)), axis=1, shapes=[()])
        if self.flag():
            name = f"ids{len(self.net.nodes)}"
            at = self.net.op("Mul", self.net.input(name, (1,), TensorProto.INT64), self.net.ints(0))
            at = self.net.squeeze(at, [0])
            self.keep(*self.net.ops("SequenceAt", sequence, at, shapes=[(n, c // 2, h, w)]))
        else:
            (y,) = self.net.ops("ConcatFromSequence", sequence, axis=1, new_axis=1, shapes=[(n, 2, c // 2, h, w)])
            self.keep(y)
