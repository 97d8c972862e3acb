"""A training run from an ONNX file to trained weights and masks."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import torch

from ucpe_onnx.analysis.trace import trace
from ucpe_onnx.errors import DataError
from ucpe_onnx.masks import Mask, save_masks
from ucpe_onnx.model.files import load_model
from ucpe_onnx.model.source import ModelSource, Source, open_source
from ucpe_onnx.pipeline import Result, prune
from ucpe_onnx.samples.dataset import LABELS
from ucpe_onnx.samples.inputs import Array, InputSpec, input_specs
from ucpe_onnx.train.loop import Epoch, Progress, Trainer
from ucpe_onnx.train.network import Network, with_trained
from ucpe_onnx.train.options import TrainOptions
from ucpe_onnx.train.prunable import find_targets
from ucpe_onnx.train.samples import open_samples

HOLD_OUT = 10
"""Every 10th sample judges, if nothing else is given to do that."""


@dataclass(frozen=True)
class LayerSparsity:
    """What is gone from one layer.

    Attributes:
        name: the consumer, or the segment.
        dropped: channels or weights that are gone.
        prunable: those that could have gone.
    """

    name: str
    dropped: int
    prunable: int


@dataclass(frozen=True)
class Trained:
    """What came of a training run.

    Attributes:
        source: what to call the model.
        model: the input with its trained weights; what masks drop is zero in them.
        masks: what each consumer keeps; empty for single weights.
        weight_masks: for single weights, what is kept of each initializer, in its shape.
        options: how it was trained.
        epochs: the training curves.
        layers: what is gone from each layer.
        before: accuracy (or, without labels, loss) of the input on the samples that judge.
        after: of the trained model, with hard masks.
        measure: ``accuracy`` or ``loss``.
        left: consumers that were left alone, and why.
    """

    source: str
    model: onnx.ModelProto
    masks: Mapping[str, Mask]
    weight_masks: Mapping[str, Mask]
    options: TrainOptions
    epochs: tuple[Epoch, ...]
    layers: tuple[LayerSparsity, ...]
    before: float
    after: float
    measure: str
    left: Mapping[str, str] = field(default_factory=dict)

    @property
    def sparsity(self) -> float:
        """Share of all that could go which has gone."""
        return sum(layer.dropped for layer in self.layers) / max(sum(layer.prunable for layer in self.layers), 1)

    def save_masks(self, path: str | os.PathLike[str]) -> None:
        """Write the masks, of consumers as ``--masks`` takes them, else of initializers."""
        save_masks(path, self.masks or self.weight_masks)

    def compiled(self, **options: Any) -> Result:
        """What :func:`ucpe_onnx.prune` makes of the trained model and its masks, weights as they are.

        Args:
            **options: of ``prune``.

        Raises:
            UcpeError: nothing can be cut away, or the result is not equal to the masked model.
        """
        result = prune(self.model, masks=dict(self.masks), compensate=False, **options)
        return replace(result, report=replace(result.report, source=f"{self.source}, trained"))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "source": self.source,
            "options": self.options.to_dict(),
            "epochs": [vars(epoch) for epoch in self.epochs],
            "sparsity": self.sparsity,
            "layers": [vars(layer) for layer in self.layers],
            "measure": self.measure,
            "before": self.before,
            "after": self.after,
            "left": dict(self.left),
        }


def train(
    model: ModelSource,
    data: Any,
    options: TrainOptions | None = None,
    *,
    labels: Any = None,
    validation: Any = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    **overrides: Any,
) -> Trained:
    """Prune a model while it is trained.

    Args:
        model: path of an ``.onnx`` file, a ModelProto, or an onnx-graphsurgeon Graph; not changed.
        data: training samples, see :func:`ucpe_onnx.train.samples.open_samples`.
        options: how to train; None for the defaults.
        labels: class ids of the samples, or a ``.npy`` file of them, if the data does not hold them.
        validation: samples to judge by, in the form of ``data``; None for every tenth sample of it, which are not
            trained on then.
        checkpoint: file to write after every epoch, and to go on from if it is there.
        progress: told how far it is.
        **overrides: fields of :class:`TrainOptions` that replace those of ``options``.

    Raises:
        UcpeError: one line that says what is wrong with the model, the data or an option.
    """
    chosen = replace(options or TrainOptions(), **overrides).checked()
    tell: Progress = progress or (lambda stage, share, epoch: None)
    tell("load", 0.0, None)
    source = open_source(model)
    specs = _open(input_specs(source.model))
    samples = open_samples(data, specs, _labels(labels))
    if validation is None:
        samples, judges = samples.split(HOLD_OUT)
    else:
        judges = open_samples(validation, specs)
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    network = Network(source.model, label=source.label)
    targets = find_targets(trace(source.model), network, chosen)
    trainer = Trainer(network, targets.layers, (samples, judges), chosen, tell)
    after = trainer.fit(None if checkpoint is None else Path(checkpoint), _identity(source, chosen))
    values = network.trained()
    return Trained(
        source=source.label,
        model=with_trained(_written_to(model, source, values), values),
        masks=targets.masks(trainer.masks),
        weight_masks={weight: trainer.masks[name].cpu().numpy() for name, weight in targets.weights.items()},
        options=chosen,
        epochs=tuple(trainer.epochs),
        layers=tuple(LayerSparsity(name, each.dropped, each.prunable) for name, each in trainer.sparsity.items()),
        before=trainer.before,
        after=after,
        measure=trainer.measure,
        left=targets.left,
    )


def _open(specs: Sequence[InputSpec]) -> list[InputSpec]:
    """The inputs with batch axes open: in torch a network may take more samples at once than in onnxruntime."""
    return [replace(spec, shape=(None, *spec.shape[1:])) if spec.shape else spec for spec in specs]


def _labels(given: Any) -> Array | None:
    """Labels that are not among the samples."""
    if given is None or isinstance(given, np.ndarray):
        return given
    path = Path(given)
    try:
        loaded = np.load(path, allow_pickle=False)
        return np.asarray(loaded[LABELS] if isinstance(loaded, np.lib.npyio.NpzFile) else loaded)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: holds no labels ({error}); write them with numpy.save") from error


def _identity(source: Source, options: TrainOptions) -> dict[str, Any]:
    """What a checkpoint has to agree with: all that decides how the training goes."""
    given = {name: value for name, value in options.to_dict().items() if name not in ("device", "threads", "patience")}
    return {"model": source.sha256, **given}


def _written_to(model: ModelSource, source: Source, values: Mapping[str, Array]) -> onnx.ModelProto:
    """The model as it was given; where weights lie in its local functions, with these expanded."""
    if isinstance(model, onnx.ModelProto):
        given = model
    else:
        given = gs.export_onnx(model) if isinstance(model, gs.Graph) else load_model(model)
    own = {tensor.name for tensor in given.graph.initializer}
    own |= {name for node in given.graph.node if node.op_type == "Constant" for name in node.output}
    return given if own.issuperset(values) else source.model
