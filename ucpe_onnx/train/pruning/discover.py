"""The layers of an ordinary torch model: one for the weight of each convolution and linear layer."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from fnmatch import fnmatchcase

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter, is_lazy

from ucpe_onnx.errors import UsageError
from ucpe_onnx.train.pruning.blocks import BlockLayer, parse_pattern
from ucpe_onnx.train.pruning.groups import GroupLayer, axis_index, channel_index
from ucpe_onnx.train.pruning.layers import Member, PrunableLayer, WeightLayer

_Convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_Transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def layers_of(
    model: nn.Module,
    granularity: str = "unstructured",
    *,
    exclude: Collection[str] = (),
    exclude_ends: bool | None = None,
    block_axis: int | None = None,
) -> list[PrunableLayer]:
    """One layer for the weight of each Conv, ConvTranspose and Linear module.

    Biases are not pruned. A weight that several modules share, an embedding for instance, is masked in all of them.

    Args:
        model: the model, without other parametrizations of these weights.
        granularity: "unstructured": single weights. "N:M", "2:4" for instance: of M consecutive weights of an output N
            stay. "channel": the channels that a module reads, except for depthwise convolutions. "filter": those that
            it makes.
        exclude: names of modules that are left alone, or patterns as in a shell.
        exclude_ends: whether to leave the first and the last of these modules alone, in the order of the model's
            attributes. None: just the first for "channel" and the last for "filter", whose channels are the model's
            own inputs and outputs.
        block_axis: for N:M, blocks run along this axis of the weight (1: input channels); see `BlockLayer`.

    Returns:
        The layers, named like the modules.

    Raises:
        UsageError: the granularity or a pattern makes no sense, or there is nothing to prune.
    """
    pattern = parse_pattern(granularity)
    if pattern is None and granularity not in ("unstructured", "channel", "filter"):
        raise UsageError(f"granularity is unstructured, channel, filter or N:M, 2:4 for instance, not {granularity!r}")
    names = {name: module for name, module in model.named_modules() if isinstance(module, _KINDS)}
    for one in exclude:
        if not any(_matches(name, one) for name, _ in model.named_modules()):
            raise UsageError(f"there is no module {one} to exclude")
    ends = [*names][:1] * (exclude_ends or (exclude_ends is None and granularity == "channel"))
    ends += [*names][-1:] * (exclude_ends or (exclude_ends is None and granularity == "filter"))
    chosen = {
        name: module
        for name, module in names.items()
        if name not in ends and not any(_matches(name, one) for one in exclude)
    }
    layers: list[PrunableLayer] = []
    seen: set[int] = set()
    for name, module in chosen.items():
        weight = _weight(name, module)
        if id(weight) in seen or (granularity == "channel" and _depthwise(module)):
            continue
        seen.add(id(weight))
        holders = [(holder, attribute) for holder, attribute in _holders(model, weight)]
        if pattern:
            outputs = 1 if isinstance(module, _Transposed) else 0
            members = [Member(*holder) for holder in holders]
            layers.append(BlockLayer(name, members, *pattern, axis=block_axis, outputs=outputs))
        elif granularity == "unstructured":
            layers.append(WeightLayer(name, [Member(*holder) for holder in holders]))
        else:
            groups, index = _channels(module, weight, made=granularity == "filter")
            members = [Member(*holder, index) for holder in holders]
            layers.append(GroupLayer(name, groups, members[:1], members))
    if not layers:
        raise UsageError("the model has no convolution or linear layer to prune that is not excluded")
    return layers


_KINDS = (*_Convolution, *_Transposed, nn.Linear)


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)


def _weight(name: str, module: nn.Module) -> nn.Parameter:
    """The weight of a module, which must be a parameter of its own."""
    weight = module._parameters.get("weight")
    if weight is None:
        raise UsageError(f"the weight of {name} is computed from something else; undo that, or exclude the module")
    if is_lazy(weight):
        raise UsageError(f"{name} has no weight yet; run the model once first")
    assert not isinstance(weight, UninitializedParameter)
    return weight


def _holders(model: nn.Module, weight: nn.Parameter) -> Iterator[tuple[nn.Module, str]]:
    """The modules that have a parameter, with the name that it has there."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is weight:
                yield module, name


def _depthwise(module: nn.Module) -> bool:
    return isinstance(module, (*_Convolution, *_Transposed)) and 1 < module.groups == module.in_channels


def _channels(module: nn.Module, weight: Tensor, *, made: bool) -> tuple[int, Tensor]:
    """The channels that a module makes, or those that it reads, and the index of them in its weight."""
    shape = tuple(weight.shape)
    if isinstance(module, nn.Linear):
        return shape[0 if made else 1], axis_index(shape, 0 if made else 1)
    assert isinstance(module, (*_Convolution, *_Transposed))
    channels = module.out_channels if made else module.in_channels
    first = made == isinstance(module, _Convolution)
    return channels, axis_index(shape, 0) if first else channel_index(shape, 1, module.groups)
