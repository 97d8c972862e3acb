import json
import weakref

import numpy as np
import pytest

from tests.runtime.builders import FakeClock, linear
from ucpe_onnx.errors import ModelError, UsageError
from ucpe_onnx.runtime import latency as module
from ucpe_onnx.runtime import latency_stats
from ucpe_onnx.runtime.latency import Load, summarise
from ucpe_onnx.runtime.latency_stats import student


def measure(candidates, feeds, options=None, *, waited=lambda: lambda: 0.0, **more):
    """As if nothing else ran: what other programs do to a test's own threads is not what is tested."""
    return module.measure(candidates, feeds, options, waited=waited, **more)


def noisy(mean, noise, seed):
    """Scripted times: run number n takes about ``mean`` seconds."""
    times = mean * (1 + noise * np.random.default_rng(seed).standard_normal(100_000))
    return lambda n: float(times[n])


def report(base, other, **options):
    clock = FakeClock()
    sessions = {"base": clock.session(base), "other": clock.session(other)}
    return measure(sessions, {}, baseline="base", clock=clock, **options)


def test_steady_times_stop_early():
    result = report(lambda n: 0.004, lambda n: 0.003, seconds=10)
    assert (result.rounds, result.runs_per_timing) == (35, 1)
    assert result["other"].median_ms == pytest.approx(3) and result["other"].ratio == pytest.approx(0.75)
    assert result["other"].faster and not result["base"].faster and result.fastest == "other"
    assert result["base"].ratio == result["base"].low == result["base"].high == 1
    assert result.seconds == pytest.approx((35 + 1 + 2) * 0.007)  # with the first and the warm-up runs


def test_percentiles():
    entry = summarise([Load(("a",), {"a": np.arange(1, 102) * 1e-3})], "a")["a"]
    assert (entry.median_ms, entry.p90_ms, entry.p99_ms) == pytest.approx((51, 91, 100))


def test_timings_last_equally_long_whatever_a_model_takes():
    """So that a longer model is not interrupted more often than a shorter one."""
    result = report(lambda n: 2e-4, lambda n: 1e-4, seconds=1)
    assert result.runs_per_timing == 5
    assert result["base"].median_ms == pytest.approx(0.2) and result["other"].median_ms == pytest.approx(0.1)
    assert module._repeats({"slow": 0.05, "half": 0.025, "fast": 1e-4}) == {"slow": 1, "half": 2, "fast": 500}


def test_clock_that_stands_still_does_not_repeat_forever():
    assert module._repeats({"a": 0.0}) == {"a": module.MOST_REPEATS}


def test_drift_of_the_machine_cancels():
    """Both get twice as slow half-way: medians of either are useless, the paired ratio is not."""
    clock = FakeClock()

    def drifting(seconds):
        return lambda n: seconds * (2 if clock.now > 0.5 else 1) * (1 + 0.001 * (n % 7))

    sessions = {"base": clock.session(drifting(0.005)), "other": clock.session(drifting(0.0045))}
    result = measure(sessions, {}, baseline="base", seconds=1.0, clock=clock, min_rounds=90)
    assert result["other"].ratio == pytest.approx(0.9, rel=0.01) and result["other"].faster


def test_undecided_goes_on_for_almost_twice_as_long():
    same = report(noisy(0.01, 0.3, 1), noisy(0.01, 0.3, 2), seconds=1.0)
    assert same["other"].undecided and not same["other"].faster
    assert same.seconds == pytest.approx(1.8, rel=0.2)


def test_decided_but_noisy_stops_in_time():
    result = report(noisy(0.01, 0.2, 1), noisy(0.005, 0.2, 2), seconds=2.0)
    assert result["other"].faster and result.seconds == pytest.approx(2.0, rel=0.2)


def test_narrow_interval_stops_early_even_around_one():
    result = report(noisy(0.01, 0.005, 1), noisy(0.01, 0.005, 2), seconds=100)
    assert result["other"].narrow and result.seconds < 5


def test_slow_models_get_the_least_number_of_rounds_all_the_same():
    assert report(lambda n: 5.0, lambda n: 5.0, seconds=0.1, min_rounds=4).rounds == 4


def test_order_within_rounds_changes_and_depends_on_the_seed_only():
    def order(seed):
        clock, calls = FakeClock(), []
        note = {name: clock.session(lambda n, name=name: calls.append(name) or 0.01) for name in "abc"}
        measure(note, {}, baseline="a", seed=seed, seconds=2.0, clock=clock)
        return calls[9:99]  # after a first run of each, and two to warm up

    rounds = {tuple(order(0)[i : i + 3]) for i in range(0, 90, 3)}
    assert len(rounds) == 6 and all(set(r) == set("abc") for r in rounds)
    assert order(0) == order(0) != order(1)


