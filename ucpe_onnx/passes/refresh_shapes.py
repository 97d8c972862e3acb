"""Correct the declared shapes of inner tensors whose channels have gone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx

from ucpe_onnx.passes.infra import Emission, PassResult


@dataclass(frozen=True)
class RefreshShapes:
    """Write the emitted lengths into ``value_info``. Graph inputs and outputs never change."""

    name: ClassVar[str] = "refresh-shapes"

    emission: Emission

    def run(self, draft: onnx.ModelProto) -> PassResult:
        """Edit the value infos of changed tensors in place."""
        sizes: dict[str, dict[int, int]] = defaultdict(dict)
        for (tensor, axis), layout in self.emission.layouts.items():
            if isinstance(tensor, str):
                sizes[tensor][axis] = int(layout.size)
        for tensor, dims in _codec_outputs(draft):
            sizes[tensor].update(enumerate(dims))
        changed, skipped = {}, {}
        for value in draft.graph.value_info:
            dims = value.type.tensor_type.shape.dim
            for axis, size in sizes.get(value.name, {}).items():
                if axis >= len(dims):
                    skipped[value.name] = f"it is declared with {len(dims)} axes"
                elif dims[axis].dim_value != size:
                    dims[axis].dim_value = size
                    changed[value.name] = size
        return PassResult(tuple(changed), skipped)


def _codec_outputs(draft: onnx.ModelProto) -> Iterator[tuple[str, Sequence[int]]]:
    """Constants that QuantizeLinear and DequantizeLinear pass on, with their shapes."""
    shapes: dict[str, Sequence[int]] = {tensor.name: tensor.dims for tensor in draft.graph.initializer}
    for node in draft.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.input[0] in shapes:
            shapes[node.output[0]] = shapes[node.input[0]]
            yield node.output[0], shapes[node.input[0]]
