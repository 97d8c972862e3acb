"""The best rates that there are."""

from __future__ import annotations

from ucpe_onnx.calibration import measuring
from ucpe_onnx.calibration.cache import load_rates
from ucpe_onnx.planning.rates import Rates, default_rates
from ucpe_onnx.runtime.session import RunOptions


def rates_for(run_options: RunOptions | None = None, precision: str = "float32", calibrate: bool = False) -> Rates:
    """Calibrated rates from the user's cache, else defaults.

    Args:
        run_options: provider, threads and optimisation level.
        precision: of the convolutions, ``float32`` or ``int8``.
        calibrate: measure now (some seconds) if that has not been done.
    """
    options = run_options or RunOptions()
    known = load_rates(options, precision)
    if known is not None:
        return known
    if calibrate:
        return measuring.calibrate(options, precision=precision)
    return default_rates(measuring.target_of(options, precision), options.threads)
