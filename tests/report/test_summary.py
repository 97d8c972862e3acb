"""The table at the end of a run, as it looks on a terminal of 80 columns."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from tests.models_small import branches, latency, wide
from tests.report.accuracy_reports import ACCOUNTS, COMPENSATION, with_sections
from ucpe_onnx import prune
from ucpe_onnx.report.report import Report
from ucpe_onnx.report.sections import Compensation, Warnings
from ucpe_onnx.report.summary import print_summary


@pytest.fixture(scope="module")
def report() -> Report:
    made = prune(wide(), ratio=0.5, mode="constrained", bench_seconds=0).report
    silent = tuple(section for section in made.sections if not isinstance(section, Warnings))
    return replace(made, sections=silent, source="some/where/far/away/net.onnx", latency=latency(0.8))


def printed(report: Report, width: int = 80, **options: bool) -> str:
    stream = io.StringIO()
    print_summary(report, Console(file=stream, width=width, markup=False, emoji=False, highlight=False), **options)
    return stream.getvalue()


def cells(text: str, first: str) -> list[str]:
    """The cells of the table row that begins with a word."""
    row = next(line for line in text.splitlines() if line.startswith(f"│ {first} "))
    return [cell.strip() for cell in row.strip("│").split("│")]


def test_the_numbers(report):
    text = printed(report)
    assert text.splitlines()[0].strip() == "net.onnx: constrained, 51% of the channels kept"
    before, after = report.before, report.after
    change = f"{(after.parameters - before.parameters) / before.parameters:+.1%}"
    assert cells(text, "parameters") == ["parameters", f"{before.parameters:,}", f"{after.parameters:,}", change]
    assert cells(text, "MACs")[1:3] == ["655,360", "196,608"]
    assert cells(text, "nodes")[1:] == ["8", "8", "+0"]
    assert cells(text, "memory")[1:] == ["0", "0", "none added"]
    assert cells(text, "latency")[1:] == ["1.000 ms", "0.800 ms", "x0.800 (0.790 to 0.810)"]
    assert "verified on 3 inputs: equal to the masked model" in text and "30 interleaved rounds" in text
    assert "top-1" not in text and "warning" not in text


def test_unknown_and_empty_numbers(report):
    text = printed(replace(report, before=replace(report.before, macs=None, parameters=0), latency=None))
    assert cells(text, "MACs") == ["MACs", "unknown", "196,608", ""]
    assert cells(text, "parameters")[3] == "" and "latency" not in text
    before, after = replace(report.before, macs=2_500_000_000, bytes=3 * 2**21), replace(report.after, bytes=2048)
    text = printed(replace(report, before=before, after=replace(after, macs=2_500_000)))
    assert cells(text, "MACs")[1:] == ["2.50 G", "2.5 M", "-99.9%"]
    assert cells(text, "file")[1:3] == ["6.00 MiB", "2.0 KiB"]


def test_what_was_done_for_accuracy(report):
    text = printed(with_sections(report, *ACCOUNTS), width=200)
    assert "target 0.7 of the input's latency: 0.708 reached in 2 looks, 1.2 points lost on samples held out" in text
    assert "compensated: 2 layers refitted to 256 samples, error of the outputs 0.47 -> 0.012" in text
    assert "shared was not refitted: its weight is read by others" in text
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("most sensitive"))
    assert [line.split()[1] for line in lines[start + 1 : start + 3]] == ["3,", "1,"], "the worst first"
    refused = replace(COMPENSATION, taken=False, note="not compensated: no better", layers=(), left={})
    text = printed(with_sections(report, Compensation(refused)), width=200)
    assert "not compensated: no better" in text and "refitted" not in text


def test_copies_are_named(report):
    after = replace(report.after, copies={**report.after.copies, "Gather": 2, "Slice": 1})
    assert cells(printed(replace(report, after=after)), "memory")[1:] == ["0", "3", "+2 Gather, +1 Slice"]


@pytest.mark.parametrize(
    ("mode", "after", "warning"),
    [
        ("constrained", 0.79, "warning: accuracy fell by 11.0 points; try a lower --ratio\n"),
        ("plan", 0.79, "warning: accuracy fell by 11.0 points\n"),
        ("constrained", 0.81, None),
        ("constrained", 0.95, None),
    ],
)
def test_a_large_loss_of_accuracy_is_a_warning(report, mode, after, warning):
    text = printed(replace(report, mode=mode, accuracy={"before": 0.9, "after": after}))
    assert cells(text, "top-1")[1:3] == ["90.0%", f"{after:.1%}"]
    assert (warning in text) if warning else ("warning" not in text)


def test_what_is_frozen_and_why(report):
    assert "frozen: 3 channels in 1 of 4 segments\n  graph input x: 3 channels\n" in printed(report)
    many = tuple(replace(report.segments[0], id=i, frozen_by={f"reason {i}": 1, "shared": 2}) for i in range(7))
    text = printed(replace(report, segments=many))
    assert "frozen: 21 channels in 7 of 7 segments\n  shared: 14 channels\n" in text
    assert text.count("  reason ") == 4 and "and 3 more reasons: python -m ucpe_onnx.inspect" in text
    assert "frozen" not in printed(replace(report, segments=report.segments[1:]))


def test_one_channel_in_one_segment(report):
    single = replace(report.segments[0], frozen=1)
    assert "frozen: 1 channel in 1 of 1 segment\n" in printed(replace(report, segments=(single,)))


def test_segments_fit_and_numbers_stay_whole(report):
    first = report.segments[1]
    long = replace(
        first,
        id=1234,
        slots=20480,
        emitted=10240,
        frozen=10000,
        producers=tuple(f"/backbone/stages.{i}/blocks.{i}/a_long_name/Conv" for i in range(12)),
        lowerings={"union": 12, "gather": 3, "slice": 10, "direct": 1},
        objective=108.0,
        bound=100.0,
        status="FEASIBLE",
    )
    text = printed(replace(report, segments=(first, long)), verbose=True)
    assert max(map(len, text.splitlines())) <= 80
    row = cells(text, "1234")
    assert row[:4] == ["1234", "20480", "10240", "10000"] and row[5] == "within 8%"
    assert row[6].startswith("12: /b") and row[6].endswith("…")
    assert all(part in text for part in ("12 union", "3 gather", "10 slice", "1 direct"))
    assert cells(text, "   1")[1:] == ["64", "32", "0", "2 direct", "optimal", "2: stem, right"]


def test_wide_terminals_show_names_whole(report):
    name = "/backbone/stages.3/blocks.11/a_long_name_that_goes_on/Conv"
    text = printed(replace(report, segments=(replace(report.segments[1], producers=(name,)),)), 160, verbose=True)
    assert name in text and "read by" in text and "read by" not in printed(report)


def test_names_are_no_markup():
    made = prune(branches(("[red]a", "[/b]", "[/]", ":x:")), bench_seconds=0).report
    text = printed(replace(made, source="dir/[bold].onnx"), verbose=True)
    assert "[bold].onnx: " in text and "[red]a" in text and "2: [/b], [/]" in text and ":x:" in text


def test_tells_why_fewer_channels_went_than_were_asked_for(report):
    assert "50% of the channels were to go, 20% went" in printed(replace(report, asked=0.5, kept=0.8), width=100)
    assert "were to go" not in printed(replace(report, asked=0.5, kept=0.5))
