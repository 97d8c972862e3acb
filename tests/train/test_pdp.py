"""``python -m ucpe_onnx.pdp`` as its users run it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.train.test_run import COUNT, network, samples
from ucpe_onnx.cli import main as prune_main
from ucpe_onnx.pdp import main

QUICK = ["--epochs", "2", "--batch", "16", "--lr", "0.05", "--threads", "1"]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    onnx.save(network(), "in.onnx")
    np.savez("train.npz", **samples())
    return tmp_path


def test_masks_and_weights_are_what_the_compiler_takes(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["in.onnx", "masks.npz", "--data", "train.npz", "--json", "out.json", *QUICK]) == 0
    told = capsys.readouterr().out
    assert "50% gone" in told and "accuracy on samples that are not trained on" in told
    assert sorted(p.name for p in files.iterdir()) == ["in.onnx", "masks.npz", "masks.onnx", "out.json", "train.npz"]
    account = json.loads(Path("out.json").read_text())
    assert len(account["epochs"]) == 2 and account["options"]["granularity"] == "channel"
    command = ["masks.onnx", "small.onnx", "--masks", "masks.npz", "--bench-seconds", "0", "-q"]
    assert prune_main(command) == 0
    assert Path("small.onnx").stat().st_size < Path("in.onnx").stat().st_size


def test_emit(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = samples()["labels"]
    np.save("labels.npy", labels)
    np.savez("x.npz", x=samples()["x"])
    arguments = ["in.onnx", "masks.npz", "--data", "x.npz", "--labels", "labels.npy", "--emit", "out.onnx"]
    assert main([*arguments, "--allow-slower", "--trained", "trained.onnx", *QUICK]) == 0
    assert Path("out.onnx").exists() and Path("trained.onnx").exists()
    assert "equal to the masked model" in " ".join(capsys.readouterr().out.split())


def test_configuration(files: Path) -> None:
    Path("pdp.toml").write_text('data = "train.npz"\nepochs = 1\ngranularity = "2:4"\naugment = ["flip"]\n')
    assert main(["in.onnx", "masks.npz", "--config", "pdp.toml", "--threads", "1", "-q"]) == 0
    with np.load("masks.npz") as masks:
        assert masks["fc.weight"].reshape(4, 6, 4).sum(axis=2).tolist() == [[2] * 6] * 4


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "give training samples with --data"),
        (["--data", "train.npz", "--ratio", "1.5"], 2, "--ratio: 1.5 is no share"),
        (["--data", "train.npz", "--granularity", "2:4", "--emit", "out.onnx"], 2, "zeroes single weights"),
        (["--data", "train.npz", "--trained", "in.onnx"], 2, "in.onnx: the trained model would overwrite in.onnx"),
        (["--data", "nothing.npz"], 1, "nothing.npz: no such file"),
        (["--data", "train.npz", "--checkpoint", "train.npz"], 1, "train.npz: can't be read as a checkpoint"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(
    files: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    before = {path.name: path.read_bytes() for path in files.iterdir()}
    assert main(["in.onnx", "masks.npz", *arguments, *QUICK]) == code
    told = capsys.readouterr().err.strip()
    assert told.startswith("error: ") and "\n" not in told and message in told
    assert {path.name: path.read_bytes() for path in files.iterdir()} == before


def test_operators_that_cannot_be_trained_through(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = network()
    model.graph.node[1].op_type = "Celu"
    model.graph.node[1].domain = "my.domain"
    model.opset_import.append(onnx.helper.make_opsetid("my.domain", 1))
    onnx.save(model, "odd.onnx")
    assert main(["odd.onnx", "masks.npz", "--data", "train.npz", *QUICK]) == 1
    assert "is a my.domain::Celu, which can't be trained through yet" in capsys.readouterr().err


def test_without_torch(files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["in.onnx", "masks.npz", "--data", "train.npz"]) == 2
    assert 'pip install "ucpe-onnx[train]"' in capsys.readouterr().err
    assert len(samples()["labels"]) == COUNT
