"""What shape inference claims must be what onnxruntime makes, at every size of the dynamic axes."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from tests.analysis.shape_cases import CASES, CONSTANTS, OLD, ONE_HEIGHT, STEPS, exposed, parse
from tests.builders import Array, run
from ucpe_onnx import load_model
from ucpe_onnx.analysis.constants import Constants
from ucpe_onnx.analysis.graph import GraphView, Shape
from ucpe_onnx.analysis.shapes.refine import Refinement
from ucpe_onnx.runtime.random_feeds import random_feeds
from ucpe_onnx.samples.inputs import input_specs

CORPUS = Path(__file__).parents[3] / "shared" / "corpus"
OPEN_FILES = [
    "lite_mono_small_decoder",
    "nanodet_hpc203",
    "pfld_landmark",
    "ppocrv2_cls",
    "ppocrv2_rec_en_number",
    "silero_vad_16k_op15",
    "silero_vad_v5",
    "ultraface_rfb320_nopost",
    "winml_squeezenet_fp16",
    "yolo_fastestv2",
    "yunet_n_dynamic",
]
"""The files of the corpus in which onnx's own inference leaves gaps, and which are quick to run."""


def feeds_of(model: onnx.ModelProto, n: int, h: int) -> dict[str, Array]:
    """A feed with given lengths of the dynamic axes."""
    feeds = {"target": np.array([n, 6, h, 4]), "flag": np.array(n == 2)}
    feeds |= {"x": np.ones((n, 6, h, 4), np.float32), "v": np.ones((n, 7), np.float32)}
    return {value.name: feeds[value.name] for value in model.graph.input}


def assert_claims_hold(
    claims: Mapping[str, Shape | None], model: onnx.ModelProto, feeds: Mapping[str, Array]
) -> dict[str, Array]:
    """Lengths are as claimed and equal symbols equally long; ``model`` gives out every tensor. Returns its outputs."""
    outputs = dict(zip([value.name for value in model.graph.output], run(model, feeds, optimise=False), strict=True))
    lengths: dict[str, int] = {}
    for name, array in [*feeds.items(), *outputs.items()]:
        claim, actual = claims.get(name), np.shape(array)
        if claim is None or isinstance(array, list):
            continue
        assert len(claim) == len(actual), name
        for dim, length in zip(claim, actual, strict=True):
            wanted = lengths.setdefault(dim, length) if isinstance(dim, str) else dim
            assert wanted in (None, length), f"{name}: claimed {claim}, found {actual}"
    return outputs


@pytest.mark.parametrize("case", CASES)
def test_claims_are_what_runs(case: str) -> None:
    body, wanted = CASES[case]
    model = parse(body)
    claims = GraphView(model).shapes
    found = {
        name: tuple(dim if dim in ("n", "h") or isinstance(dim, int) else None for dim in claims[name])
        for name in wanted
    }
    assert found == wanted
    for n, h in ((2, 8), (3, 8 if case in ONE_HEIGHT else 12)):
        assert_claims_hold(claims, model, feeds_of(model, n, h))


def test_operators_that_onnx_gave_up() -> None:
    model = parse(OLD, opset=7)
    claims = GraphView(model).shapes
    assert claims["p"] == ("n", 6, None, 8)
    assert claims["y"] == claims["mask"] == ("n", 6, None, 10)
    assert_claims_hold(claims, model, feeds_of(model, 2, 8))


def test_symbols_of_outputs_are_not_believed() -> None:
    """One name for outputs of several lengths, as detectors with one output per scale have it."""
    model = parse("a = MaxPool <kernel_shape = [1, 1], strides = [2, 1]> (x)  b = Relu (x)  c = Add (a, a)")
    del model.graph.output[:]
    for name in ("c", "b"):
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, 1, ["n", 6, "length", 4]))
    claims = GraphView(model).shapes
    assert claims["c"][2] != claims["b"][2] == "h"


def test_two_symbols_broadcast_to_neither() -> None:
    """Either may be 1."""
    claims = GraphView(parse("y = Add (v, other)", other="float[k, 7] other")).shapes
    assert claims["y"][0] not in ("n", "k") and claims["y"][1] == 7


def test_a_length_from_elsewhere_does_not_cancel() -> None:
    """12 elements in k rows are 12 / k in each."""
    body = """i = Constant <value = int64[1] {0}> ()  rest = Constant <value = int64[1] {-1}> ()  s = Shape (other)
        k = Gather (s, i)  t = Concat <axis = 0> (k, rest)  y = Reshape (twelve, t)"""
    claims = GraphView(parse(body, other="float[k, 7] other", twelve="float[2, 6] twelve")).shapes
    assert claims["y"][0] == "k" and not isinstance(claims["y"][1], int)


@pytest.mark.parametrize("name", ["None", "?", ""])
def test_axes_without_a_name_of_their_own_differ(name: str) -> None:
    model = parse("s = Shape (v)  r = Relu (v)  y = Reshape (r, s)")
    for dim in model.graph.input[0].type.tensor_type.shape.dim:
        dim.Clear()
        dim.dim_param = name
    claims = GraphView(model).shapes
    assert claims["y"] == claims["v"]
    assert len({*claims["v"], None}) == 3


def test_what_was_known_stays() -> None:
    model = parse("s = Shape (x)  y = Reshape (x, s)  z = Relu (y)")
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("y", 1, ["n", 5, "h", 4]))  # the file is wrong
    assert GraphView(model).shapes["y"] == (None, 5, None, 4)


