"""Large models as protobuf writes them, measured and written without going through protobuf.

To serialise a message protobuf takes several times its size, even to tell how large it would be. The fields that hold
large weights are added here by hand: a field is its tag, its length and its content, and a message is its fields.

Source: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Callable

import onnx
from onnx import GraphProto, ModelProto, TensorProto

from ucpe_onnx.model.offload import complete, copy_model, held_bytes, tensor_data

_GRAPH = ModelProto.GRAPH_FIELD_NUMBER
_INITIALIZER = GraphProto.INITIALIZER_FIELD_NUMBER
_RAW_DATA = TensorProto.RAW_DATA_FIELD_NUMBER


def model_size(model: onnx.ModelProto) -> int:
    """Bytes of the serialised model with all its weights, offloaded ones too."""
    held = _held(model)
    if not held:
        return int(model.ByteSize())
    light = copy_model(model, held)
    before = after = light.graph.ByteSize()
    for index, size in held.items():
        hollow = light.graph.initializer[index].ByteSize()
        raw = len(_head(_RAW_DATA, size)) + size
        after += len(_head(_INITIALIZER, hollow + raw)) + raw - len(_head(_INITIALIZER, hollow))
    around = light.ByteSize() - before - len(_head(_GRAPH, before))
    return int(around + len(_head(_GRAPH, after)) + after)


def write_model(model: onnx.ModelProto, write: Callable[[bytes], object]) -> None:
    """Serialise a model with all its weights, offloaded ones too, one after the other.

    Args:
        model: the model; not changed.
        write: called with one part after the other, as a stream's ``write`` is.
    """
    held = _held(model)
    if not held:
        write(complete(model).SerializeToString())
        return
    light = copy_model(model, held)
    tensors = [tensor.SerializeToString() for tensor in light.graph.initializer]
    raw = [_head(_RAW_DATA, held[index]) if index in held else b"" for index in range(len(tensors))]
    sizes = [len(tensor) + len(raw[index]) + held.get(index, 0) for index, tensor in enumerate(tensors)]
    heads = [_head(_INITIALIZER, size) for size in sizes]
    light.graph.ClearField("initializer")
    graph = light.graph.SerializeToString()
    light.ClearField("graph")
    write(light.SerializeToString())
    write(_head(_GRAPH, len(graph) + sum(sizes) + sum(map(len, heads))) + graph)
    for index, tensor in enumerate(tensors):
        write(heads[index] + tensor + raw[index])
        if index in held:
            write(tensor_data(model.graph.initializer[index]))


def _held(model: onnx.ModelProto) -> dict[int, int]:
    """The bytes that each large initializer holds, by its place."""
    return {i: size for i, tensor in enumerate(model.graph.initializer) if (size := held_bytes(tensor))}


def _head(field: int, length: int) -> bytes:
    """What stands before the content of a field that has a length."""
    return _varint(field << 3 | 2) + _varint(length)


def _varint(number: int) -> bytes:
    """Seven bits per byte, the lowest first; all bytes but the last have their highest bit set."""
    parts = [number >> shift & 0x7F for shift in range(0, max(1, number.bit_length()), 7)]
    return bytes([*(part | 0x80 for part in parts[:-1]), parts[-1]])
