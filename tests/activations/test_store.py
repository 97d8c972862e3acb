"""Arrays in memory and in files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from ucpe_onnx.activations import store as module
from ucpe_onnx.activations.store import Store
from ucpe_onnx.errors import ModelError

ARRAYS = [
    np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    np.array(3, dtype=np.int64),
    np.zeros((0, 3), dtype=np.float16),
    np.array([True, False]),
    np.arange(12).reshape(3, 4).T,
]


@pytest.mark.parametrize("budget", [0, 100, 2**20])
def test_arrays_come_back_as_they_were(budget):
    with Store(budget) as store:
        stored = [store.put(array) for array in ARRAYS]
        for handle, array in zip(stored, ARRAYS, strict=True):
            for _ in range(2):
                found = store.get(handle)
                assert found.dtype == array.dtype
                np.testing.assert_array_equal(found, array)


def test_strings_stay_in_memory():
    with Store(0) as store:
        text = np.array(["a", "bc"], dtype=object)
        assert store.get(store.put(text)) is text


def test_room_that_is_given_back_is_used_again():
    with Store(100) as store:
        first = store.put(np.zeros(20, np.float32))
        assert first.path is None and store.put(np.zeros(20, np.float32)).path is not None
        store.drop([first])
        assert store.put(np.zeros(20, np.float32)).path is None


def test_what_is_only_held_takes_no_room():
    with Store(100) as store:
        held = store.hold(np.zeros(1000, np.float32))
        assert store.put(np.zeros(20, np.float32)).path is None
        store.drop([held])
        assert store.put(np.zeros(20, np.float32)).path is not None


def test_files_are_gone_when_dropped_and_at_the_end():
    with Store(0) as store:
        first, second = (store.put(np.ones(n)) for n in (1, 2))
        assert first.path is not None and second.path is not None
        folder, left = Path(first.path).parent, second.path
        gone = first.path
        store.drop([first])
        assert not os.path.exists(gone) and os.path.exists(left)
    assert not folder.exists()


def test_a_full_disk_is_said_in_a_line(monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.np, "save", full)
    with Store(0) as store, pytest.raises(ModelError, match=r"No space left on device.*free disk space"):
        store.put(np.ones(3))
