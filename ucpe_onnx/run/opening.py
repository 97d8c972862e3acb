"""Open a run: load and check the input model and the samples, and analyse."""

from __future__ import annotations

from ucpe_onnx.analysis.trace import Trace, trace
from ucpe_onnx.errors import UsageError
from ucpe_onnx.model.offload import Offload
from ucpe_onnx.model.source import ModelSource, Source, open_source
from ucpe_onnx.options import Options
from ucpe_onnx.run.context import Run, top1
from ucpe_onnx.run.feeds import Feeds, prepare_feeds
from ucpe_onnx.run.stages import Stages
from ucpe_onnx.runtime.session import make_session
from ucpe_onnx.runtime.verify import verify
from ucpe_onnx.selection.criteria import check_weights
from ucpe_onnx.selection.select import matches


def opened(model: ModelSource, options: Options, offload: Offload, stages: Stages) -> Run:
    """Load and analyse.

    Args:
        model: path of an ``.onnx`` file, a ModelProto, or an onnx-graphsurgeon Graph.
        options: what to do.
        offload: keeps large weights.
        stages: announces and times.

    Raises:
        UcpeError: one line that says what is wrong with the model, the data or an option.
    """
    with stages("load"):
        source = open_source(model, offload)
        if source.mending is not None:  # what it declares is written again: onnxruntime has to bear it
            make_session(source.mending.undone(source.model), options.run_options(), where=source.label)
        feeds = prepare_feeds(source, options)
        _check_expansion(source, feeds, options)
        accuracy = top1(source.model, feeds, options)
    with stages("analyse"):
        traced = trace(source.model)
        check_weights(traced)
        _check_patterns(options, traced)
    return Run(source, traced, options, feeds, stages, offload, accuracy)


def _check_expansion(source: Source, feeds: Feeds, options: Options) -> None:
    """With its functions expanded, a model must compute what it computes as it is."""
    if source.original is not None:
        found = verify(source.model, source.original, feeds.for_verification(), options.run_options())
        found.raise_if_failed(f"{source.label}: with its functions expanded")


def _check_patterns(options: Options, traced: Trace) -> None:
    """A pattern that matches nothing is a typing error: going on would prune what the user wants to keep."""
    for flag, patterns in (("--ignore", options.ignore), ("--ratio-for", [p for p, _ in options.ratio_for])):
        for pattern in patterns:
            if not any(matches(name, pattern) for name in traced.consumers):
                raise UsageError(
                    f"{flag} {pattern!r} matches no consumer; `python -m ucpe_onnx.inspect MODEL` lists their names"
                )
