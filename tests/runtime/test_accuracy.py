import numpy as np
import pytest

from tests.runtime.builders import FakeSession, giving, linear
from ucpe_onnx.errors import DataError
from ucpe_onnx.runtime.accuracy import output_agreement, predicted_classes, top1_accuracy
from ucpe_onnx.runtime.session import make_session
from ucpe_onnx.samples.dataset import load_data
from ucpe_onnx.samples.inputs import input_specs

CLASSIFIER = linear(np.eye(3, dtype=np.float32))
LABELS = np.array([0, 1, 2, 1, 0])


def dataset(labels=LABELS, batch="N", classes=(0, 1, 2, 1, 2)):
    arrays = {"x": np.eye(3, dtype=np.float32)[list(classes)]}
    if labels is not None:
        arrays["labels"] = labels
    return load_data(arrays, input_specs(linear(np.eye(3, dtype=np.float32), batch)))


@pytest.mark.parametrize("labels", [LABELS, LABELS[:, None], LABELS.astype(np.uint8)])
@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_top1_accuracy(labels, batch_size):
    assert top1_accuracy(make_session(CLASSIFIER), dataset(labels), batch_size) == pytest.approx(0.8)


@pytest.mark.parametrize("batch", [1, 2, 4, 8])
def test_fixed_batch_counts_every_sample_once(batch):
    session = make_session(linear(np.eye(3, dtype=np.float32), batch))
    assert predicted_classes(session, dataset(batch=batch)).tolist() == [0, 1, 2, 1, 2]
    assert top1_accuracy(session, dataset(batch=batch)) == pytest.approx(0.8)


def test_scores_are_the_first_output_that_can_hold_them():
    session = FakeSession(
        lambda feed: [
            np.int64([[1, 2]] * len(feed["x"])),
            [1],
            np.float32([3]),
            feed["x"][:, :, None, None],
            -feed["x"],
        ],
        ["ids", "list", "loss", "scores", "more"],
    )
    assert predicted_classes(session, dataset()).tolist() == [0, 1, 2, 1, 2]


def test_scores_may_have_axes_of_size_1():
    for shaped in (lambda x: x[:, None], lambda x: x[:, None, :, None]):
        session = FakeSession(lambda feed, shaped=shaped: [shaped(feed["x"])], ["scores"])
        assert predicted_classes(session, dataset()).tolist() == [0, 1, 2, 1, 2]


def test_model_without_class_scores():
    with pytest.raises(
        DataError, match=r"float output of shape \(5, classes\), the model gives y0 \(5, 3, 8, 8\); leave"
    ):
        top1_accuracy(giving(np.zeros((5, 3, 8, 8), np.float32)), dataset())


def test_labels_must_be_class_ids():
    with pytest.raises(DataError, match=r"the data: has no labels .*; add an array 'labels'"):
        top1_accuracy(make_session(CLASSIFIER), dataset(None))
    with pytest.raises(DataError, match=r"labels are int64 of shape \(5, 3\); give one integer class id per sample"):
        top1_accuracy(make_session(CLASSIFIER), dataset(np.eye(3, dtype=np.int64)[LABELS]))
    with pytest.raises(DataError, match="labels are float32"):
        top1_accuracy(make_session(CLASSIFIER), dataset(LABELS.astype(np.float32)))


@pytest.mark.parametrize(
    ("labels", "strange"), [((1, 2, 3, 2, 1), "sample 2 .* is 3"), ((0, 1, 2, 1, -1), "sample 4 .* is -1")]
)
def test_labels_must_be_classes_of_the_model(labels, strange):
    with pytest.raises(
        DataError, match=f"the label of {strange}, but the model knows classes 0 to 2; give labels that"
    ):
        top1_accuracy(make_session(CLASSIFIER), dataset(np.array(labels)))


def test_output_agreement_needs_no_labels():
    swapped = make_session(linear(np.eye(3, dtype=np.float32)[[1, 0, 2]]))
    assert output_agreement(swapped, make_session(CLASSIFIER), dataset(None)) == pytest.approx(0.4)
    assert output_agreement(swapped, swapped, dataset(None)) == 1
