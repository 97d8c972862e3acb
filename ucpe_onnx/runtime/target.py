"""What the runtime's kernels like: the numbers that decide which widths and lowerings are fast.

Targets are data. The facts in the table come from onnxruntime's layout transformer and kernels, and were checked in its
optimised graphs; what depends on the processor, the size of a channel block, is not looked up but tried out
(:func:`probed_block`).
"""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ucpe_onnx.errors import UcpeError
from ucpe_onnx.model.folders import TemporaryFolder
from ucpe_onnx.runtime.session import RunOptions, make_session

PRECISIONS = ("float32", "int8")
"""Of the convolutions: in float, or quantised (QDQ)."""

BLOCKED_DOMAIN = "com.microsoft.nchwc"
"""Where onnxruntime's operators on the blocked layout live, in the graphs that it optimises."""

_PLAIN_LEVELS = ("disable", "basic", "extended")
_ANY_BLOCK = 16
"""Assumed where the probe fails; multiples of it suit every block size that there is."""


@dataclass(frozen=True)
class Target:
    """A description of the machine and runtime that the emitted model is for.

    Attributes:
        blocked: convolutions run in a layout of channel blocks (onnxruntime's NCHWc).
        block: channels in a block; work is done in whole blocks.
        read_multiple: a convolution stays in the blocked layout only if it reads a multiple of this, and a depthwise
            one only if it has a multiple of this; without such a layout the multiple at which kernels run well.
        joined_multiple: a Concat stays in the blocked layout only if all of its inputs are multiples of this.
        minimum: below this many channels a convolution reads the plain layout, so a blocked input is reordered.
        name: what to call it in reports.
        aligned: widths are rounded to ``read_multiple`` although there is no blocked layout (tensor cores, int8).
        pool_multiple: pools stay blocked only at multiples of this.
        grouped_multiple: likewise a grouped convolution, for the channels of a group that it reads and makes.
        depthwise_multiple: a depthwise convolution is fast only at multiples of this.
        fuses_add: an Add of a convolution's output is done by the convolution, so that partial sums cost no pass.
        selections_leave: Slice, Gather, Split and Pad leave the layout of the convolutions: reorders on both sides.
        contiguity_pays: a Slice of contiguous channels is cheaper than a Gather.
        precision: one of :data:`PRECISIONS`.
        element_bytes: size of an activation's element.
    """

    blocked: bool = True
    block: int = 16
    read_multiple: int = 4
    joined_multiple: int = 16
    minimum: int = 16
    name: str = "CPU with AVX-512, float32, layout NCHW16c"
    aligned: bool = False
    pool_multiple: int = 16
    grouped_multiple: int = 16
    depthwise_multiple: int = 4
    fuses_add: bool = True
    selections_leave: bool = True
    contiguity_pays: bool = False
    precision: str = "float32"
    element_bytes: int = 4

    def width(self, needed: int, available: int, multiple: int) -> int:
        """The width that an axis of ``available`` channels gets when ``needed`` of them must stay.

        Rounded up so that nothing leaves the blocked layout, but never beyond what is there. An axis that never was in
        that layout (too narrow, or of an odd width from the start) gains by multiples all the same.
        """
        if not (self.blocked or self.aligned):
            return needed
        width = -(-needed // multiple) * multiple
        if available >= self.minimum:
            width = max(width, self.minimum)
        return min(width, available)


def _blocked(name: str, block: int) -> Target:
    return Target(
        name=f"CPU with {name}, float32, layout NCHW{block}c",
        block=block,
        joined_multiple=block,
        minimum=block,
        pool_multiple=block,
        grouped_multiple=block,
    )


def _plain(name: str, multiple: int, **facts: object) -> Target:
    """A target without onnxruntime's blocked layout, where nothing is lost at an odd width but speed."""
    common: dict[str, object] = {
        "blocked": False,
        "block": multiple,
        "read_multiple": multiple,
        "joined_multiple": multiple,
        "pool_multiple": 1,
        "grouped_multiple": 1,
        "depthwise_multiple": multiple,
        "fuses_add": False,
        "selections_leave": False,
    }
    return Target(name=name, **{**common, **facts})  # type: ignore[arg-type]


TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        "avx512": _blocked("AVX-512", 16),
        "avx2": _blocked("AVX2", 8),
        "neon": _blocked("NEON", 16),  # only in builds with onnxruntime's NCHWc kernels for Arm
        "cpu": _plain("CPU, float32, layout NCHW", 4),
        "cpu-int8": _plain(
            "CPU, int8, layout NHWC",
            8,
            aligned=True,
            minimum=8,
            depthwise_multiple=16,
            contiguity_pays=True,
            precision="int8",
            element_bytes=1,
        ),
        "openvino": _plain("OpenVINO", 8, aligned=True, minimum=8, fuses_add=True, contiguity_pays=True),
        "openvino-int8": _plain(
            "OpenVINO, int8", 8, fuses_add=True, contiguity_pays=True, precision="int8", element_bytes=1
        ),
        "cuda": _plain("CUDA, tensor cores", 8, aligned=True, minimum=8, contiguity_pays=True),
        "tensorrt": _plain("TensorRT, tensor cores", 8, aligned=True, minimum=8, fuses_add=True, contiguity_pays=True),
        "gpu-int8": _plain(
            "GPU, int8, tensor cores",
            32,
            aligned=True,
            minimum=32,
            fuses_add=True,
            contiguity_pays=True,
            precision="int8",
            element_bytes=1,
        ),
        "other": _plain("other execution provider", 8, contiguity_pays=True),
        "other-int8": _plain(
            "other execution provider, int8", 8, contiguity_pays=True, precision="int8", element_bytes=1
        ),
    }
)
"""Every target by a short name."""

