"""Rates of onnxruntime's kernels on the user's machine: measured once, kept in the user's cache."""

from ucpe_onnx.calibration.cache import cache_directory, load_rates
from ucpe_onnx.calibration.lookup import rates_for
from ucpe_onnx.calibration.measuring import calibrate

__all__ = ["cache_directory", "calibrate", "load_rates", "rates_for"]
