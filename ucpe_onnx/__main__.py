"""``python -m ucpe_onnx in.onnx out.onnx``."""

import sys

from ucpe_onnx.commands.supervisor import supervise


def run() -> None:
    """The main job as a program; what it needs is imported in the child alone."""
    supervise()
    from ucpe_onnx.cli import main  # noqa: PLC0415

    sys.exit(main())


if __name__ == "__main__":
    run()