def test_bootstrap_covers_the_truth_and_does_not_depend_on_blocks(monkeypatch):
    generator = np.random.default_rng(0)
    timings = {"a": 1 + 0.1 * generator.random(200), "b": 0.8 + 0.1 * generator.random(200)}
    loads = [Load(("a", "b"), timings)]
    whole = summarise(loads, "a")["b"]
    assert whole.low < 0.85 / 1.05 < whole.high and whole.high - whole.low < 0.03
    monkeypatch.setattr(latency_stats, "_BLOCK", 1000)
    assert summarise(loads, "a")["b"] == whole


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


def test_going_on_does_not_find_differences_by_chance():
    """Looking again and again until the interval leaves 1 would find one in every seventh pair of equal models."""
    decided = 0
    for seed in range(60):
        found = report(noisy(0.05, 0.25, 2 * seed), noisy(0.05, 0.25, 2 * seed + 1), seconds=3.0, seed=seed)["other"]
        decided += not found.undecided
    assert decided <= 5  # 3 are to be expected


def test_what_is_not_clear_is_measured_for_longer_although_the_interval_leaves_1():
    found = report(noisy(0.01, 0.3, 1), noisy(0.0092, 0.3, 2), seconds=3.0)
    assert found["other"].faster and found.seconds == pytest.approx(5.4, rel=0.2)
    found = report(noisy(0.01, 0.3, 1), noisy(0.0085, 0.3, 2), seconds=3.0)
    assert found["other"].faster and found.seconds == pytest.approx(3.0, rel=0.2)


def test_feeds_are_used_in_turn():
    clock, seen = FakeClock(), {"base": [], "other": []}
    sessions = {name: clock.session(lambda n: 0.01) for name in seen}
    for name, session in sessions.items():
        spend = session.outputs
        session.outputs = lambda feed, name=name, spend=spend: seen[name].append(feed["x"]) or spend(feed)
    measure(sessions, [{"x": i} for i in range(3)], baseline="base", clock=clock, seconds=1.0)
    tried = [0, 1, 2, 0, 0]  # all once, the first one to warm up
    assert seen["base"][:35] == seen["other"][:35] == tried + [0, 1, 2] * 10


def test_progress_grows_towards_its_end():
    told = []
    report(noisy(0.01, 0.3, 1), noisy(0.01, 0.3, 2), seconds=1.0, progress=lambda *pair: told.append(pair))
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert {total for _, total in told} == {1.0, 1.8} and told[-1][0] == pytest.approx(1.8, rel=0.2)


# Several loads


class Timed:
    """A session without reference cycles, so that it is gone when nobody holds it."""

    def __init__(self, clock, seconds):
        self.clock, self.seconds, self.runs = clock, seconds, 0

    def run(self, output_names, input_feed):
        self.runs += 1
        self.clock.now += self.seconds * (1 + 1e-4 * (self.runs % 7))
        return []

    get_inputs = get_outputs = list


