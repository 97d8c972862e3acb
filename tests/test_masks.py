"""Mask files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ucpe_onnx.errors import MaskError
from ucpe_onnx.masks import check_masks, load_masks, save_masks

CHANNELS = {"/layer1/Conv": 4, "file": 3, "a:b c.npy": 2, "Gemm_1": 5}


def masks() -> dict[str, np.ndarray]:
    return {
        "/layer1/Conv": np.array([True, False, True, True]),
        "file": np.array([False, False, True]),
        "a:b c.npy": np.array([True, True]),
    }


@pytest.mark.parametrize("suffix", [".npz", ".json"])
def test_round_trip(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"masks{suffix}"
    save_masks(path, masks())
    loaded = load_masks(path, CHANNELS)
    assert {name: mask.tolist() for name, mask in loaded.items()} == {n: m.tolist() for n, m in masks().items()}
    assert all(mask.dtype == np.bool_ for mask in loaded.values())


def test_files_that_numpy_wrote(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "masks.npz", Gemm_1=np.array([True] * 4 + [False]))
    assert load_masks(str(tmp_path / "masks.npz"), CHANNELS)["Gemm_1"].tolist() == [True] * 4 + [False]


@given(st.lists(st.integers(0, 4), min_size=1))
def test_lists_of_indices_are_masks(kept: list[int]) -> None:
    mask = check_masks({"Gemm_1": kept}, CHANNELS)["Gemm_1"]
    assert np.flatnonzero(mask).tolist() == sorted(set(kept)) and mask.size == 5
    assert np.array_equal(check_masks({"Gemm_1": tuple(kept)}, CHANNELS)["Gemm_1"], mask)


@pytest.mark.parametrize(
    "value, message",
    [
        ([], "mask for 'file' keeps nothing"),
        (np.zeros(3, dtype=bool), "mask for 'file' keeps nothing"),
        ([3], "index 3 is outside of its 3 input channels"),
        ([-1], "index -1 is outside"),
        ([0.5], "expected a list of channel indices"),
        (["0"], "expected a list of channel indices"),
        ([[0], [1]], "expected a list of channel indices"),
        ([[0], [1, 2]], "expected a list of channel indices"),
        ([None], "expected a list of channel indices"),
        ([2**70], "expected a list of channel indices"),
        (np.array([1, 0, 1]), "expected a boolean array .*got int64"),
        (np.array([True, False]), r"has shape \(2,\), the consumer reads 3"),
        (np.ones((3, 1), dtype=bool), r"has shape \(3, 1\)"),
        (np.array(True), r"has shape \(\)"),
        (None, "expected a boolean array"),
    ],
)
def test_refusals(value: Any, message: str) -> None:
    with pytest.raises(MaskError, match=message):
        check_masks({"file": value}, CHANNELS)


def test_unknown_consumer() -> None:
    with pytest.raises(MaskError, match=r"mask for 'Conv_9': the model has no such consumer; .*ucpe_onnx.inspect"):
        check_masks({"Conv_9": [0]}, CHANNELS)


def test_messages_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    path.write_text(json.dumps({"file": [7]}))
    with pytest.raises(MaskError, match=r"m\.json: mask for 'file': index 7"):
        load_masks(path, CHANNELS)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("m.json", b"{", "not a .json mask file"),
        ("m.json", b"\xff\xfe", "not a .json mask file"),
        ("m.json", b"[1]", "expected an object"),
        ("m.json", b'{"file": "x"}', "mask for 'file': expected a list"),
        ("m.npz", b"PK no zip", "not an .npz mask file"),
        ("m.npz", b"", "not an .npz mask file"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MaskError, match=message):
        load_masks(tmp_path / name, CHANNELS)


def test_other_arrays(tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", np.ones(3, dtype=bool))
    with pytest.raises(MaskError, match="one bare array"):
        load_masks(tmp_path / "m.npy", CHANNELS)
    np.savez(tmp_path / "objects.npz", Gemm_1=np.array([None, 1], dtype=object))
    with pytest.raises(MaskError, match=r"not an \.npz mask file"):
        load_masks(tmp_path / "objects.npz", CHANNELS)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(MaskError, match=r"no such file; give an \.npz or \.json"):
        load_masks(tmp_path / "none.npz", CHANNELS)
    with pytest.raises(MaskError, match="no such file"):
        load_masks(tmp_path, CHANNELS)
