"""Export torchvision's and timm's own networks, and a few of ``torch_nets.py``, with random weights, from PyTorch.

    python -m models.recipes.torch_zoo FOLDER [torchvision/resnet18 timm/ghostnet_100 ...] [--image 64]

Needs torch, torchvision and timm, and downloads nothing. Writes ``<library>_<name>_<exporter>.onnx`` for each of
PyTorch's exporters, says how far each file is from torch, and goes on after a network that can not be exported.

Freshly made layers hide mistakes: every normalisation would be the identity, and equal initializers would be merged.
So normalisations get random weights, and their statistics come from one random batch.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

try:
    import timm
    import torch
    import torchvision
except ModuleNotFoundError as error:
    raise SystemExit(f"This recipe needs {error.name}: pip install torch torchvision timm onnxscript") from error

from torch import nn

from models.recipes.torch_nets import NETWORKS

OPSETS = {"torchscript": 17, "dynamo": 18}
"""Opset of each exporter; the newer one writes nothing older than 18."""
LARGER_IMAGES = {"torchvision/inception_v3": 299, "timm/halonet26t": 256}
LAYER_SCALES = ("gamma", "layer_scale", "gamma_1", "gamma_2", "gamma1", "gamma2", "gamma3")
TOLERANCE = 1e-3

_TORCHVISION = """
    resnet18 regnet_y_400mf shufflenet_v2_x0_5 mobilenet_v3_small mobilenet_v3_large efficientnet_b0 mnasnet0_5
    squeezenet1_1 densenet121 googlenet inception_v3 convnext_tiny swin_t swin_v2_t vit_b_32
    segmentation/lraspp_mobilenet_v3_large segmentation/deeplabv3_mobilenet_v3_large segmentation/fcn_resnet50
    video/r3d_18 video/r2plus1d_18
"""
_TIMM = """
    ghostnet_100 res2net50_26w_4s resnest14d hrnet_w18_small cspdarknet53 dla34 dpn68b repvgg_a0 mobileone_s0
    fbnetc_100 tf_efficientnet_lite0 rexnet_100 hardcorenas_a ese_vovnet19b_dw eca_resnet33ts skresnet18 resnet26t
    gcresnet33ts lambda_resnet26t halonet26t mobilevit_xs edgenext_xx_small poolformer_s12 mixer_s32_224
    vit_tiny_patch16_224 cait_xxs24_224 swin_tiny_patch4_window7_224 coat_lite_tiny levit_128s efficientformer_l1
    fastvit_t8 mobilenetv4_conv_small inception_next_tiny nf_resnet26 xcit_nano_12_p16_224 crossvit_tiny_240
    visformer_tiny starnet_s1 repghostnet_050 regnetx_002
"""
ZOO = (
    *(f"torchvision/{name}" for name in _TORCHVISION.split()),
    *(f"timm/{name}" for name in _TIMM.split()),
    *(f"torch/{name}" for name in NETWORKS),
)


class FirstOutput(nn.Module):
    """A network with several named outputs, reduced to the first."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the network."""
        y = self.network(x)
        return next(iter(y.values())) if isinstance(y, Mapping) else y


def make(entry: str, image: int) -> tuple[nn.Module, torch.Tensor]:
    """Make a network of the zoo and an input for it.

    Args:
        entry: ``timm/<name>``, ``torchvision/[segmentation/|video/]<name>``, or ``torch/<name>`` of `NETWORKS`.
        image: height and width of the image, where the network leaves the choice.

    Returns:
        The network, ready for inference, and a batch of one.
    """
    library, *kind, name = entry.split("/")
    if library == "torch":
        made, shape = NETWORKS[name]
        return liven(made(), shape), torch.randn(shape)
    size = max(image, LARGER_IMAGES.get(entry, 0))
    if library == "timm":
        network = timm.create_model(name, pretrained=False)
        if network.default_cfg.get("fixed_input_size"):
            size = network.default_cfg["input_size"][-1]
    else:
        options: dict[str, Any] = {"weights": None}
        if kind == ["segmentation"]:
            options["weights_backbone"] = None
        if name.startswith("vit"):
            options["image_size"] = size
        network = FirstOutput(torchvision.models.get_model(name, **options))
    shape = (1, 3, 4, size, size) if kind == ["video"] else (1, 3, size, size)
    return liven(network, shape), torch.randn(shape)


