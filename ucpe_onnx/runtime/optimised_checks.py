"""What costs time in an optimised graph without being part of the model's work, and why it is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import onnx

from ucpe_onnx.runtime.optimised_graph import ACTIVATIONS, BLOCKED, CONVOLUTIONS, COPIES, REORDERS, OptimisedView

KINDS: dict[str, tuple[str, str]] = {
    "outside": ("convolution outside the blocked layout", "convolutions outside the blocked layout"),
    "float": ("layer left in float", "layers left in float"),
    "reorder": ("reorder", "reorders"),
    "copy": ("copy", "copies"),
    "add": ("Add not fused", "Adds not fused"),
    "activation": ("activation not fused", "activations not fused"),
}
"""Kinds of findings in the order of reports, and what to call one and several of them."""

_READ_MULTIPLE = 4
"""A convolution of the blocked layout reads a multiple of this many channels, whatever the block."""

_ADDS = ("Add", "Sum")


@dataclass(frozen=True)
class Finding:
    """One node of an optimised graph that costs time beyond the model's work.

    Attributes:
        kind: a key of ``KINDS``.
        op: its operator.
        name: what the model calls it, or onnxruntime where the model has no such node; of a reorder, the tensor.
        tensor: the model's tensor that it is about: what a convolution reads, a reorder or a copy moves, an Add makes.
        bytes: what a reorder or a copy writes in one run; None where it isn't known, or nothing is moved.
        why: why it is there, "" where the graph doesn't tell.
        segment: number of the segment that the tensor belongs to, once that is known.
    """

    kind: str
    op: str
    name: str
    tensor: str
    bytes: int | None = None
    why: str = ""
    segment: int | None = None


def find(view: OptimisedView, block: int) -> tuple[Finding, ...]:
    """Go through an optimised graph.

    Args:
        view: the graph.
        block: channels in a block of the blocked layout; 0 if the session has no such layout.

    Returns:
        What was found, in the order of computation.
    """
    checks: tuple[Callable[[OptimisedView, onnx.NodeProto, int], Finding | None], ...]
    checks = (_outside, _left_in_float, _reorder, _copy, _add, _activation)
    found = (check(view, node, block) for node in view.nodes for check in checks)
    return tuple(finding for finding in found if finding is not None)


def is_convolution(view: OptimisedView, node: onnx.NodeProto) -> bool:
    """Whether a node is a convolution of the model's in float, in whatever layout."""
    return node.op_type in CONVOLUTIONS and not (node.domain == BLOCKED and view.is_normalisation(node))


def _outside(view: OptimisedView, node: onnx.NodeProto, block: int) -> Finding | None:
    if not block or node.op_type not in CONVOLUTIONS or node.domain == BLOCKED or _between_quantised(view, node):
        return None
    why = _why_outside(view, node, block)
    return Finding("outside", node.op_type, view.source_name(node), view.meant(node.input[0]), why=why)


