"""Masks and plans that do not fit are refused before anything is done."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.bad_input.running import refused
from tests.models_small import branches, write
from ucpe_onnx import prune

# Masks and plans


def npz(path: Path, **masks: np.ndarray) -> str:
    np.savez(path, **{name.replace("__", "/"): mask for name, mask in masks.items()})
    return str(path)


@pytest.mark.parametrize(
    ("masks", "words"),
    [
        ({"nope": np.ones(3, bool)}, ["'nope'", "no such consumer", "inspect"]),
        ({"__b__Conv": np.ones(5, bool)}, ["'/b/Conv'", "(5,)", "16"]),
        ({"__b__Conv": np.zeros(16, bool)}, ["'/b/Conv'", "keeps nothing"]),
        ({"__b__Conv": np.ones(16, np.float32)}, ["'/b/Conv'", "float32"]),
        ({"__b__Conv": np.ones((2, 8), bool)}, ["'/b/Conv'", "(2, 8)"]),
    ],
)
def test_masks_that_do_not_fit(fails, folder, masks, words):
    error = refused(fails, "--masks", npz(folder / "m.npz", **masks))
    assert all(word in error for word in ["m.npz", *words]), error


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("{", "not a .json mask file"),
        ("[1]", "expected an object"),
        ('{"/b/Conv": 3}', "expected a list"),
        ('{"/b/Conv": [16]}', "index 16"),
        ('{"/b/Conv": [-1]}', "index -1"),
        ('{"/b/Conv": [0.5]}', "list of channel indices"),
        ('{"/b/Conv": []}', "keeps nothing"),
        ('{"/b/Conv": ["0"]}', "list of channel indices"),
    ],
)
def test_json_masks_that_do_not_fit(fails, folder, text, word):
    (folder / "m.json").write_text(text)
    error = refused(fails, "--masks", "m.json")
    assert "m.json" in error and word in error


def test_files_that_hold_no_masks(fails, folder):
    (folder / "m.npz").write_bytes(b"PK\x03\x04 not really")
    assert "m.npz: not an .npz mask file" in refused(fails, "--masks", "m.npz")
    assert "in.npz: no such file" in refused(fails, "--masks", "in.npz")
    assert "in.onnx: not an .npz mask file" in refused(fails, "--masks", "in.onnx")


def plan_file(folder: Path) -> dict:
    prune(str(folder / "in.onnx"), mode="unconstrained", bench_seconds=0).plan.save(folder / "plan.json")
    return json.loads((folder / "plan.json").read_text())


def test_plan_of_another_model(fails, folder):
    plan_file(folder)
    write(branches(("/a/Conv", "/b/Conv", "/c/Conv", "other")), folder / "in.onnx")
    error = refused(fails, "--plan", "plan.json")
    assert "plan.json" in error and "another model" in error


def test_plan_that_names_other_consumers(fails, folder):
    raw = plan_file(folder)
    write(branches(("/a/Conv", "/b/Conv", "/c/Conv", "other")), folder / "in.onnx")
    (folder / "plan.json").write_text(json.dumps({**raw, "source_sha256": ""}))
    assert "on consumer 'fc'" in refused(fails, "--plan", "plan.json")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "not a plan"),
        (b"{}", "not a plan"),
        (b"\xff\xfe", "not a plan"),
        (b'{"format": "ucpe-plan/2"}', "ucpe-plan/1"),
        (b'{"format": "ucpe-plan/1"}', "'consumers' is missing"),
        (b'{"format": "ucpe-plan/1", "consumers": [], "segments": []}', "not a valid plan"),
        (b'{"format": "ucpe-plan/1", "consumers": {"a": {}}, "segments": []}', "'keep' is missing"),
    ],
)
def test_corrupted_plan(fails, folder, content, word):
    (folder / "plan.json").write_bytes(content)
    error = refused(fails, "--plan", "plan.json")
    assert "plan.json" in error and word in error
    assert "none.json: no such file" in refused(fails, "--plan", "none.json")


def contradictions() -> dict[str, Callable[[dict], object]]:
    """What to change in a plan, by a word of the message that it must lead to."""

    def consumer(raw: dict) -> dict:
        return raw["consumers"]["/b/Conv"]

    def segment(raw: dict) -> dict:
        return raw["segments"][consumer(raw)["segment"]]

    def reorder(raw: dict) -> None:
        segment(raw)["order"].reverse()

    return {
        "keeps nothing": lambda raw: consumer(raw)["keep"].clear(),
        "index 99 is outside": lambda raw: consumer(raw)["keep"].append(99),
        "index -1 is outside": lambda raw: consumer(raw)["keep"].insert(0, -1),
        "ascending": lambda raw: consumer(raw)["keep"].reverse(),
        "each once": lambda raw: consumer(raw)["keep"].append(consumer(raw)["keep"][-1]),
        "read must hold": lambda raw: consumer(raw)["read"].append(-1),
        "in emitted order": lambda raw: consumer(raw)["read"].reverse(),
        "reads": lambda raw: consumer(raw)["read"].pop(),
        "the kept channels": lambda raw: consumer(raw)["read"].remove(consumer(raw)["keep"][3]),
        "slots differ": lambda raw: consumer(raw)["slots"].reverse(),
        "channels, segment or": lambda raw: consumer(raw).update(segment=0),
        "channels, segment": lambda raw: consumer(raw).update(channels=17),
        "repeats a slot": lambda raw: segment(raw)["order"].append(segment(raw)["order"][0]),
        "does not exist": lambda raw: segment(raw)["order"].append(10**30),
        "blocks and order differ": reorder,
        "disagrees with the model on the segments": lambda raw: raw["segments"].pop(),
        "unknown lowering 'magic'": lambda raw: segment(raw)["lowerings"].update({"/b/Conv": "magic"}),
        "does not read this": lambda raw: segment(raw)["lowerings"].update({"fc": "union"}),
        "contradicts the": lambda raw: segment(raw)["lowerings"].update({"/b/Conv": "gather"}),
        "are not split": lambda raw: segment(raw)["lowerings"].update({"/b/Conv": "partial"}),
        "leave read out": lambda raw: segment(raw)["lowerings"].update({"/b/Conv": "duplicate"}),
        "expected true or false": lambda raw: segment(raw).update(split="yes"),
        "producers of its own": lambda raw: raw["segments"][0]["lowerings"].update({"/a/Conv": "duplicate"}),
        "disagrees with the model on consumer": lambda raw: raw["consumers"].pop("/b/Conv"),
        "frozen": lambda raw: [raw["segments"][0][key].clear() for key in ("order", "blocks")],
        "frozen slots must keep their order": lambda raw: raw["segments"][0].update(
            order=[1, 0, 2], blocks=[[1, 0, 2]]
        ),
        "keeps none of the slots": lambda raw: [segment(raw)[key].clear() for key in ("order", "blocks")],
    }


@pytest.mark.parametrize("word", contradictions())
def test_plan_that_contradicts_the_model(fails, folder, word):
    raw = plan_file(folder)
    contradictions()[word](raw)
    (folder / "plan.json").write_text(json.dumps(raw))
    error = refused(fails, "--plan", "plan.json")
    assert "plan.json: " in error and word in error
