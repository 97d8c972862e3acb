"""Models made to hang, to exhaust the memory or to read what they should not are refused in one line, and at once."""

from __future__ import annotations

import os
import shutil
from itertools import pairwise

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.models_small import branches, write
from ucpe_onnx import ModelError, inspect, prune
from ucpe_onnx.cli import main
from ucpe_onnx.model import limits

CONV = helper.make_node("Conv", ["x", "w"], ["y"], name="c")


def graph(nodes: list[onnx.NodeProto], *stored: TensorProto) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, "c", "h", "w"]) for n in ("x", "y")]
    made = helper.make_graph(nodes, "hostile", values[:1], values[1:], stored)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def declared(*dims: int, raw: bytes = b"\0" * 16, name: str = "w") -> TensorProto:
    return TensorProto(dims=dims, data_type=TensorProto.FLOAT, raw_data=raw, name=name)


def ints(name: str, *values: int) -> TensorProto:
    return numpy_helper.from_array(np.array(values, dtype=np.int64), name)


def scalar(name: str, value: int) -> TensorProto:
    return numpy_helper.from_array(np.array(value, dtype=np.int64), name)


ONES = numpy_helper.from_array(np.ones((4, 3, 1, 1), dtype=np.float32), "ones")
SMALL = numpy_helper.from_array(np.ones((4, 3, 1, 1), dtype=np.float32), "w")


def doubled(times: int) -> list[onnx.NodeProto]:
    names = ["ones", *(f"t{k}" for k in range(times - 1)), "w"]
    return [helper.make_node("Concat", [a, a], [b], axis=0) for a, b in pairwise(names)]


def node(op_type: str, *inputs: str) -> list[onnx.NodeProto]:
    return [helper.make_node(op_type, inputs, ["w"], name="n"), CONV]


SUMMED = [
    helper.make_node("ReduceSum", ["w"], ["sum"], keepdims=0),
    helper.make_node("Cast", ["sum"], ["float"], to=TensorProto.FLOAT),
    helper.make_node("Add", ["x", "float"], ["y"]),
]
HUGE = ints("s", 2**16, 3, 2**10, 2**10)
MODELS = {
    "petabytes": (graph([CONV], declared(2**20, 2**20, 2**12, 1)), "takes 18,014,398,509,481,984 bytes, but holds 16"),
    "petabytes without any": (graph([CONV], declared(2**50, 1, 1, 1, raw=b"")), "but holds 0"),
    "petabytes that nothing reads": (graph([CONV], SMALL, declared(2**50, name="u")), "'u' declares the shape"),
    "petabytes in an attribute": (
        graph([helper.make_node("Constant", [], ["w"], value=declared(2**50)), CONV]),
        "declares the shape [1125899906842624]",
    ),
    "product beyond 64 bits": (graph([CONV], declared(2**62, 2**62, 2, 1)), "declares the shape"),
    "product that is 0 in 64 bits": (graph([CONV], declared(2**32, 2**32, 1, 1, raw=b"")), "declares the shape"),
    "negative dimension": (graph([CONV], declared(-8, 3, 1, 1)), "negative dimension"),
    "two negative dimensions": (graph([CONV], declared(-2, -3, 1, 1, raw=b"\0" * 24)), "negative dimension"),
    "ConstantOfShape": (
        graph(node("ConstantOfShape", "s"), HUGE),
        "ConstantOfShape node 'n' with output 'w' takes 768",
    ),
    "Expand": (graph(node("Expand", "ones", "s"), ONES, ints("s", 4, 3, 2**17, 2**17)), "takes 768.0 GiB"),
    "Tile": (graph(node("Tile", "ones", "s"), ONES, ints("s", 2**14, 1, 2**10, 2**10)), "takes 768.0 GiB"),
    "Range": (
        graph([*node("Range", "a", "b", "d")[:1], *SUMMED], scalar("a", 0), scalar("b", 2**36), scalar("d", 1)),
        "takes 512.0 GiB",
    ),
    "doubled 40 times": (graph([*doubled(40), CONV], ONES), "Concat node"),
    "cycle": (
        graph([helper.make_node("Add", ["x", "b"], ["y"]), helper.make_node("Relu", ["y"], ["b"])]),
        "topologically sorted",
    ),
    "two tensors of one name": (graph([helper.make_node("Relu", ["x"], ["y"])] * 2), "single static assignment"),
    "two initializers of one name": (graph([CONV], SMALL, SMALL), "not unique"),
}


@pytest.mark.parametrize("command", [main, inspect.main])
@pytest.mark.parametrize("kind", MODELS)
def test_hostile_models(fails, folder, kind, command) -> None:
    model, words = MODELS[kind]
    write(model, folder / "bad.onnx")
    error = fails("bad.onnx", *(["out.onnx"] if command is main else []), command=command)
    assert "bad.onnx: " in error and words in error


@pytest.mark.parametrize("kind", ["ConstantOfShape", "petabytes"])
def test_hostile_models_in_memory(kind) -> None:
    model, words = MODELS[kind]
    with pytest.raises(ModelError, match=words.replace("(", r"\(")):
        prune(model, bench_seconds=0)


def test_what_constants_fold_to_counts_as_a_whole(folder, fails, monkeypatch) -> None:
    """Each of them may be small: they are in the memory at once."""
    monkeypatch.setattr(limits, "machine_memory", lambda: 2**20)
    shapes = [helper.make_node("ConstantOfShape", ["s"], [f"k{i}"]) for i in range(9)]
    sums = [helper.make_node("Sum", [*(f"k{i}" for i in range(9)), "x"], ["y"])]
    write(graph([*shapes, *sums], ints("s", 1, 1, 128, 128)), folder / "bad.onnx")
    assert "'k8' takes" in fails("bad.onnx", "out.onnx")


