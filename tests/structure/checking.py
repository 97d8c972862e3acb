"""What every test of a model's structure checks: any mask and lowering, equal to the masked model, interface kept."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx

from tests.builders import Masked, feeds_for
from tests.suites.onnx_check import changed_interface
from ucpe_onnx.analysis.trace import Trace, trace
from ucpe_onnx.masks import Mask
from ucpe_onnx.model.naming import node_names
from ucpe_onnx.passes import emit
from ucpe_onnx.planning.lower import LOWERING_RULES
from ucpe_onnx.planning.make import Settings, make_plan
from ucpe_onnx.runtime.target import Target


def check(
    model: onnx.ModelProto,
    *,
    pruned: Collection[str],
    whole: Collection[str] = (),
    feeds: list[Mapping[str, Any]] | None = None,
    seeds: int = 2,
) -> Trace:
    """Emit a model with random masks in every lowering, and compare it with the masked model.

    Args:
        model: the model.
        pruned: producers that must have lost channels in every lowering.
        whole: producers that must not have lost any.
        feeds: what to run on; random values if None.
        seeds: number of random sets of masks.

    Returns:
        The trace, for further questions.
    """
    before = model.SerializeToString(deterministic=True)
    feeds = [feeds_for(model, 1), feeds_for(model, 2, dynamic=3)] if feeds is None else feeds
    traced = trace(model)
    makers = {use.node.name: use.node.outputs[0] for use in traced.producers}
    assert not {*pruned, *whole} - set(makers), "no such producers"
    for seed in range(seeds):
        masks = half_masks(traced, seed)
        masked = Masked(named(model), masks, *feeds)
        for lowering in LOWERING_RULES:
            where = f"seed {seed}, lowering {lowering}"
            plan = make_plan(traced, masks, Settings(Target(blocked=False), lowering))
            assert {name: mask.tolist() for name, mask in plan.masks().items()} == {
                name: mask.tolist() for name, mask in masks.items()
            }
            emitted = emit(model, traced, plan)
            assert not changed_interface(emitted, model), where
            masked.check(emitted, where)
            sizes, after = channels(model), channels(emitted)
            for name in pruned:
                assert after.get(makers[name], 0) < sizes[makers[name]], f"{where}: {name} has lost nothing"
            for name in whole:
                assert after[makers[name]] == sizes[makers[name]], f"{where}: {name} has lost channels"
    assert model.SerializeToString(deterministic=True) == before
    return traced


def half_masks(traced: Trace, seed: int) -> dict[str, Mask]:
    """For every consumer half of its channels, rounded up, frozen or not; the readers of a tensor share a mask.

    Some of the shared channels then disappear from their producer, whatever the draw.
    """
    random = np.random.default_rng(seed)
    masks: dict[str, Mask] = {}
    chosen: dict[tuple[int, int], Mask] = {}
    for name, consumer in traced.consumers.items():
        if consumer.channels > 1:
            mask = chosen.get((consumer.segment, consumer.channels))
            if mask is None:
                mask = np.zeros(consumer.channels, dtype=bool)
                mask[random.permutation(consumer.channels)[: (consumer.channels + 1) // 2]] = True
                chosen[consumer.segment, consumer.channels] = mask
            masks[name] = mask.copy()
            if seed % 2:  # and then some differ in one channel
                masks[name][random.integers(consumer.channels)] = True
    return {name: mask for name, mask in masks.items() if not mask.all()}


def named(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the names that its nodes go by: onnxruntime loads none that has a name twice."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node, name in zip(copy.graph.node, node_names(copy.graph.node), strict=True):
        node.name = name
    return copy


def channels(model: onnx.ModelProto) -> dict[str, int]:
    """By its output, the number of channels that each node with an initializer as weight makes."""
    stored = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    made = {node.output[0]: node for node in model.graph.node if node.output}
    for name, node in made.items():
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            stored.setdefault(name, list(node.attribute[0].t.dims))
    sizes = {}
    for name, node in made.items():
        if node.op_type in ("Conv", "Gemm", "MatMul", "ConvTranspose") and node.input[1] in stored:
            transposed = any(a.name == "transB" and a.i for a in node.attribute)
            columns = node.op_type in ("MatMul", "ConvTranspose") or (node.op_type == "Gemm" and not transposed)
            sizes[name] = stored[node.input[1]][1 if columns else 0]
    return sizes
