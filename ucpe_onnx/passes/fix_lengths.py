"""Replace what is computed from lengths, and counted as constant, by the constants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
from onnx import numpy_helper

from ucpe_onnx.model.naming import fresh_name, tensor_names
from ucpe_onnx.passes.infra import Emission, PassResult


@dataclass(frozen=True)
class FixLengths:
    """Write down lengths that the analysis has taken for constants: measured in the emitted graph they may be others.

    What rules adapt has been replaced by then; the rest keeps the value that it has in the input model.
    """

    name: ClassVar[str] = "fix-lengths"

    emission: Emission

    def run(self, draft: onnx.ModelProto) -> PassResult:
        """Rewire the inputs of nodes that are not constant themselves."""
        constants = self.emission.trace.graph.constants
        if not self.emission.layouts or not constants.measured:
            return PassResult()
        taken = tensor_names(draft.graph)
        fixed: dict[str, str] = {}
        for node in draft.graph.node:
            if all(name in constants for name in node.output if name):
                continue
            for index, name in enumerate(node.input):
                if name in constants.measured:
                    if name not in fixed:
                        fixed[name] = fresh_name(f"{name}_fixed", taken)
                        value = np.asarray(constants.value(name))
                        draft.graph.initializer.append(numpy_helper.from_array(value, fixed[name]))
                    node.input[index] = fixed[name]
        return PassResult(tuple(fixed))
