"""Plans: everything that was decided, as data, so that applying them is mechanical and repeatable."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ucpe_onnx.errors import MaskError
from ucpe_onnx.lowerings import LOWERINGS, UNSAID, Lowering
from ucpe_onnx.masks import Mask
from ucpe_onnx.model.limits import excess_of
from ucpe_onnx.model.new_weights import NewWeight, load_weights, save_weights, weights_sha256, with_weights
from ucpe_onnx.model.writing import all_or_nothing, removed_afterwards, write_text

FORMAT = "ucpe-plan/1"

_LONGEST_NAME = 255
"""Bytes in the name of a file."""


@dataclass(frozen=True)
class ConsumerPlan:
    """What one consumer keeps and reads.

    Attributes:
        channels: C_in of the input model.
        keep: input channels whose weights are kept, ascending.
        read: input channels that the emitted consumer reads, in emitted order; those not in ``keep`` get zero weights.
        segment: number of the segment.
        slots: the slot, numbered within the segment, of each input channel.
    """

    channels: int
    keep: tuple[int, ...]
    read: tuple[int, ...]
    segment: int
    slots: tuple[int, ...]

    def mask(self) -> Mask:
        """The mask, shape (channels,), True = keep."""
        mask = np.zeros(self.channels, dtype=bool)
        mask[list(self.keep)] = True
        return mask


@dataclass(frozen=True)
class SegmentPlan:
    """The physical layout of one segment.

    Attributes:
        id: number of the segment.
        order: slots in emitted order; those left out are removed from every producer, but for producers of a consumer's
            own.
        blocks: the same slots, cut at least where a group ends whose place is fixed (operand of a Concat). Unless they
            are split, they say no more than the order.
        lowerings: for each consumer one of :data:`ucpe_onnx.lowerings.LOWERINGS`.
        objective: predicted time of the layers around the segment, in microseconds.
        bound: no layout is predicted to take less.
        status: OPTIMAL if objective and bound meet, else FEASIBLE.
        seconds: time the solver took.
        split: whether every block is a tensor of its own, through all operators that allow it.
    """

    id: int
    order: tuple[int, ...]
    blocks: tuple[tuple[int, ...], ...]
    lowerings: Mapping[str, str]
    objective: float = 0.0
    bound: float = 0.0
    status: str = "OPTIMAL"
    seconds: float = 0.0
    split: bool = False

    def lowering(self, consumer: str) -> Lowering:
        """How a consumer gets its channels; in a plan from outside names have to be checked before."""
        return LOWERINGS[self.lowerings.get(consumer, UNSAID.name)]


@dataclass(frozen=True)
class Plan:
    """All decisions for one model.

    Attributes:
        source_sha256: hash of the input file, or of the serialised model if it came as an object.
        tool_version: version of this package that made the plan.
        options: the options that it was made with.
        consumers: by name, in graph order.
        segments: in the order of their numbers.
        weights: new values of initializers, in their full size, by name: what compensation has refitted.
    """

    source_sha256: str
    tool_version: str
    options: Mapping[str, Any]
    consumers: Mapping[str, ConsumerPlan]
    segments: tuple[SegmentPlan, ...] = field(default=())
    weights: Mapping[str, NewWeight] = field(default_factory=dict)

    def masks(self) -> dict[str, Mask]:
        """The mask of every consumer that drops a channel."""
        return {name: c.mask() for name, c in self.consumers.items() if len(c.keep) < c.channels}

    def weighted(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """The input model with the plan's weights; itself if there are none.

        Raises:
            MaskError: the model has no such initializers.
        """
        return with_weights(model, self.weights)

    @property
    def predicted_us(self) -> float:
        """Predicted time of the layers around all segments that something was pruned from, in microseconds.

        A layer between two segments counts for both.
        """
        return sum(segment.objective for segment in self.segments)

    def emits_the_same_as(self, other: Plan) -> bool:
        """Whether another plan, that may have come about in another way, is carried out by the same model."""
        return self._emitted == other._emitted

    @property
    def _emitted(self) -> tuple[Any, ...]:
        """All that decides what is emitted."""
        segments = tuple((s.order, s.blocks if s.split else (), s.split, dict(s.lowerings)) for s in self.segments)
        return segments, {name: (c.keep, c.read) for name, c in self.consumers.items()}

    def to_dict(self) -> dict[str, Any]:
        """The plan in its public format (JSON-serialisable)."""
        return {
            "format": FORMAT,
            "source_sha256": self.source_sha256,
            "tool_version": self.tool_version,
            "options": dict(self.options),
            "consumers": {
                name: {
                    "channels": c.channels,
                    "keep": list(c.keep),
                    "read": list(c.read),
                    "segment": c.segment,
                    "slots": list(c.slots),
                }
                for name, c in self.consumers.items()
            },
            "segments": [
                {
                    "id": s.id,
                    "order": list(s.order),
                    "blocks": [list(block) for block in s.blocks],
                    "lowerings": dict(s.lowerings),
                    "objective": s.objective,
                    "bound": s.bound,
                    "status": s.status,
                    "seconds": s.seconds,
                    "split": s.split,
                }
                for s in self.segments
            ],
            **({"weights": {name: new.to_dict() for name, new in self.weights.items()}} if self.weights else {}),
        }

    @classmethod
    def from_dict(cls, raw: Any) -> Plan:
        """Read the public format.

        Raises:
            MaskError: it is not a plan, or of another version.
        """
        if not isinstance(raw, dict) or raw.get("format") != FORMAT:
            raise MaskError(f'not a plan: expected an object with "format": "{FORMAT}"')
        try:
            consumers = {name: _consumer(c) for name, c in raw["consumers"].items()}
            segments = tuple(_segment(s) for s in raw["segments"])
            weights = {str(name): NewWeight.from_dict(new) for name, new in raw.get("weights", {}).items()}
            options = dict(raw.get("options", {}))
            return cls(str(raw["source_sha256"]), str(raw["tool_version"]), options, consumers, segments, weights)
        except KeyError as error:
            raise MaskError(f"not a valid plan: {error.args[0]!r} is missing") from error
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise MaskError(f"not a valid plan: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as JSON, and new weights to a file of their own beside it, which the plan names.

        The weights' file has the plan's name, digits of its hash, and the suffix ``.npz``; that of a plan which is
        replaced is removed. What is no regular file, such as ``/dev/stdout``, gets all in one.

        Raises:
            UcpeError: a file can't be written.
        """
        file = Path(path)
        raw = self.to_dict()
        with all_or_nothing():
            stale = _weights_beside(file)
            if self.weights and (file.is_file() or not file.exists()):
                digest = weights_sha256(self.weights)
                beside = _beside(file, digest)
                save_weights(self.weights, beside)
                stale.discard(beside)
                raw["weights"] = {"file": beside.name, "sha256": digest, "names": list(self.weights)}
            write_text(path, json.dumps(raw) + "\n")
            removed_afterwards(stale)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read a plan file, and the weights beside it.

        Raises:
            MaskError: a file can't be read, or they hold no plan.
        """
        file = Path(path)
        if file.exists() and not file.is_file() and not file.is_dir():  # a pipe or a device may never end
            raise MaskError(f"{file}: is no regular file; give a plan that --save-plan wrote")
        try:
            if excess := excess_of(file):
                raise MaskError(f"{file}: {excess}: not a plan")
            raw = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise MaskError(f"{file}: no such file; give a plan that --save-plan wrote") from error
        except (ValueError, OSError, RecursionError) as error:
            raise MaskError(f"{file}: not a plan ({error})") from error
        try:
            beside = raw.get("weights") if isinstance(raw, dict) else None
            if not isinstance(beside, dict) or not isinstance(beside.get("file"), str):
                return cls.from_dict(raw)
            plan = cls.from_dict({**raw, "weights": {}})
        except MaskError as error:
            raise MaskError(f"{file}: {error}") from error
        return replace(plan, weights=_read_beside(beside, file))


def _beside(file: Path, digest: str) -> Path:
    """Where the weights of a plan go."""
    name = f"{file.stem}.{digest[:8]}.npz"
    return file.with_name(name if len(os.fsencode(name)) <= _LONGEST_NAME else f"plan.{digest[:8]}.npz")


def _weights_beside(file: Path) -> set[Path]:
    """The file of weights that a plan which is there names, if it is its own."""
    try:
        beside = json.loads(file.read_text(encoding="utf-8"))["weights"] if file.is_file() else {}
        found = file.with_name(beside["file"])
        return {found} if found == _beside(file, beside["sha256"]) else set()
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return set()


def _read_beside(raw: Mapping[str, Any], file: Path) -> dict[str, NewWeight]:
    """The weights that a plan file names."""
    name, names = raw["file"], raw.get("names")
    if Path(name).name != name or not isinstance(names, list) or not all(isinstance(each, str) for each in names):
        raise MaskError(f"{file}: not a valid plan: it does not name a file of weights beside it")
    weights = load_weights(file.with_name(name), names)
    if weights_sha256(weights) != raw.get("sha256"):
        raise MaskError(f"{file.with_name(name)}: not the weights of {file} (another hash); make a new plan")
    return weights


def _consumer(raw: Mapping[str, Any]) -> ConsumerPlan:
    keep = tuple(int(i) for i in raw["keep"])
    read = tuple(int(i) for i in raw.get("read", ()))
    return ConsumerPlan(int(raw["channels"]), keep, read, int(raw["segment"]), tuple(int(i) for i in raw["slots"]))


def _segment(raw: Mapping[str, Any]) -> SegmentPlan:
    split = raw.get("split", False)
    if not isinstance(split, bool):
        raise ValueError(f"'split' of segment {raw['id']} is {split!r}; expected true or false")
    return SegmentPlan(
        int(raw["id"]),
        tuple(int(i) for i in raw["order"]),
        tuple(tuple(int(i) for i in block) for block in raw["blocks"]),
        {str(name): str(kind) for name, kind in raw["lowerings"].items()},
        float(raw.get("objective", 0.0)),
        float(raw.get("bound", 0.0)),
        str(raw.get("status", "FEASIBLE")),
        float(raw.get("seconds", 0.0)),
        split,
    )
