"""What is pruned of an ONNX network in training, and the masks of consumers that come of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ucpe_onnx.analysis.layer_ops import GATES
from ucpe_onnx.analysis.structure import Consumer, Segment
from ucpe_onnx.analysis.trace import Trace
from ucpe_onnx.analysis.tracer import WeightUse
from ucpe_onnx.errors import UsageError
from ucpe_onnx.masks import Mask
from ucpe_onnx.selection.select import matches
from ucpe_onnx.train.network import Network
from ucpe_onnx.train.options import TrainOptions
from ucpe_onnx.train.pruning import (
    BlockLayer,
    GroupLayer,
    Member,
    PrunableLayer,
    WeightLayer,
    axis_index,
    channel_index,
)


@dataclass(frozen=True)
class Targets:
    """Layers for a pruner, and the way back.

    Attributes:
        layers: what is pruned.
        consumers: for each layer the consumers that its mask is for, with the group of each of their input channels;
            empty for single weights.
        weights: for each layer of single weights the initializer.
        left: consumers that are left alone though they might lose channels, and why.
    """

    layers: tuple[PrunableLayer, ...]
    consumers: Mapping[str, Mapping[str, Tensor]]
    weights: Mapping[str, str]
    left: Mapping[str, str]

    def masks(self, found: Mapping[str, Tensor]) -> dict[str, Mask]:
        """What each consumer keeps, one channel at least: its weights may all be zero.

        Args:
            found: hard masks by name of layer.
        """
        masks = {}
        for layer, readers in self.consumers.items():
            for name, groups in readers.items():
                mask = found[layer].cpu()[groups].numpy()
                masks[name] = mask if mask.any() else np.arange(mask.size) == 0
        return masks


def find_targets(trace: Trace, network: Network, options: TrainOptions) -> Targets:
    """The layers of a network at the granularity that the options ask for.

    Args:
        trace: the analysed model.
        network: the same model in torch.
        options: granularity, and what is left alone.

    Raises:
        UsageError: a pattern matches nothing, or there is nothing to prune.
    """
    for pattern in options.exclude:
        if not any(matches(name, pattern) for name in trace.consumers):
            raise UsageError(
                f"--exclude {pattern!r} matches no consumer; `python -m ucpe_onnx.inspect MODEL` lists their names"
            )
    finder = _Finder(trace, network, options)
    if options.granularity == "channel":
        found = finder.channels()
    elif options.structured:
        found = finder.slots(with_readers=options.granularity == "segment")
    else:
        found = finder.single()
    if not found.layers:
        reason = next(iter(found.left.values()), "none has channels that may be pruned")
        raise UsageError(f"there is no layer to prune: {reason}; `python -m ucpe_onnx.inspect MODEL` tells more")
    return found


@dataclass(frozen=True)
class _Finder:
    trace: Trace
    network: Network
    options: TrainOptions

    def channels(self) -> Targets:
        """Each consumer's input channels, by slots; consumers that share a weight have one mask."""
        layers, readers, left = [], {}, dict(self._left())
        for name, group in self._by_weight(left).items():
            first = group[0]
            _, groups = np.unique(np.stack([c.slots for c in group]), axis=1, return_inverse=True)
            groups = groups.reshape(-1)
            frozen = np.zeros(int(groups.max()) + 1, dtype=bool)
            for consumer in group:
                frozen[groups[~consumer.prunable]] = True
            if frozen.all():
                continue
            index = torch.from_numpy(groups)
            layers.append(
                GroupLayer(name, frozen.size, [self._member(first.use, index)], frozen=torch.from_numpy(frozen))
            )
            readers[name] = {consumer.name: index for consumer in group}
        return Targets(tuple(layers), readers, {}, left)

    def slots(self, *, with_readers: bool) -> Targets:
        """The slots of each segment, which all consumers keep or drop alike; judged by what makes them (and reads)."""
        layers, readers, left = [], {}, dict(self._left())
        usable = {consumer.name for group in self._by_weight(left).values() if len(group) == 1 for consumer in group}
        for segment in self.trace.segments:
            consumers = [self.trace.consumers[name] for name in segment.consumers]
            frozen = segment.frozen.copy()
            for consumer in consumers:
                held = ~consumer.prunable if consumer.name in usable else np.ones(consumer.channels, dtype=bool)
                frozen[consumer.slots[held]] = True
            masked = [self._member(c.use, torch.from_numpy(c.slots)) for c in consumers if (~frozen[c.slots]).any()]
            scored = [self._member(use, slots) for use, slots in self._makers(segment)]
            scored = [*scored, *masked] if with_readers or not scored else scored
            known = np.zeros(frozen.size, dtype=bool)
            for member in scored:
                assert member.index is not None
                known[np.unique(member.index.numpy())] = True
            frozen |= ~known
            if frozen.all() or not masked:
                continue
            name = f"segment {segment.id}"
            layers.append(GroupLayer(name, frozen.size, scored, masked, torch.from_numpy(frozen)))
            readers[name] = {c.name: torch.from_numpy(c.slots) for c in consumers if (~frozen[c.slots]).any()}
        return Targets(tuple(layers), readers, {}, left)

    def single(self) -> Targets:
        """Single weights, or N of M along the axis of input channels, of every consumer and producer."""
        uses: dict[str, tuple[str, WeightUse, bool]] = {}
        for consumer in self.trace.consumers.values():
            uses.setdefault(consumer.use.weight, (consumer.name, consumer.use, True))
        for use in self.trace.producers:
            uses.setdefault(use.weight, (use.node.name, use, False))
        layers: list[PrunableLayer] = []
        weights, left = {}, {}
        for weight, (name, use, reads) in uses.items():
            if self._excluded(name):
                continue
            if weight not in self.network.attribute_of:
                left[name] = f"{name}: its weight {weight!r} can't be trained"
                continue
            members = [Member(self.network.weights, self.network.attribute_of[weight])]
            if self.options.granularity == "unstructured":
                layers.append(WeightLayer(name, members))
            elif len(members[0].weight.shape) == 1:
                left[name] = f"{name}: its weight has one axis, along which there are no blocks"
                continue
            else:
                axis = use.weight_axis if reads else 1 - use.weight_axis
                kept, block = (int(part) for part in self.options.granularity.split(":"))
                layers.append(BlockLayer(name, members, kept, block, axis=axis))
            weights[name] = weight
        return Targets(tuple(layers), {}, weights, left)

    def _by_weight(self, left: dict[str, str]) -> dict[str, list[Consumer]]:
        """The consumers that may be pruned, by the name of the first that reads the weight that they share."""
        found: dict[str, list[Consumer]] = {}
        for consumer in self.trace.consumers.values():
            found.setdefault(consumer.use.weight, []).append(consumer)
        usable = {}
        for weight, group in found.items():
            names = [consumer.name for consumer in group]
            alike = {(c.channels, c.use.weight_axis, c.use.groups) for c in group}
            if any(map(self._excluded, names)) or any(name in left for name in names):
                continue
            if weight not in self.network.attribute_of:
                left.update({name: f"{name}: its weight {weight!r} can't be trained" for name in names})
            elif len(alike) > 1:
                left.update({name: f"{name}: others read its weight {weight!r} along another axis" for name in names})
            else:
                usable[names[0]] = group
        return usable

    def _left(self) -> Iterator[tuple[str, str]]:
        """Consumers whose weight is transposed or quantised on the way: the index of its channels is not its own."""
        for consumer in self.trace.consumers.values():
            node = self.trace.graph.nodes[consumer.use.constant[0]]
            if consumer.use.constant[0] != consumer.use.node.index:
                yield consumer.name, f"{consumer.name}: its weight goes through {node.op_type} {node.name!r} first"

    def _excluded(self, name: str) -> bool:
        return any(matches(name, pattern) for pattern in self.options.exclude)

    def _makers(self, segment: Segment) -> Iterator[tuple[WeightUse, Tensor]]:
        """The producers of a segment whose weights can be trained, with the slot of each channel that they make."""
        names = set(segment.axes)
        for use in self.trace.producers:
            plain = use.constant[0] == use.node.index and use.weight in self.network.attribute_of
            if use.tensor_axis in names and plain:
                yield use, torch.from_numpy(segment.local(self.trace.slots.axes[use.tensor_axis]))

    def _member(self, use: WeightUse, groups: Tensor) -> Member:
        """A weight with the group of each of its channels, which may be cut into the groups of a convolution.

        That which makes the hidden units of a recurrent layer has those of every gate, one gate after the other.
        """
        attribute = self.network.attribute_of[use.weight]
        shape = _shape(self.network.weights, attribute)
        if use.node.op_type in GATES and shape[use.weight_axis] > len(groups):
            groups = groups.repeat(GATES[use.node.op_type])
        if shape[use.weight_axis] == len(groups):
            return Member(self.network.weights, attribute, axis_index(shape, use.weight_axis, groups))
        return Member(self.network.weights, attribute, channel_index(shape, use.weight_axis, use.groups, groups))


def _shape(weights: torch.nn.Module, attribute: str) -> Sequence[int]:
    return tuple(getattr(weights, attribute).shape)
