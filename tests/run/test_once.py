"""What is computed once a run is computed once, and what is told is never lost on the way."""

from __future__ import annotations

import pytest

from tests.models_small import latency, sample, wide
from ucpe_onnx import prune
from ucpe_onnx.run import context


def counted(monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> list[object]:
    """The calls of a function from now on."""
    calls: list[object] = []
    real = getattr(owner, name)

    def spy(*args: object, **options: object) -> object:
        calls.append(args)
        return real(*args, **options)

    monkeypatch.setattr(owner, name, spy)
    return calls


def test_the_sensitivity_section_stays_when_the_input_layout_wins(monkeypatch):
    ratios = [1.3, 1.0]
    monkeypatch.setattr(context, "measure", lambda models, *_, **__: latency(ratios.pop(0), names=models))
    options = {"data": {"x": sample(16)}, "compensate": False, "sensitivity": True, "allow_slower": True}
    report = prune(wide(), masks={"left": [0]}, **options).report
    assert report.layout == "input layout" and report.sensitivity
    assert report.to_dict()["sensitivity"]


def test_rates_are_looked_up_once_a_run(monkeypatch):
    calls = counted(monkeypatch, context, "rates_for")
    prune(wide(), target_params=0.7, bench_seconds=0)
    assert len(calls) == 1


@pytest.mark.parametrize("options", [{"target_params": 0.7}, {}])
def test_statistics_of_the_same_samples_are_collected_once_a_run(monkeypatch, options):
    calls = counted(monkeypatch, context, "collect")
    prune(wide(), data={"x": sample(16)}, sensitivity=True, bench_seconds=0, **options)
    assert len(calls) == 1
