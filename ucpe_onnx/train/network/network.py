"""An ONNX graph as a torch module, whose parameters are the file's own weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor, nn

from ucpe_onnx.analysis.graph import Node
from ucpe_onnx.errors import DataError, ModelError
from ucpe_onnx.model.functions import check_functions, inline_functions
from ucpe_onnx.model.naming import node_names
from ucpe_onnx.train.network.call import Call, ForwardPass, Operator, as_tensor
from ucpe_onnx.train.network.operators import OPERATORS
from ucpe_onnx.train.network.weights import Constant, attribute_names, find_roles, read_constants

OLDEST_OPSET = 7
"""Before, operands were broadcast by other rules."""

_MOST_NAMED = 5
"""Unknown operators that one message names."""


@dataclass(frozen=True)
class _Step:
    """One node to compute.

    Attributes:
        node: the node.
        operator: what computes it.
        last: the tensors that nothing reads any more.
    """

    node: Node
    operator: Operator
    last: tuple[str, ...]


class Network(nn.Module):
    """Runs an ONNX graph in torch, with gradients of all that training may change.

    In ``eval()`` the network computes what the file says. In ``train()`` Dropout is active, and batch normalisations
    take the statistics of the batch and update their running ones, unless ``freeze_statistics`` is set. Which
    constants have gradients is told by :func:`ucpe_onnx.train.network.weights.find_roles`.

    Float16 and bfloat16 are computed as float32, in which outputs of these types are given; float16 weights are rounded
    when they are written back, bfloat16 ones have no gradients. ``network.double()`` makes float64 of all narrower
    floats. ``network.to("cuda")`` moves what is computed with; shapes and what is computed from them stay on the CPU.

    Weights are parameters of the submodule ``weights``, each of which a pass reads once, so that
    ``torch.nn.utils.parametrize.register_parametrization(network.weights, attribute, module)`` works. Constants that
    training does not change are no part of the ``state_dict``.

    Args:
        model: the model, all weights in memory or offloaded; not changed, and not kept.
        label: what to call it in messages.
        frozen: names of constants that training leaves as they are, weights or running statistics.

    Attributes:
        label: as given.
        inputs: names of the inputs that :meth:`forward` must be fed.
        outputs: names of the outputs.
        opset: version of the standard operators.
        weights: holds the trainable weights.
        statistics: holds the running means and variances that training updates.
        attribute_of: the attribute of ``weights`` that holds an initializer, by its name; for weights in Constant
            nodes, by the name of the output.
        statistic_of: likewise for ``statistics``.
        freeze_statistics: batch normalisations use the running statistics, and leave them as they are, in training too.

    Raises:
        ModelError: the model holds operators that can't be trained through, or other forms than are supported.
    """

    def __init__(self, model: onnx.ModelProto, *, label: str = "the model", frozen: Collection[str] = ()) -> None:
        super().__init__()
        check_functions(model, label)
        own = _constant_names(model)
        model = inline_functions(model)
        self.label = label
        self.opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=1)
        nodes = _nodes(model)
        _check(nodes, self.opset, label)
        constants = read_constants(model, label)
        self._types = {v.name: v.type.tensor_type.elem_type for v in model.graph.input if v.name not in constants}
        self.inputs = tuple(self._types)
        self.outputs = tuple(value.name for value in model.graph.output)
        self._steps = _steps(nodes, self.outputs, self.inputs)
        self._hold(constants, nodes, {*frozen, *(name for name in constants if name not in own)})
        self.freeze_statistics = False
        # Follows the network to other devices and types, which tells where and in what to compute.
        self.register_buffer("_place", torch.zeros(()), persistent=False)

    def forward(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute the outputs.

        Args:
            feeds: a tensor for each input, on any device; floats of any precision.

        Returns:
            The graph's outputs by name, in graph order.

        Raises:
            DataError: an input is not fed.
            ModelError: torch can't compute a node with what it reads.
        """
        place: Tensor = self.get_buffer("_place")
        updates = self.training and not self.freeze_statistics
        run = ForwardPass(self.training, self.statistic_of if updates else (), place.dtype, place.device)
        values = self._values(feeds, run)
        for step in self._steps:
            results = self._computed(step, values, run)
            made = zip(step.node.outputs, results, strict=False)
            values.update((name, tensor) for name, tensor in made if name and tensor is not None)
            for name in step.last:
                del values[name]
        return {name: values[name] for name in self.outputs}

    def trained(self) -> dict[str, npt.NDArray[Any]]:
        """What training may have changed: weights, as parametrizations make them, and running statistics.

        Returns:
            Copies in the shapes and types of the file, by the name of the initializer or of a Constant node's output.
        """
        with torch.no_grad():
            found = {name: getattr(self.weights, attribute) for name, attribute in self.attribute_of.items()}
            found |= {name: getattr(self.statistics, attribute) for name, attribute in self.statistic_of.items()}
            return {name: tensor.detach().cpu().numpy().astype(self._dtypes[name]) for name, tensor in found.items()}

    def _hold(self, constants: Mapping[str, Constant], nodes: Sequence[Node], frozen: Collection[str]) -> None:
        """Make parameters and buffers of the constants."""
        attributes = attribute_names(constants)
        roles = find_roles(nodes, constants, self.outputs, frozen)
        self.attribute_of = {name: attributes[name] for name in roles.weights}
        self.statistic_of = {name: attributes[name] for name in roles.statistics}
        self._fixed_of: dict[str, str] = {}
        self._dtypes: dict[str, np.dtype[Any]] = {}
        self._integers: dict[str, Tensor] = {}
        self.weights, self.statistics, self._fixed = nn.Module(), nn.Module(), nn.Module()
        for name, constant in constants.items():
            tensor, attribute = as_tensor(constant.value), attributes[name]
            if name in self.attribute_of:
                self.weights.register_parameter(attribute, nn.Parameter(tensor))
                self._dtypes[name] = constant.value.dtype
            elif name in self.statistic_of:
                self.statistics.register_buffer(attribute, tensor)
                self._dtypes[name] = constant.value.dtype
            elif tensor.is_floating_point():
                self._fixed.register_buffer(attribute, tensor, persistent=False)
                self._fixed_of[name] = attribute
            else:
                self._integers[name] = tensor

    def _values(self, feeds: Mapping[str, Tensor], run: ForwardPass) -> dict[str, Tensor]:
        """What is known before the first node: constants, each weight computed once, and inputs."""
        values = dict(self._integers)
        for module, attribute_of in (
            (self._fixed, self._fixed_of),
            (self.statistics, self.statistic_of),
            (self.weights, self.attribute_of),
        ):
            values.update((name, getattr(module, attribute)) for name, attribute in attribute_of.items())
        for name, elem_type in self._types.items():
            if name not in feeds:
                raise DataError(f"{self.label}: no value for its input {name!r}; feed {', '.join(self.inputs)}")
            dtype = run.dtype(elem_type)
            if dtype is None:
                raise ModelError(f"{self.label}: input {name!r} is of a type that can't be trained with yet")
            values[name] = feeds[name].to(run.device, dtype)
        return values

    def _computed(self, step: _Step, values: Mapping[str, Tensor], run: ForwardPass) -> Sequence[Tensor | None]:
        node = step.node
        inputs = [values[name] if name else None for name in node.inputs]
        try:
            results = step.operator(Call(node, self.opset, run, self.label), *inputs)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            shapes = ", ".join("none" if x is None else str(list(x.shape)) for x in inputs)
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ModelError(
                f"{self.label}: torch can't compute node {node.name!r} ({node.op_type} of {shapes}): {reason}"
            ) from error
        results = (results,) if isinstance(results, Tensor) else results
        if len(results) < len(node.outputs):
            raise Call(node, self.opset, run, self.label).refused(f"{len(node.outputs)} outputs")
        return results


