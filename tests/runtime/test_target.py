"""The table of targets, and that onnxruntime on this machine agrees with what it says."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import pytest

from tests.builders import Net
from ucpe_onnx.errors import ModelError
from ucpe_onnx.runtime import target as targets
from ucpe_onnx.runtime.session import RunOptions, make_session
from ucpe_onnx.runtime.target import BLOCKED_DOMAIN, TARGETS, Target, probed_block, target_for

HERE = target_for([], "all")
needs_blocks = pytest.mark.skipif(not HERE.blocked, reason="onnxruntime has no blocked layout on this machine")


def optimised(net: Net, folder: Path, level: str = "all") -> Counter[str]:
    """Operators of the graph that onnxruntime makes, those on the blocked layout as ``nchwc.Conv``."""
    path = folder / "optimised.onnx"
    make_session(net.model(), RunOptions(threads=1, opt_level=level), path)
    return Counter(
        ("nchwc." if node.domain == BLOCKED_DOMAIN else "") + node.op_type for node in onnx.load(path).graph.node
    )


def conv_net(cin: int, cout: int, groups: int = 1) -> Net:
    net = Net()
    return net.output(net.conv(net.input("x", (1, cin, 8, 8)), cout, groups=groups))


@needs_blocks
class TestFactsOfTheBlockedLayout:
    """Each number of the target separates what stays in the layout from what leaves it."""

    def test_read_multiple(self, tmp_path: Path) -> None:
        width = 2 * HERE.block
        assert optimised(conv_net(width + HERE.read_multiple, 5), tmp_path)["nchwc.Conv"]
        assert optimised(conv_net(width + HERE.read_multiple // 2, 5), tmp_path)["Conv"]

    def test_minimum(self, tmp_path: Path) -> None:
        assert optimised(conv_net(HERE.minimum, 5), tmp_path)["nchwc.ReorderInput"]
        below = optimised(conv_net(HERE.minimum - 1, 5), tmp_path)
        assert below["nchwc.Conv"] and not below["nchwc.ReorderInput"]

    def test_depthwise_needs_the_read_multiple(self, tmp_path: Path) -> None:
        width = 2 * HERE.block
        for channels, where in ((width + HERE.read_multiple, "nchwc.Conv"), (width + HERE.read_multiple // 2, "Conv")):
            assert optimised(conv_net(channels, channels, groups=channels), tmp_path)[where]

    def test_grouped_multiple(self, tmp_path: Path) -> None:
        for width, where in ((HERE.grouped_multiple, "nchwc.Conv"), (HERE.grouped_multiple - 4, "Conv")):
            assert optimised(conv_net(2 * width, 2 * width, groups=2), tmp_path)[where]

    @pytest.mark.parametrize("joined", [False, True])
    def test_joined_and_pool_multiple(self, joined: bool, tmp_path: Path) -> None:
        multiple = HERE.joined_multiple if joined else HERE.pool_multiple
        for width, reorders in ((2 * multiple, 1), (2 * multiple - 4, 2 + joined)):
            net = Net()
            x = net.input("x", (1, HERE.block, 8, 8))
            if joined:
                wide = net.op("Concat", net.conv(x, width), net.conv(x, 2 * multiple), axis=1)
            else:
                wide = net.op("MaxPool", net.conv(x, width), kernel_shape=[2, 2])
            assert optimised(net.output(net.conv(wide, 8)), tmp_path)["nchwc.ReorderOutput"] == reorders

    def test_an_add_is_done_by_the_convolution_and_a_gather_leaves(self, tmp_path: Path) -> None:
        for level, adds in (("all", 0), ("extended", 1)):
            net = Net()
            x = net.input("x", (1, 16, 8, 8))
            net.output(net.op("Relu", net.op("Add", net.conv(x, 16), net.conv(x, 16))))
            assert optimised(net, tmp_path, level)["Add"] == adds
            assert target_for([], level).fuses_add == (adds == 0)


def test_probed_block_is_that_of_the_table() -> None:
    assert probed_block() in (1, *(target.block for target in TARGETS.values() if target.blocked))
    assert HERE.blocked == (probed_block() > 1)


@pytest.mark.parametrize(
    "block, machine, expected",
    [
        (16, "x86_64", "avx512"),
        (8, "AMD64", "avx2"),
        (16, "aarch64", "neon"),
        (1, "arm64", "cpu"),
        (1, "x86_64", "cpu"),
    ],
)
def test_the_cpu_target_is_the_probed_one(
    block: int, machine: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "probed_block", lambda: block)
    monkeypatch.setattr(targets.platform, "machine", lambda: machine)
    assert target_for(["CPUExecutionProvider"], "layout") == TARGETS[expected]
    assert target_for(["cpu"], "extended") == TARGETS["cpu"]


def test_a_block_size_that_no_table_lists_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "probed_block", lambda: 32)
    target = target_for([], "all")
    assert (target.block, target.joined_multiple, target.minimum) == (32, 32, 32)


def test_a_failing_probe_assumes_the_widest_block(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ModelError("no")

    monkeypatch.setattr(targets, "make_session", fail)
    probed_block.cache_clear()
    try:
        assert probed_block() == 16
    finally:
        probed_block.cache_clear()


@pytest.mark.parametrize(
    "provider, precision, expected",
    [
        ("CUDAExecutionProvider", "float32", "cuda"),
        ("TensorrtExecutionProvider", "int8", "gpu-int8"),
        ("OpenVINOExecutionProvider", "float32", "openvino"),
        ("CPUExecutionProvider", "int8", "cpu-int8"),
        ("XnnpackExecutionProvider", "float32", "other"),
    ],
)
def test_provider_and_precision_choose_the_row(provider: str, precision: str, expected: str) -> None:
    assert target_for([provider, "CPUExecutionProvider"], "all", precision) is TARGETS[expected]


def test_tensor_cores_get_full_widths_and_a_plain_runtime_exact_ones() -> None:
    assert TARGETS["cuda"].width(3, 64, 8) == 8
    assert TARGETS["gpu-int8"].width(33, 48, 32) == 48
    assert Target(blocked=False).width(3, 64, 8) == 3
