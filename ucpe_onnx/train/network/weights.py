"""Which of a file's constants training changes: weights, by what reads them, and running statistics."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from ucpe_onnx.analysis.constants import Constants
from ucpe_onnx.analysis.graph import Node
from ucpe_onnx.errors import ModelError
from ucpe_onnx.model.naming import fresh_name

WEIGHTS: Mapping[str, tuple[int, ...]] = {
    "BatchNormalization": (1, 2),
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Einsum": (0, 1, 2, 3),
    "GRU": (1, 2, 3),
    "Gather": (0,),
    "Gemm": (0, 1, 2),
    "GroupNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LSTM": (1, 2, 3, 7),
    "LayerNormalization": (1, 2),
    "MatMul": (0, 1),
    "PRelu": (1,),
    "RMSNormalization": (1,),
    "RNN": (1, 2, 3),
}
"""The inputs that are weights where they are constant."""

_JOINED = frozenset({"Add", "Concat", "Mul"})
"""Operators that add a bias, multiply by a scale or put a token in front if one operand is a parameter."""

_MOVES = frozenset({"Cast", "Expand", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
"""Behind these a parameter is still itself."""


@dataclass(frozen=True)
class Constant:
    """A tensor that the file holds.

    Attributes:
        value: its value.
        initializer: whether it is an initializer; otherwise the output of a Constant node.
    """

    value: npt.NDArray[Any]
    initializer: bool

    @property
    def floating(self) -> bool:
        """Whether it is of a type that weights are trained in: half, single or double precision."""
        return self.value.dtype.kind == "f"


@dataclass(frozen=True)
class Roles:
    """What training changes, in the order of the file.

    Attributes:
        weights: names of the constants that have gradients.
        statistics: names of running means and variances that training updates.
    """

    weights: tuple[str, ...]
    statistics: tuple[str, ...]


def read_constants(model: onnx.ModelProto, label: str) -> dict[str, Constant]:
    """The initializers of a graph and the values of its Constant nodes, by tensor name.

    Args:
        model: the model; not changed.
        label: what to call it in messages.

    Raises:
        ModelError: a constant is sparse, of strings, or its data does not fit its shape.
    """
    graph = model.graph
    known = Constants(model)
    names = {tensor.name: True for tensor in graph.initializer}
    names |= {sparse.values.name: True for sparse in graph.sparse_initializer}
    names |= {node.output[0]: False for node in graph.node if node.op_type == "Constant" and node.output}
    constants = {}
    for name, initializer in names.items():
        value = known.value(name)
        if value is None or value.dtype.kind in "OSU":
            raise ModelError(
                f"{label}: constant {name!r} is sparse or holds strings, which can't be trained with yet: prune without"
                " training (python -m ucpe_onnx)"
            )
        constants[name] = Constant(value, initializer)
    return constants


def find_roles(
    nodes: Sequence[Node], constants: Mapping[str, Constant], outputs: Collection[str], frozen: Collection[str]
) -> Roles:
    """Decide what training changes.

    Weights are floats that

    - an operator reads as such, as ``WEIGHTS`` lists them, directly or through nodes that read constants alone
      (Transpose, Reshape, Cast, a product with a gain ...): anything but scalars, on such a way also but single
      elements; embedding tables are matrices whose rows a Gather picks;
    - are added to activations or multiplied with them, directly or behind Reshape and the like, and have more than one
      element;
    - are joined to activations in the same way, as class tokens are, and are not of one value, as padding is.

    For the last two only initializers count: exporters store parameters so, and masks or grids as Constant nodes. In a
    file whose floats are all in Constant nodes, these count as well. The same goes for InstanceNormalization, by which
    exporters write group norms, with Constant nodes of ones and zeros.

    Running statistics are updated where one normalisation alone reads them. Where files share constants, for example
    one vector of zeros for all biases and means, the shared ones stay as they are.

    Args:
        nodes: the graph without its Constant nodes.
        constants: what the file holds.
        outputs: names of the graph's outputs.
        frozen: names of constants to leave as they are.

    Raises:
        ModelError: a name of ``frozen`` is not that of a constant.
    """
    if unknown := sorted(set(frozen) - set(constants)):
        raise ModelError(f"no constant is called {unknown[0]!r}, which is to be frozen: give names of initializers")
    finder = _Finder.of(nodes, constants)
    means = [node.inputs[3:5] for node in nodes if node.op_type == "BatchNormalization"]
    fixed = {name for pair in means for name in pair}.union(frozen)
    found = {name for node in nodes for name in finder.weights(node)} - fixed
    readers = Counter([*(name for node in nodes for name in node.inputs), *outputs])
    tracked = {
        name
        for pair in means
        for name in pair
        if all(n in constants and readers[n] == 1 and n not in frozen for n in pair)
    }
    return Roles(tuple(n for n in constants if n in found), tuple(n for n in constants if n in tracked))


def attribute_names(names: Iterable[str]) -> dict[str, str]:
    """A different name for every tensor that torch accepts as that of a parameter, and that no module has."""
    taken: set[str] = set()
    return {name: fresh_name("w_" + re.sub(r"\W", "_", name, flags=re.ASCII), taken) for name in names}


@dataclass(frozen=True)
class _Finder:
    """Finds the weights that nodes read.

    Attributes:
        constants: what the file holds.
        makers: the tensors that are computed from constants alone, with the nodes that do.
        stored: the constants that are held as exporters hold parameters: initializers, if any of them is a float.
    """

    constants: Mapping[str, Constant]
    makers: Mapping[str, Node]
    stored: Collection[str]

    @classmethod
    def of(cls, nodes: Sequence[Node], constants: Mapping[str, Constant]) -> _Finder:
        makers: dict[str, Node] = {}
        for node in nodes:
            if any(node.inputs) and all(name in constants or name in makers for name in node.inputs if name):
                makers.update((name, node) for name in node.outputs if name)
        stored = {name for name, constant in constants.items() if constant.initializer}
        return cls(constants, makers, stored if any(constants[name].floating for name in stored) else constants.keys())

    def weights(self, node: Node) -> Iterator[str]:
        """The constants that a node reads as weights."""
        for position in WEIGHTS.get(node.op_type, ()):
            name = node.inputs[position] if position < len(node.inputs) else ""
            if not self._is_something_else(node, name):
                yield from self._origins(name)
        if node.op_type in _JOINED and not all(name in self.constants or name in self.makers for name in node.inputs):
            for operand in node.inputs:
                yield from self._parameter(node, operand)

    def _is_something_else(self, node: Node, name: str) -> bool:
        """Whether a weight's place holds numbers to pick from, or the ones and zeros of a group norm."""
        if node.op_type == "Gather":
            return bool(node.attributes.get("axis", 0)) or name not in self.constants or self._value(name).ndim < 2
        return node.op_type == "InstanceNormalization" and name in self.constants and name not in self.stored

    def _parameter(self, node: Node, name: str) -> Iterator[str]:
        """The parameter that an operand is, if it is one."""
        while name in self.makers and self.makers[name].op_type in _MOVES:
            name = self.makers[name].inputs[0]
        if name not in self.stored or not self.constants[name].floating or self._value(name).size < 2:
            return
        if node.op_type != "Concat" or np.ptp(self._value(name)):
            yield name

    def _origins(self, name: str) -> Iterator[str]:
        """The constants that a constant tensor is computed from, as far as they may be weights."""
        if name in self.constants:
            if self.constants[name].floating and self._value(name).ndim:
                yield name
            return
        left, seen = [name], {name}
        while left:
            current = left.pop()
            if current in self.constants and self.constants[current].floating and self._value(current).size > 1:
                yield current
            for source in self.makers[current].inputs if current in self.makers else ():
                if source not in seen:
                    seen.add(source)
                    left.append(source)

    def _value(self, name: str) -> npt.NDArray[Any]:
        return self.constants[name].value
