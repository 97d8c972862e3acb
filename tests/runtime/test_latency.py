import json

import numpy as np
import pytest

from tests.runtime.builders import FakeClock, linear
from ucpe_onnx.errors import ModelError, UsageError
from ucpe_onnx.runtime import latency as module
from ucpe_onnx.runtime.latency import measure, summarise


def noisy(mean, noise, seed):
    """Scripted times: run number n takes about ``mean`` seconds."""
    times = mean * (1 + noise * np.random.default_rng(seed).standard_normal(100_000))
    return lambda n: float(times[n])


def report(base, other, **options):
    clock = FakeClock()
    sessions = {"base": clock.session(base), "other": clock.session(other)}
    return measure(sessions, {}, baseline="base", clock=clock, **options)


def test_steady_times_stop_at_the_least_number_of_rounds():
    result = report(lambda n: 0.004, lambda n: 0.003, seconds=10)
    assert (result.rounds, result.runs_per_timing) == (30, 1)
    assert result["other"].median_ms == pytest.approx(3) and result["other"].ratio == pytest.approx(0.75)
    assert result["other"].faster and not result["base"].faster and result.fastest == "other"
    assert result["base"].ratio == result["base"].low == result["base"].high == 1
    assert result.seconds == pytest.approx(30 * 0.007)


def test_percentiles():
    entry = summarise({"a": np.arange(1, 102) * 1e-3}, "a")["a"]
    assert (entry.median_ms, entry.p90_ms, entry.p99_ms) == pytest.approx((51, 91, 100))


def test_very_fast_models_are_run_several_times_per_timing():
    result = report(lambda n: 2e-4, lambda n: 1e-4, seconds=1)
    assert result.runs_per_timing == 10
    assert result["base"].median_ms == pytest.approx(0.2) and result["other"].median_ms == pytest.approx(0.1)


def test_clock_that_stands_still_does_not_repeat_forever(monkeypatch):
    monkeypatch.setattr(module, "MOST_REPEATS", 7)
    clock = FakeClock()
    assert module._warm_up({"a": clock.session(lambda n: 0.0)}, {}, 2, clock) == 7


def test_drift_of_the_machine_cancels():
    """Both get twice as slow half-way: medians of either are useless, the paired ratio is not."""
    clock = FakeClock()

    def drifting(seconds):
        return lambda n: seconds * (2 if clock.now > 0.5 else 1) * (1 + 0.001 * (n % 7))

    sessions = {"base": clock.session(drifting(0.005)), "other": clock.session(drifting(0.0045))}
    result = measure(sessions, {}, baseline="base", seconds=1.0, clock=clock, min_rounds=90)
    assert result["other"].ratio == pytest.approx(0.9, rel=0.01) and result["other"].faster


def test_undecided_goes_on_for_three_times_as_long():
    same = report(noisy(0.01, 0.3, 1), noisy(0.01, 0.3, 2), seconds=1.0)
    assert same["other"].undecided and not same["other"].faster
    assert same.seconds == pytest.approx(3.0, abs=0.1)


def test_decided_but_noisy_stops_in_time():
    result = report(noisy(0.01, 0.2, 1), noisy(0.005, 0.2, 2), seconds=2.0)
    assert result["other"].faster and result.seconds == pytest.approx(2.0, abs=0.1)


def test_narrow_interval_stops_early_even_around_one():
    result = report(noisy(0.01, 0.005, 1), noisy(0.01, 0.005, 2), seconds=100)
    assert result["other"].narrow and result.seconds < 5


def test_slow_models_get_the_least_number_of_rounds_all_the_same():
    assert report(lambda n: 5.0, lambda n: 5.0, seconds=0.1, min_rounds=4).rounds == 4


def test_order_within_rounds_changes_and_depends_on_the_seed_only():
    def order(seed):
        clock, calls = FakeClock(), []
        note = {name: clock.session(lambda n, name=name: calls.append(name) or 0.01) for name in "abc"}
        measure(note, {}, baseline="a", seed=seed, seconds=0.1, clock=clock)
        return calls[-90:]

    rounds = {tuple(order(0)[i : i + 3]) for i in range(0, 90, 3)}
    assert len(rounds) == 6 and all(set(r) == set("abc") for r in rounds)
    assert order(0) == order(0) != order(1)


def test_bootstrap_covers_the_truth_and_does_not_depend_on_blocks(monkeypatch):
    generator = np.random.default_rng(0)
    timings = {"a": 1 + 0.1 * generator.random(200), "b": 0.8 + 0.1 * generator.random(200)}
    whole = summarise(timings, "a")["b"]
    assert whole.low < 0.85 / 1.05 < whole.high and whole.high - whole.low < 0.03
    monkeypatch.setattr(module, "_BLOCK", 1000)
    assert summarise(timings, "a")["b"] == whole


def test_report_is_json():
    plain = report(lambda n: 0.004, lambda n: 0.003).to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["candidates"]["other"]["faster"] is True and plain["baseline"] == "base"


def test_real_models():
    models = {"in": linear(np.ones((3, 4), np.float32)), "out": linear(np.ones((3, 2), np.float32))}
    result = measure(models, {"x": np.ones((1, 3), np.float32)}, baseline="in", seconds=0.05, min_rounds=5)
    assert result.rounds >= 5 and set(result.candidates) == {"in", "out"}


def test_what_cannot_be_measured():
    model = linear(np.ones((3, 4), np.float32))
    with pytest.raises(UsageError, match="'old' is not a candidate; choose from new"):
        measure({"new": model}, {}, baseline="old")
    with pytest.raises(UsageError, match="seconds above 0"):
        measure({"new": model}, {}, baseline="new", seconds=0)
    with pytest.raises(ModelError, match=r"^new: onnxruntime can't run it: "):
        measure({"new": model}, {"x": np.ones((1, 9), np.float32)}, baseline="new")
