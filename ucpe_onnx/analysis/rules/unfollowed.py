"""Why operators that onnxruntime runs on a CPU are not followed: everything that they touch stays, for these reasons.

``tests/analysis/test_every_kernel.py`` asks onnxruntime itself which operators there are.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_MS = "com.microsoft::"

_BY_REASON: Mapping[str, tuple[str, ...]] = {
    "random numbers for each element": (
        *("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
    ),
    "scales taken from all channels, or given with them": (
        *(
            _MS + op
            for op in ("DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "MatMulInteger16", "MatMulIntegerToFloat")
        ),
        *(_MS + op for op in ("QAttention", "QEmbedLayerNormalization", "QLinearSoftmax", "QLinearWhere")),
    ),
    "scales and zero points in a form of onnxruntime's own": (
        *(_MS + op for op in ("DequantizeLinear", "QLinearConv", "QuantizeLinear")),
    ),
    "weights in blocks of bits": (
        *(_MS + op for op in ("GatherBlockQuantized", "MatMulBnb4", "MatMulFpQ4", "MatMulNBits", "QMoE")),
    ),
    "norm over the width of the embedding": (_MS + "EmbedLayerNormalization",),
    "norm over channels with gates or branches": (
        *(_MS + op for op in ("BranchwiseRMSNorm", "EngramGate", "GatedAdd", "GatedDeltaNet", "GatedRMSNorm")),
        *(_MS + op for op in ("HyperConnectionPostMix", "HyperConnectionPreMix", "LinearAttentionGate")),
    ),
    "experts that a router picks": (*(_MS + op for op in ("MoE", "MoEGroupRouter")),),
    "caches or states that callers know": (
        *(_MS + op for op in ("AttnLSTM", "CausalConvWithState", "DecoderMaskedMultiHeadAttention", "LinearAttention")),
        *(_MS + op for op in ("SparseAttention", "VarlenCausalConvWithState")),
        "TensorScatter",
    ),
    "a search, with networks inside": (
        *(_MS + op for op in ("BeamSearch", "GreedySearch", "Sampling", "WhisperBeamSearch")),
    ),
    "layers inside": ("If", "Loop", "Scan"),
    "channels last": (_MS + "NhwcMaxPool",),
    "rotation in several parts": (_MS + "MRotaryEmbedding",),
    "places or numbers of elements that the run decides": (
        *("Compress", "NonMaxSuppression", "NonZero", "OneHot", "Range", "Size", "Unique", "DynamicSlice", "EyeLike"),
        *(_MS + op for op in ("CropAndResize", "ExpandDims", "GatherND", "GatherPacked", "Pad", "Range", "Unique")),
        *("SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength"),
        *("Optional", "OptionalGetElement", "OptionalHasElement"),
    ),
    "order along axes matters": (
        *("BitCast", "Col2Im", "CumProd", "DFT", "Det", "MaxUnpool", "STFT", "AffineGrid"),
        *(_MS + op for op in ("CDist", "GridSample", "Inverse", "MaxpoolWithMask", "SparseToDenseMatMul", "Trilu")),
        *(_MS + op for op in ("TransposeMatMul", "UnfoldTensor", "WordConvEmbedding", "ConvTransposeWithDynamicPads")),
    ),
    "made of numbers that are no channels": (
        *("BlackmanWindow", "HammingWindow", "HannWindow", "MelWeightMatrix"),
        *(_MS + op for op in ("BifurcationDetector", "DynamicTimeWarping", "MurmurHash3", "NGramHashMapping")),
        *(_MS + op for op in ("NGramRepeatBlock", "SampleOp", "Tokenizer", "VarlenNGramHashMapping")),
        *("RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer"),
    ),
    "copied between devices": ("MemcpyFromHost", "MemcpyToHost"),
    "saved in onnxruntime's blocked layout, which no other processor need have (the level extended does without)": (
        *(
            f"com.microsoft.nchwc::{op}"
            for op in ("AveragePool", "Conv", "GlobalAveragePool", "GlobalMaxPool", "MaxPool")
        ),
        *(f"com.microsoft.nchwc::{op}" for op in ("ReorderInput", "ReorderOutput", "Upsample")),
    ),
}

REASONS: Mapping[str, str] = MappingProxyType({op: reason for reason, ops in _BY_REASON.items() for op in ops})
"""Operator type -> why it is not followed; operators outside of the standard domain as ``domain::type``."""

_CLASSICAL = "ai.onnx.ml::"


def why_not_followed(op_type: str) -> str:
    """Why nothing that an operator touches is followed: its reason, or that there is no rule."""
    if op_type.startswith(_CLASSICAL):
        return "classical learner, of features as they are"
    return REASONS.get(op_type, "operator without a rule")
