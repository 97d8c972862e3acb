"""What all stages of one run share: the input, its analysis, the options, the samples, and what is computed once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import onnx

from ucpe_onnx.activations.collector import collect
from ucpe_onnx.activations.statistics import Statistics
from ucpe_onnx.analysis.counts import ModelStats, model_stats
from ucpe_onnx.analysis.trace import Trace
from ucpe_onnx.budget.losses import PROBING
from ucpe_onnx.calibration import rates_for
from ucpe_onnx.errors import UsageError
from ucpe_onnx.model.offload import Offload
from ucpe_onnx.model.source import Source
from ucpe_onnx.options import Options
from ucpe_onnx.planning.make import Settings
from ucpe_onnx.planning.precision import precision_of
from ucpe_onnx.planning.rates import Rates
from ucpe_onnx.planning.selecting import selecting_readers
from ucpe_onnx.run.feeds import Feeds
from ucpe_onnx.run.stages import Stages
from ucpe_onnx.runtime.accuracy import top1_accuracy
from ucpe_onnx.runtime.latency import LatencyReport, measure
from ucpe_onnx.runtime.session import as_session
from ucpe_onnx.runtime.target import Target, target_for
from ucpe_onnx.samples.dataset import Dataset
from ucpe_onnx.selection.select import Selection

_HALF = 0.5
"""Of a consumer's channels: what it is expected to lose where a target decides."""


@dataclass(frozen=True)
class Run:
    """What all stages of one run share. It is never copied, so that what it has computed once stays.

    Attributes:
        source: the input model.
        traced: its analysis.
        options: what to do.
        feeds: what models are run on.
        stages: announces and times.
        offload: keeps large weights.
        accuracy: the input's, None without labels.
    """

    source: Source
    traced: Trace
    options: Options
    feeds: Feeds
    stages: Stages
    offload: Offload
    accuracy: float | None
    _statistics: dict[int, tuple[Dataset, Statistics]] = field(default_factory=dict, repr=False)

    @cached_property
    def counts(self) -> ModelStats:
        """The input model in numbers, with the size of its file."""
        return replace(model_stats(self.source.model, self.feeds.shapes()), bytes=self.source.size)

    @cached_property
    def target(self) -> Target:
        """What the model is laid out for."""
        return target_for(self.options.providers, self.options.opt_level, precision_of(self.traced))

    @cached_property
    def rates(self) -> Rates:
        """How fast the target's kernels are: defaults, or as measured here."""
        return rates_for(self.options.run_options(), precision_of(self.traced), calibrate=self.options.calibrate)

    @cached_property
    def offered(self) -> Trace:
        """The analysis, with what consumers may drop besides: channels that must stay, where selecting others pays.

        With a target it has to pay for half of a consumer's channels. Who is named by ``--ratio-for`` is asked for.
        """
        options = self.options
        if options.mode == "constrained" or options.masks is not None or options.plan is not None:
            return self.traced
        ratios = Selection(
            _HALF if options.ratio is None else options.ratio, ignore=options.ignore, ratio_for=options.ratio_for
        )
        gaining = selecting_readers(self.traced, self.target, self.rates, lambda reader: ratios.ratio_of(reader.name))
        named = {pattern for pattern, ratio in options.ratio_for if ratio > 0}
        return self.traced.offering(gaining | named)

    def settings(self, lowering: str, *, fill: bool) -> Settings:
        """How plans are made.

        Args:
            lowering: how consumers get their channels.
            fill: whether consumers use all that they read.
        """
        return Settings(
            target=self.target,
            rates=self.rates,
            lowering=lowering,
            fill=fill,
            seconds=self.options.solver_seconds,
            seed=self.options.seed,
            options=replace(self.options, lowering=lowering).recorded(),
            source_sha256=self.source.sha256,
        )

    @property
    def compensates(self) -> bool:
        """Whether weights are to be refitted: if that is asked for or there is data, and no plan brings its own."""
        if self.options.plan is not None:
            return False
        return self.feeds.dataset is not None if self.options.compensate is None else self.options.compensate

    @property
    def dataset(self) -> Dataset:
        """The user's samples.

        Raises:
            UsageError: there are none.
        """
        if self.feeds.dataset is None:
            raise UsageError(f"--criterion {self.options.criterion} needs samples: give them with --data")
        return self.feeds.dataset

    @cached_property
    def fitted_and_probing(self) -> tuple[Dataset, Dataset]:
        """The samples that statistics are collected on, and those that tell how sensitive the outputs are."""
        return self.dataset.apart(PROBING)

    @property
    def statistics(self) -> Statistics:
        """What the consumers read on all of the user's samples.

        Raises:
            UsageError: there are none.
        """
        return self.statistics_on(self.dataset)

    def statistics_on(self, dataset: Dataset) -> Statistics:
        """What the consumers of the input model read on samples, collected once for each set of these."""
        if id(dataset) not in self._statistics:
            self._statistics[id(dataset)] = dataset, self.collected(self.source.model, self.offered, dataset)
        return self._statistics[id(dataset)][1]

    def timed(self, models: Mapping[str, onnx.ModelProto], seconds: float, reloads: int) -> LatencyReport:
        """Latencies of models in turns with that of the ``input``.

        Args:
            models: by name.
            seconds: how long to measure.
            reloads: how often to load the models.
        """
        options = self.options
        return measure(
            {"input": self.source.model, **models},
            self.feeds.single,
            options.run_options(),
            baseline="input",
            seconds=seconds,
            limit=options.timing_limit,
            reloads=reloads,
            seed=options.seed,
            progress=lambda spent, whole: self.stages.tell("measure", min(spent / whole, 1.0)),
        )

    def collected(self, model: onnx.ModelProto, traced: Trace, dataset: Dataset) -> Statistics:
        """What the consumers of a model with the input's inputs read on samples."""
        with self.stages("collect"):
            return collect(
                model,
                traced,
                dataset,
                self.options.run_options(),
                ranks=self.options.criterion == "hrank",
                seed=self.options.seed,
                progress=lambda share: self.stages.tell("collect", share),
            )


def top1(model: onnx.ModelProto, feeds: Feeds, options: Options) -> float | None:
    """Top-1 accuracy on the user's data; None without labels."""
    if feeds.test is None or feeds.test.labels is None:
        return None
    return top1_accuracy(as_session(model, options.run_options()), feeds.test)