class Machine:
    """A fake machine on which the speed of a session is luck, decided when it is created."""

    def __init__(self, luck, creation=0.0):
        self.clock, self.luck, self.creation = FakeClock(), luck, creation
        self.created, self.alive, self.most_alive = [], 0, 0

    def make(self, name, seconds):
        def create():
            position = self.alive
            self.clock.now += self.creation
            factor = self.luck(name, len(self.created) // 2, position)
            session = Timed(self.clock, seconds * factor)
            self.created.append(name)
            self.alive += 1
            self.most_alive = max(self.most_alive, self.alive)
            weakref.finalize(session, self.gone)
            return session

        return create

    def gone(self):
        self.alive -= 1

    def measure(self, base=0.01, other=0.01, **options):
        models = {"base": self.make("base", base), "other": self.make("other", other)}
        return measure(models, {}, baseline="base", clock=self.clock, **options)


def lucky(seed, deviation=0.01):
    """Every session is faster or slower by about a percent, whatever its model."""
    factors = 1 + deviation * np.random.default_rng(seed).standard_normal((1000, 2))
    return lambda name, load, position: factors[load, int(name == "base")]


def test_luck_of_one_load_looks_like_a_difference_and_that_of_several_does_not():
    found = [Machine(lucky(seed)).measure(reloads=1)["other"] for seed in range(20)]
    assert sum(not entry.undecided for entry in found) >= 15
    found = [Machine(lucky(seed)).measure(reloads=10, seconds=0.5, min_rounds=10)["other"] for seed in range(60)]
    assert sum(not entry.undecided for entry in found) <= 6  # 3 are to be expected


def test_a_difference_larger_than_luck_is_found():
    found = Machine(lucky(0)).measure(0.01, 0.0095, reloads=10)
    assert found["other"].faster and found["other"].ratio == pytest.approx(0.95, abs=0.01)
    assert found.loads == 10 and found.rounds > 100 and found.seconds == pytest.approx(3.0, rel=0.1)


def test_sessions_of_one_load_only_exist_at_a_time_and_every_order_is_reversed():
    machine = Machine(lucky(0))
    machine.measure(0.01, 0.005, reloads=10)
    pairs = [tuple(machine.created[i : i + 2]) for i in range(0, 20, 2)]
    assert len(machine.created) == 20 and machine.most_alive == 2 and machine.alive == 0
    assert all(first == second[::-1] for first, second in zip(pairs[::2], pairs[1::2], strict=True))
    assert set(pairs[::2]) == {("base", "other"), ("other", "base")}


def test_what_comes_first_at_the_same_place_does_not_count():
    """The session that is created first is 3 % slower: neither the ratio nor its interval show it."""
    luck = lucky(1, 0.001)
    machine = Machine(lambda name, load, position: luck(name, load, position) * (1.03 if position == 0 else 1))
    found = machine.measure(reloads=10)["other"]
    assert found.ratio == pytest.approx(1, abs=0.002) and found.high - found.low < 0.004


def test_a_disturbed_load_does_not_count():
    luck = lucky(2, 0.001)
    machine = Machine(
        lambda name, load, position: luck(name, load, position) * (2 if (name, load) == ("base", 3) else 1)
    )
    found = machine.measure(reloads=10)["other"]
    assert found.ratio == pytest.approx(1, abs=0.002) and found.high - found.low < 0.006


def test_undecided_adds_loads():
    found = Machine(lucky(3, 0.05)).measure(reloads=7, seconds=2.0)
    assert found.loads == 14 and found["other"].undecided  # 1.8 times 8, since orders come in pairs


def test_loads_are_as_many_as_creating_sessions_allows():
    def found(creation, seconds=3.0):
        return Machine(lucky(0), creation).measure(0.01, 0.005, reloads=20, seconds=seconds)

    assert found(0.01).loads == 20 and found(0.05).loads == 10 and found(0.1).loads == 6
    single = found(1.0)
    assert single.loads == 1 and single["other"].high / single["other"].low > 1.04, "its luck stays unknown"
    assert all(report.seconds <= 2 * 3.0 for report in map(found, (0.01, 0.1, 0.5, 1.0)))


@pytest.mark.parametrize("spread", [0.0, 0.02], ids=["noise of the rounds", "luck of the loads"])
def test_intervals_of_several_loads_hold_the_truth_as_often_as_they_say(spread):
    generator, held = np.random.default_rng(0), 0
    orders = [("a", "b"), ("b", "a")] * 5
    for _ in range(300):
        luck = np.exp(spread * generator.standard_normal((10, 2)))
        timings = [[row * (1 + 0.05 * generator.standard_normal(15)) for row in pair] for pair in luck]
        loads = [Load(o, {"a": x, "b": 0.9 * y}) for o, (x, y) in zip(orders, timings, strict=True)]
        entry = summarise(loads, "a")["b"]
        held += entry.low < 0.9 < entry.high
    assert 0.92 <= held / 300 <= 0.98


def test_three_candidates_over_several_loads():
    clock, factors = FakeClock(), {"a": 1.0, "b": 0.8, "c": 1.25}
    models = {name: lambda f=f: clock.session(lambda n: 0.01 * f * (1 + 1e-3 * (n % 5))) for name, f in factors.items()}
    found = measure(models, {}, baseline="a", reloads=6, clock=clock)
    assert {name: round(entry.ratio, 3) for name, entry in found.candidates.items()} == factors
    assert found["a"].low == found["a"].high == 1 and found["b"].faster and found["c"].slower
    assert found.fastest == "b"


def test_real_models_over_several_loads():
    models = {"in": linear(np.ones((3, 4), np.float32)), "out": linear(np.ones((3, 2), np.float32))}
    feed = {"x": np.ones((1, 3), np.float32)}
    result = measure(models, feed, baseline="in", seconds=2.0, min_rounds=12, reloads=6)
    assert result.loads >= 6 and result.rounds >= 12 and set(result.candidates) == {"in", "out"}


def test_students_quantiles():
    for freedom, level, tabled in ((4, 0.95, 2.776), (8, 0.95, 2.306), (30, 0.95, 2.042), (8, 0.99, 3.355)):
        assert student(freedom, level) == pytest.approx(tabled, rel=0.005)


def test_what_cannot_be_loaded_again():
    model = linear(np.ones((3, 4), np.float32))
    with pytest.raises(UsageError, match=r"^new: a session can't be loaded again"):
        measure({"new": FakeClock().session(lambda n: 1.0)}, {}, baseline="new", reloads=6)
    for reloads in (0, 5):
        with pytest.raises(UsageError, match=f"^{reloads} loads say too little"):
            measure({"new": model}, {}, baseline="new", reloads=reloads)


def test_what_slows_whole_rounds_does_not_blur_ratios():
    """A slow half of the rounds, as another program makes it is no difference between candidates."""
    generator = np.random.default_rng(0)
    loads = []
    for _ in range(8):
        slowed = 1 + 0.5 * (generator.random(9) < 0.5)
        drifting = {name: base * slowed * generator.normal(1, 0.001, 9) for name, base in (("a", 1.0), ("b", 0.9))}
        loads.append(Load(("a", "b") if len(loads) % 2 else ("b", "a"), drifting))
    found = summarise(loads, "a")["b"]
    assert found.ratio == pytest.approx(0.9, rel=0.002)
    assert found.high - found.low < 0.004


# Other programs


class Scheduler:
    """A fake system that lets other programs in, and tells how long the threads waited meanwhile."""

    def __init__(self, clock, slices):
        self.clock, self.slices, self.waited, self.ran = clock, slices, 0.0, 0

    def session(self, seconds):
        """A session whose run number n, of all sessions, is interrupted for ``slices(n)`` seconds."""

        def spend(_):
            taken = self.slices(self.ran)
            self.ran += 1
            self.waited += taken
            return seconds + taken

        return self.clock.session(spend)

    def measure(self, base=0.01, other=0.005, **options):
        sessions = {"base": self.session(base), "other": self.session(other)}
        return measure(sessions, {}, baseline="base", clock=self.clock, waited=lambda: lambda: self.waited, **options)


def test_interrupted_timings_are_taken_again_and_counted():
    generator = np.random.default_rng(0)
    scheduler = Scheduler(FakeClock(), lambda n: 0.05 if generator.random() < 0.3 else 0.0)
    found = scheduler.measure(seconds=5.0)
    assert found["other"].ratio == pytest.approx(0.5, rel=1e-6) and found["other"].faster and not found.busy
    assert 0.2 < found.interrupted / found.timings < 0.6 and found["base"].median_ms == pytest.approx(10)
    assert found["base"].p99_ms == pytest.approx(10), "what was interrupted says nothing of a model"


def test_where_everything_is_interrupted_nothing_is_concluded():
    found = Scheduler(FakeClock(), lambda n: 0.05).measure(seconds=1.0)
    assert found.busy == f"other programs interrupted {found.interrupted:,} of {found.timings:,} timings"
    assert found.timings == found.interrupted and found.rounds == 0 and found.seconds < 2.5
    entry = found["other"]
    assert not entry.faster and not entry.slower and entry.undecided
    plain = found.to_dict()
    assert plain["candidates"]["other"]["ratio"] is None and plain["candidates"]["base"]["ratio"] == 1
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain


def test_a_limit_holds_and_says_what_there_was_time_for():
    found = report(lambda n: 5.0, lambda n: 2.0, seconds=0.1, limit=20.0)
    assert found.busy == "there was time for 2 of 6 rounds" and found.seconds < 30
    assert not found["other"].faster


def test_few_rounds_make_wide_intervals():
    found = report(noisy(1.0, 0.1, 1), noisy(0.98, 0.1, 2), seconds=0.1, limit=25.0)
    assert not found.busy and found.rounds < 12 and found["other"].undecided


def test_medians_do_not_contradict_the_ratio():
    """What slows whole rounds moves the medians of few timings, not the ratio: one follows from the other."""
    clock = FakeClock()

    def drifting(seconds):
        return lambda n: seconds * (1 + (n // 7) % 2)

    sessions = {"base": clock.session(drifting(0.01)), "other": clock.session(drifting(0.008))}
    found = measure(sessions, {}, baseline="base", clock=clock, seconds=1.0)
    assert found["other"].median_ms == pytest.approx(found["base"].median_ms * found["other"].ratio)
    assert found["other"].median_ms <= found["other"].p90_ms <= found["other"].p99_ms
