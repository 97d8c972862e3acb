"""``python -m ucpe_onnx in.onnx out.onnx``."""

import sys

from ucpe_onnx.cli import main

if __name__ == "__main__":
    sys.exit(main())
