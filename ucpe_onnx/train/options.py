"""Everything that a training run may be told, declared and checked once."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from ucpe_onnx.errors import UsageError
from ucpe_onnx.flags import Range, check_values, documented, flag, plain

GRANULARITIES = ("channel", "filter", "segment", "unstructured")
METHODS = ("pdp", "gradual", "one-shot")
OPTIMISERS = ("sgd", "adamw")
DEVICES = ("auto", "cpu", "cuda")
STRUCTURED = ("channel", "filter", "segment")
"""Granularities whose masks are masks of channels, which the compiler exports."""

GOES = "what goes"
TRAINING = "training"

_SHARE = Range("is no share; give a number from 0 to below 1", least=0, below=1)
_COUNT = Range("must be at least 1", least=1)
_POSITIVE = Range("must be a positive number", above=0, below=math.inf)
_NOT_NEGATIVE = Range("must not be negative", least=0, below=math.inf)


@documented
@dataclass(frozen=True)
class TrainOptions:
    """Options of a training run; the flags of ``python -m ucpe_onnx.pdp`` have the same names.

    What a field means is said where it is declared.
    """

    granularity: str = flag(
        "channel",
        GOES,
        "channel (each consumer's input channels), filter or segment (channels, for all their consumers alike),"
        " unstructured (weights), or N:M such as 2:4 (default %(default)s)",
        more="a filter is judged by the weights that make it, a segment by those that read it too; N:M keeps N weights"
        " of M that follow each other",
        metavar="NAME",
    )
    ratio: float = flag(
        0.5, GOES, "share (default %(default)s)", more="to drop; N:M says it itself", metavar="R", valid=_SHARE
    )
    scope: str = flag(
        "global",
        GOES,
        "by one ranking, or each layer",
        more="global: layers lose what a ranking of all magnitudes says; local: all the same share",
        choices=("global", "local"),
    )
    exclude: tuple[str, ...] = flag(
        (), GOES, "layers that stay whole", more="patterns", convert=tuple, action="append", metavar="PATTERN"
    )
    method: str = flag(
        "pdp",
        GOES,
        "default %(default)s",
        more="pdp, or a baseline: gradual magnitude pruning, or one-shot and fine-tuning",
        choices=METHODS,
    )
    tau: float | None = flag(
        None,
        GOES,
        "temperature (default %(default)s)",
        more="of the soft mask at first",
        type=float,
        metavar="T",
        valid=_POSITIVE,
    )
    relative_tau: bool = flag(
        True,
        GOES,
        "--tau is a squared weight, as in the paper (about 1e-4), not a share of the squared threshold",
        more="this is what False says",
        name="--absolute-tau",
    )
    cooling: float | None = flag(
        None,
        GOES,
        "share of --tau that is left when masks become hard; 1: it stays, as in the paper (default 0.1, of single"
        " weights 1)",
        more="None: the default",
        type=float,
        metavar="S",
        valid=Range("is no share; give a number above 0, up to 1", above=0, most=1),
    )
    detach: bool = flag(False, GOES, "let no gradient flow through the mask")
    settle: float = flag(
        0.2,
        GOES,
        "share of the steps at the full ratio after which masks are hard, 1 for the end (default %(default)s)",
        more="the paper's is 1",
        metavar="S",
        valid=Range("is no share; give a number from 0 to 1", least=0, most=1),
    )
    warmup: float = flag(0.0, GOES, "share of steps without pruning", more="at first", metavar="S", valid=_SHARE)
    ramp: float = flag(0.1, GOES, "share of steps that the ratio grows", metavar="S")
    shape: str = flag("cubic", GOES, "of that growth", more="linear in the paper", choices=("linear", "cubic"))
    epochs: int = flag(10, TRAINING, "default %(default)s", more="passes over the samples", metavar="N", valid=_COUNT)
    batch: int = flag(64, TRAINING, "default %(default)s", more="samples in a step", metavar="N", valid=_COUNT)
    lr: float = flag(
        0.01,
        TRAINING,
        "learning rate (default %(default)s)",
        more="at the start; it falls to zero along a cosine",
        metavar="X",
        valid=_POSITIVE,
    )
    optimiser: str = flag("sgd", TRAINING, "default %(default)s", choices=OPTIMISERS)
    momentum: float = flag(0.9, TRAINING, "default %(default)s", more="of sgd", metavar="X", valid=_NOT_NEGATIVE)
    weight_decay: float = flag(1e-4, TRAINING, "default %(default)s", metavar="X", valid=_NOT_NEGATIVE)
    clip: float = flag(1.0, TRAINING, "largest norm of the gradient; 0: none", metavar="X", valid=_NOT_NEGATIVE)
    loss: str | None = flag(
        None,
        TRAINING,
        "default: by whether there are labels",
        more="None: cross-entropy with labels, else distill",
        choices=("cross-entropy", "mse", "distill"),
    )
    teacher: bool | None = flag(
        None,
        TRAINING,
        "learn from the unpruned model too (default: if there are no labels)",
        more="in Python True or False; None: the default",
        choices=("self",),
        checked=False,
        convert=lambda given: True if given else None,
    )
    augment: tuple[str, ...] = flag(
        (), TRAINING, "change images at random", choices=("flip", "crop"), convert=tuple, nargs="+"
    )
    patience: int | None = flag(
        None,
        TRAINING,
        "stop after N epochs that bring nothing",
        more="they count at the full ratio; None or 0: never",
        type=int,
        metavar="N",
        valid=Range("must be at least 1", least=0, whole=True),
    )
    freeze_statistics: bool = flag(False, TRAINING, "leave batch normalisations' means as they are")
    device: str = flag("auto", TRAINING, "default %(default)s", more="auto: CUDA if torch sees one", choices=DEVICES)
    threads: int = flag(0, TRAINING, "of torch and onnxruntime", more="0 leaves them their choice", metavar="N")
    seed: int = flag(0, TRAINING, "of everything random (default %(default)s)")

    @property
    def structured(self) -> bool:
        """Whether what comes out are masks of channels."""
        return self.granularity in STRUCTURED

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {name: plain(value) for name, value in asdict(self).items()}

    def checked(self) -> TrainOptions:
        """These options.

        Raises:
            UsageError: one makes no sense; the line names its flag.
        """
        check_values(self)
        if not 0 < self.ramp <= 1 - self.warmup:
            raise UsageError(f"--ramp {self.ramp} and --warmup {self.warmup} are shares of all steps, at most 1 in all")
        parts = self.granularity.split(":")
        n_of_m = len(parts) == 2 and all(part.isdigit() for part in parts) and 0 < int(parts[0]) < int(parts[1])
        if self.granularity not in GRANULARITIES and not n_of_m:
            listed = ", ".join(GRANULARITIES)
            raise UsageError(f"--granularity: unknown {self.granularity!r}; choose from {listed}, or N:M such as 2:4")
        return self
