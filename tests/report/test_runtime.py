"""The input and the emitted model in onnxruntime, side by side and segment by segment."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from rich.console import Console

from tests.builders import Net
from tests.report.accuracy_reports import with_sections, without
from ucpe_onnx import Result, prune
from ucpe_onnx.analysis.trace import Trace, trace
from ucpe_onnx.errors import ModelError
from ucpe_onnx.report.html import render_html
from ucpe_onnx.report.report import Report
from ucpe_onnx.report.runtime_words import counts_in_words, in_words
from ucpe_onnx.report.sections import Runtime
from ucpe_onnx.report.summary import print_summary
from ucpe_onnx.runtime.optimised import Finding, OptimisedGraph, read_optimised
from ucpe_onnx.runtime.optimised_pair import RuntimeComparison, attributed, compare_in_runtime
from ucpe_onnx.runtime.session import RunOptions
from ucpe_onnx.runtime.target import target_for

CPU = target_for(("CPUExecutionProvider",), "all")
SHAPES = {"x": (1, 3, 8, 8)}


def model() -> onnx.ModelProto:
    """Segment 1: four blocks of channels that two layers read; segment 2 their sum, 3 behind a channel shuffle."""
    net = Net()
    width = 4 * CPU.block
    a = net.op("Relu", net.conv(net.input("x", (1, 3, 8, 8)), width, 3, name="stem"))
    b = net.op("Add", net.conv(a, width, 3, name="left"), net.conv(a, width, name="right"))
    shuffled = net.reshape(
        net.op("Transpose", net.reshape(b, 1, 2, width // 2, 8, 8), perm=[0, 2, 1, 3, 4]), 1, width, 8, 8
    )
    return net.output(net.op("GlobalAveragePool", net.conv(shuffled, width, name="head"))).model()


@pytest.fixture(scope="module")
def traced() -> Trace:
    return trace(model())


@pytest.fixture(scope="module")
def result() -> Result:
    """Pruned with Gathers: both readers of segment 1 keep different halves of it."""
    width = 4 * CPU.block
    keep = {"left": np.arange(width) % 2 == 0, "right": np.arange(width) % 3 == 0}
    made = prune(model(), masks=keep, lowering="gather", bench_seconds=0)
    compared = compare_in_runtime(model(), made.model, RunOptions(), SHAPES, trace(model()))
    return replace(made, report=with_sections(made.report, Runtime(compared)))


def segment_of(traced: Trace, consumer: str) -> int:
    return traced.consumers[consumer].segment


def printed(report: Report) -> str:
    stream = io.StringIO()
    print_summary(report, Console(file=stream, width=200, markup=False, emoji=False, highlight=False))
    return stream.getvalue()


def test_findings_belong_to_segments(result, traced):
    runtime = result.report.runtime
    first = segment_of(traced, "left")
    assert segment_of(traced, "right") == first
    before, after = runtime.by_segment()[first]
    assert before == ()
    copies = [finding for finding in after if finding.kind == "copy"]
    assert sorted(finding.name for finding in copies) == ["left_select", "right_select"]
    if CPU.blocked:
        reorders = [finding for finding in after if finding.kind == "reorder"]
        assert sorted(finding.op for finding in reorders) == ["ReorderInput", "ReorderInput", "ReorderOutput"]
        assert after[0].kind == "reorder", "what costs most comes first"


def test_what_is_shuffled_belongs_to_what_it_was(result, traced):
    """The analysis follows a shuffle as a whole and knows nothing of the tensors within."""
    (shuffle,) = [f for f in result.report.runtime.before.of("copy") if f.op == "Transpose"]
    assert shuffle.segment == segment_of(traced, "head")


def test_tensors_that_only_the_emitted_model_has(traced):
    """They are called after the input model's; a name that merely begins alike is another."""
    known = next(str(tensor) for tensor, _ in traced.segments[segment_of(traced, "left")].axes)
    names = (f"{known}_piece_0", f"{known}:1/part", f"{known}0", "nothing", "")
    graph = OptimisedGraph(16, 1, 0, 0, 0, tuple(Finding("copy", "Gather", "n", tensor) for tensor in names))
    found = [finding.segment for finding in attributed(graph, traced).findings]
    assert found == [segment_of(traced, "left")] * 2 + [None] * 3


def test_one_line_for_the_terminal(result):
    line = next(line for line in printed(result.report).splitlines() if line.startswith("in onnxruntime"))
    assert "3 copies (1 before)" in line
    if CPU.blocked:
        assert line.startswith("in onnxruntime: 4 convolutions blocked; ") and "outside" not in line
    assert "in onnxruntime" not in printed(without(result.report, Runtime))


