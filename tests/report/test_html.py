"""The HTML report: well-formed, self-contained, escaped, and small."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from tests.report.accuracy_reports import ACCOUNTS, COMPENSATION
from ucpe_onnx.analysis.counts import COPIES, ModelStats
from ucpe_onnx.plan import ConsumerPlan, Plan, SegmentPlan
from ucpe_onnx.report import html_text, svg
from ucpe_onnx.report.html import render_html
from ucpe_onnx.report.html_segments import _states
from ucpe_onnx.report.report import Report, SegmentReport, kept_share
from ucpe_onnx.report.sections import Compensation
from ucpe_onnx.runtime.compare import Difference
from ucpe_onnx.runtime.latency import CandidateLatency, LatencyReport
from ucpe_onnx.runtime.verify import OutputCheck, Verification

HOSTILE = '</code><script>alert("1")</script>\'&<!--'


def consumer(segment: int, slots: list[int], keep: list[int], read: list[int]) -> ConsumerPlan:
    return ConsumerPlan(len(slots), tuple(keep), tuple(read), segment, tuple(slots))


def segment_plan(number: int, order: list[int], kinds: dict[str, str], **solved: Any) -> SegmentPlan:
    return SegmentPlan(number, tuple(order), (tuple(order),), kinds, **solved)


def small_plan() -> Plan:
    """A segment with two readers and one with a single reader."""
    return Plan(
        source_sha256="ab" * 32,
        tool_version="9.8.7",
        options={"ratio": 0.5, "providers": ["CPUExecutionProvider"], "masks": None},
        consumers={
            "conv_a": consumer(0, [0, 1, 2, 3], [0, 1], [1, 0]),
            "conv_b": consumer(0, [0, 1, 2, 3], [0, 2], [2, 1, 0]),
            "gemm": consumer(1, [0, 1], [0, 1], [0, 1]),
        },
        segments=(
            segment_plan(0, [2, 1, 0], {"conv_a": "slice", "conv_b": "union"}, objective=25.0, bound=12.5),
            segment_plan(1, [0, 1], {"gemm": "direct"}),
        ),
    )


def segment_reports(plan: Plan, reasons: tuple[str, ...] = ()) -> tuple[SegmentReport, ...]:
    return tuple(
        SegmentReport(
            id=s.id,
            producers=(f"producer_{s.id}",),
            consumers=tuple(s.lowerings),
            slots=max((max(plan.consumers[name].slots) + 1 for name in s.lowerings), default=len(s.order)),
            emitted=len(s.order),
            frozen=len(reasons),
            frozen_by=dict.fromkeys(reasons, 1),
            lowerings=Counter(s.lowerings.values()),
            objective=s.objective,
            bound=s.bound,
            status=s.status,
        )
        for s in plan.segments
    )


def report_of(plan: Plan, **changed: Any) -> Report:
    copies = dict.fromkeys(COPIES, 0)
    report = Report(
        source="/models/net.onnx",
        mode="unconstrained",
        layout="auto",
        before=ModelStats(271_594, 40_800_000, 2**21, 52, copies),
        after=ModelStats(126_298, 26_700_000, 2**20, 54, {**copies, "Slice": 2}),
        kept=kept_share(plan),
        segments=segment_reports(plan, ("graph input x",)),
        verification=Verification((OutputCheck("logits", Difference(3.1e-6, 7.4e-4), 2),), 5),
        latency=latency(0.732, 0.725, 0.737),
        accuracy={"before": 0.915, "after": 0.88},
        seconds={"load": 0.25, "measure": 3.5},
    )
    return replace(report, **changed)


def latency(ratio: float, low: float, high: float) -> LatencyReport:
    entries = {
        "input": CandidateLatency(0.422, 0.5, 0.6, 1.0, 1.0, 1.0),
        "output": CandidateLatency(0.422 * ratio, 0.4, 0.5, ratio, low, high),
    }
    return LatencyReport("input", entries, 75, 2, 1.0)


class Page(HTMLParser):
    """Checks that tags balance, and collects text, tags and addresses."""

    VOID = frozenset({"meta", "br", "hr", "link", "img"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open}"
        self.open.pop()

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"unexpected comment {data!r}")

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


def render(plan: Plan, **changed: Any) -> tuple[str, Page]:
    page = render_html(report_of(plan, **changed), plan)
    return page, Page(page)


def open_segments(page: Page) -> list[str]:
    """Segments whose details are unfolded from the start."""
    following = zip(page.attributes, page.attributes[1:], strict=False)
    return [f"{value} open" for (_, value), (key, _) in following if key == "open"]


def test_the_key_numbers_are_there() -> None:
    _, page = render(small_plan())
    for number in ("×0.732", "0.725 to 0.737", "0.422 ms → 0.309 ms", "1.37 times as fast", "75 interleaved rounds"):
        assert number in page.text
    for number in ("−50.0%", "2.00 MiB → 1.00 MiB", "271.6 k", "126.3 k", "−53.5%", "40.8 M", "26.7 M", "−34.6%"):
        assert number in page.text
    for number in ("verified", "3.1e-06", "7.4e-04", "88.0%", "was 91.5%", "−3.5 points", "+2 Slice"):
        assert number in page.text


def test_options_and_versions_are_there() -> None:
    _, page = render(small_plan())
    for text in ("9.8.7", "ab" * 32, "/models/net.onnx", '["CPUExecutionProvider"]', "ratio", "null", "load 250 ms"):
        assert text in page.text


def test_segments_show_readers_lowerings_order_and_reasons() -> None:
    page, parsed = render(small_plan())
    for text in (
        "4 → 3",
        "conv_a",
        "slice",
        "union",
        "2 of 4 + 1 zero",
        "none takes less than 12",
        "graph input x",
    ):
        assert text in parsed.text
    assert 'd="M1 .5h2"' in page  # conv_a keeps slots 1 and 0, emitted second and third
    assert 'd="M0 .5h1m1 0h1"' in page  # conv_b keeps slots 2 and 0


def test_what_was_done_for_accuracy() -> None:
    _, page = render(small_plan(), sections=ACCOUNTS)
    for text in ("Target 0.7 of the input's latency: 0.708 reached in 2 looks", "1.2 points lost", "0.660", "0.750"):
        assert text in page.text
    for text in ("256 samples", "0.47 with zeros alone, 0.012 with refitted weights", "a<b", "weights stay", "others"):
        assert text in page.text
    assert "25.0% gone" in page.text and "0.75" in page.text and "(-5.0)" in page.text
    _, page = render(
        small_plan(),
        sections=(Compensation(replace(COMPENSATION, plain=None, compensated=None, taken=False, note="not so: why")),),
    )
    assert "Not so: why" in page.text and "zeros alone" not in page.text
    _, page = render(small_plan())
    assert not {"Budget", "Compensation", "Sensitivity"} & set(page.text.split())


def test_nothing_is_loaded_and_no_script_runs() -> None:
    page, parsed = render(small_plan())
    assert not parsed.tags.keys() & {"script", "link", "img", "iframe", "object"}
    addresses = [value for key, value in parsed.attributes if key in ("href", "src")]
    assert addresses
    assert all(value and value.startswith("#segment-") for value in addresses)
    assert "http:" not in page
    assert "https:" not in page
    assert "prefers-color-scheme: dark" in page


def test_only_segments_worth_a_look_are_open() -> None:
    plan = small_plan()
    first, second = segment_reports(plan)
    unread = replace(second, consumers=(), lowerings={})
    assert "segment-0 open" in open_segments(render(plan, segments=(first, second))[1])
    assert open_segments(render(plan, segments=(replace(first, lowerings={"direct": 2}), unread))[1]) == []


def test_links_lead_to_segments() -> None:
    _, page = render(small_plan())
    ids = {value for key, value in page.attributes if key == "id"}
    assert {value[1:] for key, value in page.attributes if key == "href" and value} <= ids


@pytest.mark.parametrize("text", [HOSTILE, '" onmouseover="alert(1)', "\ud800", "\x00", "名前/変換" * 20, "a" * 10_000])
def test_hostile_names_stay_text(text: str) -> None:
    plan = small_plan()
    kinds = {text: "slice", "conv_b": text}
    plan = replace(
        plan,
        tool_version=text,
        options={text: text, "list": [text]},
        consumers={text: plan.consumers["conv_a"], **plan.consumers},
        segments=(replace(plan.segments[0], lowerings=kinds, status=text), plan.segments[1]),
    )
    segments = tuple(replace(s, producers=(text, text), frozen_by={text: 1}) for s in segment_reports(plan, ("x",)))
    checks = Verification((OutputCheck(text, Difference(float("inf"), 0.0, text), 0),), 1)
    page, parsed = render(plan, segments=segments, source=text, mode=text, verification=checks, seconds={text: 1.0})
    assert not parsed.tags["script"]
    assert not [key for key, _ in parsed.attributes if key.startswith("on")]
    assert "<script" not in page
    page.encode()
    if text == HOSTILE:
        assert text in parsed.text


def test_a_page_without_latency_and_accuracy() -> None:
    _, page = render(small_plan(), latency=None, accuracy=None)
    assert page.text.count("not measured") == 2
    assert "interval" not in page.text


def test_unknown_multiply_adds_and_an_empty_model() -> None:
    empty = ModelStats(0, None, 0, 0, dict.fromkeys(COPIES, 0))
    plan = replace(small_plan(), consumers={}, segments=(), options={})
    _, page = render(plan, before=empty, after=empty, segments=(), seconds={})
    assert "unknown" in page.text
    assert "Nothing is frozen" in page.text


@pytest.mark.parametrize(
    ("measured", "word"),
    [((0.9, 0.8, 0.99), "faster"), ((1.0, 0.98, 1.02), "no proven difference"), ((1.2, 1.1, 1.3), "slower")],
)
def test_the_verdict_on_latency(measured: tuple[float, float, float], word: str) -> None:
    _, page = render(small_plan(), latency=latency(*measured))
    assert word in page.text
    assert ("--allow-slower" in page.text) == (word != "faster")


def test_reasons_that_differ_in_the_node_alone_are_one_row() -> None:
    plan = small_plan()
    first, second = segment_reports(plan, ("x",))
    first = replace(
        first, frozen_by={"merged by Reshape at /a": 1, "merged by Reshape at /b": 1, "graph input x": 0}, frozen=2
    )
    second = replace(second, frozen_by={"merged by Reshape at /c": 1}, frozen=1)
    _, parsed = render(plan, segments=(first, second))
    assert "merged by Reshape, at 3 nodes/a, /b, /c0, 13" in parsed.text  # segments 0 and 1, 3 channels
    assert "3 channels of 6 had to stay" in parsed.text
    many = replace(first, frozen_by={f"reason {i}": 1 for i in range(40)})
    assert "29 more reasons" in render(plan, segments=(many, second))[1].text


def test_groups_and_segments_without_producers_or_readers() -> None:
    plan = small_plan()
    parts = replace(plan.segments[0], blocks=((2,), (1, 0)), objective=0.0, bound=0.0)
    plan = replace(plan, segments=(parts, plan.segments[1]))
    first, second = segment_reports(plan)
    second = replace(second, producers=(), consumers=(), lowerings={}, frozen=2, frozen_by={"graph input x": 2})
    page, parsed = render(plan, segments=(first, second))
    assert "2 groups whose places are fixed" in parsed.text
    assert "Made by: graph input" in parsed.text
    assert "No layer with a constant weight reads" in parsed.text
    assert 'class="even" d="M0 .5h1"' in page
    assert 'class="odd" d="M1 .5h2"' in page


def test_a_failed_verification_says_so() -> None:
    checks = Verification((OutputCheck("y", Difference(float("inf"), 0.0, "has NaN"), 0),), 1)
    _, page = render(small_plan(), verification=checks)
    assert "failed" in page.text
    assert "has NaN" in page.text
    assert "verified" not in page.text


def test_states_of_emitted_slots() -> None:
    # Slots 0 to 3 are emitted as 3, 1, 0; the consumer sees 0, 1, 2 twice each and keeps one place of slot 1.
    seen = consumer(0, [0, 1, 2, 0, 1, 2], [4], [1, 4, 0, 3])
    assert _states(seen, np.array([3, 1, 0])).tolist() == [0, 3, 2]
    assert _states(replace(seen, read=(1, 4)), np.array([3, 1, 0])).tolist() == [0, 3, 1]


def test_runs() -> None:
    assert svg.runs_of(np.array([3, 3, 1, 3]), 3) == [(0, 2), (3, 1)]
    assert svg.runs_of(np.array([], dtype=np.int64), 3) == []
    assert 'd="M0 .5h2m1 0h1"' in svg.strip("strip", 4, [("kept", [(0, 2), (3, 1)])], "")


@pytest.mark.parametrize(
    "values", [(1.0, 1.0, 1.0), (0.001, 0.0005, 0.002), (250.0, 90.0, 900.0), (0.999, 0.998, 1.001)]
)
def test_the_interval_stays_on_its_axis(values: tuple[float, float, float]) -> None:
    drawn = svg.interval(*values, "warn")
    places = [float(part.split("%")[0]) for part in drawn.replace("cx=", "x=").split(' x="')[1:] if "%" in part[:8]]
    assert places
    assert all(0 <= place <= 100 for place in places)
    assert drawn.count('<text class="tick"') >= 3


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "unknown"),
        (9_999, "9,999"),
        (126_298, "126.3 k"),
        (8_062_504, "8.063 M"),
        (2.83e9, "2.83 G"),
        (999_999, "1,000 k"),
    ],
)
def test_counts(value: int | None, text: str) -> None:
    assert html_text.count(value) == text


def test_numbers_for_reading() -> None:
    assert html_text.change(200, 100) == "−50.0%"
    assert html_text.change(100, 100) == "0.0%"
    assert html_text.change(0, 5) == html_text.change(5, None) == ""
    assert html_text.size(900) == "900 bytes"
    assert html_text.size(2**19, like=2**20) == "0.50 MiB"
    assert html_text.milliseconds(154.06) == "154.1 ms"
    assert html_text.seconds(0.0031) == "3.1 ms"


def test_names_keep_their_end() -> None:
    shown = html_text.name("/features/denseblock1/denselayer1/conv1/Conv", 20)
    assert shown.endswith("…denselayer1/conv1/Conv</code>"[-22:])
    assert 'title="/features/denseblock1/denselayer1/conv1/Conv"' in shown


def large_plan(segments: int, readers: int, slots: int) -> Plan:
    """The worst there is: random masks, whose runs are short."""
    random = np.random.default_rng(0)
    consumers, plans = {}, []
    everything = list(range(slots))
    for number in range(segments):
        names = [f"/model/stage_{number}/a/rather/long/name/of/the/path/conv_{i}/Conv" for i in range(readers)]
        for reader in names:
            keep = np.flatnonzero(random.random(slots) < 0.5).tolist()
            consumers[reader] = consumer(number, everything, keep, everything)
        plans.append(segment_plan(number, everything, dict.fromkeys(names, "union"), objective=2.0, bound=1.0))
    return Plan("00", "1", {}, consumers, tuple(plans))


@pytest.mark.parametrize(
    ("segments", "readers", "slots"), [(60, 6, 2048), (1500, 1, 64), (3, 300, 512), (400, 4, 2048)]
)
def test_a_large_plan_makes_a_page_of_bounded_size(segments: int, readers: int, slots: int) -> None:
    plan = large_plan(segments, readers, slots)
    page, parsed = render(plan)
    assert len(page.encode()) < 2_000_000
    assert parsed.tags["path"] > 100
    assert any(text in parsed.text for text in ("Not drawn", "more segments", "more readers"))


def test_few_segments_of_many_equal_columns_weigh_little() -> None:
    plan = large_plan(1, 20, 4096)
    kept = tuple(range(1024))
    plan = replace(plan, consumers={name: replace(c, keep=kept) for name, c in plan.consumers.items()})
    assert len(render(plan)[0]) < 40_000
