"""Whether an analysis tells why channels stay: what the listing and the reports then add up."""

from __future__ import annotations

from ucpe_onnx.analysis.trace import Trace

_NO_OPERATOR = ("graph input ", "graph output ", "tensor ", "sparse initializer ", "no consumer with a constant weight")
"""How reasons begin that are no operator's."""


def assert_explained(traced: Trace) -> None:
    """Every frozen slot counts under one reason, and every reason names an operator, or says why none is to blame."""
    places = {f" at {node.name}" for node in traced.graph.nodes}
    for segment in traced.segments:
        assert sum(segment.frozen_by.values()) == segment.frozen.sum(), segment.frozen_by
        for reason, count in segment.frozen_by.items():
            named = any(place in reason for place in places)
            assert named or reason.startswith(_NO_OPERATOR), reason
            assert count >= 0
