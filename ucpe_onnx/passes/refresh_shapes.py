"""Correct the declared shapes of inner tensors whose channels have gone."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import onnx

from ucpe_onnx.passes.infra import Emission, PassResult


@dataclass(frozen=True)
class RefreshShapes:
    """Write the emitted lengths into ``value_info``. Graph inputs and outputs never change."""

    emission: Emission
    name: str = "refresh-shapes"

    def run(self, draft: onnx.ModelProto) -> PassResult:
        """Edit the value infos of changed tensors in place."""
        sizes: dict[str, dict[int, int]] = defaultdict(dict)
        for (tensor, axis), layout in self.emission.layouts.items():
            if isinstance(tensor, str):
                sizes[tensor][axis] = int(layout.size)
        changes = 0
        for value in draft.graph.value_info:
            for axis, size in sizes.get(value.name, {}).items():
                dims = value.type.tensor_type.shape.dim
                if axis < len(dims):
                    dims[axis].dim_value = size
                    changes += 1
        return PassResult(changes)
