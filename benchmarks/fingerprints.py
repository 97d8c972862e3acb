"""What the compiler emits for every architecture, as hashes: equal before and after a change of structure.

    python -m benchmarks.fingerprints --write before.json     # then change what should change nothing
    python -m benchmarks.fingerprints --compare before.json   # exit code 1 if any file or plan differs

Each architecture is compiled in its small size with three options: the defaults, `mode="unconstrained", ratio=0.5`, and
random masks. The shipped network also goes through what needs samples. Nothing is measured, so that the results depend
on the code alone (and on the versions of onnx, onnxruntime and OR-Tools).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import ucpe_onnx
from models import ARCHITECTURES, DEEP, build

ROOT = Path(__file__).resolve().parents[1] / "models"

COMMON: dict[str, Any] = {"bench_seconds": 0.0, "seed": 0, "threads": 1, "solver_seconds": 600.0}
"""The solver stops when it has found the optimum, not when time is up."""

SAMPLES: dict[str, dict[str, Any]] = {
    "compensated": {},
    "constrained": {"mode": "constrained", "ratio": 0.5},
    "reconstruction": {"criterion": "reconstruction", "ratio": 0.4, "steps": 2},
    "target-macs": {"target_macs": 0.7},
    "target-params": {"target_params": 0.6, "sensitivity": True},
    "gather": {"lowering": "gather", "ratio": 0.5, "scope": "global"},
    "duplicate": {"lowering": "duplicate", "ratio": 0.5, "compensate": False},
}
"""Options for the network that ships with the repository, and samples."""


def runs(name: str) -> Iterator[tuple[str, ucpe_onnx.Result]]:
    """Every run of one architecture, or of `digits`, with the name of its options."""
    if name == "digits":
        data = {"data": str(ROOT / "digits_calib.npz"), "test_data": str(ROOT / "digits_test.npz")}
        for options, values in SAMPLES.items():
            yield options, ucpe_onnx.prune(str(ROOT / "digits.onnx"), **COMMON, **data, **values)
        return
    model = build(name, image=ARCHITECTURES[name].small if name in ARCHITECTURES else None)
    first = ucpe_onnx.prune(model, **COMMON)
    yield "defaults", first
    yield "half", ucpe_onnx.prune(model, mode="unconstrained", ratio=0.5, **COMMON)
    rng = np.random.default_rng(0)
    masks = {}
    for consumer, plan in first.plan.consumers.items():
        mask = rng.random(plan.channels) < rng.choice([0.25, 0.5, 0.75])
        mask[rng.integers(plan.channels)] = True
        masks[consumer] = mask
    yield "random masks", ucpe_onnx.prune(model, masks=masks, **COMMON)


def fingerprint(result: ucpe_onnx.Result) -> dict[str, str]:
    """Hashes of the emitted file, of the plan without its version, paths and times, and of the keys of the report."""
    plan = {key: value for key, value in result.plan.to_dict().items() if key not in ("tool_version", "source_sha256")}
    plan["options"] = {key: value for key, value in plan["options"].items() if key not in ("data", "test_data")}
    plan["segments"] = [{k: v for k, v in segment.items() if k != "seconds"} for segment in plan["segments"]]
    return {
        "model": sha256(emitted_bytes(result.model)),
        "plan": sha256(json.dumps(plan, sort_keys=True).encode()),
        "report": sha256(json.dumps(keys(result.report.to_dict()), sort_keys=True).encode()),
    }


def emitted_bytes(model: onnx.ModelProto) -> bytes:
    """The file that would be written."""
    return bytes(model.SerializeToString(deterministic=True))


def keys(value: Any) -> Any:
    """The structure of a JSON value: its keys, and the kinds of leaves."""
    if isinstance(value, dict):
        return {key: keys(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [keys(value[0])] if value else []
    return "number" if isinstance(value, (int, float)) and not isinstance(value, bool) else type(value).__name__


def sha256(data: bytes) -> str:
    """The first 32 digits of a SHA-256."""
    return hashlib.sha256(data).hexdigest()[:32]


def main() -> int:
    """Write or compare fingerprints; the exit code says whether they agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="architectures (default: all, and digits)")
    parser.add_argument("--write", type=Path, metavar="FILE.json")
    parser.add_argument("--compare", type=Path, metavar="FILE.json")
    args = parser.parse_args()
    known = json.loads(args.compare.read_text()) if args.compare else {}
    found: dict[str, dict[str, str]] = {}
    differing = 0
    for name in args.names or ["digits", *(n for n in ARCHITECTURES if n not in DEEP)]:
        for options, result in runs(name):
            key = f"{name}, {options}"
            found[key] = fingerprint(result)
            wrong = [part for part, value in found[key].items() if known and known.get(key, {}).get(part) != value]
            differing += bool(wrong)
            print(
                f"{key}: {'differs in ' + ' and '.join(wrong) if wrong else 'the same' if known else 'done'}",
                flush=True,
            )
    if args.write:
        args.write.write_text(json.dumps(found, indent=1) + "\n")
    if known:
        print(f"{len(found)} runs, {differing} differ")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
