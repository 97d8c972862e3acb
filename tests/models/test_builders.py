"""The builders write the published architectures, at every opset, as graphs that run."""

import functools
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest

from models import ARCHITECTURES, DEEP, build, count_parameters
from models.emitter import Emitter

IMAGE = 64
LENGTH = 48
# What masks add to the scores of pairs that may not see each other is far below.
HIDDEN = -1000
# A quarter of a gigabyte of weights or more each: fewer variants.
LARGE = {"vgg16_bn", "vit_b_16", "wide_resnet50_2"}
MODERATE = sorted(set(ARCHITECTURES) - LARGE)
# Every operator has its oldest form at 13 and its newest at 22; the rest is compared with 17.
VARIANTS = [
    (name, opset)
    for name in MODERATE
    for opset in ((13, 18, 22) if ARCHITECTURES[name].parameters < 7_000_000 else (13, 22))
]
# Batch normalisations that follow no convolution, and so stay.
STAY = {
    "densenet121": 62,  # norm1 of 58 layers, 3 transitions, norm5
    "dpn68b": 71,  # all but the first
}


def small(name):
    return ARCHITECTURES[name].small


def feeds(model, batch=1):
    """Normal images, random tokens that all count; sizes that are dynamic get what is given."""
    random = np.random.default_rng(7)
    made = {}
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        shape = [dim.dim_value or length(dim.dim_param, batch) for dim in dims]
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            made[value.name] = random.standard_normal(shape, dtype=np.float32)
        else:
            limits = {"attention_mask": (1, 2), "token_type_ids": (0, 2), "sr": (16000, 16001), "position_ids": (0, 99)}
            made[value.name] = np.asarray(random.integers(*limits.get(value.name, (0, 1000)), shape))
    return made


def length(name, batch):
    """Of a dynamic axis, whose name may be a sum."""
    return sum(batch if part == "batch" else LENGTH for part in name.split(" + "))


def load(content):
    """A session on one thread."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def run_all(model, batch=1, content=None):
    """All outputs; ``content`` is the serialised model where that is at hand."""
    return load(content or model.SerializeToString()).run(None, feeds(model, batch))


def run(model, batch=1, content=None):
    """The last output."""
    return run_all(model, batch, content)[-1]


def checked(model):
    """The serialised model, which onnx.checker accepts."""
    content = model.SerializeToString()
    onnx.checker.check_model(content, full_check=True)
    return content


@functools.cache
def reference(name):
    """The numbers of operators, and the last output."""
    model = build(name, image=small(name))
    return operators(model), run(model)


@pytest.fixture
def undrawn(monkeypatch):
    """For tests of what is written around the weights: these are all the same, which takes no time to draw."""
    monkeypatch.setattr(Emitter, "normal", lambda _, shape, std: np.zeros(shape, np.float32))


def operators(model):
    return Counter(node.op_type for node in model.graph.node)


def close(actual, expected, tolerance=1e-3):
    return np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_has_the_published_number_of_parameters(name):
    assert count_parameters(build(name)) == ARCHITECTURES[name].parameters


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("name", DEEP)
def test_the_deep_ones_have_it_too(name):
    assert count_parameters(build(name)) == DEEP[name].parameters


@pytest.mark.parametrize(("name", "opset"), VARIANTS)
def test_is_valid_and_computes_the_same_at_every_opset(name, opset):
    model = build(name, opset=opset, image=small(name))
    content = checked(model)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
    inputs = list(ARCHITECTURES[name].inputs or ["input"])
    assert [value.name for value in model.graph.input][: len(inputs)] == inputs
    outputs = run_all(model, content=content)
    names = [f"output{index}" for index in range(len(outputs))] if len(outputs) > 1 else ["output"]
    assert [value.name for value in model.graph.output] == names
    for output, value in zip(outputs, model.graph.output, strict=True):
        declared = value.type.tensor_type.shape.dim
        assert list(output.shape) == [size.dim_value or length(size.dim_param, 1) for size in declared]
    assert close(outputs[-1], reference(name)[1])


@pytest.mark.parametrize(("name", "opset"), [("vgg16_bn", 18), ("vit_b_16", 13), ("wide_resnet50_2", 22)])
def test_large_ones_are_valid_and_run(name, opset):
    model = build(name, opset=opset, image=32)
    output = run(model, content=checked(model))
    assert output.shape == (1, 1000)
    assert 0.01 < np.sqrt(np.mean(output**2)) < 100


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("opset", range(13, 23))
def test_every_opset(opset):
    for name in ("mobilenet_v2", "shufflenet_v2_x1_0"):
        onnx.checker.check_model(build(name, opset=opset, image=IMAGE), full_check=True)


@pytest.mark.parametrize("name", MODERATE)
def test_activations_stay_in_range_and_depend_on_the_image(name):
    model = build(name, image=small(name), batch=2)
    outputs = len(model.graph.output)
    watched = [
        node.output[0]
        for node in model.graph.node
        if node.op_type in {"Conv", "Add", "MatMul"} and not node.output[0].startswith("output")
    ]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(tensor) for tensor in watched)
    tensors = run_all(model, batch=2)
    for values in tensors[outputs:]:
        tensor = values[values > HIDDEN]
        assert np.isfinite(tensor).all()
        assert np.abs(tensor).max() < 200
        assert tensor.size < 100 or np.sqrt(np.mean(tensor**2)) > 0.01
    # Comparing a pruned model with its reference would show nothing if every image gave about the same output.
    first, second = tensors[outputs - 1]
    assert np.abs(first - second).max() > 0.05 * np.abs(first).max()


@pytest.mark.parametrize("name", MODERATE)
def test_folding_the_batch_norms_keeps_the_function(name):
    before = reference(name)[0]["BatchNormalization"]
    if not before:
        pytest.skip("has no batch normalisations")
    folded = build(name, image=small(name), fold_bn=True)
    content = checked(folded)
    assert operators(folded)["BatchNormalization"] == STAY.get(name, 0) < before
    assert close(run(folded, content=content), reference(name)[1])


def test_folding_includes_the_bias_of_the_convolution():
    plain, folded = (build("vgg16_bn", image=32, fold_bn=fold_bn) for fold_bn in (False, True))
    assert operators(plain)["BatchNormalization"] == 13
    assert operators(folded)["BatchNormalization"] == 0
    assert close(run(folded), run(plain))


DYNAMIC = """
    shufflenet_v2_x1_0 efficientnet_b0 convnext_tiny unet vit_b_16 resnest14d resnet20_cifar espcn_x3 yolov8n
    vit_tiny_patch16_224 swin_t mc3_18 m5 deepspeech2_gru conformer bert bert_dynamic
    crnn dtln llama mixtral mixtral_einsum transformer t5 deberta
