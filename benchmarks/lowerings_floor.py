"""What a model would cost if selections were free, from onnxruntime's own kernel times.

The floor of a model with masks: every consumer reads exactly the channels that it keeps, rounded up to the width that
its kernel wants, and every producer makes the union of what its consumers keep. That is the aligned gather variant
without what its selections cost, so its kernels are timed by onnxruntime's profiler and three kinds are left out:

- the selections themselves,
- what takes a tensor out of the convolutions' layout (ReorderOutput, in int8 Transpose) for selections alone: all that
  read it are selections, and behind each the way leads back into that layout at once,
- that way back (ReorderInput, Transpose), if the selection stands behind a way out. Behind a selection from a tensor
  that never was in the convolutions' layout it stays: without the selection it would stand there too.

What the model itself has of Slices, Transposes and reorders stays in. The floor is no strict bound: operators between
producer and consumer (a batch normalisation behind a Concat, say) are counted for the union, and a lowering that has
them work on less may come out below.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from ucpe_onnx.model.offload import complete
from ucpe_onnx.runtime.session import OPT_LEVELS, QUIET, RunOptions, resolve_providers

SELECTIONS = ("Gather", "Slice")
OUT_OF_LAYOUT = ("ReorderOutput", "Transpose")
INTO_LAYOUT = ("ReorderInput", "Transpose")


@dataclass(frozen=True)
class Kernels:
    """Kernel times of one model.

    Attributes:
        graph: the graph as onnxruntime has optimised it.
        us: median microseconds of each of its nodes, by name.
    """

    graph: onnx.GraphProto
    us: Mapping[str, float]

    def total(self, without: frozenset[str] = frozenset()) -> float:
        """Sum over the nodes, in microseconds."""
        return sum(us for name, us in self.us.items() if name not in without)


def profile(
    models: Mapping[str, onnx.ModelProto], feed: Mapping[str, Any], options: RunOptions, rounds: int = 30
) -> dict[str, Kernels]:
    """Time the kernels of several models by onnxruntime's profiler, the models in turns."""
    with tempfile.TemporaryDirectory(prefix="ucpe-", ignore_cleanup_errors=True) as folder:
        sessions = {
            name: _session(model, options, Path(folder) / str(i)) for i, (name, model) in enumerate(models.items())
        }
        for _ in range(rounds):
            for session in sessions.values():
                session.run(None, feed)
        found = {}
        for index, (name, session) in enumerate(sessions.items()):
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
            graph = onnx.load(os.path.join(folder, f"{index}.onnx"), load_external_data=False).graph
            found[name] = Kernels(graph, _medians(events))
        return found


def free_if_selections_are(kernels: Kernels, original: onnx.ModelProto) -> frozenset[str]:
    """Names of the nodes that only selections are to blame for.

    Args:
        kernels: of a model whose selections stand directly in front of consumers.
        original: the unpruned model; the selections that it has itself are its own affair.
    """
    own = {node.name for node in original.graph.node}
    nodes = [node for node in kernels.graph.node if node.name not in own]
    makers = {name: node for node in nodes for name in node.output}
    readers: dict[str, list[onnx.NodeProto | None]] = defaultdict(list)
    for node in kernels.graph.node:
        for name in node.input:
            readers[name].append(node)
    for value in kernels.graph.output:
        readers[value.name].append(None)
    selections = {node.name for node in nodes if node.op_type in SELECTIONS}

    def leads_back(reader: onnx.NodeProto | None) -> bool:
        if reader is None or reader.name not in selections:
            return False
        return all(after is not None and after.op_type in INTO_LAYOUT for after in readers[reader.output[0]])

    free = set(selections)
    for node in nodes:
        source = makers.get(node.input[0]) if node.input else None
        if node.op_type in OUT_OF_LAYOUT and all(map(leads_back, readers[node.output[0]])):
            free.add(node.name)
        elif node.op_type in INTO_LAYOUT and source is not None and source.name in selections:
            before = makers.get(source.input[0])
            if before is not None and before.op_type in OUT_OF_LAYOUT:
                free.add(node.name)
    return frozenset(free)


def _session(model: onnx.ModelProto, options: RunOptions, stem: Path) -> ort.InferenceSession:
    settings = ort.SessionOptions()
    settings.log_severity_level = QUIET
    settings.intra_op_num_threads = options.threads
    settings.graph_optimization_level = getattr(ort.GraphOptimizationLevel, OPT_LEVELS[options.opt_level])
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    settings.enable_profiling = True
    settings.profile_file_prefix = str(stem)
    settings.optimized_model_filepath = f"{stem}.onnx"
    data = complete(model).SerializeToString()
    return ort.InferenceSession(data, settings, providers=list(resolve_providers(options.providers)))


def _medians(events: list[dict[str, Any]]) -> dict[str, float]:
    durations: dict[str, list[float]] = defaultdict(list)
    for event in events:
        name = str(event["name"])
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            durations[name.removesuffix("_kernel_time")].append(float(event["dur"]))
    return {name: float(np.median(values)) for name, values in durations.items()}
