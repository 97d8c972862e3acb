"""Options of a training run, and its checkpoints."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ucpe_onnx.errors import DataError, UsageError
from ucpe_onnx.train.options import TrainOptions


@pytest.mark.parametrize("granularity", ["channel", "filter", "segment", "unstructured", "2:4", "1:16"])
def test_granularities(granularity: str) -> None:
    assert TrainOptions(granularity=granularity).checked().structured == (
        granularity in ("channel", "filter", "segment")
    )


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"granularity": "4:2"}, "--granularity: unknown '4:2'; choose from channel, .* or N:M such as 2:4"),
        ({"granularity": "row"}, "--granularity: unknown 'row'"),
        ({"method": "magic"}, "--method: unknown 'magic'; choose from pdp, gradual, one-shot"),
        ({"optimiser": "lion"}, "--optimiser: unknown"),
        ({"device": "tpu"}, "--device: unknown"),
        ({"shape": "square"}, "--shape: unknown"),
        ({"scope": "some"}, "--scope: unknown"),
        ({"ratio": 1.0}, "--ratio: 1.0 is no share; give a number from 0 to below 1"),
        ({"ratio": float("nan")}, "--ratio: nan is no share"),
        ({"warmup": -0.1}, "--warmup: -0.1 is no share"),
        ({"ramp": 0.7, "warmup": 0.4}, "--ramp 0.7 and --warmup 0.4 are shares of all steps"),
        ({"ramp": 0.0}, "--ramp 0.0"),
        ({"epochs": 0}, "--epochs: 0 must be at least 1"),
        ({"batch": 0}, "--batch: 0 must be at least 1"),
        ({"lr": 0.0}, "--lr: 0.0 must be a positive number"),
        ({"tau": float("inf")}, "--tau: inf must be"),
        ({"cooling": 0.0}, "--cooling: 0.0 is no share; give a number above 0, up to 1"),
        ({"settle": 1.5}, "--settle: 1.5 is no share"),
        ({"weight_decay": -1.0}, "--weight-decay: -1.0 must not be negative"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], error: str) -> None:
    with pytest.raises(UsageError, match=error):
        TrainOptions(**options).checked()


def test_checkpoints(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from ucpe_onnx.train.checkpoint import load_checkpoint, save_checkpoint

    path, run = tmp_path / "run.pt", {"model": "abc", "lr": 0.1}
    assert load_checkpoint(path, run) is None
    save_checkpoint(path, {"weights": torch.arange(3)}, run)
    save_checkpoint(path, {"weights": torch.arange(4)}, run)
    found = load_checkpoint(path, run)
    assert found is not None and found["weights"].tolist() == [0, 1, 2, 3]
    assert [file.name for file in tmp_path.iterdir()] == ["run.pt"]
    with pytest.raises(DataError, match=r"run\.pt: belongs to a run with another lr \(0\.1, now 0\.2\)"):
        load_checkpoint(path, {**run, "lr": 0.2})
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match=r"run\.pt: can't be read as a checkpoint .*; remove it to start anew"):
        load_checkpoint(path, run)
    torch.save([1, 2], path)
    with pytest.raises(DataError, match="is no checkpoint of this tool"):
        load_checkpoint(path, run)
    for damaged in ({"run": run}, {"run": [], "state": {"a": 1}}, {"run": run, "state": []}, {"run": run, "state": {}}):
        torch.save({"format": "ucpe-pdp-checkpoint/1", **damaged}, path)
        with pytest.raises(DataError, match="is damaged; remove it to start anew"):
            load_checkpoint(path, run)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match="is no regular file"):
        load_checkpoint(path, run)


def test_a_crash_while_writing_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from ucpe_onnx.train import checkpoint

    path = tmp_path / "run.pt"
    checkpoint.save_checkpoint(path, {"epoch": 1}, {})

    def half(value: Any, file: Any) -> None:
        Path(file).write_bytes(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save_checkpoint(path, {"epoch": 2}, {})
    monkeypatch.undo()
    assert checkpoint.load_checkpoint(path, {}) == {"epoch": 1}
