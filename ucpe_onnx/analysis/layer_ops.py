"""The operators with weights: which input is what, which axes their weights and outputs have, what the runtime does.

A layer operator multiplies its data by a constant weight: a convolution, a Gemm or a matrix product, in real numbers or
in integers. Everything that the package knows about one of them stands in :data:`LAYER_OPS`; rules, counts, prices,
predicted times and passes look it up there. The masked reference has a table of its own, on purpose.

Not in it are operators of which a weight is only part of the story, and whose rules say all there is to say: Einsum
(its equation names the axes), LSTM, GRU and RNN (gates stacked on one axis, a second weight for the hidden units;
:data:`GATES` tells how many gates), and Gather from an embedding (a table that is looked up, by nothing that has
channels).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Any


class Kind(Enum):
    """How a layer operator multiplies; it decides the axes.

    A convolution has its channels on axis 1 of data and output, the others on the last axis, but for a product whose
    weight stands on the left: it reads and makes the last axis but one.
    """

    CONVOLUTION = "convolution"
    """The weight's first two axes are channels, in groups maybe; the others are its window."""
    GEMM = "gemm"
    """Two matrices, each of which an attribute may transpose."""
    PRODUCT = "product"
    """Matrices with leading axes, either of which may be the weight."""


@dataclass(frozen=True)
class Coding:
    """Which inputs say what the integers of an operand stand for: real = (integer - zero point) * scale.

    Attributes:
        scale: the input with the scale; None if the operator takes none and leaves scaling to others.
        zero_point: the input with the zero point; None if the operator takes none.
    """

    scale: int | None = None
    zero_point: int | None = None

    @property
    def inputs(self) -> tuple[int, ...]:
        """The inputs that there are; empty for an operand in real numbers."""
        return tuple(index for index in (self.scale, self.zero_point) if index is not None)


REAL = Coding()
"""Of an operand in real numbers."""


@dataclass(frozen=True)
class LayerOp:
    """What is known of an operator with a weight.

    Attributes:
        op_type: the operator, prefixed with ``domain::`` outside of the standard domain, as in ``Node.op_type``.
        kind: how it multiplies.
        float_form: the operator that does the same in real numbers; of one in real numbers, itself.
        data: the input that it reads channels from.
        weight: the input that is its weight; of a product the other one may be, with :attr:`data` on its right.
        bias: the input with one number for each output channel that is added; None if it takes none.
        bias_optional_since: the first version of the operator set in which the bias may be left out.
        data_coding: of the data's integers. Both numbers are one for all channels.
        weight_coding: of the weight's integers. Both numbers may be one for each output channel.
        output_coding: of the output's integers. Both numbers are one for all channels.
        transposed: a convolution whose weight has the input channels first, and that spreads each input over a window.
        added: the input with a whole feature map that is added to what it makes; None if it takes none.
        activates: it may apply an activation to what it makes, as onnxruntime's optimiser writes layers.
        fuses: onnxruntime has a kernel for it that works on blocks of channels, and does what follows (a normalisation,
            an activation, an Add) in the same go.
    """

    op_type: str
    kind: Kind
    float_form: str
    data: int = 0
    weight: int = 1
    bias: int | None = None
    bias_optional_since: int = 1
    data_coding: Coding = REAL
    weight_coding: Coding = REAL
    output_coding: Coding = REAL
    transposed: bool = False
    added: int | None = None
    activates: bool = False
    fuses: bool = False

    @property
    def name(self) -> str:
        """The operator without its domain."""
        return self.op_type.rpartition("::")[2]

    @property
    def convolution(self) -> bool:
        """Whether it is a convolution."""
        return self.kind is Kind.CONVOLUTION

    @property
    def linear(self) -> bool:
        """Whether layers that read parts of its channels add up to it.

        Forms in integers round what they make, or make integers that something behind them scales.
        """
        return self.real and not self.activates

    @property
    def real(self) -> bool:
        """Whether it works on real numbers."""
        return not self.data_coding.inputs

    @property
    def scalars(self) -> tuple[int, ...]:
        """The inputs that must be one number for all channels: scales and zero points of the data and the output."""
        return self.data_coding.inputs + self.output_coding.inputs

    @property
    def followers(self) -> tuple[int, ...]:
        """The inputs besides the weight that may have one entry for each output channel."""
        return self.weight_coding.inputs + (() if self.bias is None else (self.bias,))

    def coding_of(self, index: int) -> Coding:
        """How the integers of an input are meant."""
        return {self.data: self.data_coding, self.weight: self.weight_coding}.get(index, REAL)

    def bias_name(self, inputs: Sequence[str]) -> str:
        """Which of a node's inputs, given by name, is the bias; "" if it has none."""
        return inputs[self.bias] if self.bias is not None and self.bias < len(inputs) else ""

    def weight_axes(self, attributes: Mapping[str, Any], weight_input: int | None = None) -> tuple[int, int]:
        """The weight's axis over input channels, and the one over output channels.

        Args:
            attributes: the node's, by name.
            weight_input: the input that the weight comes in by, where that may be another than :attr:`weight`.

        Returns:
            Both axes. In a grouped convolution one of them holds the channels of a single group: axis 1.
        """
        if self.kind is Kind.PRODUCT:
            # W @ X reads the columns of W, X @ W its rows, X @ W' its columns again.
            made_first = weight_input not in (None, self.weight) or bool(attributes.get("transB", 0))
        elif self.kind is Kind.GEMM:
            made_first = bool(attributes.get("transB", 0))
        else:
            made_first = not self.transposed
        return (1, 0) if made_first else (0, 1)

    def coded_axis(self, attributes: Mapping[str, Any], rank: int) -> int:
        """The weight's axis along which its scale and zero point may vary: over output channels.

        Args:
            attributes: the node's, by name.
            rank: number of the weight's axes.
        """
        return rank - 1 if self.kind is Kind.PRODUCT else self.weight_axes(attributes)[1]


