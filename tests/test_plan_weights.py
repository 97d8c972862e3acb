"""The file of weights beside a plan."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from tests.test_plan import plans
from ucpe_onnx import MaskError, Plan
from ucpe_onnx.model.new_weights import NewWeight


def plan(value: float = 1.0, names=("w/1", "file")) -> Plan:
    weights = {name: NewWeight.of(np.full((2, 3), value, np.float32)) for name in names}
    return Plan("ab", "0.1", {}, {}, (), weights)


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plan=plans())
def test_round_trip(plan: Plan, tmp_path: Path) -> None:
    plan.save(tmp_path / "p.json")
    assert Plan.load(tmp_path / "p.json") == plan
    assert len(names(tmp_path)) == 1 + bool(plan.weights), "what is left of other plans goes"


def test_weights_are_beside_the_plan_not_in_it(tmp_path):
    weights = {"w": NewWeight.of(np.ones((300, 300), np.float32))}
    Plan("ab", "0.1", {}, {}, (), weights).save(tmp_path / "p.json")
    raw = json.loads((tmp_path / "p.json").read_text())
    assert (tmp_path / "p.json").stat().st_size < 1000 and raw["weights"]["names"] == ["w"]
    with np.load(tmp_path / raw["weights"]["file"]) as arrays:
        assert (arrays["0"] == 1).all()


def test_the_same_plan_gives_the_same_files_and_another_one_new_files(tmp_path):
    file = tmp_path / "p.json"
    plan(1.0).save(file)
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    plan(1.0).save(file)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first
    plan(2.0).save(file)
    assert len(names(tmp_path)) == 2 and names(tmp_path) != sorted(first) and Plan.load(file) == plan(2.0)
    plan(names=()).save(file)
    assert names(tmp_path) == ["p.json"]


def test_a_file_that_is_not_the_plans_own_stays(tmp_path):
    file = tmp_path / "p.json"
    plan().save(file)
    raw = json.loads(file.read_text())
    os.rename(tmp_path / raw["weights"]["file"], tmp_path / "mine.npz")
    raw["weights"]["file"] = "mine.npz"
    file.write_text(json.dumps(raw))
    assert Plan.load(file) == plan()
    plan(2.0).save(file)
    assert "mine.npz" in names(tmp_path)


def test_the_longest_name(tmp_path):
    file = tmp_path / ("p" * 250 + ".json")
    plan().save(file)
    assert Plan.load(file) == plan()


def test_a_stream_gets_all_in_one(tmp_path):
    read, write = os.pipe()
    plan().save(f"/dev/fd/{write}")
    os.close(write)
    with open(read, encoding="utf-8") as stream:
        assert Plan.from_dict(json.load(stream)) == plan()


def damage(file: Path, beside: Path, how: str) -> None:
    raw = json.loads(file.read_text())
    if how == "missing":
        beside.unlink()
    elif how == "another":
        other = file.with_name("q.json")
        plan(2.0).save(other)
        os.replace(file.with_name(json.loads(other.read_text())["weights"]["file"]), beside)
    elif how == "elsewhere":
        raw["weights"]["file"] = f"../{file.parent.name}/{beside.name}"
    elif how == "cut":
        beside.write_bytes(beside.read_bytes()[:-40])
    elif how == "compressed":
        with zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("0.npy", bytes(10_000_000))
    elif how == "no names":
        raw["weights"]["names"] = 3
    elif how == "more names":
        raw["weights"]["names"] += ["more"]
    elif how == "pipe":
        beside.unlink()
        os.mkfifo(beside)
    elif how == "double":
        np.savez(beside, **{"0": np.ones(3), "1": np.ones(3)})
    file.write_text(json.dumps(raw))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("missing", "no such file; keep it beside its plan"),
        ("another", "another hash"),
        ("elsewhere", "does not name a file of weights beside it"),
        ("cut", "not the weights of this plan"),
        ("compressed", "compressed"),
        ("no names", "does not name a file"),
        ("more names", "not the weights of this plan"),
        ("pipe", "no regular file"),
        ("double", "not all are finite float32"),
    ],
)
def test_damaged(tmp_path, how, words):
    file = tmp_path / "p.json"
    plan().save(file)
    damage(file, file.with_name(json.loads(file.read_text())["weights"]["file"]), how)
    with pytest.raises(MaskError, match=words) as error:
        Plan.load(file)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)
