"""Predicted times: the shape of the cost, and rates as files."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ucpe_onnx.planning.kernels import AMOUNTS
from ucpe_onnx.planning.rates import Rates, default_rates
from ucpe_onnx.runtime.target import TARGETS

BLOCKED = default_rates(TARGETS["avx512"], 1)
PLAIN = default_rates(TARGETS["cpu"], 1)
INT8 = default_rates(TARGETS["cpu-int8"], 1)


def pair_us(width: int, size: int = 28) -> float:
    """A 3x3 pair 64 -> width -> 64."""
    return float(BLOCKED.conv_us(64, width, (3, 3), size**2) + BLOCKED.conv_us(width, 64, (3, 3), size**2))


def test_work_is_done_in_whole_blocks() -> None:
    assert pair_us(36) == pair_us(40) == pair_us(48) < pair_us(52)


def test_a_width_off_the_multiple_costs_more_than_the_next_block() -> None:
    assert pair_us(33) > 0.95 * pair_us(48)
    assert pair_us(63) > 1.1 * pair_us(64)


def test_output_channels_run_in_sets_of_four_blocks() -> None:
    def per_block(blocks: int) -> float:
        return float(BLOCKED.conv_us(256, 16 * blocks, (3, 3), 14**2)) / blocks

    assert per_block(4) == min(per_block(blocks) for blocks in (1, 2, 3, 4))
    assert per_block(1) > 1.2 * per_block(4)


def test_measured_facts_are_met() -> None:
    """About 128 GFLOP/s, and 30 GB/s of copies, give or take what the formula adds."""
    assert BLOCKED.conv_us(64, 64, (1, 1), 56**2) == pytest.approx(5 + 2 * 64 * 64 * 56**2 / 130e3, rel=0.1)
    assert BLOCKED.conv_us(128, 128, (3, 3), 28**2) == pytest.approx(5 + 2 * 128**2 * 9 * 28**2 / 128e3, rel=0.1)
    assert BLOCKED.gather_us(64 * 56**2 * 4) == pytest.approx(64 * 56**2 * 4 / 30e3, rel=0.25)


def test_padding_weighs_more_on_small_maps() -> None:
    large, small = (float(BLOCKED.conv_us(64, 64, (3, 3), size**2)) / size**2 for size in (56, 7))
    assert small > 1.05 * large


def test_big_weights_cost_their_bytes_where_there_are_few_positions() -> None:
    arithmetic = 2 * 2048 * 512 / 130e3
    assert BLOCKED.conv_us(2048, 512, (1, 1), 1) > 8 * arithmetic


@pytest.mark.parametrize("rates", [BLOCKED, PLAIN, INT8], ids=["blocked", "plain", "int8"])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3)])
def test_arrays_give_what_numbers_give(rates: Rates, kernel: tuple[int, int]) -> None:
    widths = np.array([3, 8, 15, 16, 18, 64, 66, 100])
    for made in (widths, 64):
        times = rates.conv_us(widths, made, kernel, 196, 784)
        outs = np.broadcast_to(made, widths.shape)
        single = [rates.conv_us(int(cin), int(cout), kernel, 196, 784) for cin, cout in zip(widths, outs, strict=True)]
        assert np.allclose(times, single)
    assert np.allclose(rates.depthwise_us(widths), [rates.depthwise_us(int(width)) for width in widths])
    assert rates.conv_us(np.int64(66), np.int64(64)) == rates.conv_us(66, 64)


@pytest.mark.parametrize("groups, inside", [(2, True), (4, False)])
def test_groups_stay_blocked_at_whole_blocks_only(groups: int, inside: bool) -> None:
    grouped = BLOCKED.conv_us(32, 32, (3, 3), 784, groups=groups)
    reorders = 2 * BLOCKED.reorder_us(4 * 32 * 784)
    assert (grouped < reorders + PLAIN.conv_us(32, 32, (3, 3), 784, groups=groups)) == inside


def test_what_leaves_the_layout_pays_its_reorders() -> None:
    outside = BLOCKED.conv_us(66, 64, (3, 3), 784)
    assert outside == pytest.approx(
        PLAIN.conv_us(66, 64, (3, 3), 784) + BLOCKED.reorder_us(4 * 66 * 784) + BLOCKED.reorder_us(4 * 64 * 784)
    )
    assert PLAIN.reorder_us(1000) == 0


def test_a_further_part_of_a_sum_is_nearly_free_if_the_convolution_adds() -> None:
    assert BLOCKED.partial_us(64, 784, (3, 3)) < BLOCKED.partial_us(64, 784) < BLOCKED.add_us(64 * 784 * 4)
    assert PLAIN.partial_us(64, 784) == PLAIN.add_us(64 * 784 * 4)


def test_quantised_slices_are_cheaper_than_gathers() -> None:
    assert INT8.slice_us(64 * 784) < 0.8 * INT8.gather_us(64 * 784, 64)
    assert INT8.conv_us(64, 64, (3, 3), 784) < 0.5 * PLAIN.conv_us(64, 64, (3, 3), 784)


def test_quantised_widths_run_in_fours() -> None:
    def pair(width: int) -> float:
        return float(INT8.conv_us(64, width, (3, 3), 784) + INT8.conv_us(width, 64, (3, 3), 784))

    assert pair(33) > pair(36) and pair(47) > 1.1 * pair(48) and pair(63) > 1.1 * pair(64)
    assert pair(32) < 0.9 * pair(36) and pair(36) < pair(48)
    assert TARGETS["cpu-int8"].width(33, 64, TARGETS["cpu-int8"].read_multiple) == 40


def test_threads_share_the_work_but_not_the_calls() -> None:
    two = default_rates(TARGETS["avx512"], 2)
    assert two.conv_us(128, 128, (3, 3), 784) == pytest.approx(BLOCKED.conv_us(128, 128, (3, 3), 784) / 2, rel=0.02)
    assert two.call_us == BLOCKED.call_us


def test_rates_survive_json() -> None:
    again = Rates.from_dict(json.loads(json.dumps(INT8.to_dict())))
    assert again == INT8
    assert again.conv_us(64, 64, (3, 3), 784) == INT8.conv_us(64, 64, (3, 3), 784)


@pytest.mark.parametrize(
    "damage",
    [
        {"version": 0},
        {"coefficients": {}},
        {"coefficients": None},
        {"block": 0},
        {"threads": "many"},
        {"coefficients": {**BLOCKED.to_dict()["coefficients"], "add": {"call": -1.0, "write": 1.0, "far": 1.0}}},
        {"coefficients": {**BLOCKED.to_dict()["coefficients"], "add": {"call": float("nan"), "write": 1, "far": 1}}},
    ],
)
def test_damaged_rates_are_a_value_error(damage: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Rates.from_dict({**BLOCKED.to_dict(), **damage})


def test_defaults_cover_every_amount() -> None:
    for rates in (BLOCKED, INT8):
        assert {family: tuple(sorted(names)) for family, names in AMOUNTS.items()} == {
            family: tuple(sorted(values)) for family, values in rates.coefficients.items()
        }


def test_the_description_names_what_was_measured() -> None:
    rows = dict(replace(BLOCKED, origin="calibrated").describe())
    assert rows["rates"] == "calibrated"
    assert rows["1x1 convolution"] == "125.0 GFLOP/s"
    assert "reorder" not in dict(INT8.describe())


def test_no_threshold_makes_two_halves_cheaper_than_the_whole() -> None:
    """Or a solver would split a kernel to get below it."""
    generator = np.random.default_rng(0)
    for rates in (BLOCKED, PLAIN, INT8):
        for _ in range(300):
            one, other, fixed = (16 * int(generator.integers(1, 80)) for _ in range(3))
            kernel, positions = ((1, 1), (3, 3))[generator.integers(2)], int(generator.choice([1, 7, 14, 28, 56])) ** 2
            for parts in (
                [rates.conv_us(width, fixed, kernel, positions) for width in (one, other, one + other)],
                [rates.conv_us(fixed, width, kernel, positions) for width in (one, other, one + other)],
                [rates.slice_us(4 * positions * width) for width in (one, other, one + other)],
                [rates.gemm_us(1, fixed, width) for width in (one, other, one + other)],
            ):
                assert parts[0] + parts[1] >= 0.98 * parts[2]  # sets of blocks may come out a little better


def test_quantised_depthwise_kernels_want_whole_columns() -> None:
    assert INT8.depthwise_us(104, (3, 3), 784) > 1.3 * INT8.depthwise_us(112, (3, 3), 784)
    assert PLAIN.depthwise_us(104, (3, 3), 784) < PLAIN.depthwise_us(112, (3, 3), 784)


def test_few_channels_of_input_are_a_pass_over_the_output_each() -> None:
    """So that a narrow 1x1 convolution costs more than one that reads a whole block."""
    assert BLOCKED.conv_us(12, 48, (1, 1), 112**2) > BLOCKED.conv_us(16, 48, (1, 1), 112**2)
