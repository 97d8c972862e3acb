"""A hypothesis strategy for graphs: whatever may carry, mix, cut or join channels, in any combination."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
from hypothesis import reject
from hypothesis import strategies as st
from onnx import TensorProto, helper

from tests.builders import Net
from tests.properties import (
    contributed,
    experts,
    lengths,
    made,
    placed,
    pointwise,
    quantised,
    recurrences,
    regrouping,
    sequences,
)
from tests.properties.bodies import outlined
from tests.properties.layers import _CHANNELS, _OPSETS, Choose, Layers


class Grower(
    pointwise.Pointwise,
    regrouping.Regrouping,
    contributed.Contributed,
    quantised.Quantised,
    made.Made,
    experts.Experts,
    placed.Placed,
    lengths.Lengths,
    Layers,
):
    """Adds operators that join and cut, too, one random step at a time."""

    def grow(self, themes: Sequence[Mapping[str, int]]) -> None:
        theme = self.pick(themes)
        getattr(self, self.pick([step for step, weight in theme.items() for _ in range(weight)]))()

    # Joining and cutting

    def concat(self) -> None:
        x = self.tensor(4)
        if x is None:
            return
        n, _, h, w = self.shape(x)
        operands = [x]
        for _ in range(self.int(1, 2)):
            kind = self.pick(["other", "other", "same", "constant", "conv"])
            other = self.tensor(4, lambda s: (s[0], *s[2:]) == (n, h, w)) if kind == "other" else x
            if kind == "constant":
                other = self.hidden(self.net.normal(n, self.int(1, 5), h, w))
            elif kind == "conv":
                other = self.net.conv(x, self.pick(_CHANNELS))
            operands.append(other or x)
        self.keep(self.net.op("Concat", *self.permuted(operands), axis=self.axis(1, 4)))

    def concat_space(self) -> None:
        x = self.tensor(4)
        if x is not None:
            y = self.tensor(4, lambda s: s == self.shape(x)) or x
            self.keep(self.net.op("Concat", x, y, axis=self.int(2, 3)))

    def pad(self) -> None:
        x = self.tensor(4)
        if x is None:
            return
        if self.flag():
            self.keep(self.net.pad(x, [0, self.int(0, 2), 0, 0, 0, self.int(0, 3), 0, 0]))
        else:
            space = [self.int(0, 1) for _ in range(4)]
            mode = "constant" if min(self.shape(x)[2:]) < 2 else self.pick(["constant", "reflect", "edge"])
            self.keep(self.net.pad(x, [0, 0, *space[:2], 0, 0, *space[2:]], mode))

    def slice(self) -> None:
        x = self.tensor(good=lambda s: len(s) >= 2 and s[1] > 1)
        if x is None:
            return
        channels = self.shape(x)[1]
        start = self.int(0, channels - 1)
        end = self.int(start + 1, channels)
        if self.net.opset >= 10 and self.flag():
            start, end = start - channels, self.pick([end, 2**31 - 1])
        axes, starts, ends = [self.axis(1, len(self.shape(x)))], [start], [end]
        if self.net.opset >= 10 and self.flag() and len(self.shape(x)) == 4:
            axes, starts, ends = [3, *axes], [0, *starts], [max(1, self.shape(x)[3] - 1), *ends]
        steps = self.pick([(), (), (), [1] * len(axes), [1] * (len(axes) - 1) + [2]])
        self.keep(self.net.slice(x, axes, starts, ends, () if self.net.opset < 10 else steps))

    def middle(self) -> None:
        """A range with channels on both sides, beside readers of the whole tensor."""
        x = self.tensor(4, lambda s: s[1] > 3)
        if x is not None:
            self.keep(self.net.slice(x, [1], [1], [self.shape(x)[1] - 1]))

    def split(self) -> None:
        x = self.tensor(good=lambda s: len(s) >= 2 and s[1] > 1)
        if x is None:
            return
        channels = self.shape(x)[1]
        first = self.int(1, channels - 1)
        sizes = [first, channels - first]
        if sizes[1] > 1 and self.flag():
            sizes[1:] = [1, sizes[1] - 1]
        if self.net.opset >= 18 and self.flag():
            count = self.pick([n for n in range(2, channels + 1) if -(-channels // n) * (n - 1) < channels])
            parts = self.net.ops("Split", x, outputs=count, axis=1, num_outputs=count)
        else:
            parts = self.net.split(x, sizes, self.axis(1, len(self.shape(x))))
        self.keep(*self.permuted(parts))

    def swap_halves(self) -> None:
        x = self.tensor(4, lambda s: s[1] > 1)
        if x is not None:
            first = self.int(1, self.shape(x)[1] - 1)
            a, b = self.net.split(x, [first, self.shape(x)[1] - first])
            self.keep(self.net.op("Concat", b, a, axis=1))

    # Other shapes

    def resize(self) -> None:
        x = self.tensor(4, lambda s: s[2] * s[3] <= 25)
        if x is None or self.net.opset < 11:
            return
        n, c, h, w = self.shape(x)
        by_size = self.flag()
        mode = self.pick(["nearest", "linear"])
        if by_size:
            last = ["", "", self.net.ints(n, c, h * 2, w + 1)]
        else:
            last = ["", self.net.weight(np.array([1, 1, 2, 1.5], dtype=np.float32))]
        last[0] = self.net.weight(np.zeros(0, dtype=np.float32)) if self.net.opset < 13 else ""
        if by_size and self.net.opset < 13:
            last[1] = last[0]
        self.keep(self.net.op("Resize", x, *last, mode=mode))

    def to_last(self) -> None:
        """Channels last, something there, and back."""
        x = self.tensor(4)
        if x is None:
            return
        y = self.net.op("Transpose", x, perm=[0, 2, 3, 1])
        for _ in range(self.int(0, 2)):
            y = self.linear_on(y)
        self.keep(self.net.op("Transpose", y, perm=[0, 3, 1, 2]))

    def linear_on(self, x: str) -> str:
        """A matrix on either side, a bias, or an activation."""
        kind = self.pick(["right", "right", "left", "bias", "Relu", "Softmax"])
        *_, rows, columns = self.shape(x)
        if kind == "right":
            return self.net.op(
                "MatMul", x, self.hidden(self.net.normal(columns, self.pick(_CHANNELS))), name=self.name("")
            )
        if kind == "left":
            return self.net.op("MatMul", self.hidden(self.net.normal(self.int(1, 4), rows)), x, name=self.name(""))
        if kind == "bias":
            return self.net.op("Add", self.net.weight(self.net.normal(columns)), x)
        return self.net.op(kind, x)

    def linear(self) -> None:
        x = self.tensor(good=lambda s: len(s) >= 2)
        if x is not None:
            self.keep(self.linear_on(x))

    def transpose(self) -> None:
        x = self.tensor(good=bool)
        if x is not None:
            self.keep(self.net.op("Transpose", x, perm=self.permuted(range(len(self.shape(x))))))

    def flatten(self) -> None:
        x = self.tensor(4)
        if x is None:
            return
        if self.flag():
            x = self.net.op("Transpose", x, perm=[0, 2, 3, 1])
        axis = self.pick([1, 1, 1, 2, 0])
        self.keep(self.net.op("Flatten", x, axis=axis))

    def gemm(self) -> None:
        x = self.tensor(2)
        if x is None:
            return
        rows, columns = self.shape(x)
        trans_a, trans_b = int(self.pick([0, 0, 1])), int(self.flag())
        read, kept = (rows, columns) if trans_a else (columns, rows)
        out = self.pick(_CHANNELS)
        weight = self.hidden(self.net.normal(*((out, read) if trans_b else (read, out))))
        inputs = [x, weight]
        bias = self.pick([None, (out,), (1,), (1, out), (kept, 1), (kept, out), ()])
        if bias is not None or self.net.opset < 11:
            inputs.append(self.hidden(self.net.normal(*(bias or ()))))
        self.keep(self.net.op("Gemm", *inputs, transA=trans_a, transB=trans_b, alpha=0.5, name=self.name("Gemm")))

    def tokens(self) -> None:
        """(n, c, h, w) as a sequence, either way around."""
        x = self.tensor(4)
        if x is not None:
            n, c, h, w = self.shape(x)
            y = self.net.reshape(x, *self.pick([(n, c, h * w), (0, 0, -1), (n, -1, h * w), (n, c, -1)]))
            self.keep(self.net.op("Transpose", y, perm=[0, 2, 1]) if self.flag() else y)

    def from_tokens(self) -> None:
        x = self.tensor(3)
        if x is not None:
            n, a, b = self.shape(x)
            self.keep(self.net.reshape(x, *self.pick([(n, a, b, 1), (n, a, 1, b), (0, 0, 0, 1), (n, a * b), (0, -1)])))

    def reshape(self) -> None:
        """Merges and splits of axes."""
        x = self.tensor(4)
        if x is None:
            return
        n, c, h, w = self.shape(x)
        targets = [
            (n, c * h, w),
            (n, c * h * w),
            (n * c, h, w),
            (-1, h * w),
            (0, -1),
            (n, c, h * w, 1),
            (1, n, c, h, w),
        ]
        targets += [(n, g, c // g, h, w) for g in range(2, c) if c % g == 0]
        self.keep(self.net.reshape(x, *self.pick(targets)))

    def attention(self) -> None:
        x = self.tensor(3, lambda s: s[1] * s[2] <= 256)
        if x is not None:
            other = self.net.op("Transpose", x, perm=[0, 2, 1])
            self.keep(self.net.op("MatMul", x, other))

    def squeeze(self) -> None:
        x = self.tensor(4, lambda s: s[0] > 1 and s[1] > 1 and s[2:] == (1, 1))
        if x is None:
            x = self.tensor(4, lambda s: s[1] > 1)
            x = x and self.net.op("GlobalAveragePool", x)
        if x is None or self.shape(x)[0] == 1:
            self.keep(x and self.net.squeeze(x, [2, 3]))
        else:
            self.keep(self.net.squeeze(x, self.pick([[], [2, 3], [self.axis(3, 4)]])))

    def unsqueeze(self) -> None:
        x = self.tensor(good=lambda s: len(s) in (2, 3))
        if x is not None:
            self.keep(self.net.unsqueeze(x, [2, 3] if len(self.shape(x)) == 2 else [self.int(0, 3)]))

    # Operators that the analysis does not know, and subgraphs

    def unknown(self) -> None:
        x = self.tensor(4)
        if x is not None:
            every = self.net.weight(np.ones(self.shape(x)[1], dtype=bool))
            self.keep(*self.net.ops("Compress", x, every, axis=1, shapes=[self.shape(x)]))

    def branch(self) -> None:
        """An If whose bodies read a tensor of the outer graph."""
        x = self.tensor(4)
        if x is None:
            return
        shape = self.shape(x)
        bodies = [
            helper.make_graph(
                [helper.make_node(op_type, [x], [f"{op_type}_{x}_{len(self.net.nodes)}"])],
                "body",
                [],
                [helper.make_tensor_value_info(f"{op_type}_{x}_{len(self.net.nodes)}", TensorProto.FLOAT, shape)],
            )
            for op_type in ("Relu", "Neg")
        ]
        condition = self.net.weight(np.bool_(self.flag()))
        (y,) = self.net.ops("If", condition, shapes=[shape], then_branch=bodies[0], else_branch=bodies[1])
        self.keep(y)


WEIGHTS = {
    "conv": 6, "two": 4, "concat": 4, "reader": 3, "unary": 3, "gemm": 3, "depthwise": 2, "slice": 2, "split": 2,
    "normalise": 2, "pool": 2, "global_pool": 2, "pad": 2, "with_constant": 2, "flatten": 2, "linear": 2, "conv_1d": 1,
    "grouped_conv": 1, "conv_transpose": 1, "squeeze_excite": 1, "clip": 1, "prelu": 1, "spread": 1, "where": 1,
    "softmax": 1, "layer_norm": 1, "reduce": 1, "concat_space": 1, "middle": 1, "swap_halves": 1, "resize": 1,
    "to_last": 1, "transpose": 1, "tokens": 1, "from_tokens": 1, "reshape": 1, "attention": 1, "squeeze": 1,
    "unsqueeze": 1, "unknown": 1, "branch": 1,
}  # fmt: skip
"""Steps of this module and of Layers, with how often they are drawn."""

_FIRST_OUTLINED = 11
"""The opset from which on parts of a graph may move into bodies: earlier ones know other forms of Scan and Less."""

THEMES = [
    WEIGHTS,
    WEIGHTS,
    pointwise.WEIGHTS,
    regrouping.WEIGHTS,
    sequences.WEIGHTS,
    recurrences.WEIGHTS,
    quantised.WEIGHTS,
    lengths.WEIGHTS,
    contributed.WEIGHTS,
    made.WEIGHTS,
    experts.WEIGHTS,
    placed.WEIGHTS,
]
"""Each is drawn equally often; the first, of what most models are made of, twice."""


Case = tuple[onnx.ModelProto, dict[str, tuple[int, ...]]]
"""A model and the shapes to feed it."""


@st.composite
def models(draw: Callable[[st.SearchStrategy], object], most_steps: int = 12) -> Case:
    """Valid and small models with one or more inputs and any number of outputs; with shapes to feed them."""
    try:
        return grown(lambda below: draw(st.integers(0, below - 1)), most_steps)
    except onnx.shape_inference.InferenceError:  # computed sizes that onnx itself fails to follow
        reject()


def grown(choose: Choose, most_steps: int = 12) -> Case:
    """A model by any source of choices."""
    drawer = Layers(choose, Net())
    opset = drawer.pick(_OPSETS)
    ir_version = drawer.pick([4, 3]) if opset == 9 else 8 if opset < 18 else 10 if opset < 23 else 12
    net = Net(opset=opset, ir_version=ir_version, seed=drawer.int(0, 99))
    grower = Grower(choose, net)
    batch, size = grower.pick([1, 1, 2]), grower.pick([1, 2, 4, 4, 5])
    for index in range(grower.pick([1, 1, 1, 2, 3])):
        grower.keep(net.input(f"input{index}", (batch, grower.pick([1, 2, 3, 8, 16]), size, size)))
    grower.conv()
    grower.reader()
    themes = grower.pick([THEMES, THEMES, *([WEIGHTS, theme] for theme in THEMES[2:])])
    for _ in range(grower.int(1, most_steps)):
        grower.grow(themes)
    net.output(*_leaves(grower))
    if grower.choose(6) == 5 and net.ir_version > 3:
        net.declare(grower.pick(sorted(net.constants.keys() & net.initializers.keys())))
    model = net.model()
    if net.opset >= _FIRST_OUTLINED and not grower.choose(4):
        model = outlined(model, grower.choose)
    if grower.flag():
        model = onnx.shape_inference.infer_shapes(model)
    _declare_contributed(model, net)
    unknown = grower.pick([(), (), (0,), (2, 3), (0, 2, 3), (0, 1, 2, 3)])
    return _loosened(model, unknown), net.shapes


def _leaves(grower: Grower) -> list[str]:
    """What becomes an output: all that nothing reads or the last of it, mostly behind a reader, maybe more."""
    read = {name for node in grower.net.nodes for name in node.input}
    made = [name for name in grower.tensors if not name.startswith(("input", "ids"))]
    leaves = [name for name in made if name not in read]
    leaves = leaves[-1:] if grower.flag() else leaves
    leaves = [name if not grower.choose(4) else grower.head(name) for name in leaves]
    leaves += [grower.pick(made)] if not grower.choose(4) else []
    return list(dict.fromkeys(leaves))


def _declare_contributed(model: onnx.ModelProto, net: Net) -> None:
    """Shape inference knows nothing of other domains; models that hold their operators declare what these make."""
    known = {value.name for value in (*model.graph.value_info, *model.graph.output)}
    for name in (name for node in model.graph.node if node.domain for name in node.output):
        if name not in known:
            model.graph.value_info.append(
                helper.make_tensor_value_info(name, net.elem_type(name), list(net.shapes[name]))
            )


def _loosened(model: onnx.ModelProto, axes: tuple[int, ...]) -> onnx.ModelProto:
    """The same model, if it is valid, with unknown lengths on some axes of its inputs: the analysis then knows less."""
    loose = onnx.ModelProto()
    loose.CopyFrom(model)
    stored = {tensor.name for tensor in model.graph.initializer}
    for value in loose.graph.input:
        if value.name not in stored:
            for axis in (a for a in axes if a < len(value.type.tensor_type.shape.dim)):
                shared = value.name.startswith("input") and axis != 1  # the same length means the same name
                value.type.tensor_type.shape.dim[axis].dim_param = "NCHW"[axis] if shared else f"{value.name}_{axis}"
    del loose.graph.value_info[:]
    for value in loose.graph.output:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            dim.dim_param = f"{value.name}_{axis}"
    if not axes:
        return model
    try:
        onnx.checker.check_model(loose, full_check=True)
    except onnx.shape_inference.InferenceError:
        return model
    return loose
