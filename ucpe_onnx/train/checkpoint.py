"""The state of a training run in a file, from which it goes on exactly as if it had not been stopped."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ucpe_onnx.errors import DataError

_FORMAT = "ucpe-pdp-checkpoint/1"


def save_checkpoint(path: Path, state: Mapping[str, Any], run: Mapping[str, Any]) -> None:
    """Write a checkpoint beside its place, then move it there: a crash leaves the one before.

    Args:
        path: the file.
        state: of network, optimiser, pruner and random numbers.
        run: what the state belongs to: the model's checksum and the options.
    """
    draft = path.with_name(f"{path.name}.draft")
    torch.save({"format": _FORMAT, "run": dict(run), "state": dict(state)}, draft)
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    draft.replace(path)


def load_checkpoint(path: Path, run: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The state in a checkpoint; None if there is no such file.

    Raises:
        DataError: it can't be read, or belongs to another model or other options; the line names the first of these.
    """
    if not path.exists():
        return None
    if not path.is_file():
        raise DataError(f"{path}: is no regular file; give another path to --checkpoint")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about files of other kinds, which are refused
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises what it likes for a file of another kind
        raise DataError(
            f"{path}: can't be read as a checkpoint ({type(error).__name__}); remove it to start anew"
        ) from error
    if not isinstance(found, dict) or found.get("format") != _FORMAT:
        raise DataError(f"{path}: is no checkpoint of this tool; give another path to --checkpoint")
    if not isinstance(found.get("run"), dict) or not isinstance(found.get("state"), dict) or not found["state"]:
        raise DataError(f"{path}: is damaged; remove it to start anew")
    for name, value in run.items():
        if found["run"].get(name) != value:
            raise DataError(
                f"{path}: belongs to a run with another {name} ({found['run'].get(name)!r}, now {value!r});"
                " give the same, or remove the file to start anew"
            )
    state: Mapping[str, Any] = found["state"]
    return state
