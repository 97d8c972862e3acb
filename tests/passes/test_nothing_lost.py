"""Whatever a model carries besides nodes and weights is in the emitted one, field by field."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from tests.builders import Masked, feeds_for, masks_for
from tests.models_small import branches, wide
from tests.passes.everything import described, everything, flat, known_fields, plain, used_fields
from ucpe_onnx import load_model, prune, save_model
from ucpe_onnx.analysis.trace import trace
from ucpe_onnx.passes import emit
from ucpe_onnx.planning import make_plan
from ucpe_onnx.planning.make import Settings
from ucpe_onnx.runtime.target import Target

KEPT = {"b": [0, 2, 5], "c": [1, 2]}


def emitted(model: onnx.ModelProto) -> onnx.ModelProto:
    traced = trace(model)
    plan = make_plan(traced, masks_for(traced, KEPT), Settings(lowering="gather", target=Target(blocked=False)))
    return emit(model, traced, plan)


def differences(before: onnx.ModelProto, after: onnx.ModelProto) -> tuple[set[str], set[str], set[str]]:
    """Paths to what is lost, new and changed."""
    old, new = dict(flat(before)), dict(flat(after))
    assert len(old) == len(list(flat(before))) and len(new) == len(list(flat(after)))
    return set(old) - set(new), set(new) - set(old), {path for path in set(old) & set(new) if old[path] != new[path]}


def test_the_model_uses_every_field_that_onnx_has() -> None:
    """So that the next test compares them all; fields that a new onnx adds are filled without being named here."""
    assert known_fields() - used_fields(everything()) == set()


def test_what_differs_is_what_was_pruned() -> None:
    model = everything()
    before = model.SerializeToString()
    after = emitted(model)
    assert model.SerializeToString() == before
    lost, new, changed = differences(model, after)
    assert lost == set()
    graph = model.graph
    (a, a_bias), (b, _), (c, _) = (list(node.input)[1:] for node in graph.node if node.op_type == "Conv")
    edited = {(a, 0), (a_bias, 0), (b, 1), (c, 1)}
    shapes = [(0, 1), (1, 0)]  # value infos: the output of a by its channels, the weight of a by its rows
    assert changed == {
        "/graph/node/order",
        "/graph/initializer/order",
        *(f"/graph/node[{name}]/input[0]" for name in KEPT),
        *(f"/graph/initializer[{name}]/{field}" for name, axis in edited for field in (f"dims[{axis}]", "raw_data[]")),
        *(
            f"/graph/value_info[{graph.value_info[i].name}]/type/tensor_type/shape/dim[{axis}]/dim_value[]"
            for i, axis in shapes
        ),
    }
    selections = ("/graph/node[b_select]", "/graph/node[c_select]")
    assert {p.split("]")[0] + "]" for p in new} - set(selections) == {
        f"/graph/initializer[{name}]"
        for node in after.graph.node
        if node.name.endswith("_select")
        for name in node.input[1:]
    }
    old_names, new_names = ([node.name for node in m.graph.node] for m in (model, after))
    assert [name for name in new_names if name in old_names] == old_names
    assert set(new_names) - set(old_names) == {"b_select", "c_select"}
    stored = {t.name: numpy_helper.to_array(t) for m in (model,) for t in m.graph.initializer if t.name in (a, b, c)}
    for tensor in after.graph.initializer:
        if tensor.name in stored:
            assert np.isin(numpy_helper.to_array(tensor), stored[tensor.name]).all()


@pytest.mark.parametrize("make", [everything, described, branches, wide])
def test_masks_that_keep_everything_change_nothing(make) -> None:
    model = make()
    traced = trace(model)
    kept = {name: np.ones(consumer.channels, dtype=bool) for name, consumer in traced.consumers.items()}
    assert kept
    after = emit(model, traced, make_plan(traced, kept, Settings(target=Target(blocked=False))))
    names = [node.name for node in after.graph.node]
    assert all(node.name in ("", name) for node, name in zip(model.graph.node, names, strict=True))
    for node, name in zip(model.graph.node, names, strict=True):
        node.name = name
    assert differences(model, after) == (set(), set(), set())
    assert after == model


def test_unknown_fields_stay() -> None:
    """What a newer onnx has written into the file, and the installed one does not know, is carried along."""
    extra = bytes([0xC2, 0xBB, 0x01, 3]) + b"new"  # field 3000, three bytes
    model = plain()
    wire = model.SerializeToString() + extra
    newer = onnx.ModelProto.FromString(wire)
    newer.graph.node[1].MergeFromString(extra)
    after = emitted(newer).SerializeToString()
    assert newer.SerializeToString().count(extra) == 2 and after.count(extra) == 2


def test_a_file_through_the_whole_line(tmp_path) -> None:
    """What was read is what is written, but for the pruned weights, the names of nodes and expanded functions."""
    model = described()
    onnx.save_model(model, str(tmp_path / "m.onnx"))
    result = prune(tmp_path / "m.onnx", masks={"b": [0, 2, 5]}, lowering="gather", bench_seconds=0)
    save_model(result.model, tmp_path / "out.onnx")
    after = load_model(tmp_path / "out.onnx")
    assert after == result.model
    for message, other in ((after, model), (after.graph, model.graph)):
        for field, value in other.ListFields():
            if field.name not in ("graph", "functions", "node", "initializer", "value_info"):
                assert getattr(message, field.name) == value, field.name
    lost = {p for p in differences(model, after)[0] if not p.startswith(("/functions", "/graph/node[call]"))}
    assert lost == set()


def test_the_emitted_model_runs() -> None:
    model = described()
    after = emitted(model)
    Masked(model, masks_for(trace(model), KEPT), feeds_for(model, dynamic=3)).check(after)


def test_inputs_and_outputs_keep_symbolic_dimensions() -> None:
    model = plain()
    after = emitted(model)
    assert after.graph.input == model.graph.input
    assert after.graph.output == model.graph.output
    assert after.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_external_data_locations_are_resolved_before(tmp_path) -> None:
    """A model loaded with its external data has it inside; the emitted one does too."""
    path = tmp_path / "m.onnx"
    onnx.save_model(plain(), str(path), save_as_external_data=True, size_threshold=0, location="m.data")
    after = emitted(load_model(path))
    assert all(t.data_location == TensorProto.DEFAULT and not t.external_data for t in after.graph.initializer)
    wanted = emitted(plain()).graph.initializer
    assert [numpy_helper.to_array(t).tolist() for t in after.graph.initializer] == [
        numpy_helper.to_array(t).tolist() for t in wanted
    ]
