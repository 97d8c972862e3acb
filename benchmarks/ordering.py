"""How good and how fast channel ordering is on synthetic segments: `python -m benchmarks.ordering`.

Shares are of the total weight of all readers; `path` is the published heuristic.
"""

from __future__ import annotations

import argparse

import numpy as np

from tests.solve.instances import (
    circular_arcs,
    correlated_masks,
    dense_block,
    interval_family,
    noisy_intervals,
    one_group,
    random_masks,
)
from ucpe_onnx.solve import OrderingProblem, path_ordering, solve_ordering

MASKS = {
    "random .50": random_masks(0.5),
    "random .25": random_masks(0.25),
    "norm-like .50": correlated_masks(0.5, 0.3),
    "norm-like .25": correlated_masks(0.25, 0.3),
    "near-equal .50": correlated_masks(0.5, 0.03),
}


def instances(seed: int) -> dict[str, OrderingProblem]:
    def rng() -> np.random.Generator:
        return np.random.default_rng(seed)

    table = {}
    for masks, make in MASKS.items():
        table[f"resnet50 stage, 4 readers, {masks}"] = one_group(rng(), 4, 2048, make)
        table[f"resnet50 stage, 7 readers, {masks}"] = one_group(rng(), 7, 2048, make)
        table[f"densenet121 block, {masks}"] = dense_block(rng(), 24, 32, make)
        table[f"efficientnetv2 stage, {masks}"] = one_group(rng(), 16, 256, make)
        table[f"26 readers of one group, {masks}"] = one_group(rng(), 26, 512, make)
    for readers in (3, 4, 6, 8, 12):
        table[f"intervals, {readers} readers"] = interval_family(rng(), readers, [512])
        table[f"intervals, {readers} readers, 16 groups"] = interval_family(rng(), readers, [32] * 16)
    for flips in (1, 3):
        table[f"intervals, up to {flips} slots flipped"] = noisy_intervals(rng(), 16, 256, flips)
        table[f"intervals of 26, up to {flips} slots flipped"] = noisy_intervals(rng(), 26, 64, flips)
    table["arcs of a circle, 12"] = circular_arcs(rng(), 12, 512)
    table["arcs of a circle, 26"] = circular_arcs(rng(), 26, 512)
    return table


def classes(problem: OrderingProblem) -> int:
    """Slots of one group kept by the same readers count once."""
    return len(
        {
            (group, tuple(slot in reader.keep for reader in problem.readers))
            for group, slots in enumerate(problem.groups)
            for slot in slots
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=10.0, help="time limit for each instance")
    parser.add_argument("--only", default="", help="instances whose name contains this")
    args = parser.parse_args()
    print(f"{'instance':46} readers slots classes   path   ours  bound  status    path s     s")
    for name, problem in instances(args.seed).items():
        if args.only not in name:
            continue
        total = sum(reader.weight for reader in problem.readers)
        path, ours = path_ordering(problem), solve_ordering(problem, seconds=args.seconds, seed=args.seed)
        slots = sum(map(len, problem.groups))
        shares = [path.objective / total, ours.objective / total, ours.bound / total]
        print(
            f"{name:46} {len(problem.readers):7} {slots:5} {classes(problem):7}",
            *(f"{share:6.3f}" for share in shares),
            f" {ours.status:8} {path.seconds:7.3f} {ours.seconds:6.3f}",
        )


if __name__ == "__main__":
    main()
