"""Random operators that treat every element alike, or that look along some axis."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from tests.analysis.operator_cases import COMPARISONS, FLOAT_UNARY, LOGIC, REDUCTIONS
from tests.properties.layers import Layers

_DOMAINS = {
    **dict.fromkeys(["Acos", "Asin"], "Sin"),
    **dict.fromkeys(["Cosh", "Exp", "Sinh", "Tan"], "Tanh"),
    **dict.fromkeys(["Log", "Reciprocal", "Sqrt", "Acosh"], "above"),
    "Atanh": "half",
}
"""What brings numbers to where an operator is defined, and not too steep."""
_SPATIAL = ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
_MIXED = ("Hardmax", "LpNormalization", "LRN", "MeanVarianceNormalization")

WEIGHTS = {
    "any_unary": 4, "arithmetic": 2, "comparison": 1, "logic": 1, "bits": 1, "cast": 1, "chosen": 1, "any_reduce": 1,
    "arg_reduce": 1, "any_pool": 1, "along": 1, "sampled": 1, "regions": 1, "mixing": 1, "contributed": 1,
    "contributed_bias": 1,
}  # fmt: skip
"""Steps of this module, with how often they are drawn."""


class Pointwise(Layers):
    """Adds operators on single elements, on pairs of tensors and along axes."""

    def within(self, x: str, domain: str) -> str:
        """Numbers brought into the domain of an operator."""
        if domain == "above":
            return self.net.op("Add", self.net.op("Abs", x), self.net.weight(np.float32(1.25)))
        if domain == "half":
            return self.net.op("Mul", self.net.op("Tanh", x), self.net.weight(np.float32(0.5)))
        return self.net.op(domain, x)

    def any_unary(self) -> None:
        op_type = self.pick([name for name in (*FLOAT_UNARY, "Swish") if self.knows(name)])
        x = self.tensor(4 if op_type in _SPATIAL else None)
        if x is not None:
            x = self.within(x, _DOMAINS[op_type]) if op_type in _DOMAINS else x
            self.keep(self.net.op(op_type, x, name=self.name(op_type)))

    def pair(self) -> tuple[str, str] | None:
        """Two tensors of equal shape, or a tensor and something that it can be compared with."""
        x = self.tensor()
        if x is None:
            return None
        shape = self.shape(x)
        other = self.tensor(len(shape), lambda s: s == shape)
        small = self.net.weight(self.net.normal(*(d if self.flag() else 1 for d in shape)))
        return x, self.pick([other or small, small])

    def arithmetic(self) -> None:
        operands = self.pair()
        if operands is None:
            return
        x, y = operands
        op_type = self.pick(["Div", "Mean", "Pow", "PRelu"])
        if op_type == "Pow":
            x, y = self.within(x, "above"), self.net.op("Tanh", y)
        elif op_type == "Div":
            y = self.within(y, "above")
        self.keep(self.net.op(op_type, *([x, y, x] if op_type == "Mean" and self.flag() else [x, y])))

    def as_float(self, x: str) -> str:
        return self.net.op("Cast", x, to=TensorProto.FLOAT)

    def comparison(self) -> None:
        operands = self.pair()
        op_type = self.pick([name for name in COMPARISONS if self.knows(name)])
        if operands is not None and ("Equal" not in op_type or self.net.opset >= 12):
            shape = np.broadcast_shapes(*(self.shape(x) for x in operands))
            (y,) = self.net.ops(op_type, *operands, shapes=[shape], elem_type=TensorProto.BOOL)
            self.keep(self.as_float(y))

    def logic(self) -> None:
        operands = self.pair()
        if operands is None:
            return
        zero = self.net.weight(np.float32(0))
        a, b = (self.net.op("Greater", x, zero) for x in operands)
        y = self.net.op(self.pick(LOGIC), a, b)
        self.keep(self.as_float(self.net.op("Not", y) if self.flag() else y))

    def bits(self) -> None:
        operands = self.pair()
        if operands is None:
            return
        a, b = (self.net.op("Cast", self.net.op("Mul", x, self.net.constant(40.0)), to=6) for x in operands)
        kind = self.pick(["Mod", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot"])
        if kind == "BitShift" and self.knows(kind):
            whole = self.net.op("Cast", self.net.op("Abs", a), to=TensorProto.UINT32)
            left = self.net.op(kind, whole, self.net.weight(np.uint32(2)), direction=self.pick(["LEFT", "RIGHT"]))
            self.keep(self.as_float(left))
        elif kind == "Mod" and self.knows(kind):
            self.keep(self.as_float(self.net.op(kind, a, self.net.weight(np.int32(7)))))
        elif kind == "BitwiseNot" and self.knows(kind):
            self.keep(self.as_float(self.net.op(kind, a)))
        elif self.knows(kind):
            self.keep(self.as_float(self.net.op(kind, a, b)))

    def cast(self) -> None:
        """Another element type and back; or whether numbers are none."""
        x = self.tensor()
        if x is not None:
            kind = self.pick(["double", "double", "IsNaN", "IsInf"])
            if kind == "double":
                self.keep(self.as_float(self.net.op("Neg", self.net.op("Cast", x, to=TensorProto.DOUBLE))))
            elif self.knows(kind):
                self.keep(self.as_float(self.net.op(kind, x)))

    def chosen(self) -> None:
        """Where with a condition that is computed."""
        operands = self.pair()
        if operands is not None:
            condition = self.net.op("Greater", operands[0], self.net.weight(np.float32(0.1)))
            self.keep(self.net.op("Where", condition, *self.permuted(operands)))

    # Along axes

    def any_reduce(self) -> None:
        x = self.tensor(good=lambda s: len(s) > 2)
        if x is None:
            return
        rank, op_type = len(self.shape(x)), f"Reduce{self.pick(REDUCTIONS)}"
        axes = self.pick([[rank - 1], [rank - 2, rank - 1], [1], [1, rank - 1], [0]])
        if "Log" in op_type:
            x = self.within(x, "above")
        self.keep(self.net.reduce(op_type, x, axes, int(self.flag())))

    def arg_reduce(self) -> None:
        x = self.tensor(good=lambda s: len(s) > 1)
        if x is not None:
            axis, op_type = self.int(0, len(self.shape(x)) - 1), self.pick(["ArgMax", "ArgMin"])
            self.keep(self.as_float(self.net.op(op_type, x, axis=axis, keepdims=self.choose(2))))

    def any_pool(self) -> None:
        x = self.tensor(4, lambda s: min(s[2:]) >= 2)
        if x is not None:
            op_type = self.pick(["LpPool", "AveragePool", "MaxPool"])
            self.keep(self.net.op(op_type, x, kernel_shape=[2, 1], pads=[1, 0, 0, 0]))

    def along(self) -> None:
        """TopK, CumSum and Trilu on any axis."""
        x = self.tensor(good=lambda s: len(s) >= 2)
        if x is None:
            return
        axis, kind = self.int(0, len(self.shape(x)) - 1), self.pick(["TopK", "CumSum", "Trilu"])
        if kind == "TopK" and self.net.opset >= 10:
            count = self.net.ints(self.int(1, self.shape(x)[axis]))
            self.keep(self.net.ops("TopK", x, count, outputs=2, axis=axis)[0])
        elif kind == "CumSum" and self.knows(kind):
            self.keep(self.net.op("CumSum", x, self.net.weight(np.int64(axis)), reverse=self.choose(2)))
        elif self.knows("Trilu"):
            self.keep(self.net.op("Trilu", x, upper=self.choose(2)))

    def sampled(self) -> None:
        x = self.tensor(4)
        if x is not None and self.net.opset >= 16:
            grid = self.net.random.uniform(-1, 1, (self.shape(x)[0], 2, 3, 2))
            self.keep(self.net.op("GridSample", x, self.net.weight(grid)))

    def regions(self) -> None:
        x = self.tensor(4, lambda s: s[2:] == (4, 4))
        if x is None:
            return
        if self.net.opset >= 10 and self.flag():
            boxes = self.net.weight(np.array([[0, 0, 2, 2], [1, 1, 3, 3]], np.float32))
            self.keep(self.net.op("RoiAlign", x, boxes, self.net.ints(0, 0)))
        else:
            boxes = self.net.weight(np.array([[0, 0, 0, 2, 2]], np.float32))
            self.keep(self.net.op("MaxRoiPool", x, boxes, pooled_shape=[2, 2]))

    def mixing(self) -> None:
        """Operators that mix along one axis, and normalisation over given axes."""
        op_type = self.pick(_MIXED)
        x = self.tensor(4)
        if x is None:
            return
        axis = self.int(0, 3)
        if op_type == "MeanVarianceNormalization":
            y = self.within(self.net.op("MatMul", x, self.net.weight(self.net.normal(self.shape(x)[3], 6))), "Sin")
            shape = self.shape(y)
            self.keep(self.net.ops(op_type, y, shapes=[shape], axes=self.pick([[2, 3], [0, 2, 3], [1]]))[0])
        elif op_type == "LRN":
            self.keep(self.net.op(op_type, x, size=3))
        elif op_type == "LpNormalization":
            self.keep(self.net.op(op_type, self.within(x, "above"), axis=axis))
        else:
            self.keep(self.net.op(op_type, x, axis=axis))

    # com.microsoft

    def contributed(self) -> None:
        x = self.tensor()
        if x is not None:
            op_type = self.pick(["Gelu", "QuickGelu"])
            self.keep(*self.net.ops(op_type, x, domain="com.microsoft", shapes=[self.shape(x)]))

    def contributed_bias(self) -> None:
        x = self.tensor(good=lambda s: len(s) >= 2)
        if x is not None:
            bias = self.hidden(self.net.normal(self.shape(x)[-1]))
            op_type = self.pick(["BiasGelu", "FastGelu"])
            inputs = [x] if op_type == "FastGelu" and self.flag() else [x, bias]
            self.keep(*self.net.ops(op_type, *inputs, domain="com.microsoft", shapes=[self.shape(x)]))