def graph(**counts: int) -> OptimisedGraph:
    kinds = [kind for kind in ("outside", "float", "reorder", "copy", "add", "activation") if kind in counts]
    findings = [Finding(kind, "Op", f"{kind}{i}", "", 4, "reason", 1) for kind in kinds for i in range(counts[kind])]
    numbers = [counts.get(name, 0) for name in ("block", "nodes", "blocked", "plain", "quantised")]
    return OptimisedGraph(*numbers, tuple(findings))


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        (graph(block=16, blocked=1), graph(block=16, blocked=1), "1 convolution blocked; nothing reordered or copied"),
        (
            graph(block=16, blocked=53, reorder=2),
            graph(block=16, blocked=52, plain=1, outside=1, reorder=3, copy=1, add=2),
            "52 convolutions blocked, 1 outside (0 before); 3 reorders (2 before), 1 copy (0 before), 2 Adds not fused"
            " (0 before)",
        ),
        (graph(plain=4, copy=2), graph(plain=4), "4 convolutions in the plain layout; 0 copies (2 before)"),
        (
            graph(block=16, quantised=4),
            graph(block=16, quantised=3, plain=1, float=1),
            "3 convolutions in int8, 0 convolutions blocked; 1 layer left in float (0 before)",
        ),
        (graph(block=16, copy=2), graph(block=16, copy=2), "2 copies"),
    ],
    ids=["nothing", "outside", "plain", "int8", "no convolutions"],
)
def test_the_line(before, after, line):
    assert in_words(RuntimeComparison(before, after)) == f"in onnxruntime: {line}"


def test_counts_of_a_segment_name_the_layout():
    after = (Finding("outside", "Conv", "a", ""), Finding("copy", "Gather", "b", ""))
    assert counts_in_words(((), after)) == [
        "1 convolution outside the blocked layout (0 before)",
        "1 copy (0 before)",
    ]


def test_json(result):
    data = json.loads(json.dumps(result.report.to_dict()))["runtime"]
    assert data["problem"] == "" and data["after"]["counts"]["copy"] == 3
    selections = [f for f in data["after"]["findings"] if f["name"] == "left_select"]
    assert [(f["kind"], f["bytes"]) for f in selections] == [("copy", 2 * CPU.block * 64 * 4)]
    assert without(result.report, Runtime).to_dict()["runtime"] is None


def test_page(result):
    page = render_html(result.report, result.plan)
    assert "optimised graph</h2>" in page and "left_select" in page
    body = page.partition('id="segment-1"')[2].partition('id="segment-')[0]
    assert "<b>In onnxruntime:</b>" in body and "2 copies (0 before)" in body and "right_select" in body
    assert "optimised graph" not in render_html(without(result.report, Runtime), result.plan)


def test_page_lists_a_part_of_what_is_much(result):
    many = with_sections(
        result.report, Runtime(RuntimeComparison(graph(block=16), graph(block=16, copy=900, outside=1)))
    )
    page = render_html(many, result.plan)
    assert "900 copies" in page and "copy39" in page and "copy40" not in page and "860 more nodes" in page
    body = page.partition('id="segment-1"')[2].partition('id="segment-')[0]
    assert "outside0" in body and "copy10" in body and "copy11" not in body


def test_page_escapes_names(result):
    hostile = replace(graph(block=16), findings=(Finding("copy", "<i>", "<b>n", "", None, "<u>why", 1),))
    page = render_html(with_sections(result.report, Runtime(RuntimeComparison(hostile, hostile))), result.plan)
    assert "<i>" not in page and "<b>n" not in page and "<u>why" not in page and "&lt;b&gt;n" in page


def test_a_provider_whose_graph_cannot_be_read(result, traced, monkeypatch):
    def refuse(*arguments: object) -> None:
        raise ModelError("net: unable to serialize <compiled> nodes")

    monkeypatch.setattr("ucpe_onnx.runtime.optimised_pair.read_optimised", refuse)
    compared = compare_in_runtime(model(), model(), RunOptions(), SHAPES, traced)
    assert compared.before is compared.after is None and compared.by_segment() == {}
    report = with_sections(result.report, Runtime(compared))
    assert "can't be looked at: net: unable to serialize <compiled> nodes" in printed(report)
    page = render_html(report, result.plan)
    assert "unable to serialize &lt;compiled&gt; nodes" in page
    assert json.loads(json.dumps(report.to_dict()))["runtime"]["after"] is None


def test_fields_are_plain_values():
    made = read_optimised(model())
    assert json.loads(json.dumps(made.to_dict()))["nodes"] == made.nodes > 0
