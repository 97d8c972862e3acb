"""Einsum: a constant operand reads what is summed over and makes what only it holds."""

from __future__ import annotations

from ucpe_onnx.analysis.graph import Node
from ucpe_onnx.analysis.slots import TensorKey
from ucpe_onnx.analysis.tracer import Tracer


def einsum(tracer: Tracer, node: Node) -> None:
    """Two operands without ellipses or repeated letters; everything else stays as it is.

    With a constant operand, the first letter of the other that is summed over is read through it, and the last letter
    that only the constant has is made by it. Letters that two activations are summed over are frozen.
    """
    terms, result = letters(node)
    keys = [tracer.operand(node, index) for index in range(len(node.inputs))]
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


def _holding(operands: list[tuple[TensorKey, str]], letter: str) -> list[tuple[TensorKey, int]]:
    return [(key, term.index(letter)) for key, term in operands if letter in term]


def _with_constant(tracer: Tracer, node: Node, terms: list[str], result: str) -> None:
    data, out = node.inputs[0], node.outputs[0]
    key = tracer.operand(node, 1)
    if not isinstance(key, tuple):  # never: the caller has looked
        return
    read = [letter for letter in terms[0] if letter in terms[1] and letter not in result]
    made = [letter for letter in terms[1] if letter in result and letter not in terms[0]]
    for letter in read[:1]:
        tracer.consume(tracer.weight_use(node, (data, terms[0].index(letter)), 1, terms[1].index(letter)))
    for letter in read[1:]:
        tracer.freeze(data, f"axis summed over by Einsum at {node.name}", [terms[0].index(letter)])
    for letter in made[:-1]:
        tracer.freeze(out, f"axis made by Einsum at {node.name}", [result.index(letter)])
    for letter in made[-1:]:
        use = tracer.weight_use(node, (out, result.index(letter)), 1, terms[1].index(letter))
        tracer.produce(use, (key, use.weight_axis))
    for letter in (letter for letter in terms[1] if letter in terms[0] and letter in result):
        tracer.link((out, result.index(letter)), (key, terms[1].index(letter)), node)


def letters(node: Node) -> tuple[list[str], str]:
    """The letters of the operands and of the result."""
    equation = node.attributes["equation"].decode().replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if not arrow:
        every = "".join(terms)
        right = "".join(sorted(letter for letter in set(every) if every.count(letter) == 1))
    return terms, right


RULES = {"Einsum": einsum}
