"""Rates kept in the user's cache directory: one small file for each way to run models on this machine."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import tempfile
from pathlib import Path

import onnxruntime as ort
import platformdirs

from ucpe_onnx.planning.rates import RATES_VERSION, Rates
from ucpe_onnx.runtime.session import RunOptions, resolve_providers

CACHE_VARIABLE = "UCPE_CACHE_DIR"
"""Environment variable that names another directory."""

_MODEL, _FEATURES = ("model name", "Model"), ("flags", "Features")
"""What lines of /proc/cpuinfo begin with."""

logger = logging.getLogger(__name__)


def cache_directory() -> Path:
    """Where rates are kept; it need not exist."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen)
    try:
        return Path(platformdirs.user_cache_dir("ucpe-onnx", appauthor=False))
    except RuntimeError:  # neither HOME nor an entry for the user, as in some containers
        return Path(tempfile.gettempdir()) / f"ucpe-onnx-{os.getuid()}"


def load_rates(run_options: RunOptions | None = None, precision: str = "float32") -> Rates | None:
    """Rates calibrated earlier for this machine and way to run; None if there are none that can be read."""
    options = run_options or RunOptions()
    key = _key(options, precision)
    try:
        stored = json.loads(_path(key).read_text(encoding="utf-8"))
        return Rates.from_dict(stored["rates"]) if stored["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def store_rates(rates: Rates, run_options: RunOptions) -> None:
    """Keep rates for :func:`load_rates`. A cache that can't be written to is worth a warning, no more."""
    key = _key(run_options, rates.precision)
    path = _path(key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(dir=path.parent, prefix=".rates-", suffix=".json")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump({"key": key, "rates": rates.to_dict()}, file, indent=1)
            os.replace(draft, path)
        except BaseException:
            os.unlink(draft)
            raise
    except OSError as error:
        logger.warning("rates are not kept: %s can't be written to (%s); set %s", path.parent, error, CACHE_VARIABLE)


def _key(options: RunOptions, precision: str) -> dict[str, object]:
    """What rates depend on."""
    return {
        "rates": RATES_VERSION,
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "onnxruntime": str(ort.__version__),
        "providers": list(resolve_providers(options.providers)),
        "threads": options.used_threads,
        "opt_level": options.opt_level,
        "precision": precision,
    }


def _path(key: dict[str, object]) -> Path:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return cache_directory() / f"rates-{digest}.json"


def _processor() -> str:
    """The processor's model, and what it can do: virtual machines may say no more of the model than its maker."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    told = [next((_told(line) for line in lines if line.startswith(starts)), "") for starts in (_MODEL, _FEATURES)]
    features = " ".join(sorted(told[1].split()))
    known = [told[0], hashlib.sha256(features.encode()).hexdigest()[:8] if features else ""]
    return " ".join(filter(None, known)) or platform.processor() or platform.machine()


def _told(line: str) -> str:
    return line.partition(":")[2].strip()
