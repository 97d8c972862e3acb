"""What every test relies on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ucpe_onnx.calibration.cache import CACHE_VARIABLE


@pytest.fixture(autouse=True, scope="session")
def empty_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Predictions come from the defaults, whatever has been measured on this machine; subprocesses inherit that."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(folder))
        yield folder