def test_a_node_that_fails_leaves_those_behind_it_alone() -> None:
    model = parse(
        """far = Constant <value = int64[1] {9}> ()  bad = Squeeze (x, far)  g = nobody.Gadget (bad)
        s = Shape (x)  r = Reshape (x, s)  c = Conv (g, filters)  y = Reshape (r, s)"""
    )
    claims = GraphView(model).shapes
    assert claims["c"] == (None, 8, None, None)
    assert claims["y"] == ("n", 6, "h", 4)


def test_given_input_shapes_reach_everything() -> None:
    body, _ = CASES["size computed in floating point"]
    view = GraphView(parse(body), {"x": (2, 6, 10, 4)})
    assert view.shapes["y"] == (2, 6, 10, 6)


def test_a_graph_without_gaps_is_not_visited_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Refinement, "run", lambda *_: pytest.fail("visited"))
    assert GraphView(parse("c = Conv <pads = [1, 1, 0, 0]> (w, filters)", w="float[n, 6, 9, 9] w")).shapes["c"][2] == 8


def follow(body: str, shape: Shape) -> tuple[onnx.ModelProto, Refinement, dict[str, Shape]]:
    """A model with the constants of the steps, and what is found out from its input's shape alone."""
    model = parse(body)
    for name, items in CONSTANTS.items():
        array = np.array(items, np.float32 if name == "factor" else np.int64)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    shapes = {"x": shape}
    refinement = Refinement(model, Constants(model), shapes, {"x": onnx.TensorProto.FLOAT}, {"n", "h"})
    refinement.run(model.graph.node)
    return model, refinement, shapes


def assert_values_hold(
    refinement: Refinement, shapes: dict[str, Shape], model: onnx.ModelProto, n: int, h: int
) -> None:
    outputs = assert_claims_hold(shapes, model, feeds_of(model, n, h))
    for name, value in refinement.values.items():
        if value is not None and name in outputs:
            known = [{"n": n, "h": h}.get(item, item) for item in value.flat]
            assert (outputs[name].dtype, outputs[name].size) == (value.dtype, len(known))
            wrong = [(a, b) for a, b in zip(known, outputs[name].flat, strict=True) if a is not None and a != b]
            assert not wrong, name


def test_each_step_on_a_shape() -> None:
    body = ["s = Shape (x)", "t = Neg (s)"]
    for i, (step, k, (a, b)) in enumerate(product(STEPS, ("k0", "k1", "k2"), ("st", "ts", "ss"))):
        body.append(step.format(a=a, b=b, k=k, o=f"o{i}_"))
    model, refinement, shapes = follow("  ".join(body), ("n", 6, "h", 4))
    for n, h in ((2, 5), (7, 2)):
        assert_values_hold(refinement, shapes, model, n, h)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(STEPS), st.integers(0, 99), st.integers(0, 99), st.integers(0, 2)),
        min_size=10,
        max_size=30,
    )
)
def test_followed_values_are_what_runs(steps: list[tuple[str, int, int, int]]) -> None:
    body, vectors = ["s = Shape (x)", "e = Expand (first, four)"], ["s", "e"]
    for i, (step, a, b, k) in enumerate(steps):
        names = {"a": vectors[a % len(vectors)], "b": vectors[b % len(vectors)], "k": f"k{k}", "o": f"o{i}_"}
        body.append(step.format(**names))
        vectors.append(f"o{i}_l" if "{o}l" in step else f"o{i}_")
    model, refinement, shapes = follow("  ".join(body), ("n", 6, "h", 4))
    for n, h in ((2, 5), (7, 2)):
        assert_values_hold(refinement, shapes, model, n, h)


@pytest.mark.parametrize("step", STEPS)
def test_values_of_known_shapes_are_followed_whole(step: str) -> None:
    body = "s = Shape (x)  t = Neg (s)  " + step.format(a="s", b="t", k="k2", o="o")
    model, refinement, shapes = follow(body, (2, 6, 5, 4))
    assert (value := refinement.values.get("o")) is not None and value.known() is not None
    assert_values_hold(refinement, shapes, model, 2, 5)


@pytest.mark.skipif(not CORPUS.is_dir(), reason="no files beside the checkout")
@pytest.mark.parametrize("name", OPEN_FILES)
def test_real_files(name: str) -> None:
    model = load_model(CORPUS / f"{name}.onnx")
    view = GraphView(model)
    claims = {tensor: view.shape(tensor) for node in view.nodes for tensor in node.outputs if tensor}
    claims = {tensor: shape for tensor, shape in claims.items() if tensor not in view.unfolding.inside}
    unranked = {tensor for tensor, shape in claims.items() if shape is None}
    assert len(unranked) <= (9 if name == "silero_vad_16k_op15" else 0), "behind an If whose branches differ in rank"
    specs = input_specs(model)
    for batch, size in ((1, 64), (2, 96)):
        overrides = {"input": (batch, 512), "state": (2, batch, 128)} if "silero" in name else {}
        feeds = random_feeds(specs, overrides=overrides, batch=batch, size=size)
        feeds |= {"sr": np.array(16000)} if "silero" in name else {}
        assert_claims_hold(claims, exposed(model), feeds)


def test_no_length_is_known_of_what_has_no_known_rank() -> None:
    """Not even that there is none: `Shape` of axis 1 alone was taken for empty."""
    make = onnx.helper.make_node
    nodes = [make("Odd", ["x"], ["odd"], domain="elsewhere"), make("Shape", ["odd"], ["length"], start=1, end=2)]
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 8])
    length = onnx.helper.make_tensor_value_info("length", onnx.TensorProto.INT64, [1])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    nodes.append(make("Reshape", ["x", "length"], ["y"]))
    graph = onnx.helper.make_graph(nodes, "net", [x], [y], value_info=[length])
    opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in (("", 17), ("elsewhere", 1))]
    assert "length" not in GraphView(onnx.helper.make_model(graph, opset_imports=opsets)).constants
