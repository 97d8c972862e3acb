"""Rates on disk."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from ucpe_onnx.calibration import cache, load_rates, rates_for
from ucpe_onnx.calibration.cache import CACHE_VARIABLE, cache_directory, store_rates
from ucpe_onnx.planning.rates import default_rates
from ucpe_onnx.runtime.session import RunOptions
from ucpe_onnx.runtime.target import TARGETS

OPTIONS = RunOptions(threads=1)
RATES = default_rates(TARGETS["avx512"], 1)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_stored_rates_are_loaded_and_no_draft_is_left(folder: Path) -> None:
    store_rates(RATES, OPTIONS)
    store_rates(RATES, OPTIONS)
    assert load_rates(OPTIONS) == RATES
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize(
    "options, precision",
    [
        (RunOptions(threads=2), "float32"),
        (RunOptions(threads=1, opt_level="extended"), "float32"),
        (RunOptions(threads=1), "int8"),
    ],
)
def test_rates_are_for_one_way_to_run(options: RunOptions, precision: str) -> None:
    store_rates(RATES, OPTIONS)
    assert load_rates(options, precision) is None


@pytest.mark.parametrize("what", ["_processor", "ort"])
def test_another_machine_or_runtime_has_its_own(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        __version__ = "0.0"

        def __call__(self) -> str:
            return "another"

    store_rates(RATES, OPTIONS)
    monkeypatch.setattr(cache, what, Other())
    assert load_rates(OPTIONS) is None


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"key": 1}', "\x00\xff", json.dumps({"key": {}, "rates": RATES.to_dict()})]
)
def test_a_damaged_file_counts_as_none(content: str, folder: Path) -> None:
    store_rates(RATES, OPTIONS)
    (path,) = folder.iterdir()
    path.write_text(content, encoding="latin-1")
    assert load_rates(OPTIONS) is None
    assert rates_for(OPTIONS).origin.startswith("defaults")


def test_rates_of_an_older_version_count_as_none(folder: Path) -> None:
    store_rates(RATES, OPTIONS)
    (path,) = folder.iterdir()
    stored: dict[str, Any] = json.loads(path.read_text())
    stored["rates"]["version"] = 0
    path.write_text(json.dumps(stored))
    assert load_rates(OPTIONS) is None


def test_a_directory_that_cannot_be_written_is_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder.write_text("a file where the directory should be")
    with caplog.at_level(logging.WARNING):
        store_rates(RATES, OPTIONS)
    assert len(caplog.records) == 1 and CACHE_VARIABLE in caplog.text
    assert load_rates(OPTIONS) is None


def test_without_the_variable_it_is_the_users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CACHE_VARIABLE)
    assert "ucpe-onnx" in str(cache_directory())