def _float(op_type: str, kind: Kind, **more: Any) -> LayerOp:
    return LayerOp(op_type, kind, op_type, **more)


_TABLE = (
    _float("Conv", Kind.CONVOLUTION, bias=2, fuses=True),
    _float("ConvTranspose", Kind.CONVOLUTION, bias=2, transposed=True),
    _float("Gemm", Kind.GEMM, bias=2, bias_optional_since=11),
    _float("MatMul", Kind.PRODUCT),
    # What onnxruntime's optimiser makes of them.
    _float("com.microsoft::FusedConv", Kind.CONVOLUTION, bias=2, added=3, activates=True, fuses=True),
    _float("com.microsoft::FusedGemm", Kind.GEMM, bias=2, activates=True),
    _float("com.microsoft::FusedMatMul", Kind.PRODUCT),
    # 8-bit integers into 32-bit ones, which a node behind it scales.
    LayerOp("ConvInteger", Kind.CONVOLUTION, "Conv", data_coding=Coding(None, 2), weight_coding=Coding(None, 3)),
    LayerOp("MatMulInteger", Kind.PRODUCT, "MatMul", data_coding=Coding(None, 2), weight_coding=Coding(None, 3)),
    # 8-bit integers into 8-bit ones.
    LayerOp(
        "QLinearConv",
        Kind.CONVOLUTION,
        "Conv",
        weight=3,
        bias=8,
        data_coding=Coding(1, 2),
        weight_coding=Coding(4, 5),
        output_coding=Coding(6, 7),
        fuses=True,
    ),
    LayerOp(
        "QLinearMatMul",
        Kind.PRODUCT,
        "MatMul",
        weight=3,
        data_coding=Coding(1, 2),
        weight_coding=Coding(4, 5),
        output_coding=Coding(6, 7),
    ),
    LayerOp(
        "com.microsoft::QGemm",
        Kind.GEMM,
        "Gemm",
        weight=3,
        bias=6,
        data_coding=Coding(1, 2),
        weight_coding=Coding(4, 5),
        output_coding=Coding(7, 8),
    ),
)

LAYER_OPS: Mapping[str, LayerOp] = MappingProxyType({op.op_type: op for op in _TABLE})
"""Every operator with a weight that has a fixed place and fixed axes, by its type as in ``Node.op_type``."""

CONVOLUTIONS = frozenset(op.op_type for op in _TABLE if op.convolution)
"""All convolutions."""

FUSING = frozenset(op.op_type for op in _TABLE if op.fuses)
"""Those that work on blocks of channels, and do what follows them."""

BLOCKED = frozenset(op.op_type for op in _TABLE if op.fuses and op.real)
"""Those that onnxruntime may run in its blocked layout, in which channels are filled up to whole blocks."""


GATES: Mapping[str, int] = MappingProxyType({"LSTM": 4, "GRU": 3, "RNN": 1})
"""The recurrent layers, with the numbers that both of their weights make for each hidden unit, one axis for all."""


def channel_axis(op_type: str, rank: int) -> int:
    """The axis of an operator's data, or of its output, that holds channels: 1 for a convolution, else the last.

    Args:
        op_type: an operator with a weight, in the table or not.
        rank: number of the tensor's axes.
    """
    return 1 if op_type in CONVOLUTIONS else rank - 1
