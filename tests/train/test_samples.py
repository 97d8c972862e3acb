"""Training samples: what is read when, in which order, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ucpe_onnx.errors import DataError
from ucpe_onnx.samples.inputs import InputSpec
from ucpe_onnx.train.samples import TrainingSamples, open_samples

SPECS = [InputSpec("x", np.dtype(np.float32), (None, 3))]
X = np.arange(60, dtype=np.float32).reshape(20, 3)
LABELS = np.arange(20)


def gone_through(
    samples: TrainingSamples, size: int = 6, seed: int | None = None
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    random = None if seed is None else np.random.default_rng(seed)
    batches = list(samples.batches(size, random))
    labels = [b.labels for b in batches if b.labels is not None]
    return np.concatenate([b.feeds["x"] for b in batches]), np.concatenate(labels), [b.count for b in batches]


def written(tmp_path: Path, how: str) -> Any:
    if how == "folder":
        np.save(tmp_path / "x.npy", X)
        np.save(tmp_path / "labels.npy", LABELS)
        return tmp_path
    if how == "compressed":
        np.savez_compressed(tmp_path / "s.npz", x=X, labels=LABELS)
    elif how == "fortran":
        np.savez(tmp_path / "s.npz", x=np.asfortranarray(X), labels=LABELS)
    else:
        np.savez(tmp_path / "s.npz", x=X, labels=LABELS)
    return tmp_path / "s.npz"


@pytest.mark.parametrize("how", ["folder", "plain", "compressed", "fortran", "dict"])
def test_forms(tmp_path: Path, how: str) -> None:
    samples = open_samples({"x": X, "labels": LABELS} if how == "dict" else written(tmp_path, how), SPECS)
    x, labels, counts = gone_through(samples)
    assert np.array_equal(x, X) and np.array_equal(labels, LABELS) and counts == [6, 6, 6, 2]
    assert samples.count == 20 and samples.labelled


@pytest.mark.parametrize("how", ["folder", "plain", "fortran"])
def test_files_are_mapped(tmp_path: Path, how: str) -> None:
    samples = open_samples(written(tmp_path, how), SPECS)
    assert samples.data is not None
    array = samples.data.parts[0]["x"]
    while not isinstance(array, np.memmap):
        assert array.base is not None, "it was read into memory"
        array = array.base


def test_shuffled_alike_for_a_seed_and_with_their_labels() -> None:
    samples = open_samples({"x": X, "labels": LABELS}, SPECS)
    (x, labels, _), again, other = (gone_through(samples, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(x, again[0]) and not np.array_equal(x, other[0])
    assert np.array_equal(x[:, 0], 3 * labels) and sorted(labels) == list(range(20))


def test_split() -> None:
    kept, judges = open_samples({"x": X, "labels": LABELS}, SPECS).split(10)
    assert kept.count == 18 and gone_through(judges)[1].tolist() == [9, 19]
    with pytest.raises(DataError, match="1 samples are too few to hold every 10th out"):
        open_samples({"x": X[:1]}, SPECS).split(10)


def test_a_stream_is_made_anew_for_every_epoch_and_cut_into_batches() -> None:
    calls = []

    def stream() -> Any:
        calls.append(0)
        return ({"x": X[i : i + 4], "labels": LABELS[i : i + 4]} for i in range(0, 20, 4))

    samples = open_samples(stream, SPECS)
    assert samples.count is None and not calls
    for _ in range(2):
        x, labels, counts = gone_through(samples)
        assert np.array_equal(x, X) and np.array_equal(labels, LABELS) and counts == [8, 8, 4]
    assert len(calls) == 2
    with pytest.raises(DataError, match="a stream can't be split; give samples to judge by with --val-data"):
        samples.split(10)


def test_a_stream_is_not_read_ahead() -> None:
    made = []

    def stream() -> Any:
        for i in range(1000):
            made.append(i)
            yield {"x": X}

    batches = open_samples(stream, SPECS).batches(20)
    next(batches)
    assert len(made) <= 2


def test_named_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_loader.py").write_text(
        "import numpy as np\n\n\ndef feeds():\n"
        "    for i in range(3):\n        yield {'x': np.full((2, 3), i, np.float32)}\n"
    )
    monkeypatch.chdir(tmp_path)
    batches = list(open_samples("some_loader:feeds", SPECS).batches(2))
    assert [float(batch.feeds["x"][0, 0]) for batch in batches] == [0, 1, 2] and batches[0].labels is None


def raising() -> Any:
    yield {"x": X}
    raise OSError("disk gone")


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("nothing.npz", "nothing.npz: no such file"),
        ("a/b", "a/b: no such file or directory"),
        ({"y": X}, "array 'y' is not an input of the model; rename it to 'x'"),
        ({"x": X[:, :2]}, r"'x' has shape \(20, 2\), the model takes"),
        ({"x": X, "labels": LABELS[:3]}, "20 samples, 'labels' has 3"),
        (lambda: iter(()), "yields no samples"),
        (lambda: iter([{"x": X[:, :2]}]), "item 0: 'x' has shape"),
        (raising, "raised OSError: disk gone while it was read"),
    ],
)
def test_what_is_refused(source: Any, error: str) -> None:
    with pytest.raises(DataError, match=error):
        list(open_samples(source, SPECS).batches(64))


def test_labels_of_their_own() -> None:
    assert np.array_equal(gone_through(open_samples({"x": X}, SPECS, LABELS))[1], LABELS)
    with pytest.raises(DataError, match="20 samples but 3 labels"):
        open_samples({"x": X}, SPECS, LABELS[:3])
    with pytest.raises(DataError, match="labels of a stream must be in its items"):
        open_samples(raising, SPECS, LABELS)


def test_broken_archive(tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    path.write_bytes(written(tmp_path, "plain").read_bytes()[:-40])
    with pytest.raises(DataError, match=r"s\.npz: can't be read"):
        open_samples(path, SPECS)
