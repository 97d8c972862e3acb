"""Graphs with shapes that are computed as the model runs, for the tests of shape inference."""

from __future__ import annotations

import re

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

from ucpe_onnx.analysis.graph import Shape

INPUTS = {
    "x": "float[n, 6, h, 4] x",
    "v": "float[n, 7] v",
    "target": "int64[rank] target",
    "flag": "bool flag",
}
WEIGHTS = {"filters": (8, 6, 3, 3), "filters8": (8, 8, 3, 3), "matrix": (8, 3)}


def parse(body: str, opset: int = 17, **inputs: str) -> onnx.ModelProto:
    """A model in ONNX's text syntax, with the inputs and weights that it reads; it gives out every tensor it makes."""
    words = set(re.findall(r"\w+", body))
    declared = ", ".join(text for name, text in (INPUTS | inputs).items() if name in words)
    head = f'<ir_version: 8, opset_import: ["": {opset}, "com.microsoft": 1]>'
    model = onnx.parser.parse_model(f"{head} net ({declared}) => () {{ {body} }}")
    random = np.random.default_rng(0)
    for name, shape in WEIGHTS.items():
        if name in words:
            model.graph.initializer.append(numpy_helper.from_array(random.random(shape).astype(np.float32), name))
    return exposed(model)


def exposed(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with every tensor as an output."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    known = {value.name for value in model.graph.output}
    made = [name for node in model.graph.node for name in node.output if name and name not in known]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
    return copy


CASES: dict[str, tuple[str, dict[str, Shape]]] = {
    "flattened with the batch read from the shape": (
        """zero = Constant <value = int64 {0}> ()  axes = Constant <value = int64[1] {0}> ()
        rest = Constant <value = int64[1] {-1}> ()  pooled = GlobalAveragePool (x)  s = Shape (pooled)
        g = Gather <axis = 0> (s, zero)  b = Unsqueeze (g, axes)  t = Concat <axis = 0> (b, rest)
        y = Reshape (pooled, t)""",
        {"t": (2,), "y": ("n", 6)},
    ),
    "channels multiplied together": (
        """i = Constant <value = int64[2] {1, 3}> ()  b = Constant <value = int64[2] {0, 2}> ()  s = Shape (x)
        c = Gather (s, i)  m = ReduceProd <keepdims = 1> (c)  nh = Gather (s, b)  t = Concat <axis = 0> (nh, m)
        xt = Transpose <perm = [0, 2, 1, 3]> (x)  y = Reshape (xt, t)""",
        {"y": ("n", "h", 24)},
    ),
    "size computed in floating point": (
        """two = Constant <value = int64[1] {2}> ()  four = Constant <value = int64[1] {4}> ()
        zero = Constant <value = int64[1] {0}> ()  three = Constant <value = int64[1] {3}> ()
        factor = Constant <value = float[1] {1.6}> ()  s = Shape (x)  head = Slice (s, zero, three)
        w = Slice (s, three, four)  f = Cast <to = 1> (w)  g = Mul (f, factor)  r = Floor (g)  i = Cast <to = 7> (r)
        t = Concat <axis = 0> (head, i)  y = Resize <mode = "nearest"> (x, , , t)""",
        {"y": ("n", 6, "h", 6)},
    ),
    "scales that keep some axes": (
        """k = Constant <value = float[4] {1.0, 1.0, 2.0, 1.3}> ()  y = Resize <mode = "nearest"> (x, , k)""",
        {"y": ("n", 6, None, 5)},
    ),
    "padding reversed in pairs": (
        """p = Constant <value = int64[4] {1, 2, 3, 0}> ()  s = Shape (x)  rank = Size (s)
        r2 = Constant <value = int64 {2}> ()  width = Mul (rank, r2)  have = Size (p)  more = Sub (width, have)
        axis = Constant <value = int64[1] {0}> ()  count = Unsqueeze (more, axis)
        zeros = ConstantOfShape <value = int64[1] {0}> (count)  all = Concat <axis = 0> (p, zeros)
        pairs = Constant <value = int64[2] {-1, 2}> ()  m = Reshape (all, pairs)
        start = Constant <value = int64[1] {-1}> ()  end = Constant <value = int64[1] {-9223372036854775807}> ()
        back = Slice (m, start, end, axis, start)  mt = Transpose (back)
        pads = Reshape (mt, start)  y = Pad (x, pads)""",
        {"pads": (8,), "y": ("n", 6, None, 7)},
    ),
    "expanded to a shape with -1 for what stays": (
        """t = Constant <value = int64[3] {-1, 5, -1}> ()  one = Constant <value = int64[1] {1}> ()
        a = Unsqueeze (v, one)  s = Shape (a)  minus = Constant <value = int64[1] {-1}> ()  e = Equal (t, minus)
        w = Where (e, s, t)  y = Expand (a, w)  e2 = Equal (s, minus)  w2 = Where (e2, t, s)  y2 = Expand (a, w2)""",
        {"y": ("n", 5, 7), "y2": ("n", 1, 7)},
    ),
    "broadcast against lengths": (
        """one = Constant <value = float[1, 6, 1, 1] {1, 2, 3, 4, 5, 6}> ()  u = GlobalMaxPool (x)  y = Mul (x, u)
        z = Add (one, u)  c = Constant <value = int64[4] {1, 6, 8, 1}> ()  e = Expand (one, c)  w = Add (x, e)""",
        {"y": ("n", 6, "h", 4), "z": ("n", 6, 1, 1), "w": ("n", 6, 8, 4)},
    ),
    "behind a tensor of unknown rank": (
        """r = Reshape (x, target)  c = Conv <pads = [1, 1, 1, 1]> (r, filters)
        k = Concat <axis = 1> (x, r)  p = MaxPool <kernel_shape = [2, 2]> (r)  a = GlobalAveragePool (c)
        f = Flatten (a)  q = Gemm (f, matrix)""",
        {
            "c": (None, 8, None, None),
            "k": ("n", None, "h", 4),
            "p": (None, None, None, None),
            "f": (None, 8),
            "q": (None, 3),
        },
    ),
    "onnxruntime's own operators": (
        """s = com.microsoft.FusedConv <activation = "Relu", pads = [1, 1, 1, 1]> (x, filters)
        g = com.microsoft.Gelu (s)  m = com.microsoft.FusedMatMul <transB = 1> (x, x)
        c = Conv <strides = [2, 2]> (g, filters8)  d = Conv (g, filters8)""",
        {"g": ("n", 8, "h", 4), "m": ("n", 6, "h", "h"), "c": ("n", 8, None, 1), "d": ("n", 8, None, 2)},
    ),
    "a branch that the rank decides": (
        """s = Shape (x)  r = Size (s)  four = Constant <value = int64 {4}> ()  is = Equal (r, four)
        b = If (is) <
            then_branch = yes () => (float[] a) { ax = Constant <value = int64[1] {1}> ()  a = ReduceSum (x, ax) },
            else_branch = no () => (float[] d) { d = Identity (v) } >
        y = Relu (b)""",
        {"y": ("n", 1, "h", 4)},
    ),
    "either of two branches": (
        """b = If (flag) <
            then_branch = yes () => (float[] a) { a = Relu (x) },
            else_branch = no () => (float[] d) { d = MaxPool <kernel_shape = [1, 1], strides = [2, 1]> (x) } >
        y = Relu (b)""",
        {"y": ("n", 6, None, 4)},
    ),
    "lengths that make tensors": (
        """s = Shape (x)  i = Constant <value = int64 {0}> ()  one = Constant <value = int64 {1}> ()
        n = Gather (s, i)  y = Range (i, n, one)  c = ConstantOfShape (s)
        rep = Constant <value = int64[4] {1, 2, 1, 3}> ()  z = Tile (x, rep)
        parts = Constant <value = int64[2] {2, 4}> ()  w, w2 = Split <axis = 1> (x, parts)""",
        {"y": ("n",), "c": ("n", 6, "h", 4), "z": ("n", 12, "h", 12), "w": ("n", 2, "h", 4), "w2": ("n", 4, "h", 4)},
    ),
    "slices": (
        """a = Constant <value = int64[1] {2}> ()  zero = Constant <value = int64[1] {0}> ()
        far = Constant <value = int64[1] {9223372036854775807}> ()  m = Constant <value = int64[1] {-1}> ()
        back = Constant <value = int64[1] {-9223372036854775807}> ()  ax = Constant <value = int64[1] {1}> ()
        y = Slice (x, zero, far, a)  z = Slice (x, m, back, a, m)  c = Slice (x, ax, far, ax, a)
        u = Slice (x, ax, far, a)  most = Max (ax, a)  w = Slice (x, most, far, ax)""",
        {
            "w": ("n", 4, "h", 4),
            "y": ("n", 6, "h", 4),
            "z": ("n", 6, "h", 4),
            "c": ("n", 3, "h", 4),
            "u": ("n", 6, None, 4),
        },
    ),
}
"""Nodes, and what is claimed of the tensors that they make; None for an axis without a declared name."""

ONE_HEIGHT = {"broadcast against lengths"}
"""Cases that run with one height only."""

OLD = """a = ImageScaler <bias = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], scale = 1.0> (x)
    p = Pad <pads = [0, 0, 2, 3, 0, 0, 0, 1]> (a)  c = Crop <border = [1, 0, 2, 1]> (p)
    u = Upsample <mode = "nearest", scales = [1.0, 1.0, 1.0, 2.0]> (c)  d, mask = Dropout (u)
    y = Affine <alpha = 2.0, beta = 1.0> (d)"""


STEPS = [
    "{o} = Add ({a}, {k})",
    "{o} = Sub ({a}, {k})",
    "{o} = Sub ({a}, {b})",
    "{o} = Sub ({k}, {a})",
    "{o} = Mul ({k}, {a})",
    "{o} = Mul ({a}, {b})",
    "{o} = Div ({a}, odd)",
    "{o} = Mod ({a}, odd)",
    "{o} = Mod <fmod = 1> ({a}, odd)",
    "{o} = Min ({a}, {b})",
    "{o} = Max ({a}, {k})",
    "{o} = Neg ({a})",
    "{o} = Abs ({a})",
    "{o}c = Equal ({a}, {k})  {o} = Where ({o}c, {b}, {a})",
    "{o}c = Less ({a}, {b})  {o}n = Not ({o}c)  {o} = Where ({o}n, {a}, {k})",
    "{o}f = Cast <to = 1> ({a})  {o}m = Mul ({o}f, factor)  {o}r = Floor ({o}m)  {o} = Cast <to = 7> ({o}r)",
    "{o}f = Cast <to = 11> ({a})  {o} = Cast <to = 7> ({o}f)",
    "{o}f = Cast <to = 1> ({a})  {o}m = Div ({o}f, factor)  {o}r = Ceil ({o}m)  {o} = Cast <to = 6> ({o}r)"
    "  {o}l = Cast <to = 7> ({o})",
    "{o} = Gather ({a}, turn)",
    "{o}h, {o}t = Split ({a}, halves)  {o} = Concat <axis = 0> ({o}t, {o}h)",
    "{o}h = Slice ({a}, first, third)  {o}t = Slice ({b}, far, back, first, minus2)"
    "  {o} = Concat <axis = 0> ({o}h, {o}t)",
    "{o}m = Reshape ({a}, square)  {o}t = Transpose ({o}m)  {o}k = Reshape ({o}t, keep)  {o} = Reshape ({o}k, minus)",
    "{o}p = ReduceProd <axes = [0]> ({a})  {o} = Expand ({o}p, four)",
    "{o}s = Size ({a})  {o}u = Unsqueeze ({o}s, first)  {o} = Tile ({o}u, four)",
    "{o}q = Gather ({a}, first)  {o}z = Squeeze ({o}q)  {o} = Add ({o}z, {b})",
]
CONSTANTS: dict[str, list[int] | list[float]] = {
    "k0": [0, 0, 0, 0],
    "k1": [1, 1, 1, 1],
    "k2": [-1, 6, 2, 0],
    "odd": [1, -4, -2, 3],
    "factor": [0.7, 1.5, 2.0, 3.0],
    "turn": [3, -4, 1, 1],
    "halves": [3, 1],
    "first": [0],
    "third": [2],
    "minus": [-1],
    "far": [9],
    "keep": [0, 2],
    "minus2": [-2],
    "back": [-9],
    "square": [2, -1],
    "four": [4],
}
