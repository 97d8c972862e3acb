"""Einsum: a constant operand reads what is summed over and makes what only it holds."""

from __future__ import annotations

from string import ascii_letters

from ucpe_onnx.analysis.graph import Node
from ucpe_onnx.analysis.slots import TensorKey
from ucpe_onnx.analysis.tracer import Tracer


def einsum(tracer: Tracer, node: Node) -> None:
    """Two operands without repeated letters; everything else stays as it is.

    With a constant operand, a letter of the other that is summed over is read through it, and the letters that only the
    constant has are made by it. Letters that two activations are summed over are frozen.
    """
    keys = [tracer.operand(node, index) for index in range(len(node.inputs))]
    terms, result = _without_ellipses(tracer, node, keys)
    out = node.outputs[0]
    plain = all(len(set(term)) == len(term) and term.isalpha() for term in (*terms, result or "a"))
    fits = len(keys) == len(terms) and all(
        key is not None and tracer.rank(key) == len(term) for key, term in zip(keys, terms, strict=False)
    )
    if not plain or not fits or len(terms) > 2 or tracer.rank(out) != len(result) or isinstance(keys[0], tuple):
        tracer.freeze_node(node, f"equation of an unsupported form: Einsum at {node.name}")
        return
    operands = [(key, term) for key, term in zip(keys, terms, strict=True) if key is not None]
    constant = len(operands) == 2 and isinstance(operands[1][0], tuple)
    for key, term in operands[:1] if constant else operands:
        for axis, letter in enumerate(term):
            if letter in result and all(
                tracer.size((key, axis)) == tracer.size(other) for other in _holding(operands, letter)
            ):
                tracer.link((key, axis), (out, result.index(letter)), node)
            elif letter in result:
                tracer.freeze(key, f"broadcast axis of Einsum at {node.name}", [axis])
                tracer.freeze(out, f"broadcast axis of Einsum at {node.name}", [result.index(letter)])
            elif not constant or letter not in terms[1]:
                tracer.freeze(key, f"axis summed over by Einsum at {node.name}", [axis])
    if constant:
        _with_constant(tracer, node, terms, result)


def _without_ellipses(tracer: Tracer, node: Node, keys: list[TensorKey | None]) -> tuple[list[str], str]:
    """The equation with a letter for each axis that an ellipsis stands for, unless that of a constant has one."""
    terms, result = letters(node)
    ranks = [0 if key is None else tracer.rank(key) or 0 for key in keys]
    constant = any(isinstance(key, tuple) and "..." in term for key, term in zip(keys, terms, strict=False))
    counts = [rank - len(term) + 3 for rank, term in zip(ranks, terms, strict=False) if "..." in term]
    unused = [letter for letter in ascii_letters if not any(letter in term for term in terms)]
    most = max(counts, default=0)
    if constant or not counts or not 0 <= min(counts) <= most <= len(unused) or len(ranks) != len(terms):
        return terms, result
    fresh = "".join(unused[:most])
    expanded = [
        term.replace("...", fresh[most - (rank - len(term) + 3) :]) if "..." in term else term
        for rank, term in zip(ranks, terms, strict=True)
    ]
    return expanded, result.replace("...", fresh)


def _holding(operands: list[tuple[TensorKey, str]], letter: str) -> list[tuple[TensorKey, int]]:
    return [(key, term.index(letter)) for key, term in operands if letter in term]


def _with_constant(tracer: Tracer, node: Node, terms: list[str], result: str) -> None:
    data, out = node.inputs[0], node.outputs[0]
    key = tracer.operand(node, 1)
    if not isinstance(key, tuple):  # never: the caller has looked
        return
    summed = [letter for letter in terms[0] if letter in terms[1] and letter not in result]
    read = _read(
        tracer, node, {terms[0].index(letter): tracer.size((key, terms[1].index(letter))) for letter in summed}
    )
    for letter in summed:
        axis = terms[0].index(letter)
        if axis in read:
            tracer.consume(tracer.weight_use(node, (data, axis), 1, terms[1].index(letter)))
        else:
            tracer.freeze(data, f"summed over with the axis that a mask is for: Einsum at {node.name}", [axis])
    for letter in (letter for letter in terms[1] if letter in result and letter not in terms[0]):
        use = tracer.weight_use(node, (out, result.index(letter)), 1, terms[1].index(letter))
        tracer.produce(use, (key, use.weight_axis))
    for letter in (letter for letter in terms[1] if letter in terms[0] and letter in result):
        tracer.link((out, result.index(letter)), (key, terms[1].index(letter)), node)


def _read(tracer: Tracer, node: Node, summed: dict[int, int | None]) -> list[int]:
    """The axis of the data that a mask is for, of those that are summed over; all that it may be while that is open.

    A mask tells the axes apart by their lengths: of equally long ones it is for the last.

    Args:
        tracer: the tracer.
        node: the Einsum.
        summed: the length of each axis.
    """
    candidates = sorted({size: axis for axis, size in summed.items()}.values())
    if len(candidates) < 2:
        return candidates
    if tracer.choices is None:
        tracer.open_reads[node.index] = candidates
        return candidates
    return [axis for axis in candidates if axis == tracer.choices.get(node.index)]


def letters(node: Node) -> tuple[list[str], str]:
    """The letters of the operands and of the result, of which an ellipsis comes first where it is not written down."""
    equation = node.attributes["equation"].decode().replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if not arrow:
        every = "".join(terms).replace("...", "")
        once = "".join(sorted(letter for letter in set(every) if every.count(letter) == 1))
        right = ("..." if "..." in left else "") + once
    return terms, right


RULES = {"Einsum": einsum}
