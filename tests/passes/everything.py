"""A model in which every field of every message is set that the installed onnx has, and a way to compare such models.

The messages are walked by their descriptors, so that fields which a later onnx adds are set and compared as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from onnx import TensorProto, helper, numpy_helper

from tests.builders import Net

FieldName = tuple[str, str]
"""Message and field."""


def plain() -> onnx.ModelProto:
    """x -> a -> Relu -> b and c, the batch has a name."""
    net = Net(opset=17, ir_version=10)
    a = net.op("Relu", net.conv(net.input("x", ("batch", 3, 4, 4)), 8, name="a"), name="relu")
    return net.output(net.conv(a, 2, name="b"), net.conv(a, 2, name="c")).model()


def described() -> onnx.ModelProto:
    """The plain model with what people say about models, and a function, off the path that is pruned; it runs."""
    model = plain()
    graph = model.graph
    model.producer_name, model.producer_version, model.domain = "exporter", "1.2.3", "com.example.net"
    model.model_version, model.doc_string = 42, "what it is for"
    model.metadata_props.add(key="author", value="somebody")
    graph.doc_string = "the graph"
    graph.input[0].type.denotation = "IMAGE"
    graph.input[0].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    for message in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        message.doc_string = f"{message.name} at line 7"
        if has(message, "metadata_props"):
            message.metadata_props.add(key="namespace", value=f"of {message.name}")
    add = helper.make_node("Add", ["v", "v"], ["w"])
    opsets = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("com.example", "Twice", ["v"], ["w"], [add], opsets))
    model.functions[0].doc_string = "v + v"
    model.opset_import.extend([helper.make_opsetid("com.example", 1), helper.make_opsetid("unused.domain", 3)])
    graph.node.append(helper.make_node("Twice", [graph.output[0].name], ["twice"], name="call", domain="com.example"))
    graph.output.append(helper.make_tensor_value_info("twice", TensorProto.FLOAT, ["batch", 2, 4, 4]))
    for tensor, dims in ((graph.node[0].output[0], ["batch", 8, 4, 4]), (graph.node[0].input[1], [8, 3, 1, 1])):
        graph.value_info.append(helper.make_tensor_value_info(tensor, TensorProto.FLOAT, dims))
        graph.value_info[-1].doc_string = "before the activation"
    graph.initializer.append(numpy_helper.from_array(np.arange(3.0), "unused"))
    annotation = graph.quantization_annotation.add(tensor_name=graph.node[1].output[0])
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="unused")
    return model


def everything() -> onnx.ModelProto:
    """The described model with every other field set too, wherever it does not touch what is pruned.

    No runtime takes it: nodes, types and values are made up.
    """
    model = described()
    graph = model.graph
    mystery = graph.node.add(
        input=["twice", "queue", "dictionary"], output=["mystery"], name="mystery", domain="unused.domain"
    )
    mystery.op_type = "Mystery"
    fill(mystery)
    for kind in onnx.AttributeProto.AttributeType.values():
        mystery.attribute.add(name=f"attribute {kind}", type=kind)
    graph.input.add(name="queue").type.sequence_type.elem_type.tensor_type.elem_type = TensorProto.FLOAT
    graph.input.add(name="dictionary").type.map_type.key_type = TensorProto.STRING
    for field in onnx.TypeProto.DESCRIPTOR.oneofs_by_name["value"].fields:
        fill(getattr(graph.value_info.add(name=f"a {field.name} that nothing makes").type, field.name))
    graph.value_info.add(name="a size").type.tensor_type.shape.dim.add(dim_value=5)
    for number in TensorProto.DataType.values():
        graph.initializer.add(name=f"of type {number}", data_type=number, dims=[2], raw_data=bytes(range(32)))
    fill(graph.initializer.add(name="all at once"))
    fill(graph.sparse_initializer.add())
    fill(model.functions.add(name="Filled", domain="unused.domain"))
    fill(model)
    return model


def has(message: Any, field: str) -> bool:
    """Whether the installed onnx knows a field."""
    return field in message.DESCRIPTOR.fields_by_name


def fill(message: Any, around: tuple[str, ...] = ()) -> None:
    """Set every field of a message that is not set, but for messages within messages of their own kind."""
    around = (*around, message.DESCRIPTOR.name)
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        is_set = bool(len(value)) if _repeated(field) else message.HasField(field.name)
        chosen = field.containing_oneof and message.WhichOneof(field.containing_oneof.name)
        if not (is_set or chosen or (field.message_type and field.message_type.name in around)):
            _set(message, field, around)


def _set(message: Any, field: FieldDescriptor, around: tuple[str, ...]) -> None:
    """Set one field; a repeated one gets a message for every choice that its messages have."""
    value = getattr(message, field.name)
    if field.message_type is None and _repeated(field):
        value.append(_made_up(field))
    elif field.message_type is None:
        setattr(message, field.name, _made_up(field))
    elif _repeated(field):
        choices = [choice for oneof in field.message_type.oneofs for choice in oneof.fields]
        for choice in choices or [None]:
            inner = value.add()
            if choice is not None:
                _set(inner, choice, around)
            fill(inner, around)
    else:
        value.SetInParent()
        fill(value, around)


def _repeated(field: FieldDescriptor) -> bool:
    return field.is_repeated if hasattr(field, "is_repeated") else field.label == FieldDescriptor.LABEL_REPEATED


def _made_up(field: FieldDescriptor) -> Any:
    if field.enum_type is not None:
        return field.enum_type.values[-1].number
    made = {FieldDescriptor.CPPTYPE_STRING: f"some {field.name}"}.get(field.cpp_type, 1)
    return made.encode() if field.type == FieldDescriptor.TYPE_BYTES else made


def known_fields(descriptor: Descriptor | None = None, found: set[FieldName] | None = None) -> set[FieldName]:
    """Every field of every message that a model may hold."""
    descriptor = descriptor or onnx.ModelProto.DESCRIPTOR
    found = set() if found is None else found
    for field in descriptor.fields:
        if (descriptor.name, field.name) not in found:
            found.add((descriptor.name, field.name))
            if field.message_type is not None:
                known_fields(field.message_type, found)
    return found


def used_fields(message: Any) -> set[FieldName]:
    """The fields that are set somewhere in a message."""
    found = set()
    for field, value in message.ListFields():
        found.add((message.DESCRIPTOR.name, field.name))
        if field.message_type is not None:
            for inner in value if _repeated(field) else [value]:
                found |= used_fields(inner)
    return found


def flat(message: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value in a message with the path to it; what has a name is addressed by it, else by its place."""
    yield path, message.DESCRIPTOR.name
    for field, value in message.ListFields():
        where = f"{path}/{field.name}"
        if field.message_type is None:
            for place, one in enumerate(value) if _repeated(field) else [("", value)]:
                yield f"{where}[{place}]", one
        elif _repeated(field):
            names = [getattr(one, "name", "") for one in value]
            by_name = all(names) and len(set(names)) == len(names)
            yield f"{where}/order", names if by_name else len(value)
            for place, one in enumerate(value):
                yield from flat(one, f"{where}[{names[place] if by_name else place}]")
        else:
            yield from flat(value, where)
