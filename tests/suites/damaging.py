"""Seeded damage to model files: of their bytes, of their protobuf fields, of what the fields mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.builders import Net
from tests.suites.wire import Field, all_fields, parse, serialise

Random: TypeAlias = np.random.Generator

_SIZES = (0, 1, 2, 3, 7, 64, 127, 128, 255, 2**16, 2**31 - 1, 2**31, 2**63 - 1, 2**64 - 1)
_OPS = ("Add", "Concat", "Conv", "Flatten", "Gemm", "Identity", "If", "MatMul", "Mul", "Relu", "Reshape", "Shape")
_OPS += ("Softmax", "Split", "Transpose", "Unsqueeze", "Loop", "Nothing", "")


def small_models() -> list[onnx.ModelProto]:
    """Valid models with few weights, so that damage hits something else."""
    return [_plain(), _joined(), _reshaped(), _subgraph(), _old(), _decorated()]


def _plain() -> onnx.ModelProto:
    net = Net()
    a = net.batch_norm(net.conv(net.input("x", ("N", 2, 3, 3)), 4, name="a"))
    b = net.op("Add", net.conv(net.op("Relu", a), 3, name="b"), net.conv(a, 3, name="c"))
    return net.output(net.gemm(net.op("Flatten", net.op("GlobalAveragePool", b)), 2, name="d")).model()


def _joined() -> onnx.ModelProto:
    net = Net()
    x = net.input("x", (1, 2, 4, 4))
    joined = net.op("Concat", net.conv(x, 3), net.depthwise(net.conv(x, 4)), axis=1)
    left, right = net.split(joined, [2, 5])
    return net.output(net.conv(left, 2), net.conv(right, 2, 3)).model()


def _reshaped() -> onnx.ModelProto:
    net = Net()
    a = net.op("Transpose", net.reshape(net.conv(net.input("x", (1, 2, 2, 2)), 4), 1, 4, 4), perm=[0, 2, 1])
    a = net.op("MatMul", a, net.weight(net.normal(4, 6)))
    a = net.op("MatMul", net.op("Mul", a, net.op("Sigmoid", a)), net.constant(net.normal(6, 2)))
    return net.output(net.squeeze(a, [0])).model()


def _subgraph() -> onnx.ModelProto:
    net = Net()
    a = net.conv(net.input("x", (1, 2, 2, 2)), 4, name="a")
    total = net.op("ReduceSum", net.input("z", (1,)), keepdims=0)
    condition = net.op("Cast", total, to=TensorProto.BOOL)
    bodies = {}
    for branch, op in (("then_branch", "Relu"), ("else_branch", "Neg")):
        value = helper.make_tensor_value_info(branch, TensorProto.FLOAT, [1, 4, 2, 2])
        bodies[branch] = helper.make_graph([helper.make_node(op, [a], [branch])], branch, [], [value])
    (chosen,) = net.ops("If", condition, shapes=[(1, 4, 2, 2)], **bodies)
    return net.output(net.conv(chosen, 6, name="b"), net.conv(net.conv(a, 5, name="c"), 2, name="d")).model()


def _old() -> onnx.ModelProto:
    net = Net(opset=8, ir_version=3)
    a = net.op("Clip", net.conv(net.input("x", (1, 2, 4, 4)), 4), min=0.0, max=6.0)
    a = net.op("MaxPool", net.pad(a, [0, 0, 1, 1, 0, 0, 1, 1]), kernel_shape=[2, 2])
    return net.output(net.conv(net.unsqueeze(net.squeeze(a, [0]), [0]), 2)).model()


def _decorated() -> onnx.ModelProto:
    model = _plain()
    model.metadata_props.append(onnx.StringStringEntryProto(key="author", value="näme"))
    model.graph.doc_string = "words"
    body = [helper.make_node("Add", ["v", "v"], ["w"])]
    model.functions.append(helper.make_function("own", "Twice", ["v"], ["w"], body, [helper.make_opsetid("", 17)]))
    model.opset_import.append(helper.make_opsetid("own", 1))
    output = model.graph.output[0]
    model.graph.node.append(helper.make_node("Twice", [output.name], ["twice"], domain="own"))
    model.graph.output.append(helper.make_tensor_value_info("twice", TensorProto.FLOAT, ["N", 2]))
    return model


def damaged(content: bytes, other: bytes, random: Random) -> bytes:
    """Damage a file once to three times; ``other`` is a file to take pieces from."""
    for _ in range(random.choice([1, 1, 1, 2, 3])):
        damage = random.choice([_damage_bytes, _damage_fields, _damage_meaning], p=[0.2, 0.35, 0.45])
        content = damage(content, other, random)
    return content


# Bytes


def _damage_bytes(content: bytes, other: bytes, random: Random) -> bytes:
    if not content:
        return other
    data = bytearray(content)
    at, to = sorted(random.integers(0, len(data) + 1, 2))
    kind = random.integers(7)
    if kind == 0:
        for place in random.integers(0, len(data), random.integers(1, 9)):
            data[place] ^= 1 << int(random.integers(8))
    elif kind == 1:
        del data[at:]
    elif kind == 2:
        del data[at : min(to, at + 40)]
    elif kind == 3:
        data[at:at] = random.bytes(int(random.integers(1, 20)))
    elif kind == 4:
        data[at:to] = other[at:to]
    elif kind == 5:
        return bytes(data[:at]) + other[at:]
    else:
        data[at - 1] = int(random.choice([0, 1, 0x7F, 0x80, 0xFF, (data[at - 1] + 1) % 256]))
    return bytes(data)


# Fields


def _damage_fields(content: bytes, other: bytes, random: Random) -> bytes:
    tree = parse(content)
    if not tree:
        return _damage_bytes(content, other, random)
    spots = all_fields(tree)
    fields, index = spots[random.integers(len(spots))]
    field = fields[index]
    kind = random.integers(8)
    if kind == 0:
        del fields[index]
    elif kind == 1:
        fields[index:index] = [field] * int(random.choice([1, 1, 1, 2, 50]))
    elif kind == 2:
        there, place = spots[random.integers(len(spots))]
        fields[index], there[place] = there[place], fields[index]
    elif kind == 3:
        field.number = int(random.integers(1, 30))
    elif kind == 4 and (taken := parse(other)):
        alike = [f[i] for f, i in all_fields(taken) if f[i].number == field.number and f[i].wire == field.wire]
        if alike:
            fields[index] = alike[random.integers(len(alike))]
    elif kind == 5:
        fields[:] = [fields[i] for i in random.permutation(len(fields))]
    else:
        _change_value(field, random)
    return serialise(tree)


def _change_value(field: Field, random: Random) -> None:
    if isinstance(field.value, int):
        sizes = (*_SIZES, field.value + 1, field.value - 1, field.value ^ (1 << int(random.integers(8))))
        field.value = int(sizes[random.integers(len(sizes))]) % 2**64
    else:
        value = field.value if isinstance(field.value, bytes) else serialise(field.value)
        field.value = _damage_bytes(value, value[::-1], random) if value else b"\xff" * int(random.integers(1, 9))
        if field.wire in (1, 5):
            field.value = field.value.ljust(8, b"\0")[: 8 if field.wire == 1 else 4]


# Meaning


def _damage_meaning(content: bytes, other: bytes, random: Random) -> bytes:
    try:
        return _change_meaning(onnx.ModelProto.FromString(content), random)
    except Exception:  # protobuf raises DecodeError, and UnicodeDecodeError for strings that it is asked for later
        return _damage_bytes(content, other, random)


def _change_meaning(model: onnx.ModelProto, random: Random) -> bytes:
    changes: list[Callable[[onnx.GraphProto, Random], None]] = [_nodes, _names, _attributes, _sizes, _weights, _ends]
    choice = random.integers(len(changes) + 1)
    if choice == len(changes):
        for opset in model.opset_import:
            opset.version = int(random.choice([opset.version + 1, opset.version - 1, 0, 1, 7, 12, 13, 18, 21, 99]))
        if random.random() < 0.3:
            model.ir_version = int(random.integers(0, 16))
    elif model.graph.node:
        changes[choice](model.graph, random)
    return model.SerializeToString()


def _nodes(graph: onnx.GraphProto, random: Random) -> None:
    index = int(random.integers(len(graph.node)))
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node]
    kind = random.integers(5)
    if kind == 0:
        del nodes[index]
    elif kind == 1:
        nodes.insert(int(random.integers(len(nodes) + 1)), nodes[index])
    elif kind == 2:
        nodes = [nodes[i] for i in random.permutation(len(nodes))]
    elif kind == 3:
        nodes[index].op_type = str(random.choice(_OPS))
    else:
        nodes[index].domain = str(random.choice(["ai.onnx", "com.microsoft", "own", "nobody"]))
    del graph.node[:]
    graph.node.extend(nodes)


def _names(graph: onnx.GraphProto, random: Random) -> None:
    node = graph.node[int(random.integers(len(graph.node)))]
    names = [n for other in graph.node for n in (*other.input, *other.output)] + ["", "elsewhere"]
    places = node.input if random.random() < 0.6 else node.output
    kind = random.integers(4)
    if kind == 0 and places:
        del places[int(random.integers(len(places)))]
    elif kind == 1:
        places.append(names[random.integers(len(names))])
    elif kind == 2:
        node.name = str(random.choice([graph.node[0].name, "", "ö/ \u2603", "a" * 300]))
    elif places:
        places[int(random.integers(len(places)))] = names[random.integers(len(names))]


def _attributes(graph: onnx.GraphProto, random: Random) -> None:
    having = [node for node in graph.node if node.attribute]
    if not having:
        return
    node = having[int(random.integers(len(having)))]
    attribute = node.attribute[int(random.integers(len(node.attribute)))]
    kind = random.integers(6)
    if kind == 0:
        node.attribute.remove(attribute)
    elif kind == 1:
        node.attribute.append(attribute)
    elif kind == 2:
        attribute.type = int(random.integers(0, 15))
    elif kind == 3 and attribute.ints:
        attribute.ints[int(random.integers(len(attribute.ints)))] = int(random.choice([-5, -1, 0, 1, 2, 3, 2**40]))
    elif kind == 4 and attribute.ints:
        del attribute.ints[int(random.integers(len(attribute.ints))) :]
    else:
        attribute.i = int(random.choice([-(2**40), -3, -1, 0, 1, 2, 3, 4, 5, 2**40]))


def _sizes(graph: onnx.GraphProto, random: Random) -> None:
    value = random.choice([*graph.input, *graph.output, *graph.value_info, *graph.initializer])
    if isinstance(value, TensorProto):
        if value.dims:
            value.dims[int(random.integers(len(value.dims)))] = int(random.choice([-1, 0, 1, 2, 3, 5, 8, 2**20]))
        return
    tensor = value.type.tensor_type
    kind = random.integers(5)
    if kind == 0 or not tensor.shape.dim:
        tensor.elem_type = int(random.integers(0, 24))
    elif kind == 1:
        tensor.ClearField("shape")
    elif kind == 2:
        tensor.shape.dim.add()
    else:
        dim = tensor.shape.dim[int(random.integers(len(tensor.shape.dim)))]
        dim.dim_value = int(random.choice([-1, 0, 1, 2, 3, 5, 8, 2**12]))


def _weights(graph: onnx.GraphProto, random: Random) -> None:
    if not graph.initializer:
        return
    index = int(random.integers(len(graph.initializer)))
    tensor = graph.initializer[index]
    kind = random.integers(6)
    if kind == 0:
        del graph.initializer[index]
    elif kind == 1:
        tensor.data_type = int(random.integers(0, 24))
    elif kind == 2:
        tensor.raw_data = tensor.raw_data[: int(random.integers(0, len(tensor.raw_data) + 1))]
    elif kind == 3:
        graph.initializer.append(tensor)
    elif kind == 4:
        tensor.name = graph.initializer[0].name
    else:
        tensor.data_location = TensorProto.EXTERNAL
        location = str(random.choice(["weights.bin", "../../etc/passwd", "in.onnx", ""]))
        tensor.external_data.append(onnx.StringStringEntryProto(key="location", value=location))


def _ends(graph: onnx.GraphProto, random: Random) -> None:
    ends = graph.input if random.random() < 0.5 else graph.output
    names = [name for node in graph.node for name in (*node.input, *node.output)]
    kind = random.integers(3)
    if kind == 0 and ends:
        del ends[int(random.integers(len(ends)))]
    elif kind == 1 and names:
        ends.append(helper.make_tensor_value_info(names[random.integers(len(names))], TensorProto.FLOAT, None))
    elif ends:
        ends[int(random.integers(len(ends)))].name = [*names, "elsewhere"][random.integers(len(names) + 1)]
