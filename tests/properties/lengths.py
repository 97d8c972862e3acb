"""Random shapes that are computed at run time, from the lengths of tensors."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from tests.properties.layers import Layers

WEIGHTS = {
    "runtime_reshape": 1, "runtime_length": 1, "expand": 1, "runtime_heads": 1, "runtime_halves": 1,
    "runtime_resize": 1, "runtime_slice": 1, "runtime_expand": 1, "upsample": 1,
}  # fmt: skip
"""Steps of this module, with how often they are drawn."""


class Lengths(Layers):
    """Adds operators whose shapes come from Shape, Gather, Slice, Concat and arithmetic."""

    def length(self, x: str, axis: int) -> str:
        """The length of an axis, as a list of one."""
        lengths = self.net.op("Shape", x)
        kind = self.pick(["gather", "scalar", "slice", "start"])
        if kind == "start" and self.net.opset >= 15:
            return self.net.op("Shape", x, start=axis, end=axis + 1)
        if kind == "slice":
            return self.net.slice(lengths, [0], [axis], [axis + 1])
        if kind == "scalar":
            return self.net.unsqueeze(self.net.op("Gather", lengths, self.net.weight(np.int64(axis))), [0])
        return self.net.op("Gather", lengths, self.net.ints(axis), axis=0)

    def reshaped(self, x: str, target: str, shape: tuple[int, ...]) -> str:
        return self.net.ops("Reshape", x, target, shapes=[shape])[0]

    def runtime_reshape(self) -> None:
        """The exporters' ``x.view(y.size(0), y.size(1), -1)``."""
        x = self.tensor(4)
        if x is None:
            return
        n, c, h, w = self.shape(x)
        y = self.tensor(4, lambda s: s[:2] == (n, c)) or x
        if self.flag():
            parts = [self.length(y, 0), self.length(y, 1)]
        else:
            parts = [self.net.slice(self.net.op("Shape", y), [0], [0], [2])]
        target = self.net.op("Concat", *parts, self.net.ints(-1), axis=0)
        self.keep(self.reshaped(x, target, (n, c, h * w)))

    def runtime_heads(self) -> None:
        """(n, t, channels) with channels split by a count, of which the one or the other is computed."""
        x = self.tensor(3, lambda s: any(s[2] % d == 0 for d in (2, 3, 4)))
        if x is None:
            return
        n, t, c = self.shape(x)
        count = self.pick([d for d in (2, 3, 4) if c % d == 0])
        kind = self.pick(["given", "divided", "rest"])
        last = {
            "given": [self.net.ints(count), self.net.ints(c // count)],
            "rest": [self.net.ints(count), self.net.ints(-1)],
            "divided": [self.net.ints(count)],
        }[kind]
        if kind == "divided":
            last.append(self.net.op("Div", self.length(x, 2), self.net.ints(count)))
        target = self.net.op("Concat", self.length(x, 0), self.length(x, 1), *last, axis=0)
        y = self.reshaped(x, target, (n, t, count, c // count))
        if self.flag():
            y = self.net.op("Transpose", y, perm=[0, 2, 1, 3])
        self.keep(y)

    def runtime_halves(self) -> None:
        """Channel shuffle whose lengths are computed: (n, 2, c // 2, h, w), swapped, and back."""
        x = self.tensor(4, lambda s: s[1] % 2 == 0)
        if x is None:
            return
        n, c, h, w = self.shape(x)
        half = self.net.op("Div", self.length(x, 1), self.net.ints(2)) if self.flag() else self.net.ints(c // 2)
        space = self.net.slice(self.net.op("Shape", x), [0], [2], [4])
        target = self.net.op("Concat", self.length(x, 0), self.net.ints(2), half, space, axis=0)
        y = self.net.op("Transpose", self.reshaped(x, target, (n, 2, c // 2, h, w)), perm=[0, 2, 1, 3, 4])
        count = self.net.op("Mul", half, self.net.ints(2)) if self.flag() else self.net.ints(-1)
        back = self.net.op("Concat", self.length(x, 0), count, space, axis=0)
        self.keep(self.reshaped(y, back, (n, c, h, w)))

    def runtime_resize(self) -> None:
        """To the size of another tensor, or to twice one's own."""
        x = self.tensor(4, lambda s: s[2] * s[3] <= 25)
        if x is None or self.net.opset < 11:
            return
        n, c, h, w = self.shape(x)
        own = self.net.slice(self.net.op("Shape", x), [0], [0], [2])
        if self.flag():
            other = self.tensor(4, lambda s: s[2] * s[3] <= 25) or x
            size, lengths = self.shape(other)[2:], self.net.slice(self.net.op("Shape", other), [0], [2], [4])
        else:
            space = self.net.slice(self.net.op("Shape", x), [0], [2], [4])
            size, lengths = (2 * h, 2 * w), self.net.op("Mul", space, self.net.ints(2, 2))
        empty = self.net.weight(np.zeros(0, dtype=np.float32)) if self.net.opset < 13 else ""
        sizes = self.net.op("Concat", own, lengths, axis=0)
        self.keep(*self.net.ops("Resize", x, empty, empty, sizes, shapes=[(n, c, *size)], mode="nearest"))

    def runtime_slice(self) -> None:
        """Bounds from a tensor's length: space cropped to another's size, or the first half of the channels."""
        x = self.tensor(4)
        if x is None or self.net.opset < 10:
            return
        n, c, h, w = self.shape(x)
        if self.flag() and c > 1:
            end = self.net.op("Div", self.length(x, 1), self.net.ints(2))
            bounds, shape = (self.net.ints(0), end, self.net.ints(1)), (n, c // 2, h, w)
        else:
            other = self.tensor(4, lambda s: s[2] <= h) or x
            bounds, shape = (self.net.ints(0), self.length(other, 2), self.net.ints(2)), (n, c, self.shape(other)[2], w)
        self.keep(*self.net.ops("Slice", x, *bounds, shapes=[shape]))

    def runtime_length(self) -> None:
        """A value that depends on the number of channels."""
        x = self.tensor(4)
        if x is not None:
            count = self.net.op("Cast", self.length(x, 1), to=TensorProto.FLOAT)
            self.keep(self.net.op("Mul", x, self.net.op("Sqrt", self.net.op("Reciprocal", count))))

    def expand(self) -> None:
        x = self.tensor(4)
        if x is not None:
            half = self.net.weight(np.float32(0.5))
            filled = self.net.ops("Expand", half, self.net.op("Shape", x), shapes=[self.shape(x)])
            self.keep(self.net.op("Add", x, filled[0]))

    def runtime_expand(self) -> None:
        """A pooled tensor spread to the size of the one that it was pooled from."""
        x = self.tensor(4)
        if x is not None:
            pooled = self.net.op("GlobalAveragePool", x)
            target = self.net.op("Shape", x)
            if self.flag():
                target = self.net.op("Concat", *[self.length(x, axis) for axis in range(4)], axis=0)
            self.keep(*self.net.ops("Expand", pooled, target, shapes=[self.shape(x)]))

    def upsample(self) -> None:
        """Upsample, as long as there is one, and the first Resize."""
        x = self.tensor(4, lambda s: s[2] * s[3] <= 25)
        if x is not None and self.net.opset < 11:
            op_type = "Upsample" if self.net.opset == 9 else "Resize"
            scales = self.net.weight(np.array([1, 1, 2, 2], dtype=np.float32))
            n, c, h, w = self.shape(x)
            self.keep(*self.net.ops(op_type, x, scales, shapes=[(n, c, 2 * h, 2 * w)], mode="nearest"))
