"""The table of architectures, and `build`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import onnx

from . import bert as bert_base
from .audio import conformer, deepspeech2_gru, lstm_acoustic, m5
from .bert import bert
from .builder import Net
from .convnext import convnext_tiny
from .crnn import Crnn
from .darknet import cspdarknet53, yolov8n
from .deberta import Deberta
from .densenet import densenet121, densenet201
from .dla import dla34
from .dpn import dpn68b
from .efficientnet import efficientnet_b0, efficientnet_v2_s
from .emitter import Value
from .enhancement import Dtln
from .experts import Experts
from .ghostnet import ghostnet_100
from .googlenet import googlenet
from .hrnet import hrnet_w18
from .llama import Llama
from .mobilenet import mnasnet1_0, mobilenet_v2, mobilenet_v3_large
from .regnet import regnet_y_400mf
from .resnet import resnet18, resnet20_cifar, resnet50, resnet50_gn, resnet152, resnext50_32x4d, wide_resnet50_2
from .resnet_splits import res2net50_26w_4s, resnest14d
from .shufflenet import shufflenet_v1_g3, shufflenet_v2_x1_0
from .squeezenet import squeezenet1_0
from .superresolution import edsr_baseline_x2, espcn_x3
from .swin import swin_t
from .translation import Translation
from .unet import unet
from .vad import Vad
from .vgg import vgg16_bn
from .video import mc3_18
from .vit import vit_b_16, vit_tiny_patch16_224


@dataclass(frozen=True)
class Architecture:
    """One architecture of the catalogue.

    Attributes:
        builder: Writes the network into a `Net` and returns its output.
        parameters: The published number of parameters, which the default image and classes give.
        image: Default height and width of the image, or length of the sequence.
        source: Where the architecture and the number come from.
        classes: Default number of classes.
        axes: What follows the batch in the shape of the input; "image" stands for the size, other names for
            axes that are always dynamic.
        inputs: Names of several inputs of this shape, which are integers; none for one of floats, called "input".
            Inputs of other shapes the builder declares itself.
        small: A size that makes a quick test.
    """

    builder: Callable[[Net], Value | Sequence[Value]]
    parameters: int
    image: int
    source: str
    classes: int = 1000
    axes: tuple[int | str, ...] = (3, "image", "image")
    inputs: tuple[str, ...] = ()
    small: int = 64


_TOKENS = ("input_ids", "attention_mask")


def _llama(builder: Llama, source: str) -> Architecture:
    """A decoder of a dynamic length, whose other inputs it declares itself."""
    return Architecture(builder, builder.parameters, 64, source, axes=("sequence",), inputs=_TOKENS[:1])


def _pairs(builder: Translation, source: str) -> Architecture:
    """An encoder of a dynamic length, and a decoder."""
    return Architecture(builder, builder.parameters, 64, source, axes=("source",), inputs=_TOKENS)


ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "resnet18": Architecture(resnet18, 11_689_512, 224, "arXiv:1512.03385; torchvision resnet18"),
        "resnet50": Architecture(resnet50, 25_557_032, 224, "arXiv:1512.03385; torchvision resnet50"),
        "resnext50_32x4d": Architecture(
            resnext50_32x4d, 25_028_904, 224, "arXiv:1611.05431; torchvision resnext50_32x4d"
        ),
        "vgg16_bn": Architecture(vgg16_bn, 138_365_992, 224, "arXiv:1409.1556; torchvision vgg16_bn"),
        "mobilenet_v2": Architecture(mobilenet_v2, 3_504_872, 224, "arXiv:1801.04381; torchvision mobilenet_v2"),
        "mnasnet1_0": Architecture(mnasnet1_0, 4_383_312, 224, "arXiv:1807.11626; torchvision mnasnet1_0"),
        "densenet121": Architecture(densenet121, 7_978_856, 224, "arXiv:1608.06993; torchvision densenet121"),
        "efficientnet_b0": Architecture(
            efficientnet_b0, 5_288_548, 224, "arXiv:1905.11946; torchvision efficientnet_b0"
        ),
        "efficientnet_v2_s": Architecture(
            efficientnet_v2_s, 21_458_488, 384, "arXiv:2104.00298; torchvision efficientnet_v2_s"
        ),
        "squeezenet1_0": Architecture(squeezenet1_0, 1_248_424, 224, "arXiv:1602.07360; torchvision squeezenet1_0"),
        "googlenet": Architecture(googlenet, 6_624_904, 224, "arXiv:1409.4842; torchvision googlenet"),
        "unet": Architecture(unet, 31_037_698, 256, "arXiv:1505.04597; milesial/Pytorch-UNet", classes=2),
        "shufflenet_v2_x1_0": Architecture(
            shufflenet_v2_x1_0, 2_278_604, 224, "arXiv:1807.11164; torchvision shufflenet_v2_x1_0"
        ),
        "convnext_tiny": Architecture(convnext_tiny, 28_589_128, 224, "arXiv:2201.03545; torchvision convnext_tiny"),
        "vit_b_16": Architecture(vit_b_16, 86_567_656, 224, "arXiv:2010.11929; torchvision vit_b_16"),
        "regnet_y_400mf": Architecture(regnet_y_400mf, 4_344_144, 224, "arXiv:2003.13678; torchvision regnet_y_400mf"),
        "mobilenet_v3_large": Architecture(
            mobilenet_v3_large, 5_483_032, 224, "arXiv:1905.02244; torchvision mobilenet_v3_large"
        ),
        "wide_resnet50_2": Architecture(
            wide_resnet50_2, 68_883_240, 224, "arXiv:1605.07146; torchvision wide_resnet50_2"
        ),
        "resnet50_gn": Architecture(resnet50_gn, 25_557_032, 224, "arXiv:1803.08494; timm resnet50_gn"),
        "resnet20_cifar": Architecture(
            resnet20_cifar, 269_722, 32, "arXiv:1512.03385; akamaster/pytorch_resnet_cifar10", classes=10
        ),
        "res2net50_26w_4s": Architecture(res2net50_26w_4s, 25_699_120, 224, "arXiv:1904.01169; timm res2net50_26w_4s"),
        "resnest14d": Architecture(resnest14d, 10_611_688, 224, "arXiv:2004.08955; timm resnest14d"),
        "ghostnet_100": Architecture(ghostnet_100, 5_182_508, 224, "arXiv:1911.11907; timm ghostnet_100"),
        "shufflenet_v1_g3": Architecture(
            shufflenet_v1_g3, 1_865_728, 224, "arXiv:1707.01083; pytorchcv shufflenet_g3_w1"
        ),
        "hrnet_w18": Architecture(hrnet_w18, 21_299_004, 224, "arXiv:1908.07919; timm hrnet_w18"),
        "cspdarknet53": Architecture(cspdarknet53, 27_642_184, 256, "arXiv:1911.11929; timm cspdarknet53"),
        "dla34": Architecture(dla34, 15_742_104, 224, "arXiv:1707.06484; timm dla34"),
        "dpn68b": Architecture(dpn68b, 12_611_602, 224, "arXiv:1707.01629; timm dpn68b"),
        "yolov8n": Architecture(yolov8n, 3_157_200, 640, "ultralytics yolov8n"),
        "edsr_baseline_x2": Architecture(
            edsr_baseline_x2, 1_369_859, 64, "arXiv:1707.02921, without the fixed mean shifts"
        ),
        "espcn_x3": Architecture(espcn_x3, 31_131, 64, "arXiv:1609.05158, for three colours"),
        "vit_tiny_patch16_224": Architecture(
            vit_tiny_patch16_224, 5_717_416, 224, "arXiv:2010.11929; timm vit_tiny_patch16_224"
        ),
        "swin_t": Architecture(swin_t, 28_288_354, 224, "arXiv:2103.14030; torchvision swin_t"),
        "mc3_18": Architecture(
            mc3_18, 11_695_440, 112, "arXiv:1711.11248; torchvision mc3_18", classes=400, axes=(3, 4, "image", "image")
        ),
        "m5": Architecture(
            m5, 26_915, 8000, "arXiv:1610.00087; torchaudio's tutorial", classes=35, axes=(1, "image"), small=8000
        ),
        "deepspeech2_gru": Architecture(
            deepspeech2_gru, 3_860_285, 200, "arXiv:1512.02595; two layers of 256", classes=29, axes=(1, 161, "image")
        ),
        "lstm_acoustic": Architecture(
            lstm_acoustic, 1_728_244, 200, "three layers of 256", classes=500, axes=("image", 80)
        ),
        "conformer": Architecture(
            conformer, 2_543_744, 200, "arXiv:2005.08100; 4 layers of 16", classes=128, axes=("image", 80)
        ),
        "bert": Architecture(
            bert,
            bert_base.parameters(),
            128,
            "arXiv:1810.04805; transformers bert-base, 4 layers of 12 and 1000 tokens of 30522",
            classes=2,
            axes=("image",),
            inputs=bert_base.INPUTS,
        ),
        "bert_dynamic": Architecture(
            bert,
            bert_base.parameters(),
            128,
            "as bert, with a dynamic length",
            classes=2,
            axes=("sequence",),
            inputs=bert_base.INPUTS,
        ),
        "crnn": Architecture(
            Crnn(),
            8_331_301,
            100,
            "arXiv:1507.05717; meijieru/crnn.pytorch",
            classes=37,
            axes=(1, 32, "image"),
            small=40,
        ),
        "dtln": Architecture(
            Dtln(), 1_777_795, 16000, "arXiv:2005.07551; with its transforms", axes=("image",), small=2048
        ),
        "silero_vad": Architecture(Vad(), 545_282, 576, "snakers4/silero-vad v5", axes=("image",), small=576),
        "llama": _llama(Llama(), "arXiv:2302.13971; 2 layers of 192"),
        "mixtral": _llama(Llama(experts=Experts()), "arXiv:2401.04088; 2 layers of 192 with 4 experts"),
        "mixtral_einsum": _llama(Llama(experts=Experts(einsum=True)), "as mixtral, with Einsum"),
        "transformer": _pairs(Translation(), "arXiv:1706.03762; 2 layers of 192"),
        "t5": _pairs(Translation(relative=True), "arXiv:1910.10683; 2 layers of 192"),
        "deberta": Architecture(
            Deberta(),
            Deberta().parameters(classes=2),
            64,
            "arXiv:2006.03654; 2 layers of 192",
            classes=2,
            axes=("sequence",),
            inputs=_TOKENS,
        ),
    }
)


DEEP: Mapping[str, Architecture] = MappingProxyType(
    {
        "densenet201": Architecture(densenet201, 20_013_928, 224, "arXiv:1608.06993; torchvision densenet201"),
        "resnet152": Architecture(resnet152, 60_192_808, 224, "arXiv:1512.03385; torchvision resnet152"),
    }
)
"""Deeper siblings, on which the compiler's own time is measured: large, and like others to all that is tested."""