def _why_outside(view: OptimisedView, node: onnx.NodeProto, block: int) -> str:
    """The rules of onnxruntime's NCHWc transformer, by which the convolution stayed where it was."""
    if view.overridable & set(node.input):
        return "its weights are inputs of the graph too, which callers may override"
    weight = view.weights.get(node.input[1])
    if weight is None or any(tensor not in view.weights for tensor in node.input[2:3] if tensor):
        return "its weight or bias is computed"
    if len(weight) != 4:
        return f"it is {len(weight) - 2}-D"
    made, read = weight[:2]
    groups = next((a.i for a in node.attribute if a.name == "group"), 1)
    if groups == 1:
        odd = read >= block and read % _READ_MULTIPLE
        return f"it reads {read} channels, not a multiple of {_READ_MULTIPLE}" if odd else ""
    if read == 1 and made == groups:
        odd = made % _READ_MULTIPLE
        return f"it is depthwise with {made} channels, not a multiple of {_READ_MULTIPLE}" if odd else ""
    odd = read % block or (made // groups) % block
    return f"its groups read {read} and make {made // groups} channels, not multiples of {block}" if odd else ""


def _left_in_float(view: OptimisedView, node: onnx.NodeProto, block: int) -> Finding | None:
    if node.op_type not in (*CONVOLUTIONS, *_ADDS) or not _between_quantised(view, node):
        return None
    return Finding(
        "float", node.op_type, view.source_name(node), view.meant(node.input[0]), why="it reads what was dequantised"
    )


def _between_quantised(view: OptimisedView, node: onnx.NodeProto) -> bool:
    """Whether what a node reads was int8 just before."""
    makers = (_behind_reorders(view, tensor) for tensor in view.values_read(node))
    return any(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers)


def _reorder(view: OptimisedView, node: onnx.NodeProto, block: int) -> Finding | None:
    if node.domain != BLOCKED or node.op_type not in REORDERS:
        return None
    if node.op_type == "ReorderInput":
        last = any(a.name == "channels_last" and a.i for a in node.attribute)
        plain, moved = node.input[0], view.bytes(node.input[0], block or 1, -1 if last else 1)
        maker = view.makers.get(plain)
        why = "of a model input" if maker is None else f"behind {_called(view, maker)}"
    else:
        plain = node.output[0]
        moved = view.bytes(plain)
        readers = [_called(view, reader) for reader in view.readers.get(plain, ())]
        more = f" and {len(readers) - 1} more" if len(readers) > 1 else ""
        why = f"for {readers[0]}{more}" if readers else "for a model output"
    return Finding("reorder", node.op_type, view.meant(plain) or plain, view.meant(plain), moved, why)


def _copy(view: OptimisedView, node: onnx.NodeProto, block: int) -> Finding | None:
    if node.op_type not in COPIES:
        return None
    read = view.values_read(node) if "Concat" in node.op_type else [t for t in node.input[:1] if view.is_value(t)]
    if not read:
        return None
    written = node.input[:1] if node.op_type in ("Transpose", "Split") else filter(None, node.output)
    sizes = [view.bytes(tensor) for tensor in written]
    moved = None if None in sizes else sum(size or 0 for size in sizes)
    about = node.output[0] if "Concat" in node.op_type else read[0]
    return Finding("copy", node.op_type, view.source_name(node), view.meant(about), moved)


def _add(view: OptimisedView, node: onnx.NodeProto, block: int) -> Finding | None:
    """An Add behind a convolution that could add what else it reads to its own sums.

    Where all its operands are behind an activation, which comes first in the network, nobody could fuse it.
    """
    read = view.values_read(node) if node.op_type in _ADDS else []
    if len(read) < 2 or _between_quantised(view, node):
        return None
    reasons = [reason for tensor in read if (reason := _why_not_added(view, tensor, read)) is not None]
    if not reasons:
        return None
    why = next((reason for reason in reasons if reason), "")
    return Finding("add", node.op_type, view.source_name(node), view.meant(node.output[0]), why=why)


def _why_not_added(view: OptimisedView, tensor: str, operands: list[str]) -> str | None:
    """Why the convolution behind an operand does not take the other operand; None if there can't be one that does."""
    conv, between = _convolution_above(view, tensor)
    if conv is None or _activation_of(conv):
        return None
    if conv.domain != BLOCKED:
        return f"{_called(view, conv)} runs outside the blocked layout"
    if between:
        return f"{between[0]} stands between"
    if reason := _why_not_operands(view, operands):
        return reason
    return _why_not_alone(view, conv) or ("the convolution adds another tensor" if len(conv.input) > 3 else "")


def _why_not_operands(view: OptimisedView, operands: list[str]) -> str:
    """What about the operands of an Add keeps it from being fused."""
    makers = [view.makers.get(operand) for operand in operands]
    if any(maker is not None and _reshapes_blocks(view, maker) for maker in makers):
        return "onnxruntime can't prove that the operands have one shape"
    if len({view.shape(operand) for operand in operands} - {None}) > 1:
        return "the operands differ in shape"
    if len(operands) > 2:
        return f"it adds {len(operands)} tensors"
    reordered = [maker is not None and maker.op_type == "ReorderOutput" for maker in makers]
    if not any(reordered) or all(reordered):
        return ""
    plain = makers[reordered.index(False)]
    return f"it adds {'the input' if plain is None else f'what {_called(view, plain)} makes'} in the plain layout"


def _activation(view: OptimisedView, node: onnx.NodeProto, block: int) -> Finding | None:
    if node.op_type not in ACTIVATIONS or node.domain not in ("", "ai.onnx"):
        return None
    conv, between = _convolution_above(view, node.input[0], through=(*COPIES, *_ADDS))
    if conv is None or _activation_of(conv):
        return None
    why = f"behind {between[0]}" if between else _why_not_alone(view, conv)
    return Finding("activation", node.op_type, view.source_name(node), view.meant(node.output[0]), why=why)


def _why_not_alone(view: OptimisedView, conv: onnx.NodeProto) -> str:
    """Whether others, too, need what a convolution makes."""
    made = conv.output[0]
    readers = [made, *(reader.output[0] for reader in view.readers[made] if reader.op_type == "ReorderOutput")]
    if any(tensor in view.outputs for tensor in readers):
        return "the convolution's output is one of the model's"
    count = sum(reader.op_type != "ReorderOutput" for tensor in readers for reader in view.readers.get(tensor, ()))
    return f"{count} nodes read the convolution" if count > 1 else ""


def _convolution_above(
    view: OptimisedView, tensor: str, through: tuple[str, ...] = COPIES
) -> tuple[onnx.NodeProto | None, list[str]]:
    """The convolution that a tensor comes from, and the operators between that do more than reorder."""
    between: list[str] = []
    for maker in _line_above(view, tensor):
        if is_convolution(view, maker):
            return maker, between
        if maker.op_type in through:
            between.append(_called(view, maker))
        elif maker.op_type not in REORDERS and not _reshapes_blocks(view, maker):
            break
    return None, between


def _reshapes_blocks(view: OptimisedView, node: onnx.NodeProto) -> bool:
    """Whether a node takes a blocked tensor as what it is in memory, which onnxruntime does before Adds."""
    above = view.makers.get(node.input[0]) if node.op_type == "Reshape" else None
    return above is not None and above.domain == BLOCKED and above.op_type != "ReorderOutput"


def _behind_reorders(view: OptimisedView, tensor: str) -> onnx.NodeProto | None:
    return next((maker for maker in _line_above(view, tensor) if maker.op_type not in REORDERS), None)


def _line_above(view: OptimisedView, tensor: str) -> Iterator[onnx.NodeProto]:
    """The node that makes a tensor, the one that makes what that one reads first, and so on."""
    maker = view.makers.get(tensor)
    while maker is not None:
        yield maker
        above = next(iter(view.values_read(maker)), "")
        maker = view.makers.get(above)


def _activation_of(conv: onnx.NodeProto) -> bool:
    return any(attribute.name == "activation" and attribute.s for attribute in conv.attribute)


def _called(view: OptimisedView, node: onnx.NodeProto) -> str:
    """Operator and name of a node, for a reason."""
    return f"{node.op_type} {view.source_name(node)}"
