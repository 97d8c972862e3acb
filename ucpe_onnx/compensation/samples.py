"""Which sample the entries of a tensor belong to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from ucpe_onnx.errors import DataError

Array = npt.NDArray[Any]


class SampleNumbers:
    """Numbers the samples of all feeds.

    Args:
        feeds: an array per input in each.
        real: how many samples each feed holds, less those that pad it; None if none does.
        source: where they come from, for messages.

    Attributes:
        count: how many there are.
    """

    def __init__(self, feeds: Sequence[Mapping[str, Array]], real: Sequence[int] | None, source: str) -> None:
        self._fed = [_batch(feed, 1 if real is None else real[index]) for index, feed in enumerate(feeds)]
        self._real = list(self._fed if real is None else real)
        self._starts = np.cumsum([0, *self._real])
        self._source = source
        self.count = sum(self._real)

    def numbers(self, feed: int, length: int) -> Array:
        """The number of the sample for each entry of a tensor's first axis, without those that come from padding.

        Where samples don't divide the axis, as after a Transpose, its entries count as samples. To a fit that is all
        the same: only how independent the held out rows are depends on it.

        Args:
            feed: index of the feed.
            length: of the axis.

        Returns:
            Shape (entries that are no padding,).
        """
        each, rest = divmod(length, self._fed[feed])
        if rest or not each:
            return np.asarray(self._starts[feed] + np.arange(length))
        return np.asarray(self._starts[feed] + np.repeat(np.arange(self._real[feed]), each))

    def check(self, what: str, value: Array, numbers: Array) -> None:
        """Refuse what is not finite.

        Args:
            what: the tensor's name, with what it is.
            value: its value, samples on the first axis.
            numbers: of the samples.

        Raises:
            DataError: names the tensor, the sample and the source.
        """
        finite = np.isfinite(value).reshape(len(value), -1).all(axis=1)
        if not finite.all():
            raise self._not_finite(what, int(numbers[np.argmin(finite)]))

    def check_inputs(self, feeds: Sequence[Mapping[str, Array]]) -> None:
        """Refuse inputs with NaN: behind an activation they may look like numbers again.

        Raises:
            DataError: names the input, the sample and the source.
        """
        for index, feed in enumerate(feeds):
            for name, value in feed.items():
                if isinstance(value, np.ndarray) and value.dtype.kind == "f" and np.isnan(value).any():
                    where = np.isnan(np.atleast_1d(value))
                    bad = int(np.argmax(where.reshape(len(where), -1).any(axis=1)))
                    numbers = self.numbers(index, len(where))
                    raise self._not_finite(f"input {name!r}", int(numbers[min(bad, len(numbers) - 1)]))

    def _not_finite(self, what: str, sample: int) -> DataError:
        return DataError(
            f"{what} is NaN or infinite on sample {sample} of {self._source} (counted from 0);"
            " leave that sample out, or scale the data as for training"
        )


def takes_nan(model: onnx.ModelProto) -> bool:
    """Whether a model looks for NaN itself, so that there may be some in its inputs."""
    return any(node.op_type in ("IsNaN", "Imputer") for node in model.graph.node)


def _batch(feed: Mapping[str, Array], otherwise: int) -> int:
    """The length of the first axis that all inputs share."""
    sizes = {len(value) if getattr(value, "ndim", 0) else -1 for value in feed.values()}
    return max(sizes.pop() if len(sizes) == 1 else otherwise, 1)
