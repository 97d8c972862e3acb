"""How good and how fast the block solver is on synthetic segments: `python -m benchmarks.blocks`.

`fixed` is the best layout of one block for each group with one kind for all readers, in predicted microseconds; the
other columns are shares of it: our objective, the bound.
"""

from __future__ import annotations

import argparse
from collections import Counter

import numpy as np

from tests.solve.block_instances import concat, dense_block, fixed_layouts, trunk
from ucpe_onnx.solve.blocks import BlockProblem, evaluate, solve_blocks

STAGES = ((4, 256, 56), (5, 512, 28), (7, 1024, 14), (4, 2048, 7))
SIZES = (64, 128, 32, 32)


def instances(seed: int) -> dict[str, BlockProblem]:
    def rng() -> np.random.Generator:
        return np.random.default_rng(seed)

    table = {}
    for drop in (0.5, 0.75):
        for readers, channels, side in STAGES:
            name = f"resnet50 stage, {readers} readers, {channels} at {side}², {drop:.2f}"
            table[name] = trunk(rng(), readers, channels, side, drop)
        table[f"basic blocks, 3 readers, 128 at 28², {drop:.2f}"] = trunk(rng(), 3, 128, 28, drop, kernel=3)
        table[f"one block, 2 readers, 256 at 56², {drop:.2f}"] = trunk(rng(), 2, 256, 56, drop)
        for readers in (3, 4):
            table[f"inception concat, {readers} readers, {drop:.2f}"] = concat(rng(), SIZES, readers, 28, drop)
        for layers, side in ((6, 56), (12, 28), (24, 14)):
            table[f"densenet121 block, {layers} layers, {drop:.2f}"] = dense_block(rng(), layers, 32, side, drop)
        table[f"a single reader, {drop:.2f}"] = trunk(rng(), 1, 512, 14, drop)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=10.0, help="time limit for each instance")
    parser.add_argument("--effort", type=float, default=1.0, help="for CP-SAT, by its own deterministic measure")
    parser.add_argument("--tolerance", type=float, default=0.0, help="relative gap that is good enough")
    parser.add_argument("--only", default="", help="instances whose name contains this")
    args = parser.parse_args()
    print(f"{'instance':46} classes     fixed   ours  bound  status   seconds  blocks  kinds")
    for name, problem in instances(args.seed).items():
        if args.only not in name:
            continue
        fixed = min(evaluate(problem, layout) for layout in fixed_layouts(problem))
        solution = solve_blocks(
            problem, seconds=args.seconds, effort=args.effort, tolerance=args.tolerance, seed=args.seed
        )
        kinds = Counter(choice.kind for choice in solution.choices)
        print(
            f"{name:46} {len(problem.classes):7} {fixed:9.1f}",
            f"{solution.objective / fixed:6.3f} {solution.bound / fixed:6.3f}",
            f"{solution.status:8} {solution.seconds:8.3f}",
            f"{sum(map(len, solution.groups)):7}  " + ", ".join(f"{count} {kind}" for kind, count in kinds.items()),
        )


if __name__ == "__main__":
    main()
