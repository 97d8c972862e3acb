"""What the table of lowerings rests on: every variant computes the same, and the floor leaves out the right kernels."""

from __future__ import annotations

from argparse import Namespace
from collections import Counter

import onnx
import pytest

from benchmarks import lowerings_variants
from benchmarks.lowerings import build_variants, cases
from benchmarks.lowerings_floor import free_if_selections_are, profile
from benchmarks.lowerings_table import markdown, summary
from benchmarks.lowerings_variants import VARIANTS, Case
from models import build


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> Case:
    path = tmp_path_factory.mktemp("model") / "resnet18.onnx"
    onnx.save(build("resnet18", image=64), str(path))
    options = Namespace(precision="float32", ratios=[0.4], threads=[1], providers=["cpu"], opt_level="all")
    return next(cases(str(path), options))[1]


def test_every_variant_computes_what_the_masked_model_computes(case, monkeypatch):
    monkeypatch.setattr(lowerings_variants, "CONTEST_SECONDS", 0.3)
    names = [name for name in VARIANTS if name != "onnxsim"]  # an optional dependency
    built, entries = build_variants(case, names)
    assert [name for name in names if "error" in entries[name]] == []
    sizes = {name: entry["parameters"] for name, entry in entries.items()}
    assert sizes["naive-gather"] < sizes["gather"] < sizes["union"] < sizes["unpruned"]
    assert set(built) | {name for name in names if entries[name].get("same_as") in built} == set(names)


def test_only_the_published_order_is_made_for_slices(case):
    kinds = {}
    for name in ("naive-gather", "naive-slice"):
        plan = VARIANTS[name].build(case).plan
        kinds[name] = Counter(kind for segment in plan.segments for kind in segment.lowerings.values())
    assert kinds["naive-slice"]["slice"] >= 4 > kinds["naive-gather"]["slice"]
    copies = [found["gather"] + found["slice"] for found in kinds.values()]
    assert copies[0] == copies[1]


def test_the_floor_has_the_copies_of_the_unpruned_model(case):
    models = {name: VARIANTS[name].build(case).model for name in ("unpruned", "gather")}
    found = profile(models, case.feed, case.options, rounds=2)
    free = free_if_selections_are(found["gather"], case.model)
    assert 0 < found["gather"].total(free) < found["gather"].total()
    assert _copies(found["gather"].graph, free) == _copies(found["unpruned"].graph, frozenset())


def _copies(graph, without):
    kinds = ("Gather", "Slice", "ReorderInput", "ReorderOutput")
    return Counter(node.op_type for node in graph.node if node.op_type in kinds and node.name not in without)


def test_rows_become_ratios_against_the_best_of_the_others():
    def entry(ratio, **more):
        return {"ms": 10 * ratio, "ratio": ratio, "low": ratio, "high": ratio, "seconds": 0.1} | more

    row = {
        "model": "m",
        "ratio": 0.5,
        "threads": 1,
        "provider": "CPU",
        "precision": "float32",
        "variants": {
            "unpruned": entry(1.0),
            "naive-gather": entry(0.8),
            "gather": entry(0.5),
            "slice": {"error": "does not load"},
            "auto": entry(0.65),
            "written": entry(0.6),
            "onnxsim": entry(0.3),
        },
        "floor": {"us": 400.0, "ours_us": 500.0},
    }
    facts = summary(row)
    assert facts["over_naive"] == pytest.approx(0.75)
    assert facts["over_aligned"] == facts["over_fastest"] == pytest.approx(1.2)
    assert facts["fastest"] == "gather"  # onnxsim's masks are others
    assert facts["regret"] == pytest.approx(0.3)
    assert facts["over_onnxsim"] == pytest.approx(2.0)
    assert facts["over_floor"] == pytest.approx(1.25)
    text = markdown([row])
    assert "within 2% of the fastest on 0 of 1; not on m (1.200, aligned gather)" in text
    assert "fails: does not load" in text