def liven(network: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """Give what starts as the identity random parameters, and batch normalisations the statistics of a random batch."""
    for module in network.modules():
        if isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)):
            if module.weight is not None:
                nn.init.uniform_(module.weight, 0.5, 1.5)
            if module.bias is not None:
                nn.init.normal_(module.bias, 0.0, 0.1)
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 0.9
        for name, parameter in module.named_parameters(recurse=False):
            if name in LAYER_SCALES:
                nn.init.uniform_(parameter, 0.3, 1.0)
            elif parameter.dim() > 1 and not parameter.any():
                nn.init.normal_(parameter, 0.0, 0.02)
    with torch.no_grad():
        network.train()(torch.randn(4, *shape[1:]))
    return network.eval()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drop warnings and what is printed, by the C++ of an exporter too: the whole graph of what it can not export."""
    with warnings.catch_warnings(), Path(os.devnull).open("w") as nothing:
        warnings.simplefilter("ignore")
        kept = os.dup(1)
        os.dup2(nothing.fileno(), 1)
        try:
            yield
        finally:
            os.dup2(kept, 1)
            os.close(kept)


def export(network: nn.Module, example: torch.Tensor, path: Path, exporter: str, *, dynamic: bool) -> None:
    """Write one file in evaluation mode; a dynamic batch is called "batch"."""
    options: dict[str, Any] = {"input_names": ["input"], "output_names": ["output"], "opset_version": OPSETS[exporter]}
    if exporter == "dynamo":
        options |= {"dynamo": True, "external_data": False, "verbose": False}
        if dynamic:
            # A batch of one would be taken for a constant.
            example = example.repeat(2, *[1] * (example.dim() - 1))
            options["dynamic_shapes"] = ({0: torch.export.Dim("batch")},)
    else:
        options["dynamo"] = False
        if dynamic:
            options["dynamic_axes"] = {"input": {0: "batch"}, "output": {0: "batch"}}
    with torch.no_grad():
        torch.onnx.export(network, (example,), str(path), **options)


def difference(network: nn.Module, example: torch.Tensor, path: Path) -> float:
    """Largest difference between torch and onnxruntime, over the largest output."""
    (exported,) = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(
        None, {"input": example.numpy()}
    )
    with torch.no_grad():
        expected = network(example).numpy()
    return float(np.abs(exported - expected).max() / np.abs(expected).max())


def export_entry(entry: str, folder: Path, image: int, exporters: list[str], *, seed: int, dynamic: bool) -> int:
    """Export one network with each exporter, a line of output for each; how many files are good."""
    good = 0
    for exporter in exporters:
        path = folder / f"{entry.replace('/', '_')}_{exporter}.onnx"
        start = time.perf_counter()
        try:
            torch.manual_seed(seed)
            with quiet():
                network, example = make(entry, image)
                export(network, example, path, exporter, dynamic=dynamic)
            apart = difference(network, example, path)
            good += apart <= TOLERANCE
            outcome = f"{path.stat().st_size / 1e6:6.1f} MB, {'' if apart <= TOLERANCE else 'NOT '}equal: {apart:.1e}"
        except Exception as error:  # a row never stops the table
            path.unlink(missing_ok=True)
            outcome = f"fails: {type(error).__name__}: {' '.join(str(error).split())[:120]}"
        print(f"{entry:52} {exporter:12} {outcome} ({time.perf_counter() - start:.0f} s)", flush=True)
    return good


def main(arguments: list[str] | None = None) -> None:
    """Export, compare and report."""
    parser = argparse.ArgumentParser(prog="python -m models.recipes.torch_zoo", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where to write the files")
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help="for example timm/dla34 (default: 68 of them)")
    parser.add_argument("--image", type=int, default=64, help="image size, where the network allows it (default: 64)")
    parser.add_argument("--exporter", choices=(*OPSETS, "both"), default="both", help="default: both")
    parser.add_argument("--dynamic", action="store_true", help="leave the batch size free")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights (default: 0)")
    options = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    # The fused attention of inference mode has no ONNX form.
    torch.backends.mha.set_fastpath_enabled(False)
    options.folder.mkdir(parents=True, exist_ok=True)
    exporters = list(OPSETS) if options.exporter == "both" else [options.exporter]
    good = 0
    for entry in options.networks or ZOO:
        good += export_entry(
            entry, options.folder, options.image, exporters, seed=options.seed, dynamic=options.dynamic
        )
    print(f"{good} files agree with torch")


if __name__ == "__main__":
    main()