def _constant_names(model: onnx.ModelProto) -> set[str]:
    """The constants of the graph itself. Those of its functions can't be written back: calls may share a function."""
    held = {node.output[0] for node in model.graph.node if node.op_type == "Constant"}
    return held.union(tensor.name for tensor in model.graph.initializer)


def _nodes(model: onnx.ModelProto) -> list[Node]:
    """The nodes of a graph but for its Constant nodes."""
    nodes = []
    for index, (proto, name) in enumerate(zip(model.graph.node, node_names(model.graph.node), strict=True)):
        standard = proto.domain in ("", "ai.onnx")
        op_type = proto.op_type if standard else f"{proto.domain}::{proto.op_type}"
        if op_type != "Constant":
            own = onnx.NodeProto()
            own.CopyFrom(proto)  # the model's own would keep all of it in memory
            nodes.append(Node(index, name, op_type, tuple(proto.input), tuple(proto.output), own))
    return nodes


def _check(nodes: Sequence[Node], opset: int, label: str) -> None:
    """Refuse what there is no operator for, all of it at once."""
    if opset < OLDEST_OPSET:
        raise ModelError(
            f"{label}: opset {opset} is too old to train; convert it (onnx.version_converter) to 13 or later"
        )
    unknown: dict[str, str] = {}
    for node in nodes:
        if node.op_type not in OPERATORS:
            unknown.setdefault(node.op_type, node.name)
    if not unknown:
        return
    kinds = [f"node {name!r} is a {op_type}" for op_type, name in unknown.items()]
    more = f", and {len(kinds) - _MOST_NAMED} more are unknown" if len(kinds) > _MOST_NAMED else ""
    quantised = any("Quant" in op_type or "Integer" in op_type or "QLinear" in op_type for op_type in unknown)
    raise ModelError(
        f"{label}: {', '.join(kinds[:_MOST_NAMED])}{more}, which can't be trained through yet: prune without training"
        f" (python -m ucpe_onnx){', or train the float model before it is quantised' if quantised else ''}"
    )


def _steps(nodes: Sequence[Node], outputs: Sequence[str], inputs: Sequence[str]) -> list[_Step]:
    """The nodes with their operators, and when each activation has been read for the last time."""
    kept = set(outputs)
    made = {name for node in nodes for name in node.outputs}.union(inputs)
    steps = []
    for node in reversed(nodes):
        last = [name for name in {*node.inputs, *node.outputs} if name in made and name and name not in kept]
        kept.update(last)
        steps.append(_Step(node, OPERATORS[node.op_type], tuple(last)))
    return steps[::-1]
