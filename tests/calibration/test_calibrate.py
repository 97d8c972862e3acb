"""Calibration as a whole, on a machine whose rates are known: the timer is made up, the graphs are not run."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from ucpe_onnx.calibration import calibrate, load_rates, measuring, rates_for
from ucpe_onnx.calibration.cache import CACHE_VARIABLE
from ucpe_onnx.calibration.cases import cases_for
from ucpe_onnx.calibration.chain import Chain
from ucpe_onnx.calibration.fit import FLOORS
from ucpe_onnx.errors import ModelError
from ucpe_onnx.planning.rates import Rates, default_rates, rates_of
from ucpe_onnx.runtime.session import RunOptions, make_session
from ucpe_onnx.runtime.target import BLOCKED_DOMAIN, TARGETS, target_for

ONE = RunOptions(threads=1)
HERE = target_for([], "all")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))


@pytest.fixture
def _chains(monkeypatch: pytest.MonkeyPatch) -> None:
    """The timer gets chains, which know their work, in place of their graphs."""
    monkeypatch.setattr(Chain, "model", lambda self: self)


def odd_machine(seed: int = 0) -> Rates:
    """Each rate up to twice faster or slower than the defaults, incomplete sets of filters up to twice full ones."""
    generator = np.random.default_rng(seed)
    defaults = default_rates(HERE, 1).coefficients
    drawn = {f: {n: rate * 2 ** generator.uniform(-1, 1) for n, rate in rates.items()} for f, rates in defaults.items()}
    for rates in drawn.values():
        incomplete = [name for name in FLOORS if name in rates]
        rates |= {name: rates[FLOORS[name]] * 2 ** generator.uniform(0, 1) for name in incomplete}
    return rates_of(HERE, 1, drawn, "drawn")


def timer_of(rates: Rates, overhead: float = 3e-4, noise: float = 0.0) -> Any:
    generator = np.random.default_rng(3)

    def timer(graphs: Sequence[Any], *_: object) -> np.ndarray:
        exact = [overhead + 1e-6 * sum(rates.time_us(f, amounts) for f, amounts in chain.work) for chain in graphs]
        return np.array(exact) * np.exp(generator.normal(0, noise, len(exact)))

    return timer


def calibrated(timer: Any) -> Rates:
    """What calibration makes of a made-up timer where no profiler sees single kernels."""
    return calibrate(ONE, timer=timer, profiler=lambda graphs, *_: [None] * len(graphs))


def typical_errors(found: Rates, machine: Rates) -> tuple[float, float]:
    """Median and 90th percentile of the error of predictions, on kernels that calibration does not time."""
    generator = np.random.default_rng(1)
    errors = []
    for _ in range(200):
        cin, cout = (4 * int(generator.integers(5, 200)) for _ in range(2))
        kernel, size = ((1, 1), (3, 3))[generator.integers(2)], int(generator.choice([7, 14, 28, 56]))
        errors.append(found.conv_us(cin, cout, kernel, size**2) / machine.conv_us(cin, cout, kernel, size**2) - 1)
    for written in np.geomspace(1e4, 5e6, 20):
        errors.append(found.reorder_us(written) / machine.reorder_us(written) - 1)
        errors.append(found.slice_us(written) / machine.slice_us(written) - 1)
        errors.append(found.add_us(written) / machine.add_us(written) - 1)
    median, high = np.quantile(np.abs(errors), [0.5, 0.9])
    return float(median), float(high)


@pytest.mark.usefixtures("_chains")
class TestKnownMachine:
    @pytest.mark.parametrize("overhead", [0.0, 1e-3])
    def test_predictions_are_those_of_the_machine(self, overhead: float) -> None:
        """Whatever a session costs beside its kernels."""
        machine = odd_machine()
        median, high = typical_errors(calibrated(timer=timer_of(machine, overhead)), machine)
        assert median < 0.03
        assert high < 0.15

    def test_noise_is_averaged_out(self) -> None:
        machine = odd_machine()
        found = calibrated(timer=timer_of(machine, overhead=0.0, noise=0.05))
        assert typical_errors(found, machine)[0] < 0.06

    def test_rates_are_kept_and_found_again(self) -> None:
        assert rates_for(ONE).origin.startswith("defaults")
        found = calibrated(timer=timer_of(odd_machine()))
        assert load_rates(ONE) == rates_for(ONE) == found
        assert load_rates(RunOptions(threads=2)) is None

    def test_rates_for_can_calibrate(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = odd_machine()
        monkeypatch.setattr(measuring, "calibrate", lambda *_, **__: found)
        assert rates_for(ONE, calibrate=True) is found

    def test_a_busy_machine_yields_the_defaults_and_a_warning(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING):
            found = calibrated(timer=timer_of(odd_machine(), noise=2.0))
        assert "calibration failed" in caplog.text
        assert found == default_rates(HERE, 1)
        assert load_rates(ONE) is None

    def test_a_few_cases_that_do_not_run_are_left_out(self) -> None:
        timer = timer_of(odd_machine())

        def partly(*arguments: Any) -> np.ndarray:
            times = timer(*arguments)
            times[::20] = np.nan
            return times

        assert calibrated(timer=partly).origin.startswith("calibrated")

    def test_nothing_runs_is_an_error(self) -> None:
        with pytest.raises(ModelError, match="ran none of the graphs"):
            calibrated(timer=lambda graphs, *_: np.full(len(graphs), np.nan))


@pytest.mark.skipif(not HERE.blocked, reason="onnxruntime has no blocked layout on this machine")
def test_graphs_are_to_onnxruntime_what_their_work_says(tmp_path: Path) -> None:
    """As many kernels of each kind as the chain noted."""
    for case in cases_for(HERE):
        chain = case.chain(HERE, 2)
        path = tmp_path / "optimised.onnx"
        make_session(chain.model(), ONE, path)
        ops = Counter((node.domain == BLOCKED_DOMAIN, node.op_type) for node in onnx.load(path).graph.node)
        noted = Counter(family for family, _ in chain.work)
        blocked = sum(noted[family] for family in ("pointwise", "spatial", "shallow", "depthwise"))
        plain = noted["plain"] + noted["plain-depthwise"]
        assert ops[True, "Conv"] == blocked, case.name
        assert ops[False, "Conv"] + ops[False, "FusedConv"] == plain, case.name
        for family, op_type in (("gather", "Gather"), ("slice", "Slice"), ("concat", "Concat"), ("add", "Add")):
            assert ops[False, op_type] == noted[family], case.name
        reorders = ops[True, "ReorderInput"] + ops[True, "ReorderOutput"]
        ends = reorders - noted["reorder"]  # at the graph's input and output
        assert -2 <= ends <= 2, case.name


def test_quantised_graphs_run_quantised(tmp_path: Path) -> None:
    target = TARGETS["cpu-int8"]
    for case in cases_for(target)[::4]:
        chain = case.chain(target, 2)
        path = tmp_path / "optimised.onnx"
        make_session(chain.model(), ONE, path)
        ops = Counter(node.op_type for node in onnx.load(path).graph.node)
        noted = Counter(family for family, _ in chain.work)
        assert ops["QLinearConv"] == noted["plain"] + noted["plain-depthwise"], case.name
        assert ops["QLinearAdd"] == noted["add"], case.name
        assert not ops["Conv"] and not ops["Add"], case.name