_FAMILIES = {
    "cpu": "cpu",
    "": "cpu",
    "openvino": "openvino",
    "cuda": "cuda",
    "rocm": "cuda",
    "migraphx": "tensorrt",
    "tensorrt": "tensorrt",
    "nvtensorrtrtx": "tensorrt",
}


def target_for(providers: Sequence[str], opt_level: str, precision: str = "float32") -> Target:
    """The target that onnxruntime's options describe.

    The blocked layout exists in the CPU provider alone, for float32, at the levels ``layout`` and ``all``, and where
    onnxruntime has kernels for it.

    Args:
        providers: execution providers in order of preference; the first one counts. None: the CPU.
        opt_level: onnxruntime's graph optimisation level.
        precision: one of :data:`PRECISIONS`, of the convolutions.
    """
    family = _FAMILIES.get(_family(providers), "other")
    quantised = precision == "int8"
    if family in ("cuda", "tensorrt"):
        return TARGETS["gpu-int8" if quantised else family]
    if family == "cpu" and not quantised:
        return _cpu(opt_level)
    return TARGETS[f"{family}-int8" if quantised else family]


def _family(providers: Sequence[str]) -> str:
    return providers[0].removesuffix("ExecutionProvider").lower() if providers else ""


def _cpu(opt_level: str) -> Target:
    block = 1 if opt_level in _PLAIN_LEVELS else probed_block()
    if block == 1:
        return TARGETS["cpu"]
    if platform.machine().lower() in ("aarch64", "arm64"):
        return TARGETS["neon"] if block == TARGETS["neon"].block else _blocked("NEON", block)
    known = {target.block: target for target in (TARGETS["avx512"], TARGETS["avx2"])}
    return known.get(block) or _blocked(platform.machine() or "unknown instructions", block)


@functools.cache
def probed_block() -> int:
    """Channels in a block of the layout that onnxruntime gives a convolution on this machine; 1: it has no such layout.

    A convolution that reads 16 channels and makes 4 is optimised, and the saved graph looked at: in the blocked layout
    the filter has been filled up to one block of output channels.
    """
    weight = numpy_helper.from_array(np.zeros((4, 16, 1, 1), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=[1, 1])],
        "probe",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 4, 4])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    try:
        with TemporaryFolder() as folder:
            path = os.path.join(folder, "probe.onnx")
            make_session(model, RunOptions(threads=1, opt_level="all"), path)
            return _block_in(onnx.load(path))
    except (OSError, UcpeError):
        return _ANY_BLOCK


def _block_in(optimised: onnx.ModelProto) -> int:
    """The block size that an optimised probe shows."""
    rows = {tensor.name: tensor.dims[0] for tensor in optimised.graph.initializer}
    for node in optimised.graph.node:
        if node.op_type == "Conv" and node.domain == BLOCKED_DOMAIN:
            return int(rows[node.input[1]])
    return 1
