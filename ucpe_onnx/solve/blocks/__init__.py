"""The ordered partition of a segment's channels into blocks, and how every reader gets what it keeps."""

from ucpe_onnx.solve.blocks.evaluate import evaluate
from ucpe_onnx.solve.blocks.problem import (
    KINDS,
    Block,
    BlockProblem,
    BlockReader,
    BlockSolution,
    BlockTensor,
    Choice,
    Copy,
    Group,
    SlotClass,
    Table,
)
from ucpe_onnx.solve.blocks.solve import solve_blocks

__all__ = [
    "KINDS",
    "Block",
    "BlockProblem",
    "BlockReader",
    "BlockSolution",
    "BlockTensor",
    "Choice",
    "Copy",
    "Group",
    "SlotClass",
    "Table",
    "evaluate",
    "solve_blocks",
]
