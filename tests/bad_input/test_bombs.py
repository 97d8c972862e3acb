"""Small files that stand for much: chains that double, archives that inflate, files without an end, deep nesting."""

from __future__ import annotations

import io
import json
import os
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.bad_input.running import refused
from tests.builders import Net
from ucpe_onnx.calibration.cache import CACHE_VARIABLE, cache_directory, load_rates
from ucpe_onnx.cli import main
from ucpe_onnx.commands.shared import printable
from ucpe_onnx.model.files import load_model
from ucpe_onnx.model.skeleton import inferred, skeleton
from ucpe_onnx.samples import reading

SECONDS = 20.0
"""That no refusal takes, on any machine."""


@pytest.fixture(autouse=True)
def at_once() -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < SECONDS


def doubling(start: str, times: int) -> onnx.ModelProto:
    """A good network, and beside it a chain of Concats of which each is twice as long as the one before."""
    net = Net()
    x = net.input(shape=(1, 3, 4, 4))
    net.output(net.conv(net.conv(x, 16), 4))
    chain = net.ints(1, 2, 3, 4) if start == "constant" else net.op("Shape", x)
    nodes, name = [], chain
    for index in range(times):
        nodes.append(helper.make_node("Concat", [name, name], [f"s{index}"], axis=0))
        name = f"s{index}"
    model = net.model()
    model.graph.node.extend(nodes)
    model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.INT64, [None]))
    return model


@pytest.mark.parametrize("start", ["constant", "Shape"])
@pytest.mark.parametrize("times", [26, 38])
def test_concats_that_double(folder, fails, start, times):
    """With 26 the result fits in the memory, at a hundred bytes for each element it would not."""
    onnx.save(doubling(start, times), folder / "bomb.onnx")
    if times == 38:
        assert "Concat" in fails("bomb.onnx", "out.onnx", "--bench-seconds", 0)
    else:
        light = inferred(onnx.load(folder / "bomb.onnx"))
        assert sum(value.ByteSize() for value in light.graph.value_info) < 1e6


@pytest.mark.parametrize("kind", ["Add", "Cast", "If", "Slice", "Tile"])
def test_what_multiplies_doubled_shapes(kind):
    """Hundreds of copies of a long one, chains inside of a body, and lengths that only propagation knows."""
    model = doubling("Shape" if kind == "Slice" else "constant", 14)
    last, nodes = model.graph.output[-1].name, model.graph.node
    if kind in ("Add", "Cast"):
        for index in range(400):
            more = {"to": TensorProto.INT64} if kind == "Cast" else {}
            inputs = [last] if kind == "Cast" else [last, last]
            nodes.append(helper.make_node(kind, inputs, [f"m{index}"], **more))
            last = f"m{index}"
    elif kind == "Tile":
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([100_000]), "times"))
        nodes.append(helper.make_node("Tile", [last, "times"], ["tiled"]))
    elif kind == "If":
        chain = [helper.make_node("Concat", [f"b{i}" if i else last] * 2, [f"b{i + 1}"], axis=0) for i in range(12)]
        out = [helper.make_tensor_value_info("b12", TensorProto.INT64, [None])]
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.bool_(True), "condition"))
        body = helper.make_graph(chain, "body", [], out)
        nodes.append(helper.make_node("If", ["condition"], ["chosen"], then_branch=body, else_branch=body))
    before = resident_mb()
    light = inferred(skeleton(model))
    assert resident_mb() - before < 300
    assert sum(value.ByteSize() for value in light.graph.value_info) < 1e6


def resident_mb() -> float:
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("only Linux tells how much memory the process has taken")
    return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024


def test_shapes_of_ordinary_size_are_still_propagated():
    net = Net()
    x = net.input(shape=(2, 3, 4))
    flat = net.op("Concat", net.op("Slice", net.op("Shape", x), net.ints(0), net.ints(1)), net.ints(-1), axis=0)
    y = net.op("Reshape", x, flat)
    model = net.model()
    del model.graph.value_info[:]
    model.graph.output.append(onnx.ValueInfoProto(name=y))
    (found,) = (v for v in inferred(model).graph.output if v.name == y)
    assert [dim.dim_value for dim in found.type.tensor_type.shape.dim] == [2, 12]


def test_a_file_of_weights_without_an_end(folder):
    """A sparse file of a terabyte, of which a tensor needs a few bytes, with a length or without."""
    model = onnx.load(folder / "in.onnx")
    tensor = next(t for t in model.graph.initializer if len(t.raw_data) > 16)
    value, data = onnx.numpy_helper.to_array(tensor), tensor.raw_data
    (folder / "w.bin").write_bytes(data)
    os.truncate(folder / "w.bin", 1 << 40)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for length in ("", str(1 << 40)):
        del tensor.external_data[:]
        for key, text in (("location", "w.bin"), ("length", length)):
            if text:
                entry = tensor.external_data.add()
                entry.key, entry.value = key, text
        (folder / "big.onnx").write_bytes(model.SerializeToString())
        loaded = next(t for t in load_model(folder / "big.onnx").graph.initializer if t.name == tensor.name)
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(loaded), value)