"""


@pytest.mark.parametrize("name", DYNAMIC.split())
def test_dynamic_batch(name):
    model = build(name, image=32 if name == "vit_b_16" else small(name), batch="batch", opset=22)
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
    session, three = load(checked(model)), feeds(model, batch=3)
    together = session.run(None, three)[-1]
    assert together.shape[0] == 3
    alone = session.run(None, {key: value[:1] for key, value in three.items()})[-1]
    assert close(together[:1], alone)


def test_dynamic_length():
    model = build("bert_dynamic")
    session = load(model.SerializeToString())
    given = feeds(model)
    whole = session.run(None, given)[0]
    # Padding that the mask hides changes nothing.
    padded = {key: np.pad(value, ((0, 0), (0, 9))) for key, value in given.items()}
    assert close(session.run(None, padded)[0], whole)


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


@pytest.mark.usefixtures("undrawn")
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


@pytest.mark.usefixtures("undrawn")
def test_group_norm_takes_the_form_of_the_opset():
    old, new = (operators(build("resnet50_gn", image=IMAGE, opset=opset)) for opset in (20, 21))
    assert old["InstanceNormalization"] == new["GroupNormalization"] == 53
    assert new["InstanceNormalization"] == old["GroupNormalization"] == 0


@pytest.mark.usefixtures("undrawn")
def test_attention_takes_several_forms():
    """One projection taken apart by Split and Squeeze or by Gather, three projections, shapes that are computed."""
    vit, swin, bert, dynamic = (
        operators(build(name, image=IMAGE)) for name in ("vit_tiny_patch16_224", "swin_t", "bert", "bert_dynamic")
    )
    assert (vit["Split"], vit["Squeeze"], vit["Gather"]) == (12, 36, 1)
    assert (swin["Split"], swin["Gather"]) == (0, 12 * 3 + 12)
    assert bert["Shape"] == 0 < dynamic["Shape"]
    assert bert["LayerNormalization"] == 9


@pytest.mark.usefixtures("undrawn")
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
    assert run(build("unet", image=32, classes=3)).shape == (1, 3, 32, 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet19"}, "choose one of resnet18, "),
        ({"name": "resnet18", "opset": 12}, "opsets 13 to 22"),
        ({"name": "unet", "image": 40}, "multiple of 16"),
        ({"name": "vit_b_16", "image": 40}, "multiple of 16"),
        ({"name": "squeezenet1_0", "image": 8}, "too small"),
        ({"name": "vit_tiny_patch16_224", "image": 40}, "multiple of 16"),
        ({"name": "yolov8n", "image": 48}, "multiple of 32"),
        ({"name": "bert", "image": 513}, "at most 512"),
    ],
)
def test_says_what_it_can_not_build(arguments, message):
    with pytest.raises(ValueError, match=message):
        build(**arguments)
