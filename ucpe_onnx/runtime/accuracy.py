"""Accuracy of a classifier on labelled samples, and agreement of two classifiers on any samples."""

from __future__ import annotations

import numpy as np

from ucpe_onnx.errors import DataError
from ucpe_onnx.runtime.session import Session, run
from ucpe_onnx.samples.dataset import Dataset
from ucpe_onnx.samples.inputs import Array


def top1_accuracy(session: Session, dataset: Dataset, batch_size: int = 32) -> float:
    """Fraction of samples whose most likely class is their label.

    The classes are the last axis of the first float output of shape (samples, classes); axes of size 1 after it, as
    in (samples, classes, 1, 1), are ignored.

    Args:
        session: the classifier.
        dataset: labelled samples.
        batch_size: most samples in a run, if the model leaves its batch axis open.

    Raises:
        DataError: the dataset has no labels, none that are class ids or one that is no class of the model, or the model
            has no such output.
        ModelError: the model can't be run.
    """
    labels = _class_ids(dataset)
    predicted, classes = _predictions(session, dataset, batch_size)
    strange = (labels < 0) | (labels >= classes)
    if strange.any():
        sample = int(np.argmax(strange))
        raise DataError(
            f"{dataset.source}: the label of sample {sample} (counted from 0) is {labels[sample]}, but the model knows"
            f" classes 0 to {classes - 1}; give labels that count as the model's output does, or leave them out"
        )
    return float(np.mean(predicted == labels))


def output_agreement(session: Session, reference: Session, dataset: Dataset, batch_size: int = 32) -> float:
    """Fraction of samples of which two classifiers name the same most likely class; needs no labels.

    Args:
        session: one classifier.
        reference: the other.
        dataset: the samples.
        batch_size: most samples in a run, if the models leave their batch axis open.

    Raises:
        DataError: a model has no output of shape (samples, classes).
        ModelError: a model can't be run.
    """
    ours = predicted_classes(session, dataset, batch_size)
    theirs = predicted_classes(reference, dataset, batch_size)
    return float(np.mean(ours == theirs))


def predicted_classes(session: Session, dataset: Dataset, batch_size: int = 32) -> Array:
    """Most likely class of every sample, in the dataset's order.

    Raises:
        DataError: the model has no output of shape (samples, classes).
        ModelError: the model can't be run.
    """
    return _predictions(session, dataset, batch_size)[0]


def _predictions(session: Session, dataset: Dataset, batch_size: int) -> tuple[Array, int]:
    """The most likely class of every sample, and how many classes there are."""
    found, classes = [], 0
    for feed, real in dataset.counted_batches(batch_size):
        outputs = run(session, feed)
        fed = dataset.batch or real
        scores = next((scores for scores in map(_squeezed, outputs) if _is_scores(scores, fed)), None)
        if scores is None:
            names = [output.name for output in session.get_outputs()]
            shapes = ", ".join(f"{name} {np.shape(output)}" for name, output in zip(names, outputs, strict=True))
            raise DataError(
                f"{dataset.source}: top-1 accuracy needs a float output of shape ({fed}, classes), the model gives"
                f" {shapes}; leave labels out, or measure with a metric of your own"
            )
        found.append(scores.argmax(axis=-1)[:real])
        classes = scores.shape[-1]
    return np.concatenate(found), classes


def _class_ids(dataset: Dataset) -> Array:
    if dataset.labels is None:
        raise DataError(f"{dataset.source}: has no labels to measure accuracy with; add an array 'labels' of class ids")
    labels = dataset.labels.reshape(len(dataset.labels), -1)
    if labels.shape[1] != 1 or labels.dtype.kind not in "iu":
        raise DataError(
            f"{dataset.source}: labels are {labels.dtype} of shape {dataset.labels.shape};"
            " give one integer class id per sample (of one-hot labels, their argmax)"
        )
    return labels[:, 0]


def _squeezed(output: object) -> Array:
    """The output without axes of size 1 behind the samples; an empty array for what is no array."""
    if not isinstance(output, np.ndarray):
        return np.empty(0)
    if output.ndim > 2 and output.size and output[0].size == max(output.shape[1:]):
        return output.reshape(len(output), -1)
    return output


def _is_scores(output: Array, samples: int) -> bool:
    return output.ndim == 2 and output.shape[0] == samples and output.shape[1] > 1 and output.dtype.kind == "f"
