"""What a model may ask for: tensors that its bytes hold, and that the machine can."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from math import prod
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto
from onnx.external_data_helper import uses_external_data

from ucpe_onnx.errors import ModelError
from ucpe_onnx.model.skeleton import inferred, skeleton

_BITS: dict[int, int] = {
    **dict.fromkeys((TensorProto.BOOL, TensorProto.INT8, TensorProto.UINT8), 8),
    **dict.fromkeys((TensorProto.INT16, TensorProto.UINT16, TensorProto.FLOAT16, TensorProto.BFLOAT16), 16),
    **dict.fromkeys((TensorProto.INT32, TensorProto.UINT32, TensorProto.FLOAT), 32),
    **dict.fromkeys((TensorProto.INT64, TensorProto.UINT64, TensorProto.DOUBLE, TensorProto.COMPLEX64), 64),
    TensorProto.COMPLEX128: 128,
}
"""Bits of an element; types that are not listed are packed, some into as few as two."""
_FEWEST_BITS = 2

MOST_NESTING = 30
"""Bodies (of If, Loop, Scan) in bodies: as many as protobuf reads again."""

_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def all_tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Every tensor with a value: initializers and attributes, in subgraphs and functions too."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        yield from _node_tensors(function.node)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            sparse = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
            for value in (*sparse, *attribute.sparse_tensors):
                yield from (value.values, value.indices)
        for body in bodies(node):
            yield from _graph_tensors(body)


def bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The subgraphs of a node."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def tensor_bytes(tensor: TensorProto) -> int:
    """Bytes that the declared shape and type take, at least; exactly for types that are not packed."""
    elements: int = prod(tensor.dims)
    return -(-elements * _BITS.get(tensor.data_type, _FEWEST_BITS) // 8)


def most_bytes(tensor: TensorProto) -> int:
    """Bytes that the declared shape and type take, at most; exactly for types that are not packed."""
    return tensor_bytes(tensor) if tensor.data_type in _BITS else prod(tensor.dims)


def excess_of(path: Path) -> str:
    """Why a file is too large to be read whole; "" if it is not."""
    size, most = path.stat().st_size, machine_memory() // 2
    return f"takes {size:,} bytes, more than half of this machine's memory" if size > most else ""


def check_tensors(model: onnx.ModelProto, where: str) -> None:
    """Refuse tensors that declare more than they hold, which reading would allocate.

    Newer versions of onnx.checker do the same, but not above protobuf's 2 GiB.

    Args:
        model: the model.
        where: what to call it in the message, usually its path.

    Raises:
        ModelError: names the first such tensor; or bodies are nested more deeply than a file could hold them; or a name
            is no text, which onnx.checker does not look at everywhere.
    """
    _check_nesting(model, where)
    if (text := _no_text(model)) is not None:
        raise ModelError(f"{where}: the name or description {text!r} in it is no text; export it again")
    for tensor in all_tensors(model):
        if any(dim < 0 for dim in tensor.dims):
            raise ModelError(f"{where}: tensor {tensor.name!r} has a negative dimension ({list(tensor.dims)})")
        if uses_external_data(tensor):  # its file's size is checked when it is read
            continue
        if tensor.HasField("raw_data"):
            held, needed = len(tensor.raw_data), tensor_bytes(tensor)
        else:  # numbers of variable length: a byte at least for each, up to four packed elements in each
            held, needed = tensor.ByteSize(), prod(tensor.dims) // 4
        if held < needed:
            raise ModelError(
                f"{where}: tensor {tensor.name!r} declares the shape {list(tensor.dims)}, which takes {needed:,} bytes,"
                f" but holds {held:,}; export the model again"
            )


def _no_text(message: Any) -> bytes | None:
    """The first string of a message that is no UTF-8, None if all are; values, which are none, are not looked at."""
    if isinstance(message, TensorProto):
        return _first_bytes((message.name, message.doc_string))
    for field, value in message.ListFields():
        several = [value] if isinstance(value, (str, bytes)) or hasattr(value, "ListFields") else value
        if field.type == field.TYPE_STRING:
            found = _first_bytes(several)
        elif field.message_type is not None:
            found = next((text for inner in several if (text := _no_text(inner)) is not None), None)
        else:
            continue
        if found is not None:
            return found
    return None


def _first_bytes(texts: Iterable[str | bytes]) -> bytes | None:
    """What protobuf gives for a string that is no UTF-8."""
    return next((text for text in texts if isinstance(text, bytes)), None)


def _check_nesting(model: onnx.ModelProto, where: str) -> None:
    """A model that was made in memory may be nested more deeply than any recursion goes."""
    left = [(model.graph.node, 0), *((function.node, 0) for function in model.functions)]
    while left:
        nodes, depth = left.pop()
        if depth > MOST_NESTING:
            raise ModelError(f"{where}: has more than {MOST_NESTING} bodies (of If, Loop, Scan) around one another")
        left += [(body.node, depth + 1) for node in nodes for body in bodies(node)]


def check_memory(model: onnx.ModelProto, where: str) -> None:
    """Refuse a model that no session could run, or no constant folder fold, within the machine's memory.

    Counted are tensors of the main graph whose shapes are known before the model runs: what one node reads and makes,
    and all that is computed from constants alone, which folding keeps at once. Half of the memory is the limit.

    Args:
        model: the model.
        where: what to call it in the message, usually its path.

    Raises:
        ModelError: names the node.
    """
    limit = machine_memory() // 2
    sizes = _static_sizes(model)
    constant = {tensor.name for tensor in model.graph.initializer} - {value.name for value in model.graph.input}
    folded = 0
    for node in model.graph.node:
        made = sum(sizes.get(name, 0) for name in node.output)
        if all(name in constant for name in node.input if name):
            constant.update(node.output)
            folded += made
        needed = max(folded, made + sum(sizes.get(name, 0) for name in node.input))
        if needed > limit:
            raise ModelError(
                f"{where}: {node.op_type} node {node.name!r} with output {node.output[0]!r} takes {_gib(needed)} of"
                f" memory, more than half of what there is ({_gib(2 * limit)}); declare smaller shapes"
            )


def machine_memory() -> int:
    """Bytes of memory that this process may use at most; a large number where the system does not tell."""
    known = [2**50]
    with contextlib.suppress(AttributeError, ValueError, OSError):  # not on Windows
        known.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for path in _CGROUP_LIMITS:  # a container's share
        with contextlib.suppress(ValueError, OSError):
            known.append(int(Path(path).read_text(encoding="ascii")))
    return min(size for size in known if size > 0)


def _static_sizes(model: onnx.ModelProto) -> dict[str, int]:
    """Bytes of each tensor whose shape is known."""
    light = skeleton(model)
    with contextlib.suppress(Exception):  # inference stops at what it does not know; the declared shapes still serve
        light = inferred(light)
    sizes = {}
    for value in (*light.graph.value_info, *light.graph.input, *light.graph.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape") and all(dim.dim_value > 0 for dim in tensor.shape.dim):
            elements = prod(dim.dim_value for dim in tensor.shape.dim)
            sizes[value.name] = elements * _BITS.get(tensor.elem_type, _FEWEST_BITS) // 8
    return sizes


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"
