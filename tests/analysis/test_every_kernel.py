"""Every operator that onnxruntime runs on a CPU, or its optimiser writes, is followed or has a reason."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as pybind

from models import ARCHITECTURES, build
from tests.builders import Net
from ucpe_onnx.analysis.rules import RULES
from ucpe_onnx.analysis.rules.unfollowed import REASONS, why_not_followed
from ucpe_onnx.analysis.trace import trace

WITHOUT = "operator without a rule"
CPU = "CPUExecutionProvider"


def named(domain: str, op_type: str) -> str:
    return op_type if domain in ("", "ai.onnx") else f"{domain}::{op_type}"


def kernels() -> set[str]:
    """All operators for which onnxruntime has a kernel for the CPU, by its own account."""
    try:
        found = pybind.get_all_opkernel_def()
    except AttributeError:
        pytest.skip("this onnxruntime does not list its kernels")
    return {named(kernel.domain, kernel.op_name) for kernel in found if kernel.provider == CPU}


def test_every_kernel_is_followed_or_has_a_reason() -> None:
    unknown = {op for op in kernels() - RULES.keys() if why_not_followed(op) == WITHOUT}
    if onnxruntime.__version__.split(".")[:2] == ["1", "32"]:
        assert not unknown
    else:  # newer ones may have learnt operators that nobody has looked at; the stock of most years must be there
        assert len(unknown) < 20, unknown


def test_reasons_are_for_operators_that_are_not_followed() -> None:
    assert not REASONS.keys() & RULES.keys()
    assert all(reason and " at " not in reason and ": " not in reason for reason in REASONS.values())


SMALL = [name for name, found in ARCHITECTURES.items() if name not in ("vgg16_bn", "wide_resnet50_2")]


@pytest.mark.parametrize("level", ["BASIC", "EXTENDED", "ALL"])
@pytest.mark.parametrize("name", SMALL)
def test_what_the_optimiser_writes_is_followed_or_has_a_reason(tmp_path: Path, name: str, level: str) -> None:
    model = build(name, image=ARCHITECTURES[name].small)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
    options.optimized_model_filepath = str(tmp_path / "saved.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[CPU])
    written = {named(node.domain, node.op_type) for node in onnx.load(tmp_path / "saved.onnx").graph.node}
    assert not {op for op in written - RULES.keys() - {"Constant"} if why_not_followed(op) == WITHOUT}


def test_the_reason_reaches_the_user() -> None:
    net = Net()
    x = net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a")
    y = net.op("Add", x, net.op("RandomNormalLike", x, name="noise"))
    traced = trace(net.output(net.conv(y, 2, name="b")).model())
    (segment,) = [segment for segment in traced.segments if "a" in segment.producers]
    assert segment.frozen_by == {"random numbers for each element: RandomNormalLike at noise": 8}
