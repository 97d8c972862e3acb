"""The consecutive-ones property: can sets of slots all be made contiguous at once, and how?

Sets are bit masks (slot i is bit i), so that one machine operation treats 64 slots: thousands of slots and dozens of
sets are decided in well under a millisecond, and classes of slots with equal membership need no table of their own.

Two sets *overlap* if they meet and neither contains the other. The method is Fulkerson and Gross (*Incidence matrices
and interval graphs*, Pacific J. Math. 15, 1965), with their counting replaced by refinement of an ordered partition:

1. A family has the property if and only if each connected component of its overlap graph has it.
2. Within a component the order of the membership classes is unique up to reversal, so adding the sets one at a time,
   each overlapping an earlier one, leaves no choice: blocks are split and new slots go to one end, or it is impossible.
3. Between components unions are disjoint or one lies within a block of the other: components nest like brackets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def overlap(a: int, b: int) -> bool:
    """Whether two sets meet and neither contains the other."""
    common = a & b
    return common not in (0, a, b)


def overlap_components(sets: Sequence[int]) -> list[list[int]]:
    """Connected components of the overlap graph.

    Returns:
        Lists of indices into `sets`; each index but a list's first overlaps an earlier one of its list.
    """
    waiting = list(range(len(sets)))
    components = []
    while waiting:
        chain = [waiting.pop(0)]
        for index in chain:  # grows while it is walked: breadth first
            near = [other for other in waiting if overlap(sets[index], sets[other])]
            if near:
                chain += near
                waiting = [other for other in waiting if other not in near]
        components.append(chain)
    return components


def ordered_blocks(chain: Sequence[int]) -> list[int] | None:
    """Order the membership classes of a connected chain so that each set is a run of blocks.

    Args:
        chain: Distinct sets, each but the first overlapping an earlier one.

    Returns:
        The classes from left to right (the only order, up to reversal), or None if there is none.
    """
    blocks = [chain[0]]
    union = chain[0]
    for new in chain[1:]:
        refined = _refine(blocks, new, new & ~union)
        if refined is None:
            return None
        blocks = refined
        union |= new
    return blocks


def _refine(blocks: list[int], new: int, outside: int) -> list[int] | None:
    """Split `blocks` so that `new` is a run of them; its slots not seen before (`outside`) become an end block."""
    touched = [place for place, block in enumerate(blocks) if block & new]
    first, last = touched[0], touched[-1]
    if any(block & new != block for block in blocks[first + 1 : last]):
        return None
    if not outside:
        # Every earlier set is a union of blocks and one of them overlaps `new`, hence first < last.
        head, tail = blocks[first], blocks[last]
        middle = blocks[first + 1 : last]
        run = [head & ~new, head & new, *middle, tail & new, tail & ~new]
        return blocks[:first] + [block for block in run if block] + blocks[last + 1 :]
    grown = _extend_right(blocks, new, outside, first, last)
    if grown is None:
        end = len(blocks) - 1
        grown = _extend_right(blocks[::-1], new, outside, end - last, end - first)
    return grown


def _extend_right(blocks: list[int], new: int, outside: int, first: int, last: int) -> list[int] | None:
    reaches_end = last == len(blocks) - 1 and (first == last or blocks[last] & new == blocks[last])
    if not reaches_end:
        return None
    head = blocks[first]
    split = [block for block in (head & ~new, head & new) if block]
    return [*blocks[:first], *split, *blocks[first + 1 :], outside]


def failing_component(sets: Sequence[int]) -> list[int] | None:
    """Indices of sets that can't all be contiguous, or None if the whole family has the property."""
    first_index: dict[int, int] = {}
    for index, members in enumerate(sets):
        first_index.setdefault(members, index)
    distinct = [members for members in first_index if members]
    for component in overlap_components(distinct):
        if ordered_blocks([distinct[index] for index in component]) is None:
            return [first_index[distinct[index]] for index in component]
    return None


def has_consecutive_ones(sets: Sequence[int]) -> bool:
    """Whether one order of the slots makes every set contiguous."""
    return failing_component(sets) is None


def arrange(slots: int, sets: Sequence[int], left: int = 0) -> list[int] | None:
    """Order `slots` so that every set is contiguous, staying near the original order where there is a choice.

    Args:
        slots: The slots to order, as a bit mask.
        sets: Subsets of `slots`.
        left: A slot that the family forces to an end (see `demands`), which has to be the left one.

    Returns:
        The bit numbers in order, or None if the family lacks the property.
    """
    distinct = [members for members in dict.fromkeys(sets) if members]
    nests = []
    for component in overlap_components(distinct):
        blocks = ordered_blocks([distinct[index] for index in component])
        if blocks is None:
            return None
        nests.append(_oriented(blocks, left))
    # Outer before inner; a single set before the component that fills it.
    nests.sort(key=lambda blocks: (-sum(blocks).bit_count(), len(blocks)))
    return list(_emit(slots, nests))


def _oriented(blocks: list[int], left: int) -> list[int]:
    flip = blocks[-1] & left if (blocks[0] | blocks[-1]) & left else _lowest(blocks[-1]) < _lowest(blocks[0])
    return blocks[::-1] if flip else blocks


def _emit(slots: int, nests: list[list[int]]) -> Iterator[int]:
    """Walk the nested components; free slots and whole components come by their first original slot."""
    pieces: list[tuple[int, list[int]]] = []
    free = slots
    while nests:
        outer, *nests = nests
        union = sum(outer)
        free &= ~union
        inner = [blocks for blocks in nests if blocks[0] & union]
        nests = [blocks for blocks in nests if not blocks[0] & union]
        order = [slot for block in outer for slot in _emit(block, [nest for nest in inner if nest[0] & block])]
        pieces.append((_lowest(union), order))
    pieces += [(slot, [slot]) for slot in _members(free)]
    for _, order in sorted(pieces):
        yield from order


def _lowest(members: int) -> int:
    return (members & -members).bit_length() - 1


def _members(members: int) -> Iterator[int]:
    while members:
        yield _lowest(members)
        members &= members - 1
