"""Random layers whose weights have more than two axes: experts side by side, heads that are made and read as axes."""

from __future__ import annotations

from tests.properties.layers import _CHANNELS
from tests.properties.sequences import Sequences

WEIGHTS = {
    "batched_experts": 3, "summed_experts": 2, "stacked_left": 1, "heads_as_axes": 3, "ellipsis": 2,
    "several_summed": 2,
}  # fmt: skip
"""Steps of this module, with how often they are drawn."""


class Experts(Sequences):
    """Adds products with a matrix for each of many, and contractions over several axes."""

    def contracted(self, equation: str, *inputs: str) -> str:
        return self.net.op("Einsum", *inputs, equation=equation, name=self.name("Einsum"))

    def batched_experts(self) -> None:
        """Every token through every expert, and the sum; the data may have an axis for experts already."""
        x = self.sequence()
        if x is None:
            return
        n, _, channels = self.shape(x)
        count, hidden, out = self.int(1, 3), self.int(1, 6), self.pick(_CHANNELS)
        y = self.net.unsqueeze(x, [1]) if self.flag() or n != 1 else x
        lead = self.pick([(count,), (1, count), (1,)])
        up = self.net.op("MatMul", y, self.hidden(self.net.normal(*lead, channels, hidden)), name=self.name("MatMul"))
        up = self.net.op("Relu", up)
        down = self.hidden(self.net.normal(*lead, hidden, out))
        y = self.net.op("MatMul", up, down, name=self.name("MatMul"))
        if self.flag():
            y = self.net.op("Mul", y, self.net.weight(self.net.normal(lead[-1], 1, 1)))
        self.keep(self.net.reduce("ReduceSum", y, [len(self.shape(y)) - 3], 0) if self.flag() else y)

    def stacked_left(self) -> None:
        """A matrix for each of many on the left: for each sample, or each channel."""
        x = self.tensor(good=lambda s: len(s) in (3, 4))
        if x is not None:
            *lead, rows, _ = self.shape(x)
            shape = self.pick([lead[-1:], lead, [1], [2] if lead[-1] == 1 else lead[-1:]])
            weight = self.hidden(self.net.normal(*shape, self.int(1, 4), rows))
            self.keep(self.net.op("MatMul", weight, x, name=self.name("MatMul")))

    def summed_experts(self) -> None:
        """Experts and their hidden units, both summed over at once; the experts maybe weighted, or mixed before."""
        x = self.sequence()
        if x is None or self.net.opset < 12:
            return
        channels, count, hidden = self.shape(x)[2], self.int(1, 3), self.int(1, 6)
        up = self.contracted("blc,ecf->blef", x, self.hidden(self.net.normal(count, channels, hidden)))
        kind = self.pick(["plain", "weighted", "mixed"])
        if kind == "weighted":
            gate = self.net.op("Softmax", self.project(x, count), axis=2)
            up = self.net.op("Mul", up, self.net.unsqueeze(gate, [3]))
        elif kind == "mixed":
            up = self.net.op("Softmax", up, axis=2)
        self.keep(self.contracted("blef,efd->bld", up, self.hidden(self.net.normal(count, hidden, self.int(1, 8)))))

    def heads_as_axes(self) -> None:
        """Attention whose heads are never merged with their channels: Keras and JAX export it so."""
        x = self.sequence()
        if x is None or self.net.opset < 12:
            return
        channels, count, size, wide = self.shape(x)[2], self.int(1, 4), self.int(1, 4), self.int(1, 4)
        q, k, v = (
            self.contracted("bsm,mhd->bshd", x, self.hidden(self.net.normal(channels, count, width)))
            for width in (size, size, wide)
        )
        if self.flag():
            v = self.net.op("Add", v, self.net.weight(self.net.normal(count, wide)))
        scores = self.net.op("Softmax", self.contracted("bqhd,bkhd->bhqk", q, k), axis=3)
        y = self.contracted("bhqk,bkhd->bqhd", scores, v)
        self.keep(self.contracted("bqhd,hdm->bqm", y, self.hidden(self.net.normal(count, wide, self.pick(_CHANNELS)))))

    def ellipsis(self) -> None:
        x = self.tensor(good=lambda s: len(s) >= 2)
        if x is None or self.net.opset < 12:
            return
        size, made = self.shape(x)[-1], self.pick(_CHANNELS)
        equation, shape = self.pick(
            [("...d,dh->...h", (size, made)), ("...d,hd", (made, size)), ("...d,hd->h...", (made, size))]
        )
        self.keep(self.contracted(equation, x, self.hidden(self.net.normal(*shape))))

    def several_summed(self) -> None:
        """Two of three axes summed over, of which any may be the one that a mask is for."""
        x = self.tensor(3)
        if x is None or self.net.opset < 12:
            return
        _, b, c = self.shape(x)
        made = self.int(1, 5)
        equation, shape = self.pick(
            [("abc,bcz->az", (b, c, made)), ("abc,cbz->za", (c, b, made)), ("abc,bzc->az", (b, made, c))]
        )
        y = self.contracted(equation, x, self.hidden(self.net.normal(*shape)))
        self.keep(y, self.net.op("Softmax", x, axis=self.int(1, 2)) if self.flag() else None)
