"""Random operators that regroup channels: groups, shuffles, selections, blocks of space, heads and radices."""

from __future__ import annotations

import math

import numpy as np

from tests.properties.layers import _CHANNELS, Layers

WEIGHTS = {
    "grouped": 3, "depthwise_multiplier": 1, "depthwise_transpose": 1, "shuffle": 2, "flat_shuffle": 2, "pick_some": 2,
    "pick_one": 1, "stepped_slice": 1, "pad_channels": 1, "depth_to_space": 1, "space_to_depth": 1,
    "pixel_shuffle": 1, "pixel_unshuffle": 1, "tile": 1, "expand_space": 1, "group_norm": 1, "group_norm_reshaped": 1,
    "merge_axes": 2, "split_axis": 2, "radix": 1, "there_and_back": 1,
}  # fmt: skip
"""Steps of this module, with how often they are drawn."""


def divisors(size: int) -> list[int]:
    return [d for d in range(2, size + 1) if size % d == 0]


class Regrouping(Layers):
    """Adds operators that put channels elsewhere, several to a position or one to several."""

    # Groups

    def grouped(self) -> None:
        """Convolutions with groups on one tensor, then maybe joined, shuffled or cut."""
        x = self.tensor(4, lambda s: bool([d for d in divisors(s[1]) if d < s[1]]))
        if x is None:
            return
        channels = self.shape(x)[1]
        proper = [d for d in divisors(channels) if d < channels]
        out = channels * self.int(1, 2)
        made = [self._grouped(x, out, self.pick(proper)) for _ in range(self.int(1, 3))]
        y = made[0]
        if len(made) > 1:
            kind = self.pick(["Add", "Concat", "none"])
            if kind == "none":
                self.keep(*made[1:])
            else:
                y = self.net.op("Add", *made[:2]) if kind == "Add" else self.net.op("Concat", *made, axis=1)
        self.keep(y)
        after = self.pick(["none", "shuffle", "slice", "next"])
        channels = self.shape(y)[1]
        if after == "shuffle":
            self.keep(self._shuffled(y, self.pick(divisors(channels))))
        elif after == "slice":
            self.keep(self.net.slice(y, [1], [self.int(0, channels // 2)], [channels]))
        elif after == "next":
            self.keep(self._grouped(y, channels, self.pick(divisors(channels))))

    def _grouped(self, x: str, out: int, groups: int) -> str:
        shape = (self.shape(x)[1], out // groups, 1, 1)
        if self.flag() or out % groups:
            return self.net.conv(x, -(-out // groups) * groups, self.pick([1, 3]), groups=groups, name=self.name("G"))
        inputs = [x, self.hidden(self.net.normal(*shape)), *([self.net.weight(self.net.normal(out))] * self.choose(2))]
        return self.net.op("ConvTranspose", *inputs, group=groups, name=self.name("G"))

    def depthwise_multiplier(self) -> None:
        x = self.tensor(4, lambda s: 1 < s[1] <= 32)
        if x is not None:
            self.keep(self.net.depthwise(x, self.int(2, 3), self.pick([1, 3]), name=self.name("D")))

    def depthwise_transpose(self) -> None:
        x = self.tensor(4, lambda s: 1 < s[1] <= 32)
        if x is not None:
            weight = self.hidden(self.net.normal(self.shape(x)[1], self.int(1, 3), 2, 2))
            self.keep(self.net.op("ConvTranspose", x, weight, group=self.shape(x)[1]))

    # Shuffles and selections

    def _shuffled(self, x: str, groups: int) -> str:
        n, c, h, w = self.shape(x)
        split = self.net.reshape(x, self.pick([n, -1]), groups, c // groups, h, w)
        return self.net.reshape(self.net.op("Transpose", split, perm=[0, 2, 1, 3, 4]), n, self.pick([c, -1]), h, w)

    def shuffle(self) -> None:
        """Channel shuffle, and maybe its parts at once."""
        x = self.tensor(4, lambda s: s[1] > 3 and bool(divisors(s[1])))
        if x is None:
            return
        y = self._shuffled(x, self.pick(divisors(self.shape(x)[1])))
        channels = self.shape(y)[1]
        after = self.pick(["none", "split", "slice", "both"])
        if after == "split":
            at = self.pick([channels // 2, self.int(1, channels - 1)])
            self.keep(*self.net.split(y, [at, channels - at]))
        elif after == "slice":
            self.keep(self.net.slice(y, [1], [0], [channels // 2]), self.net.slice(y, [1], [channels // 2], [channels]))
        else:
            self.keep(y, *([x] if after == "both" else []))

    def flat_shuffle(self) -> None:
        """ShuffleNet's (n * c / 2, 2, h * w), whose halves are handed out."""
        x = self.tensor(4, lambda s: s[1] % 2 == 0 and s[1] > 2)
        if x is None:
            return
        n, c, h, w = self.shape(x)
        y = self.net.op("Transpose", self.net.reshape(x, n * c // 2, 2, h * w), perm=[1, 0, 2])
        y = self.net.reshape(y, 2, self.pick([n, -1]), c // 2, h, w)
        kind = self.pick(["gather", "split", "one", "slice"])
        if kind == "gather":
            self.keep(*[self.net.op("Gather", y, self.net.weight(np.int64(i)), axis=0) for i in self.permuted([0, 1])])
        elif kind == "split":
            self.keep(*[self.net.squeeze(part, [0]) for part in self.net.split(y, [1, 1], 0)])
        elif kind == "slice":
            self.keep(self.net.squeeze(self.net.slice(y, [0], [1], [2]), [0]))
        else:
            self.keep(self.net.op("Gather", y, self.net.weight(np.int64(-1 if self.net.opset >= 11 else 1)), axis=0))

    def there_and_back(self) -> None:
        """Chains of reshapes and transposes of more than three axes."""
        x = self.tensor(4, lambda s: len(divisors(s[1])) > 1)
        if x is None:
            return
        n, c, h, w = self.shape(x)
        a = self.pick(divisors(c))
        b = self.pick([1, *divisors(c // a)])
        inner = [1, 2, 3]
        perm = [0, *self.permuted(inner), 4, 5] if self.flag() else [0, *self.permuted([*inner, 4, 5])]
        y = self.net.op("Transpose", self.net.reshape(x, n, a, b, c // a // b, h, w), perm=perm)
        shape = self.shape(y)
        self.keep(self.net.reshape(y, n, math.prod(shape[1:4]), *shape[4:]))

    def pick_some(self) -> None:
        """Gather with repeated, negative and permuted indices, on any axis of channels."""
        x = self.tensor(good=lambda s: len(s) >= 2)
        if x is None:
            return
        axis = self.pick([1, len(self.shape(x)) - 1])
        size = self.shape(x)[axis]
        if self.flag():
            index = self.permuted(range(size)) if size <= 8 else list(range(size))[::-1]
        else:
            index = [self.int(0, size - 1) for _ in range(self.int(1, 6))]
        if self.net.opset >= 11 and self.flag():
            index[0] -= size
        kind = self.pick([np.int64, np.int32])
        self.keep(self.net.op("Gather", x, self.net.weight(np.array(index, kind)), axis=axis))

    def pick_one(self) -> None:
        """Gather of a single position, which drops the axis."""
        x = self.tensor(good=lambda s: len(s) >= 3)
        if x is not None:
            axis = self.int(0, len(self.shape(x)) - 1)
            self.keep(self.net.op("Gather", x, self.net.weight(np.int64(0)), axis=axis))

    def stepped_slice(self) -> None:
        x = self.tensor(good=lambda s: len(s) >= 2 and s[1] > 2)
        if x is None or self.net.opset < 10:
            return
        size = self.shape(x)[1]
        bounds = [(0, size, 2), (1, size, 2), (-1, -(2**31), -1), (size - 1, 0, -2), (1, size - 1, 3), (-1, -size, -1)]
        start, end, step = self.pick(bounds)
        self.keep(self.net.slice(x, [1], [start], [end], [step]))

    def pad_channels(self) -> None:
        """Channels at both ends, of zeros or of some other constant."""
        x = self.tensor(4)
        if x is None:
            return
        pads = [0, self.int(0, 3), 0, 0, 0, self.int(0, 3), 0, 0]
        if self.net.opset < 11:
            self.keep(self.net.op("Pad", x, pads=pads, value=0.5))
        else:
            self.keep(self.net.op("Pad", x, self.net.ints(*pads), self.net.weight(np.float32(0.5))))

    # Blocks of space

    def depth_to_space(self) -> None:
        x = self.tensor(4, lambda s: s[1] % 4 == 0)
        if x is not None:
            more = {"mode": self.pick(["DCR", "CRD"])} if self.net.opset >= 11 else {}
            self.keep(self.net.op("DepthToSpace", x, blocksize=2, **more))

    def space_to_depth(self) -> None:
        x = self.tensor(4, lambda s: s[2] % 2 == s[3] % 2 == 0)
        if x is not None:
            self.keep(self.net.op("SpaceToDepth", x, blocksize=2))

    def pixel_shuffle(self) -> None:
        """As torch or as tensorflow orders it."""
        x = self.tensor(4, lambda s: s[1] % 4 == 0)
        if x is not None:
            n, c, h, w = self.shape(x)
            split, perm = self.pick(
                [((c // 4, 2, 2), [0, 1, 4, 2, 5, 3]), ((2, 2, c // 4), [0, 3, 4, 1, 5, 2])],
            )
            y = self.net.op("Transpose", self.net.reshape(x, n, *split, h, w), perm=perm)
            self.keep(self.net.reshape(y, n, c // 4, h * 2, w * 2))

    def pixel_unshuffle(self) -> None:
        x = self.tensor(4, lambda s: s[2] % 2 == s[3] % 2 == 0)
        if x is not None:
            n, c, h, w = self.shape(x)
            perm = self.pick([[0, 1, 3, 5, 2, 4], [0, 3, 5, 1, 2, 4]])
            y = self.net.op("Transpose", self.net.reshape(x, n, c, h // 2, 2, w // 2, 2), perm=perm)
            self.keep(self.net.reshape(y, n, 4 * c, h // 2, w // 2))

    def tile(self) -> None:
        x = self.tensor(4)
        if x is not None:
            self.keep(self.net.op("Tile", x, self.net.ints(1, self.int(1, 3), self.int(1, 2), 1)))

    def expand_space(self) -> None:
        """Lengths of one, spread over space, over a new axis, or over channels."""
        x = self.tensor(4)
        if x is None:
            return
        n, c, _, w = self.shape(x)
        y = self.net.op("GlobalMaxPool", x)
        target = self.pick([(1, 1, 3, w), (n, c, 2, 2), (2, n, c, 1, 1), (1, c, 1, 1)])
        self.keep(self.net.op("Expand", y, self.net.ints(*target)))

    # Normalisation over groups

    def group_norm(self) -> None:
        x = self.tensor(4, lambda s: bool(divisors(s[1])))
        if x is None or self.net.opset < 21:
            return
        channels = self.shape(x)[1]
        groups = self.pick([1, *divisors(channels)])
        scale, bias = (self.net.weight(self.net.normal(channels if self.net.opset >= 21 else groups)) for _ in range(2))
        attributes = {"num_groups": groups, "epsilon": 0.1}
        self.keep(*self.net.ops("GroupNormalization", x, scale, bias, shapes=[self.shape(x)], **attributes))

    def group_norm_reshaped(self) -> None:
        """As exporters write it: InstanceNormalization of (n, groups, the rest)."""
        x = self.tensor(4, lambda s: bool(divisors(s[1])) and math.prod(s[2:]) > 1)
        if x is None:
            return
        groups = self.pick(divisors(self.shape(x)[1]))
        parameters = self.net.weight(np.ones(groups, np.float32)), self.net.weight(np.zeros(groups, np.float32))
        y = self.net.op("InstanceNormalization", self.net.reshape(x, 0, groups, -1), *parameters, epsilon=0.1)
        y = self.net.reshape(y, *self.shape(x))
        for op_type in ("Mul", "Add"):
            y = self.net.op(op_type, y, self.hidden(self.net.normal(self.shape(x)[1], 1, 1)))
        self.keep(y)

    # Axes

    def merge_axes(self) -> None:
        """Two neighbouring axes of any tensor become one."""
        x = self.tensor(good=lambda s: len(s) >= 3)
        if x is not None:
            shape = list(self.shape(x))
            at = self.int(0, len(shape) - 2)
            self.keep(self.net.reshape(x, *shape[:at], shape[at] * shape[at + 1], *shape[at + 2 :]))

    def split_axis(self) -> None:
        """Some axis of any tensor becomes two, one of which may be mixed or swapped."""
        x = self.tensor(good=lambda s: len(s) <= 5 and any(divisors(d)[:-1] for d in s))
        if x is None:
            return
        shape = list(self.shape(x))
        at = self.pick([a for a in range(len(shape)) if divisors(shape[a])[:-1]])
        size = self.pick(divisors(shape[at])[:-1])
        y = self.net.reshape(x, *shape[:at], shape[at] // size, size, *shape[at + 1 :])
        kind = self.pick(["none", "swap", "softmax", "sum", "back", "linear"])
        if kind == "swap":
            perm = list(range(len(shape) + 1))
            perm[at], perm[at + 1] = at + 1, at
            y = self.net.op("Transpose", y, perm=perm)
        elif kind == "softmax" and self.net.opset >= 13:
            y = self.net.op("Softmax", y, axis=at + self.choose(2))
        elif kind == "sum":
            y = self.net.reduce(self.pick(["ReduceSum", "ReduceMax"]), y, [at + self.choose(2)], 0)
        elif kind == "linear":
            y = self.net.op("MatMul", y, self.hidden(self.net.normal(self.shape(y)[-1], self.pick(_CHANNELS))))
        self.keep(y)
        if kind in ("back", "softmax", "swap"):
            self.keep(self.net.reshape(y, *shape))

    def radix(self) -> None:
        """Parts of the channels, weighed by a softmax over the parts, and summed."""
        x = self.tensor(4, lambda s: bool(divisors(s[1])[:-1]))
        if x is None or self.net.opset < 13:
            return
        n, c, h, w = self.shape(x)
        count = self.pick(divisors(c)[:-1])
        parts = self.net.reshape(x, n, count, c // count, h, w)
        gap = self.net.op("GlobalAveragePool", self.net.reduce("ReduceSum", parts, [1], 0))
        weights = self.net.conv(self.net.conv(gap, self.pick(_CHANNELS)), c)
        y = self.net.op("Mul", parts, self.net.op("Softmax", self.net.reshape(weights, n, count, -1, 1, 1), axis=1))
        self.keep(self.net.reduce("ReduceSum", y, [1], 0))
