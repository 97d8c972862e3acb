"""Errors that a user can act on, each with the exit code of the command line."""

from __future__ import annotations

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NOT_FASTER = 3


class UcpeError(Exception):
    """Base of every error that is the user's to solve: one line that says what, where and what to do."""

    exit_code = EXIT_FAILED


class UsageError(UcpeError):
    """An option or a combination of options makes no sense."""

    exit_code = EXIT_USAGE


class ModelError(UcpeError):
    """The model can't be read, is invalid, or can't be run."""


class MaskError(UcpeError):
    """A mask file or a plan does not fit the model."""


class DataError(UcpeError):
    """The sample data can't be read or does not fit the model's inputs."""


class VerificationError(UcpeError):
    """The emitted model does not compute what the masked model computes.

    Args:
        message: the line for the user.
        found: what was found, without advice; the message if there is none in it.
    """

    def __init__(self, message: str, found: str = "") -> None:
        super().__init__(message)
        self.found = found or message


class BusyError(UcpeError):
    """Latency can't be measured, since other programs have the cores."""

    exit_code = EXIT_NOT_FASTER


class NotFasterError(UcpeError):
    """Verified, but onnxruntime runs no candidate faster than the input model."""

    exit_code = EXIT_NOT_FASTER


REFUSALS = (
    ModelError,
    VerificationError,
    AssertionError,
    AttributeError,
    IndexError,
    KeyError,
    TypeError,
    ValueError,
)
"""What says that a model can't be emitted, loaded or verified: errors about it, and what code raises that is wrong."""