def nested(depth: int) -> onnx.ModelProto:
    model = graph([])
    inner = model.graph
    for _ in range(depth):
        attribute = inner.node.add(op_type="If", input=["x"], output=["y"]).attribute.add(
            name="then_branch", type="GRAPH"
        )
        inner = attribute.g
    return model


def nested_file(depth: int) -> bytes:
    """The same as bytes; protobuf does not write what it would not read."""

    def field(number: int, content: bytes) -> bytes:
        size, head = len(content), b""
        while size > 127:
            head, size = head + bytes([size & 127 | 128]), size >> 7
        return bytes([number << 3 | 2]) + head + bytes([size]) + content

    body = b""
    for _ in range(depth):
        body = field(1, field(4, b"If") + field(2, b"y") + field(5, field(1, b"then_branch") + field(6, body)))
    return bytes([8, 8]) + field(7, body)


def test_ten_thousand_bodies_in_one_another(fails, folder) -> None:
    (folder / "deep.onnx").write_bytes(nested_file(10_000))
    assert "deep.onnx: not an ONNX model, truncated, or nested too deeply" in fails("deep.onnx", "out.onnx")
    with pytest.raises(ModelError, match="more than 30 bodies"):
        prune(nested(10_000), bench_seconds=0)


@pytest.mark.skipif(os.name == "nt", reason="no such files")
@pytest.mark.parametrize("command", [main, inspect.main])
def test_what_never_ends_or_never_begins_is_not_read(fails, folder, command) -> None:
    os.mkfifo(folder / "pipe.onnx")
    (folder / "zero.onnx").symlink_to("/dev/zero")
    for name in ("/dev/zero", "zero.onnx", "pipe.onnx"):
        error = fails(name, *(["out.onnx"] if command is main else []), command=command)
        assert f"{name}: is no regular file" in error


# External data


def external(folder, **entries: str) -> None:
    """The good model with its first weight in ``w.bin``, but for the entries given."""
    model = branches()
    tensor = model.graph.initializer[0]
    (folder / "w.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "w.bin", **entries}.items():
        tensor.external_data.add(key=key, value=value)
    write(model, folder / "bad.onnx")


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"location": "../secret"}, "'../secret', outside of the model's folder"),
        ({"location": "sub/../../secret"}, "outside of the model's folder"),
        ({"location": "..\\secret"}, "outside of the model's folder"),
        ({"location": "/etc/passwd"}, "outside of the model's folder"),
        ({"location": "C:\\secret"}, "outside of the model's folder"),
        ({"location": "link.bin"}, "'link.bin', a link out of the model's folder"),
        ({"location": "linked/secret"}, "a link out of the model's folder"),
        ({"location": "sub"}, "'sub', which is no regular file"),
        ({"location": "pipe"}, "'pipe', which is no regular file"),
        ({"location": "none.bin"}, "'none.bin', but there is no such file"),
        ({"location": "w\0.bin"}, "names no file"),
        ({"location": ""}, "names no file"),
        ({"offset": "1000000"}, "is at 1,000,000 to 1,000,000 of w.bin, which has 1,728 bytes"),
        ({"offset": "-1"}, "'-1', which is no size"),
        ({"offset": "1"}, "takes 1,728 bytes, but has 1,727 in w.bin"),
        ({"length": "1000000000000"}, "to 1,000,000,000,000 of w.bin"),
        ({"length": "9" * 5000}, "no size of a file"),
        ({"length": "4"}, "takes 1,728 bytes, but has 4"),
    ],
)
def test_external_data_where_it_should_not_be(fails, folder, entries, words) -> None:
    outside = folder.parent / f"{folder.name}_outside"
    outside.mkdir()
    (outside / "secret").write_bytes(bytes(1728))
    (folder.parent / "secret").write_bytes(bytes(1728))
    (folder / "sub").mkdir()
    (folder / "link.bin").symlink_to(outside / "secret")
    (folder / "linked").symlink_to(outside)
    os.mkfifo(folder / "pipe")
    external(folder, **entries)
    error = fails("bad.onnx", "out.onnx")
    assert "bad.onnx: external data can't be read: tensor " in error and words in error
    shutil.rmtree(outside)


def test_external_data_of_more_than_the_memory(fails, folder, monkeypatch) -> None:
    """However small the file: any number of tensors may lie at the same place of it."""
    external(folder)
    monkeypatch.setattr("ucpe_onnx.model.external_data.machine_memory", lambda: 1000)
    assert "its tensors take 1,728 bytes, and this machine has 1,000" in fails("bad.onnx", "out.onnx")


def test_external_data_where_it_should_be(folder) -> None:
    (folder / "sub").mkdir()
    external(folder, location="sub/inner.bin", offset="4096", length="1728")
    (folder / "sub" / "real.bin").write_bytes(bytes(4096) + (folder / "w.bin").read_bytes() + bytes(9))
    (folder / "sub" / "inner.bin").symlink_to("real.bin")
    assert main(["bad.onnx", "out.onnx", "--bench-seconds", "0", "-q"]) == 0
    assert main(["in.onnx", "other.onnx", "--bench-seconds", "0", "-q"]) == 0
    assert (folder / "out.onnx").read_bytes() == (folder / "other.onnx").read_bytes()