def header(shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return stream.getvalue()


def test_archives_that_inflate(folder, fails, monkeypatch):
    with zipfile.ZipFile(folder / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", header((1 << 18, 1)) + bytes(1 << 20))
    monkeypatch.setattr(reading, "machine_memory", lambda: 1 << 20)
    assert "more than half of this machine's memory" in refused(fails, "--data", "bomb.npz")


@pytest.mark.parametrize("flag", ["--data", "--masks"])
def test_arrays_that_declare_more_than_they_hold(folder, fails, flag):
    with zipfile.ZipFile(folder / "bomb.npz", "w") as archive:
        archive.writestr("x.npy", header((1 << 40, 3, 8, 8)))
    assert "bomb.npz" in refused(fails, flag, "bomb.npz")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_samples_from_pipes(folder, fails):
    os.mkfifo(folder / "pipe.npz")
    (folder / "set" / "test_data_set_0").mkdir(parents=True)
    os.mkfifo(folder / "set" / "test_data_set_0" / "input_0.pb")
    for data in ("pipe.npz", "set"):
        assert "is no regular file" in refused(fails, "--data", data)


def test_samples_that_lie_elsewhere(folder, fails):
    tensor = TensorProto(name="x", data_type=1, dims=[1, 3, 8, 8], data_location=TensorProto.EXTERNAL)
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"
    (folder / "set" / "test_data_set_0").mkdir(parents=True)
    (folder / "set" / "test_data_set_0" / "input_0.pb").write_bytes(tensor.SerializeToString())
    assert "its values lie in another file" in refused(fails, "--data", "set")


def test_deep_nesting(folder, fails):
    (folder / "deep.json").write_text("[" * 100_000 + "]" * 100_000)
    (folder / "deep.toml").write_text("ratio = " + "[" * 100_000 + "]" * 100_000)
    for flag in ("--masks", "--plan"):
        assert "deep.json" in refused(fails, flag, "deep.json")
    assert "is not TOML" in fails("in.onnx", "out.onnx", "--config", "deep.toml", code=2, usage=True)


# The terminal

ESCAPES = "\x1b[31mred\x07\n\r\u202eback\x9b"


def test_nothing_steers_the_terminal(folder, capsys):
    model = onnx.load(folder / "in.onnx")
    for index, node in enumerate(model.graph.node):
        node.name = f"{index}{ESCAPES}"
    old = model.graph.input[0].name
    model.graph.input[0].name += ESCAPES
    for node in model.graph.node:
        node.input[:] = [name + ESCAPES if name == old else name for name in node.input]
    model.graph.name = model.producer_name = ESCAPES
    onnx.save(model, folder / "steering.onnx")
    assert main(["steering.onnx", "out.onnx", "--bench-seconds", "0", "-v", "--json", "j.json"]) == 0
    assert main(["steering.onnx", "out.onnx", "--ignore", ESCAPES]) == 2
    text = "".join(capsys.readouterr())
    assert not {"\x1b", "\x07", "\u202e", "\x9b", "\r"}.intersection(text) and r"\x1b[31mred\x07" in text
    assert json.loads((folder / "j.json").read_text())["written"]


def test_printable():
    assert printable("Ümläut 漢字 🙂") == "Ümläut 漢字 🙂"
    assert printable("a\x1bb\u202ec\x00\nerror: forged\u2028") == r"a\x1bb\u202ec\x00\nerror: forged\u2028"


def test_arguments_do_not_steer_it_either(folder, capsys):
    for arguments in (["--config", f"{ESCAPES}.toml"], [f"--foo{ESCAPES}"]):
        with pytest.raises(SystemExit):
            main(["in.onnx", "out.onnx", *arguments])
        assert not {"\x1b", "\x07", "\u202e", "\x9b"}.intersection(capsys.readouterr().err)


# Files that are too large to be what they should be


@pytest.mark.parametrize("flag", ["model", "--masks", "--plan", "--config"])
def test_files_without_an_end(folder, capsys, flag):
    name = "huge.toml" if flag == "--config" else "huge.json"
    (folder / name).touch()
    os.truncate(folder / name, 1 << 40)
    arguments = [name, "out.onnx"] if flag == "model" else ["in.onnx", "out.onnx", flag, name]
    if flag == "--config":
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
    else:
        assert main(arguments) == 1
    assert "1,099,511,627,776 bytes, more than half of this machine's memory" in capsys.readouterr().err
    assert not (folder / "out.onnx").exists()


# Nobody's process


def test_no_home_and_no_name(monkeypatch):
    """As in containers that run under a number that has no entry."""

    def nowhere(*_: object, **__: object) -> str:
        raise RuntimeError("could not determine the home directory")

    monkeypatch.delenv(CACHE_VARIABLE)
    monkeypatch.setattr("platformdirs.user_cache_dir", nowhere)
    assert cache_directory().parent == Path(tempfile.gettempdir())
    assert load_rates() is None
