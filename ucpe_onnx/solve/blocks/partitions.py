"""Partitions of one group: blocks merged from classes bottom-up, widths rounded with what there is to fill up."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ucpe_onnx.solve.blocks.layout import BlockPrices, FloatArray, Part, Partition

_MAX_CELLS = 160

EVERYBODY = -1
"""All readers, as a bit mask."""


def single(prices: BlockPrices, group: int, duplicated: int, quantum: int = 1) -> Partition:
    """Everything that is required in one block; none if nothing is. Its width is rounded if there is enough for it."""
    part = _required(prices, group, duplicated)
    if not part:
        return Partition(prices, duplicated, (), ())
    count, total = sum(part.values()), prices.totals[group]
    width = min(_rounded(count, prices.problem.width_multiple), total)
    aligned = _rounded(count, quantum)
    return Partition(prices, duplicated, (part,), (aligned if width < aligned <= total else width,))


def partitions(
    prices: BlockPrices, group: int, duplicated: int, *, served: int, rates: FloatArray, quantum: int
) -> list[Partition]:
    """Partitions into few and into more blocks that suit some readers.

    Args:
        prices: The prices.
        group: The group.
        duplicated: Readers whose channels need not be there.
        served: Readers that are to read blocks; channels that differ only for others are kept together.
        rates: What a block costs each reader that reads it, in microseconds, per unit and as such; shape (2, readers).
        quantum: Channels to whose multiples widths are rounded where there is enough to fill up.

    Returns:
        Partitions by falling number of blocks, the last of which is `single`.
    """
    whole = single(prices, group, duplicated, quantum)
    most = prices.most(group)
    if not whole.parts or most == 1:
        return [whole]
    cells: dict[int, Part] = {}
    for member, count in whole.parts[0].items():
        cells.setdefault(prices.masks[member] & served, {})[member] = count
    if len(cells) > _MAX_CELLS:
        return [whole]
    found = []
    for parts in _merged(prices, group, cells, rates, most):
        partition = fitted(prices, group, duplicated, parts, quantum, served=served)
        if len(partition.parts) > 1:
            found.append(partition)
    return [*found, whole]


def _required(prices: BlockPrices, group: int, duplicated: int) -> Part:
    members = (member for member in prices.members[group] if prices.requires(member, duplicated))
    return {member: prices.problem.classes[member].count for member in members}


def _merged(
    prices: BlockPrices, group: int, cells: dict[int, Part], rates: FloatArray, most: int
) -> Iterable[list[Part]]:
    """Merge cells pairwise, always the two whose merging costs least, and yield what is left at each step.

    A block's cost is taken to be that of making it and, for each reader that needs it, a rate per unit and a constant,
    so that what a merger costs depends on the two alone.
    """
    made = prices.made[group]
    masks = np.array([[mask >> reader & 1 for reader in range(rates.shape[1])] for mask in cells], dtype=np.float64)
    units = np.array([sum(part.values()) for part in cells.values()]) / prices.problem.width_multiple
    parts = list(cells.values())

    def us(width: FloatArray, per_unit: FloatArray, constant: FloatArray) -> FloatArray:
        ceiled = np.minimum(np.ceil(np.maximum(width, prices.least) - 1e-9).astype(np.int64), made.size - 1)
        cost: FloatArray = made[ceiled] + width * per_unit + constant
        return cost

    per_unit, constant = masks @ rates[0], masks @ rates[1]
    own = us(units, per_unit, constant)
    common = masks * rates[0] @ masks.T, masks * rates[1] @ masks.T
    joint = us(
        units[:, None] + units,
        per_unit[:, None] + per_unit - common[0],
        constant[:, None] + constant - common[1],
    )
    delta = joint - own[:, None] - own
    np.fill_diagonal(delta, np.inf)
    if len(parts) <= most:
        yield list(parts)
    alive = len(parts)
    while alive > 2:
        first, second = sorted(divmod(int(delta.argmin()), len(parts)))
        parts[first] = {**parts[first], **parts[second]}
        masks[first] = np.maximum(masks[first], masks[second])
        units[first] += units[second]
        delta[second, :] = delta[:, second] = np.inf
        parts[second] = {}
        alive -= 1
        per_unit[first], constant[first] = masks[first] @ rates[0], masks[first] @ rates[1]
        own[first] = us(units[first], per_unit[first], constant[first])
        shared = masks @ (masks[first] * rates[0]), masks @ (masks[first] * rates[1])
        row = us(units + units[first], per_unit + per_unit[first] - shared[0], constant + constant[first] - shared[1])
        open_ = np.array([bool(part) for part in parts])
        open_[first] = False
        delta[first, open_] = delta[open_, first] = (row - own - own[first])[open_]
        if alive <= most:
            yield [part for part in parts if part]


def fitted(
    prices: BlockPrices,
    group: int,
    duplicated: int,
    parts: Sequence[Part],
    quantum: int,
    *,
    served: int = EVERYBODY,
    tight: bool = False,
) -> Partition:
    """Round widths: up while there is something to fill up with, else down by moving channels to another block.

    Args:
        prices: The prices.
        group: The group.
        duplicated: Readers whose channels need not be there.
        parts: The required channels of the blocks; empty ones don't count.
        quantum: Channels to whose multiples widths are rounded if possible.
        served: Readers that read blocks: whatever moves, moves where it costs these the least.
        tight: Fill up no more than one block of all would have to be, and take from the block first that is read least.

    Returns:
        A valid partition, with fewer blocks than `parts` if it has to be.
    """
    problem = prices.problem
    live = [dict(part) for part in parts if part]
    counts = [sum(part.values()) for part in live]
    spare = prices.totals[group] - sum(counts)
    if tight:
        spare = min(spare, _rounded(sum(counts), quantum) - sum(counts))
    wanted = quantum
    trimmed: set[int] = set()
    while len(live) > 1:
        targets = [_rounded(max(count, problem.minimum), quantum) for count in counts]
        missing = [target - count for target, count in zip(targets, counts, strict=True)]
        if sum(missing) <= spare:
            return Partition(prices, duplicated, tuple(live), tuple(targets))
        open_ = [place for place in range(len(live)) if place not in trimmed]
        if len(open_) <= 1:
            if quantum == problem.width_multiple:
                break
            quantum, trimmed = problem.width_multiple, set()
            continue
        if tight and not trimmed:
            worst = min(open_, key=lambda place: prices.weight(_mask(prices, live[place]) & served))
        else:
            worst = max(open_, key=lambda place: (missing[place], -counts[place]))
        trimmed.add(worst)
        surplus = counts[worst] if counts[worst] < problem.minimum else counts[worst] % quantum
        if surplus:
            sinks = [place for place in open_ if place != worst]
            _move(prices, served & ~duplicated, live, worst, count=surplus, sinks=sinks)
            counts = [sum(part.values()) for part in live]
        if not counts[worst]:
            del live[worst], counts[worst]
            trimmed = {place - (place > worst) for place in trimmed if place != worst}
    return single(prices, group, duplicated, wanted)


def trimmed(
    prices: BlockPrices, served: int, parts: Sequence[Part], source: int, *, count: int, sink: int
) -> list[Part]:
    """Parts with so many channels moved from one to another, those first that cost the readers of blocks least."""
    copies = [dict(part) for part in parts]
    _move(prices, served, copies, source, count=count, sinks=[sink])
    return copies


def _move(
    prices: BlockPrices, served: int, parts: list[Part], source: int, *, count: int, sinks: Sequence[int]
) -> None:
    """Move so many channels out of a block to others, where it costs the readers of blocks least, in place."""
    while count:
        offers = []
        for sink in sinks:
            reading = _mask(prices, parts[sink]) & served
            width = sum(parts[sink].values())
            for member, have in parts[source].items():
                mask = prices.masks[member] & served
                batch = min(count, have)
                growth = prices.weight(mask & ~reading) * width / batch + prices.weight(reading & ~mask)
                offers.append((growth, member, sink, batch))
        _, member, sink, batch = min(offers)
        parts[source][member] -= batch
        if not parts[source][member]:
            del parts[source][member]
        parts[sink][member] = parts[sink].get(member, 0) + batch
        count -= batch


def _mask(prices: BlockPrices, part: Part) -> int:
    mask = 0
    for member in part:
        mask |= prices.masks[member]
    return mask


def _rounded(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