def build(
    name: str,
    *,
    seed: int = 0,
    opset: int = 17,
    fold_bn: bool = False,
    batch: int | str = 1,
    image: int | None = None,
    classes: int | None = None,
) -> onnx.ModelProto:
    """Build an architecture with random weights.

    Args:
        name: A key of `ARCHITECTURES` or `DEEP`.
        seed: Of the weights; the same arguments give the same bytes.
        opset: 13 to 22. Operators take the form that exporters emit at that opset.
        fold_bn: Fold every batch normalisation that follows a convolution into it; the function stays the same.
        batch: Batch size, or the name of a dynamic batch.
        image: Height and width of the image, or length of the sequence, by default the architecture's.
        classes: Number of classes, by default the architecture's.

    Returns:
        A model with the input "input", (batch, 3, image, image) for images, and the output "output"; architectures
        with several inputs or outputs name them otherwise.

    Raises:
        ValueError: The name is unknown, the opset is out of range, or the architecture can't take the image size.
    """
    architecture = ARCHITECTURES.get(name) or DEEP.get(name)
    if architecture is None:
        raise ValueError(f"unknown architecture {name!r}; choose one of {', '.join(ARCHITECTURES)}")
    size = architecture.image if image is None else image
    net = Net(
        name,
        seed=seed,
        opset=opset,
        fold_bn=fold_bn,
        shape=(batch, *(size if axis == "image" else axis for axis in architecture.axes)),
        inputs=architecture.inputs,
        classes=architecture.classes if classes is None else classes,
    )
    return net.finish(architecture.builder(net))
