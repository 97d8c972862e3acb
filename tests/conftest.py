"""What every test relies on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# Before numpy is loaded: several workers share the cores, and matrices are small.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

import onnxruntime as ort  # noqa: E402
import pytest  # noqa: E402

from ucpe_onnx.calibration.cache import CACHE_VARIABLE  # noqa: E402
from ucpe_onnx.commands import progress  # noqa: E402
from ucpe_onnx.run import verified  # noqa: E402
from ucpe_onnx.run.context import Run  # noqa: E402


class _PatientOptions(ort.SessionOptions):
    """Threads of onnxruntime that wait for work sleep, so that those of other workers can run."""

    def __init__(self) -> None:
        super().__init__()
        self.add_session_config_entry("session.intra_op.allow_spinning", "0")


@pytest.fixture(autouse=True, scope="session")
def empty_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Predictions come from the defaults, whatever has been measured on this machine; subprocesses inherit that."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(folder))
        yield folder


@pytest.fixture(autouse=True, scope="session")
def no_spinning() -> Iterator[None]:
    """Sessions of this process spend no time on waiting."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ort, "SessionOptions", _PatientOptions)
        yield


@pytest.fixture(autouse=True, scope="session")
def no_lines_on_stages() -> Iterator[None]:
    """However long a test's jobs take, standard error holds what they are tested for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "_SOON", 3600.0)
        yield


@pytest.fixture(autouse=True, scope="session")
def nothing_left_alone() -> Iterator[None]:
    """A segment or a layout that does not verify is a defect that no test may pass over in silence.

    Tests that make such defects by themselves put :func:`ucpe_onnx.run.verified.said` back.
    """

    def refuse(run: Run, error: Exception) -> str:
        raise AssertionError(f"{run.source.label}: something would be left alone: {error}") from error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verified, "said", refuse)
        yield
