"""The inputs that a run uses: to verify, to measure, to judge accuracy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from ucpe_onnx.errors import ModelError
from ucpe_onnx.model.source import Source
from ucpe_onnx.options import Options
from ucpe_onnx.runtime.branches import feeds_of_branches
from ucpe_onnx.runtime.other_sizes import feeds_of_other_sizes
from ucpe_onnx.runtime.random_feeds import find_feeds, random_feeds
from ucpe_onnx.runtime.session import Session, as_session, run
from ucpe_onnx.samples.dataset import Dataset, load_data
from ucpe_onnx.samples.inputs import Feed, InputSpec, input_specs

_SAMPLES = 64
"""Samples of the user's data that the verification runs on, besides random inputs."""

_BATCH = 32


@dataclass(frozen=True)
class Feeds:
    """What models are run on.

    Attributes:
        single: one feed that the input model was seen to run on, to measure latency with.
        random: more of its shapes, of others if it leaves axes open, and with values that choose other branches; the
            input model was seen to run on all of them.
        dataset: the user's data, if any.
        test: what to report accuracy on: the user's test data, or else the data, if any.
    """

    single: Feed
    random: tuple[Feed, ...]
    dataset: Dataset | None
    test: Dataset | None = None

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the single feed; sequences have none."""
        return {name: array.shape for name, array in self.single.items() if hasattr(array, "shape")}

    def for_verification(self) -> Iterator[Feed]:
        """The single feed, the random ones, then the user's data."""
        yield self.single
        yield from self.random
        if self.dataset is not None:
            batches = max(1, _SAMPLES // (self.dataset.batch or _BATCH))
            yield from islice(self.dataset.batches(_BATCH), batches)


def prepare_feeds(source: Source, options: Options) -> Feeds:
    """Read the user's data, or find a random feed that the input model runs on.

    Raises:
        DataError: the data can't be read or does not fit the inputs.
        ModelError: onnxruntime can't run the input model.
    """
    specs = input_specs(source.model)
    dataset = None if options.data is None else load_data(options.data, specs)
    test = dataset if options.test_data is None else load_data(options.test_data, specs)
    session = as_session(source.model, options.run_options(), where=source.label)
    if dataset is not None:
        single = next(dataset.batches(1))
        run(session, single, where=source.label)
    else:
        single = find_feeds(
            source.model, session=session, seed=options.seed, overrides=options.input_shapes, where=source.label
        )
    random = (
        _random_like(single, specs, session, options.seed + 1),
        _random_like(single, specs, session, options.seed + 2, images=True),
    )
    others = feeds_of_other_sizes(specs, single, session, options.seed + 3, options.input_shapes)
    turned = feeds_of_branches(source.model, specs, single, session)
    return Feeds(single, (*(feed for feed in random if feed is not None), *others, *turned), dataset, test)


def _random_like(
    single: Feed, specs: Sequence[InputSpec], session: Session, seed: int, *, images: bool = False
) -> Feed | None:
    """A random feed of the same shapes, normal or in [0, 1) as images are.

    None if the model does not run on random values (lengths, offsets ...).
    """
    if any(spec.dtype is None for spec in specs):
        return None
    shapes = {name: array.shape for name, array in single.items()}
    feed = random_feeds(specs, seed, shapes, int_limit=2)
    if images:
        feed = {name: np.abs(array) % 1 if array.dtype.kind == "f" else array for name, array in feed.items()}
    try:
        run(session, feed)
    except ModelError:
        return None
    return feed
