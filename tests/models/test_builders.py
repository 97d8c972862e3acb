"""The builders write the published architectures, at every opset, as graphs that run."""

import functools
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest

from models import ARCHITECTURES, build, count_parameters

IMAGE = 64
LARGE = {"vgg16_bn", "vit_b_16"}  # half a gigabyte of weights each: fewer variants
MODERATE = sorted(set(ARCHITECTURES) - LARGE)
VARIANTS = [
    (name, opset)
    for name in MODERATE
    for opset in ((13, 17, 18, 22) if ARCHITECTURES[name].parameters < 20_000_000 else (13, 22))
]
FOLDABLE = sorted(set(MODERATE) - {"squeezenet1_0", "convnext_tiny"})


def run_all(model, batch=1, image=IMAGE):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    data = np.random.default_rng(7).standard_normal((batch, 3, image, image), dtype=np.float32)
    return session.run(None, {"input": data})


def run(model, batch=1, image=IMAGE):
    (output,) = run_all(model, batch, image)
    return output


@functools.cache
def reference(name):
    return run(build(name, image=IMAGE))


def operators(model):
    return Counter(node.op_type for node in model.graph.node)


def close(actual, expected, tolerance=1e-3):
    return np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_has_the_published_number_of_parameters(name):
    assert count_parameters(build(name)) == ARCHITECTURES[name].parameters


@pytest.mark.parametrize(("name", "opset"), VARIANTS)
def test_is_valid_and_computes_the_same_at_every_opset(name, opset):
    model = build(name, opset=opset, image=IMAGE)
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
    assert [value.name for value in model.graph.input] == ["input"]
    assert [value.name for value in model.graph.output] == ["output"]
    output = run(model)
    assert list(output.shape) == [size.dim_value for size in model.graph.output[0].type.tensor_type.shape.dim]
    assert close(output, reference(name))


@pytest.mark.parametrize(("name", "opset"), [("vgg16_bn", 18), ("vit_b_16", 13)])
def test_large_ones_are_valid_and_run(name, opset):
    model = build(name, opset=opset, image=32)
    onnx.checker.check_model(model, full_check=True)
    output = run(model, image=32)
    assert output.shape == (1, 1000)
    assert 0.01 < np.sqrt(np.mean(output**2)) < 100


@pytest.mark.parametrize("opset", range(13, 23))
def test_every_opset(opset):
    for name in ("mobilenet_v2", "shufflenet_v2_x1_0"):
        onnx.checker.check_model(build(name, opset=opset, image=IMAGE), full_check=True)


@pytest.mark.parametrize("name", MODERATE)
def test_activations_stay_in_range_and_depend_on_the_image(name):
    model = build(name, image=IMAGE, batch=2)
    watched = [
        node.output[0]
        for node in model.graph.node
        if node.op_type in {"Conv", "Add", "MatMul"} and node.output[0] != "output"
    ]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(tensor) for tensor in watched)
    tensors = run_all(model, batch=2)
    for tensor in tensors:
        assert np.isfinite(tensor).all()
        assert np.abs(tensor).max() < 200
        assert tensor.size < 100 or np.sqrt(np.mean(tensor**2)) > 0.01
    # Comparing a pruned model with its reference would show nothing if every image gave about the same output.
    first, second = tensors[0]
    assert np.abs(first - second).max() > 0.05 * np.abs(first).max()


@pytest.mark.parametrize("name", FOLDABLE)
def test_folding_the_batch_norms_keeps_the_function(name):
    folded = build(name, image=IMAGE, fold_bn=True)
    onnx.checker.check_model(folded)
    left = operators(folded)["BatchNormalization"]
    assert left == (62 if name == "densenet121" else 0)  # norm1 of 58 layers, 3 transitions, norm5
    assert close(run(folded), reference(name))


def test_folding_includes_the_bias_of_the_convolution():
    plain, folded = (build("vgg16_bn", image=32, fold_bn=fold_bn) for fold_bn in (False, True))
    assert operators(plain)["BatchNormalization"] == 13
    assert operators(folded)["BatchNormalization"] == 0
    assert close(run(folded, image=32), run(plain, image=32))


@pytest.mark.parametrize("name", ["shufflenet_v2_x1_0", "efficientnet_b0", "convnext_tiny", "unet", "vit_b_16"])
def test_dynamic_batch(name):
    model = build(name, image=32, batch="batch", opset=22)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert model.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    onnx.checker.check_model(model, full_check=True)
    three = run(model, batch=3, image=32)
    assert three.shape[0] == 3
    # The first image is the same in both batches.
    assert close(three[:1], run(model, batch=1, image=32))


@pytest.mark.parametrize("name", ["shufflenet_v2_x1_0", "mobilenet_v2"])
def test_fixed_batch_above_one(name):
    assert run(build(name, image=IMAGE, batch=2), batch=2).shape == (2, 1000)


def test_same_seed_same_bytes():
    first, second, other = (build("mobilenet_v2", image=IMAGE, seed=seed).SerializeToString() for seed in (3, 3, 4))
    assert first == second
    assert first != other


def test_the_opset_does_not_change_the_weights():
    def weights(opset):
        initializers = build("convnext_tiny", image=IMAGE, opset=opset).graph.initializer
        return {tensor.name: tensor.raw_data for tensor in initializers}

    assert weights(13) == weights(22)


def test_operators_take_the_form_of_the_opset():
    old, new = (operators(build("convnext_tiny", image=IMAGE, opset=opset)) for opset in (16, 20))
    assert old["LayerNormalization"] == old["Gelu"] == 0
    assert old["Erf"] == new["Gelu"] == 18
    assert new["LayerNormalization"] == 23
    for opset, inputs in ((17, 1), (18, 2)):
        (mean,) = (
            node
            for node in build("shufflenet_v2_x1_0", image=IMAGE, opset=opset).graph.node
            if node.op_type == "ReduceMean"
        )
        assert len(mean.input) == inputs


def test_names_are_those_of_an_export():
    graph = build("resnet18", image=IMAGE).graph
    nodes = {node.name: node for node in graph.node}
    assert len(nodes) == len(graph.node)
    conv = nodes["/layer1/layer1.0/conv1/Conv"]
    assert list(conv.input[1:]) == ["layer1.0.conv1.weight"]
    assert list(conv.output) == ["/layer1/layer1.0/conv1/Conv_output_0"]
    assert "/layer2/layer2.0/downsample/downsample.0/Conv" in nodes
    assert {"/layer1/layer1.0/Add", "/Flatten", "/fc/Gemm"} <= set(nodes)


def test_classes():
    assert run(build("resnet18", image=IMAGE, classes=10)).shape == (1, 10)
    assert run(build("unet", image=32, classes=3), image=32).shape == (1, 3, 32, 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet19"}, "choose one of resnet18, "),
        ({"name": "resnet18", "opset": 12}, "opsets 13 to 22"),
        ({"name": "unet", "image": 40}, "multiple of 16"),
        ({"name": "vit_b_16", "image": 40}, "multiple of 16"),
        ({"name": "squeezenet1_0", "image": 8}, "too small"),
    ],
)
def test_says_what_it_can_not_build(arguments, message):
    with pytest.raises(ValueError, match=message):
        build(**arguments)
