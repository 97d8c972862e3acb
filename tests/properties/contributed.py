"""Random layers as onnxruntime's optimiser writes them, in its own domain."""

from __future__ import annotations

import numpy as np

from tests.properties.layers import _CHANNELS
from tests.properties.recurrences import Recurrences

WEIGHTS = {
    "fused_conv": 3, "fused_gemm": 1, "fused_product": 2, "fused_scores": 1, "skip_norm": 2, "multi_head": 2,
    "with_projections": 1, "feed_forward": 2, "left_alone": 1, "grouped_query": 2,
}  # fmt: skip
"""Steps of this module, with how often they are drawn."""

_ACTIVATIONS = ("Relu", "Sigmoid", "Tanh", "LeakyRelu")


class Contributed(Recurrences):
    """Adds fused layers, norms with a shortcut and attentions."""

    def made(self, op_type: str, *inputs: str, shape: tuple[int, ...], **attributes: object) -> str:
        return self.net.ops(op_type, *inputs, domain="com.microsoft", shapes=[shape], **attributes)[0]

    def fused_conv(self) -> None:
        x = self.tensor(4)
        if x is None:
            return
        n, channels, h, w = self.shape(x)
        out, k = self.pick(_CHANNELS), self.pick([1, 3])
        shape = (n, out, h, w)
        inputs = [x, self.hidden(self.net.normal(out, channels, k, k)), self.net.weight(self.net.normal(out))]
        other = self.tensor(4, lambda s: s == shape)
        if self.flag():
            inputs.append(other or self.net.conv(x, out))
        activation = self.pick(_ACTIVATIONS)
        more = {"activation_params": [0.1]} if activation == "LeakyRelu" else {}
        attributes = {"name": self.name("FusedConv"), "pads": [k // 2] * 4, "activation": activation, **more}
        self.keep(self.made("FusedConv", *inputs, shape=shape, **attributes))

    def fused_gemm(self) -> None:
        x = self.tensor(2, lambda s: s[1] <= 256)
        if x is None:
            return
        (n, channels), out, turned = self.shape(x), self.pick(_CHANNELS), self.choose(2)
        weight = self.net.normal(out, channels) if turned else self.net.normal(channels, out)
        inputs = [x, self.hidden(weight), self.net.weight(self.net.normal(out))]
        attributes = {"name": self.name("FusedGemm"), "transB": turned, "activation": "Relu"}
        self.keep(self.made("FusedGemm", *inputs, shape=(n, out), **attributes))

    def fused_product(self) -> None:
        x = self.sequence()
        if x is None:
            return
        (*lead, channels), out, turned = self.shape(x), self.pick(_CHANNELS), self.choose(2)
        weight = self.hidden(self.net.normal(out, channels) if turned else self.net.normal(channels, out))
        attributes = {"name": self.name("FusedMatMul"), "transB": turned, "alpha": 0.5}
        self.keep(self.made("FusedMatMul", x, weight, shape=(*lead, out), **attributes))

    def fused_scores(self) -> None:
        """Of two activations, either of which may be turned."""
        x = self.sequence()
        if x is None:
            return
        left, right = self.project(x, self.int(1, 8)), self.project(x, self.int(1, 8))
        (n, t, rows), columns = self.shape(left), self.shape(right)[2]
        if self.flag():
            self.keep(self.made("FusedMatMul", left, right, shape=(n, rows, columns), transA=1, transB=0))
        else:
            right = self.project(x, rows)
            self.keep(self.made("FusedMatMul", left, right, shape=(n, t, t), transA=0, transB=1, alpha=0.1))

    def skip_norm(self) -> None:
        x = self.sequence()
        if x is None:
            return
        *lead, width = self.shape(x)
        other = self.project(self.net.op("Relu", self.project(x, self.pick(_CHANNELS))), width)
        op_type = self.pick(["SkipLayerNormalization", "SkipSimplifiedLayerNormalization"])
        count = 2 if op_type == "SkipLayerNormalization" else 1
        parameters = [self.net.weight(self.net.normal(width)) for _ in range(count)]
        self.keep(self.made(op_type, x, other, *parameters, shape=(*lead, width)))

    def feed_forward(self) -> None:
        x = self.sequence()
        if x is not None:
            up = self.project(x, self.pick(_CHANNELS))
            up = self.made("FastGelu", up, shape=self.shape(up))
            self.keep(self.project(up, self.pick(_CHANNELS)))

    def multi_head(self) -> None:
        x = self.sequence()
        if x is None:
            return
        count, size = self.int(1, 4), self.pick([2, 4])
        parts = [self.project(x, count * size) for _ in range(3)]
        n, t, width = self.shape(parts[0])
        if self.flag():
            places = self.net.weight(np.tile(np.arange(t), (n, 1)))
            angles = self.net.normal(t, size // 2)
            tables = [self.net.weight(table) for table in (np.cos(angles), np.sin(angles))]
            parts[:2] = [self.made("RotaryEmbedding", p, places, *tables, shape=(n, t, width)) for p in parts[:2]]
        bias = [self.net.weight(self.net.normal(3 * width))] if self.flag() else []
        y = self.made("MultiHeadAttention", *parts, *bias, shape=(n, t, width), num_heads=count)
        self.keep(self.project(y, self.pick(_CHANNELS)))

    def grouped_query(self) -> None:
        """Heads of keys and values that several of queries share; maybe kept for the next call."""
        x = self.sequence()
        if x is None:
            return
        groups, each, rotary = self.int(1, 2), self.int(1, 2), self.flag()
        size = 16 if rotary else 8
        n, t, _ = self.shape(x)
        parts = [self.project(x, count * size) for count in (groups * each, groups, groups)]
        lengths = [self.net.weight(np.full(n, t - 1, np.int32)), self.net.weight(np.array([t], np.int32))]
        angles = self.net.normal(t, size // 2)
        tables = [self.net.weight(table) for table in (np.cos(angles), np.sin(angles))] if rotary else ["", ""]
        shapes = [(n, t, groups * each * size), *[(n, groups, t, size)] * self.pick([0, 2])]
        y, *presents = self.net.ops(
            "GroupQueryAttention",
            *(*parts, "", "", *lengths, *tables),
            domain="com.microsoft",
            outputs=len(shapes),
            shapes=shapes,
            num_heads=groups * each,
            kv_num_heads=groups,
            do_rotary=int(rotary),
        )
        self.keep(*presents, self.project(y, self.pick(_CHANNELS)))

    def with_projections(self) -> None:
        x = self.sequence()
        if x is None:
            return
        count, size = self.int(1, 4), self.int(1, 4)
        (n, t, channels), width = self.shape(x), count * size
        inputs = [x, self.hidden(self.net.normal(channels, 3 * width)), self.net.weight(self.net.normal(3 * width))]
        attributes = {"num_heads": count, "name": self.name("Attention")}
        self.keep(self.made("Attention", *inputs, shape=(n, t, width), **attributes))

    def left_alone(self) -> None:
        """An operator of which everything stays."""
        x = self.sequence()
        if x is not None:
            *lead, channels = self.shape(x)
            weight = self.net.weight(np.random.default_rng(0).integers(0, 255, (channels, 4)).astype(np.uint8))
            scale, zero = self.net.weight(np.float32(0.01)), self.net.weight(np.uint8(120))
            self.keep(self.made("DynamicQuantizeMatMul", x, weight, scale, zero, shape=(*lead, 4)))
