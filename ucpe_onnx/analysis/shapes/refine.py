"""A second, forward inference: it knows partly known values and goes on behind a node that fails."""

from __future__ import annotations

import contextlib
import copy
import math
from collections import ChainMap
from collections.abc import Collection, Iterable, MutableMapping, Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from ucpe_onnx.analysis.constants import Constants
from ucpe_onnx.analysis.shapes.contrib import contrib_shapes
from ucpe_onnx.analysis.shapes.operators import output_shapes
from ucpe_onnx.analysis.shapes.partial import LARGEST, Dim, Facts, Partial, Shape
from ucpe_onnx.analysis.shapes.sequences import SEQUENCE_OPERATORS, item_shapes, taken_shape
from ucpe_onnx.analysis.shapes.values import follows, propagate
from ucpe_onnx.model.bodies.markers import DOMAIN

_STANDARD = ("", "ai.onnx")
_CONTRIB = "com.microsoft"
_GRAPHS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
_SCALING = ("Resize", "Upsample", "Range")
"""Operators whose output shape depends on floating-point inputs."""


_TYPE_OF = {"EmbedLayerNormalization": 2}
"""Operators that onnx does not know make what they read first, but for these, which make what that input is."""


class Refinement:
    """Improves shapes and types in place, in graph order.

    What is known stays: a number beats a symbol that an input declares, that beats another symbol, and any beats
    nothing. Where a new claim contradicts an old one, the old one stays.

    Args:
        model: the model; not changed.
        constants: its constants.
        shapes: known shapes.
        types: known element types.
        declared: the symbols that inputs declare.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        constants: Constants,
        shapes: MutableMapping[str, Shape],
        types: MutableMapping[str, int],
        declared: Collection[str],
    ) -> None:
        self._imports = list(model.opset_import)
        self._opsets = {_domain(o.domain): o.version for o in model.opset_import}
        self._constants = constants
        self._shapes = shapes
        self._types = types
        self._declared = declared
        self._items: dict[str, tuple[Sequence[Shape | None], int]] = {}
        self.values: MutableMapping[str, Partial | None] = {}

    def is_open(self, name: str) -> bool:
        """Whether the rank or a length of a tensor is not known, or only as a symbol that no input declares."""
        if not name or name in self._constants:
            return False
        shape = self._shapes.get(name)
        return shape is None or any(self._certainty(dim) < 2 for dim in shape)

    def run(self, nodes: Iterable[onnx.NodeProto]) -> None:
        """Go through nodes in an order in which every tensor is made before it is read."""
        for node in nodes:
            if all(name in self._constants for name in node.output if name):
                continue
            is_open = any(self.is_open(name) for name in node.output)
            if is_open or (_domain(node.domain) == "" and follows(node.op_type)):
                # Whatever trips here makes this node unknown and leaves those behind it alone.
                with contextlib.suppress(Exception):
                    self._visit(node, is_open)

    def _visit(self, node: onnx.NodeProto, is_open: bool) -> None:
        facts = self._facts(node)
        domain = _domain(node.domain)
        if domain == "":
            self._follow_values(node, facts)
        if not is_open:
            return
        if domain == DOMAIN and node.op_type == "If":
            self._follow_branch(node, facts)
        if domain == "" and node.op_type in SEQUENCE_OPERATORS:
            self._follow_items(node, facts)
        if any(attribute.type in _GRAPHS for attribute in node.attribute):
            if domain == "" and node.op_type == "If":
                self._choose_branch(node, facts)
            return
        if domain in ("", _CONTRIB):
            with contextlib.suppress(Exception):
                self._learn_all(node, (output_shapes if domain == "" else contrib_shapes)(facts))
        if onnx.defs.has(node.op_type, domain):
            self._ask_onnx(node, facts)
        elif elem_type := self._type(node.input[_TYPE_OF.get(node.op_type, 0)]).tensor_type.elem_type:
            self._types.setdefault(node.output[0], elem_type)

    def _facts(self, node: onnx.NodeProto) -> Facts:
        shapes = [self._shape(name) for name in node.input]
        values = [self._value(name) for name in node.input]
        if any(value is not None for value in values):
            blanks = [self._blank(name) for name in node.input]
            values = [blank if value is None else value for value, blank in zip(values, blanks, strict=True)]
        return Facts(
            op=node.op_type,
            opset=self._opsets.get(_domain(node.domain), 1),
            attributes={a.name: onnx.helper.get_attribute_value(a) for a in node.attribute if a.type not in _GRAPHS},
            given=[bool(name) for name in node.input],
            shapes=shapes,
            values=values,
            outputs=len(node.output),
        )

    def _follow_items(self, node: onnx.NodeProto, facts: Facts) -> None:
        """Note the shapes of a sequence's items, or of what is taken out of one, and their element type."""
        if node.input[0] in self._items:
            items, elem_type = self._items[node.input[0]]
            self._learn(node.output[0], taken_shape(facts, items))
            self._types.setdefault(node.output[0], elem_type)
        elif (items_made := item_shapes(facts)) is not None:
            self._items[node.output[0]] = items_made, self._type(node.input[0]).tensor_type.elem_type

    def _follow_values(self, node: onnx.NodeProto, facts: Facts) -> None:
        with contextlib.suppress(Exception):
            for name, value in zip(node.output, propagate(facts), strict=False):
                if name and value is not None and self._learn(name, value.items.shape):
                    self.values[name] = value

    def _ask_onnx(self, node: onnx.NodeProto, facts: Facts) -> None:
        domain = _domain(node.domain)
        schema = onnx.defs.get_schema(node.op_type, facts.opset, domain)
        data = {}
        for name, value in zip(node.input, facts.values, strict=True):
            if value is None or not (value.dtype.kind in "iu" or node.op_type in _SCALING):
                continue
            if (array := value.known()) is not None:
                data[name] = numpy_helper.from_array(array, name)
        types = {name: self._type(name) for name in node.input if name}
        made = onnx.shape_inference.infer_node_outputs(schema, node, types, data, opset_imports=self._imports)
        for name, value_type in made.items():
            tensor = value_type.tensor_type
            if name and value_type.HasField("tensor_type"):
                self._types.setdefault(name, tensor.elem_type)
                if tensor.HasField("shape"):
                    self._learn(name, dimensions(tensor.shape))

    def _choose_branch(self, node: onnx.NodeProto, facts: Facts) -> None:
        """Look into the branch that is taken, or into both for what they have in common."""
        bodies = {a.name: a.g for a in node.attribute}
        condition = facts.value(0)
        taken = None if condition is None else condition.known()
        names = ["then_branch", "else_branch"] if taken is None else ["then_branch" if taken.item() else "else_branch"]
        branches = [self._inside(bodies[name]) for name in names]
        for i, output in enumerate(node.output):
            results = [bodies[name].output[i].name for name in names]
            pairs = list(zip(branches, results, strict=True))
            if self._learn(output, _either([branch._shape(name) for branch, name in pairs])) and len(pairs) == 1:
                self.values[output] = branches[0]._value(results[0])
            types = {branch._types.get(name) for branch, name in pairs}
            if len(types) == 1 and (elem_type := types.pop()):
                self._types.setdefault(output, elem_type)

    def _follow_branch(self, node: onnx.NodeProto, facts: Facts) -> None:
        """The outputs of an If whose branches have been unfolded: of the one that is taken, or what both have."""
        condition, count = facts.value(0), len(node.output)
        taken = None if condition is None else condition.known()
        for place, output in enumerate(node.output):
            sources = [node.input[1 + place], node.input[1 + count + place]]
            if taken is not None:
                sources = sources[:1] if taken.item() else sources[1:]
            if self._learn(output, _either([self._shape(name) for name in sources])) and len(sources) == 1:
                self.values[output] = self._value(sources[0])
            types = {self._types.get(name) for name in sources}
            if len(types) == 1 and (elem_type := types.pop()):
                self._types.setdefault(output, elem_type)

    def _inside(self, body: onnx.GraphProto) -> Refinement:
        """What is known behind the nodes of a branch, with all that is known around it."""
        inner = copy.copy(self)
        inner._shapes = ChainMap({}, self._shapes)
        inner._types = ChainMap({}, self._types)
        inner.values = ChainMap({}, self.values)
        for tensor in body.initializer:
            inner._shapes[tensor.name] = tuple(tensor.dims)
            inner._types[tensor.name] = tensor.data_type
            if math.prod(tensor.dims) <= LARGEST:
                inner.values[tensor.name] = Partial.of(numpy_helper.to_array(tensor))
        inner.run(body.node)
        return inner

    def _shape(self, name: str) -> Shape | None:
        constant = self._constants.shape(name) if name else None
        return constant if constant is not None else self._shapes.get(name)

    def _value(self, name: str) -> Partial | None:
        if name not in self.values and name in self._constants:
            small = math.prod(self._constants.shape(name) or ()) <= LARGEST
            array = self._constants.value(name) if small else None
            self.values[name] = None if array is None else Partial.of(array)
        return self.values.get(name)

    def _blank(self, name: str) -> Partial | None:
        """The elements of a small tensor of which nothing is known."""
        shape = self._shape(name)
        lengths = [dim for dim in shape or () if isinstance(dim, int)]
        if not name or shape is None or len(lengths) < len(shape) or math.prod(lengths) > LARGEST:
            return None
        if (elem_type := self._types.get(name)) is None:
            return None
        return Partial.unknown(lengths, np.dtype(onnx.helper.tensor_dtype_to_np_dtype(elem_type)))

    def _type(self, name: str) -> onnx.TypeProto:
        constant = self._constants.value(name) if name not in self._types and name in self._constants else None
        if constant is not None:
            return onnx.helper.make_tensor_type_proto(
                onnx.helper.np_dtype_to_tensor_dtype(constant.dtype), constant.shape
            )
        if name not in self._types:
            return onnx.TypeProto()
        return onnx.helper.make_tensor_type_proto(self._types[name], self._shape(name))

    def _learn_all(self, node: onnx.NodeProto, shapes: Sequence[Shape | None]) -> None:
        for name, shape in zip(node.output, shapes, strict=False):
            if name:
                self._learn(name, shape)

    def _learn(self, name: str, shape: Shape | None) -> bool:
        """Note a claim; returns whether it agrees with what was known. An axis of length 0 counts as unknown."""
        if shape is None or name in self._constants:
            return shape is not None
        new = tuple(None if isinstance(dim, int) and dim <= 0 else dim for dim in shape)
        old = self._shapes.get(name)
        if old is None:
            self._shapes[name] = new
            return True
        pairs = list(zip(old, new, strict=False))
        if len(old) != len(new) or any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in pairs):
            return False
        self._shapes[name] = tuple(max(pair, key=self._certainty) for pair in pairs)
        return True

    def _certainty(self, dim: Dim) -> int:
        if dim is None:
            return 0
        return 3 if isinstance(dim, int) else 2 if dim in self._declared else 1


def dimensions(shape: onnx.TensorShapeProto) -> Shape:
    """A shape as it is declared; some converters write 0 or -1 for a length that they don't know."""
    return tuple(
        (dim.dim_value if dim.dim_value > 0 else None) if dim.HasField("dim_value") else dim.dim_param or None
        for dim in shape.dim
    )


def _domain(name: str) -> str:
    return "" if name in _STANDARD else name


def _either(shapes: Sequence[Shape | None]) -> Shape | None:
    """What holds for each of several shapes."""
    known = [shape for shape in shapes if shape is not None]
    if len(known) < len(shapes) or any(len(shape) != len(known[0]) for shape in known):
        return None
    return tuple(dims[0] if len(set(dims)) == 1 else None for dims in zip(*known, strict=True))
