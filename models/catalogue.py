"""The table of architectures, and `build`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import onnx

from .builder import Net
from .convnext import convnext_tiny
from .densenet import densenet121
from .efficientnet import efficientnet_b0, efficientnet_v2_s
from .emitter import Value
from .googlenet import googlenet
from .mobilenet import mnasnet1_0, mobilenet_v2
from .resnet import resnet18, resnet50, resnext50_32x4d
from .shufflenet import shufflenet_v2_x1_0
from .squeezenet import squeezenet1_0
from .unet import unet
from .vgg import vgg16_bn
from .vit import vit_b_16


@dataclass(frozen=True)
class Architecture:
    """One architecture of the catalogue.

    Attributes:
        builder: Writes the network into a `Net` and returns its output.
        parameters: The published number of parameters, which the default image and classes give.
        image: Default height and width of the image.
        source: Where the architecture and the number come from.
        classes: Default number of classes.
    """

    builder: Callable[[Net], Value]
    parameters: int
    image: int
    source: str
    classes: int = 1000


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
    }
)


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
        name: A key of `ARCHITECTURES`.
        seed: Of the weights; the same arguments give the same bytes.
        opset: 13 to 22. Operators take the form that exporters emit at that opset.
        fold_bn: Fold every batch normalisation that follows a convolution into it; the function stays the same.
        batch: Batch size, or the name of a dynamic batch.
        image: Height and width of the image, by default the architecture's.
        classes: Number of classes, by default the architecture's.

    Returns:
        A model with the input "input" (batch, 3, image, image) and the output "output".

    Raises:
        ValueError: The name is unknown, the opset is out of range, or the architecture can't take the image size.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {name!r}; choose one of {', '.join(ARCHITECTURES)}")
    architecture = ARCHITECTURES[name]
    net = Net(
        name,
        seed=seed,
        opset=opset,
        fold_bn=fold_bn,
        batch=batch,
        image=architecture.image if image is None else image,
        classes=architecture.classes if classes is None else classes,
    )
    return net.finish(architecture.builder(net))
