"""Random layers on sequences: attention in its forms, contractions, embeddings."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from tests.properties.layers import _CHANNELS, Layers

WEIGHTS = {
    "attend": 2, "attend_fused": 1, "attend_grouped": 1, "attend_at_once": 1, "einsum": 2, "einsum_of_two": 1,
    "embedding": 1, "positions": 1,
}  # fmt: skip
"""Steps of this module, with how often they are drawn."""


class Sequences(Layers):
    """Adds layers on (n, t, channels); what has four axes is made a sequence first."""

    def sequence(self) -> str | None:
        x = self.tensor(3, lambda s: s[1] <= 25 and s[2] <= 64)
        if x is not None and self.flag():
            return x
        y = self.tensor(4, lambda s: s[1] <= 64)
        if y is None:
            return x
        n, c, h, w = self.shape(y)
        return self.net.op("Transpose", self.net.reshape(y, n, c, h * w), perm=[0, 2, 1])

    # Attention

    def project(self, x: str, width: int) -> str:
        weight = self.hidden(self.net.normal(self.shape(x)[-1], width))
        y = self.net.op("MatMul", x, weight, name=self.name("P"))
        return self.net.op("Add", y, self.net.weight(self.net.normal(width))) if self.flag() else y

    def heads(self, x: str, count: int, perm: tuple[int, ...] = (0, 2, 1, 3)) -> str:
        n, t, width = self.shape(x)
        split = self.net.reshape(x, n, self.pick([t, -1]), count, width // count)
        return self.net.op("Transpose", split, perm=perm)

    def attended(self, q: str, k: str, v: str) -> str:
        """Heads (n, heads, t, size), keys transposed, back to (n, t, channels) and through a projection."""
        scores = self.net.op("Mul", self.net.op("MatMul", q, k), self.net.constant(0.3))
        mixed = self.net.op("MatMul", self.net.op("Softmax", scores, axis=3), v)
        n, _, t, _ = self.shape(mixed)
        y = self.net.reshape(self.net.op("Transpose", mixed, perm=[0, 2, 1, 3]), n, t, -1)
        return self.project(y, self.pick(_CHANNELS))

    def attend(self) -> None:
        x = self.sequence()
        if x is not None:
            count, size, wide = self.int(1, 4), self.int(1, 4), self.int(1, 4)
            q, k = (self.project(x, count * size) for _ in range(2))
            v = self.heads(self.project(x, count * wide), count)
            self.keep(self.attended(self.heads(q, count), self.heads(k, count, (0, 2, 3, 1)), v))

    def attend_fused(self) -> None:
        x = self.sequence()
        if x is None:
            return
        count, size = self.int(1, 4), self.int(1, 4)
        n, t, _ = self.shape(x)
        order, perm = self.pick([((3, count), [2, 0, 3, 1, 4]), ((count, 3), [3, 0, 2, 1, 4])])
        y = self.net.reshape(self.project(x, 3 * count * size), n, t, *order, size)
        y = self.net.op("Transpose", y, perm=perm)
        if self.flag():
            q, k, v = (self.net.squeeze(part, [0]) for part in self.net.split(y, [1, 1, 1], 0))
        else:
            q, k, v = (self.net.op("Gather", y, self.net.weight(np.int64(i)), axis=0) for i in range(3))
        self.keep(self.attended(q, self.net.op("Transpose", k, perm=[0, 1, 3, 2]), v))

    def attend_grouped(self) -> None:
        """Several heads of queries share the keys and values of one."""
        x = self.sequence()
        if x is None:
            return
        groups, each, size = self.int(1, 2), self.int(1, 3), self.int(1, 3)
        n, t, _ = self.shape(x)
        q = self.heads(self.project(x, groups * each * size), groups * each)
        shared = []
        for _ in range(2):
            y = self.net.unsqueeze(self.heads(self.project(x, groups * size), groups), [2])
            target = self.net.ints(n, groups, each, t, size)
            shared.append(self.net.reshape(self.net.op("Expand", y, target), n, groups * each, t, size))
        self.keep(self.attended(q, self.net.op("Transpose", shared[0], perm=[0, 1, 3, 2]), shared[1]))

    def attend_at_once(self) -> None:
        """The operator that newer opsets have for it, maybe on rotated heads; heads on an axis or side by side."""
        x = self.sequence()
        if x is None or not self.knows("Attention"):
            return
        groups, each, size = self.int(1, 2), self.int(1, 2), 2 * self.int(1, 2)
        count = groups * each
        t = self.shape(x)[1]
        q, k, v = (self.project(x, heads * size) for heads in (count, groups, groups))
        caches = [self.net.weight(self.net.normal(1, t, size // 2)) for _ in range(2)]
        if self.flag():
            q = self.net.op("RotaryEmbedding", q, *self.repeated(caches, x), num_heads=count) if self.flag() else q
            self.keep(self.project(self.net.op("Attention", q, k, v, q_num_heads=count, kv_num_heads=groups), 8))
            return
        q, k, v = (self.heads(y, heads) for y, heads in ((q, count), (k, groups), (v, groups)))
        k = self.net.op("RotaryEmbedding", k, *self.repeated(caches, x)) if self.flag() else k
        mask = [self.net.weight(self.net.normal(*self.pick([(count, t, t), (1, t, t), (t, t)])))] * self.choose(2)
        n = self.shape(x)[0]
        (y,) = self.net.ops("Attention", q, k, v, *mask, shapes=[(n, count, t, size)])
        self.keep(self.project(self.net.reshape(self.net.op("Transpose", y, perm=[0, 2, 1, 3]), n, t, -1), 8))

    def repeated(self, caches: list[str], x: str) -> list[str]:
        """Sines and cosines for each element of the batch."""
        shape = self.shape(x)[0], *self.shape(caches[0])[1:]
        return [self.net.weight(np.broadcast_to(self.net.constants[name], shape)) for name in caches]

    # Contractions

    def einsum(self) -> None:
        """A constant operand, by rank of the other."""
        x = self.tensor(good=lambda s: len(s) in (2, 3, 4))
        if x is None or self.net.opset < 12:
            return
        shape = self.shape(x)
        data = "abcd"[: len(shape)]
        letter = self.pick(data)
        rest = data.replace(letter, "")
        kind = self.pick(["right", "left", "implicit", "replace", "scale", "two", "diagonal", "heads"])
        size, made = shape[data.index(letter)], self.pick(_CHANNELS)
        forms = {
            "right": ((size, made), f"{data},{letter}z->{rest}z"),
            "left": ((made, size), f"{data},z{letter}->z{rest}"),
            "implicit": ((size, made), f"{data},{letter}z"),
            "replace": ((made, size), f"{data},z{letter}->{data.replace(letter, 'z')}"),
            "scale": ((size,), f"{data}, {letter} -> {data}"),
            "two": ((shape[0], shape[1], made), f"{data},abz->{data[2:]}z"),
            "diagonal": ((made, size), f"...{letter},z{letter}->...z"),
            "heads": ((size, 2, made), f"{data},{letter}yz->{rest}yz"),
        }
        weight, equation = forms[kind]
        if kind == "diagonal":
            letter = data[-1]
            weight, equation = (made, shape[-1]), f"...{letter},z{letter}->...z"
        self.keep(
            self.net.op("Einsum", x, self.hidden(self.net.normal(*weight)), equation=equation, name=self.name(""))
        )

    def einsum_of_two(self) -> None:
        x = self.tensor(3)
        if x is None or self.net.opset < 12:
            return
        y = self.tensor(3, lambda s: s == self.shape(x)) or x
        equations = ["bij,bij->bij", "bij,bkj->bik", "bij,bij->bj", "bij,bik->bjk", "bij,bij->jib", "bij,bij"]
        self.keep(self.net.op("Einsum", x, y, equation=self.pick(equations)))

    # Embeddings

    def embedding(self) -> None:
        name = f"ids{len(self.net.nodes)}"
        ids = self.net.input(name, (1, self.int(1, 5)), TensorProto.INT64)
        self.keep(self.net.op("Gather", self.hidden(self.net.normal(11, self.pick(_CHANNELS))), ids))

    def positions(self) -> None:
        """A constant table added to a sequence; and the first token of it."""
        x = self.tensor(3)
        if x is not None:
            y = self.net.op("Add", x, self.hidden(self.net.normal(*self.shape(x)[1:])))
            self.keep(y, *([self.net.op("Gather", y, self.net.weight(np.int64(0)), axis=1)] * self.choose(2)))
