"""Small graphs for tests: every method appends a node and returns the name of what it makes; shapes are inferred."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.comparing import differences
from tests.comparing import run_model as run
from ucpe_onnx.analysis.trace import Trace, trace
from ucpe_onnx.masked import masked_model
from ucpe_onnx.passes import emit
from ucpe_onnx.plan import Plan
from ucpe_onnx.planning.make import Settings, make_plan

Array = npt.NDArray[Any]
Dims = Sequence["int | str"]


class Net:
    """A graph under construction.

    Attributes:
        shapes: the shape of every tensor made so far, constants included.
        constants: the value of every constant made so far.
        initializers: the constants that are stored as such.
    """

    def __init__(self, *, opset: int = 17, ir_version: int = 8, seed: int = 0) -> None:
        self.opset = opset
        self.ir_version = ir_version
        self.random = np.random.default_rng(seed)
        self.shapes: dict[str, tuple[Any, ...]] = {}
        self.constants: dict[str, Array] = {}
        self.nodes: list[onnx.NodeProto] = []
        self._types: dict[str, onnx.TypeProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[str] = []
        self.initializers: dict[str, onnx.TensorProto] = {}

    # Tensors

    def input(self, name: str = "x", shape: Dims = (1, 8, 4, 4), elem_type: int = TensorProto.FLOAT) -> str:
        value = helper.make_tensor_value_info(name, elem_type, shape)
        self._inputs.append(value)
        self._learn(name, value.type)
        return name

    def normal(self, *shape: int) -> Array:
        """Random values; sums over all axes but the first have a variance near 1."""
        fan_in = max(1, int(np.prod(shape[1:])))
        return (self.random.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32)

    def weight(self, value: npt.ArrayLike, name: str = "", *, double: bool = False) -> str:
        """An initializer."""
        array = np.asarray(value)
        array = array.astype(np.float32) if array.dtype == np.float64 and not double else array
        name = name or f"w{len(self.constants)}"
        self.initializers[name] = numpy_helper.from_array(array, name)
        self.constants[name] = array
        self._learn(name, helper.make_tensor_type_proto(self.initializers[name].data_type, array.shape))
        return name

    def constant(self, value: npt.ArrayLike) -> str:
        """A Constant node."""
        array = np.asarray(value)
        array = array.astype(np.float32) if array.dtype == np.float64 else array
        (name,) = self.ops("Constant", value=numpy_helper.from_array(array))
        self.constants[name] = array
        return name

    def ints(self, *values: int) -> str:
        return self.weight(np.array(values, dtype=np.int64))

    def elem_type(self, tensor: str) -> int:
        """The element type of a tensor."""
        return self._types[tensor].tensor_type.elem_type

    def declare(self, weight: str) -> None:
        """Make an initializer a graph input too, whose value callers may override."""
        self._inputs.append(onnx.ValueInfoProto(name=weight, type=self._types[weight]))

    # Nodes

    def op(self, op_type: str, *inputs: str, **options: Any) -> str:
        """Append a node with one output."""
        return self.ops(op_type, *inputs, **options)[0]

    def ops(
        self,
        op_type: str,
        *inputs: str,
        outputs: int | Sequence[str] = 1,
        name: str = "",
        domain: str = "",
        shapes: Sequence[Dims | None] | None = None,
        elem_type: int = TensorProto.FLOAT,
        **attributes: Any,
    ) -> list[str]:
        """Append a node; ``shapes`` and ``elem_type`` for what shape inference can't know."""
        made = [f"t{len(self.shapes) + i}" for i in range(outputs)] if isinstance(outputs, int) else list(outputs)
        node = helper.make_node(op_type, inputs, made, name=name, domain=domain, **attributes)
        self.nodes.append(node)
        if shapes is None:
            self._infer(node)
        else:
            for tensor, shape in zip(made, shapes, strict=True):
                self._learn(tensor, helper.make_tensor_type_proto(elem_type, shape))
        return made

    def conv(
        self, x: str, out: int, k: int = 1, *, bias: bool = True, groups: int = 1, name: str = "", **more: Any
    ) -> str:
        channels, rank = self.shapes[x][1], len(self.shapes[x])
        weight = self.weight(self.normal(out, channels // groups, *[k] * (rank - 2)))
        return self.conv_with(x, weight, bias=bias, groups=groups, name=name, **more)

    def conv_with(
        self, x: str, weight: str, *, bias: bool = False, groups: int = 1, name: str = "", **more: Any
    ) -> str:
        """A convolution with a given weight; keeps the spatial size for odd kernels."""
        shape = self.shapes[weight]
        inputs = [x, weight, *([self.weight(self.normal(shape[0]))] if bias else [])]
        pads = [k // 2 for k in shape[2:]] * 2
        return self.op("Conv", *inputs, name=name, **{"group": groups, "pads": pads} | more)

    def depthwise(self, x: str, multiplier: int = 1, k: int = 3, name: str = "") -> str:
        channels = self.shapes[x][1]
        return self.conv(x, channels * multiplier, k, groups=channels, name=name)

    def batch_norm(self, x: str, scale: Array | None = None) -> str:
        channels = self.shapes[x][1]
        scale = self.random.uniform(0.5, 1.5, channels) if scale is None else scale
        parameters = [scale, self.normal(channels), self.normal(channels), self.random.uniform(0.5, 1.5, channels)]
        return self.op("BatchNormalization", x, *[self.weight(np.asarray(p)) for p in parameters])

    def gemm(self, x: str, out: int, *, name: str = "", trans_b: bool = True) -> str:
        width = self.shapes[x][1]
        weight = self.normal(out, width)
        inputs = [x, self.weight(weight if trans_b else weight.T), self.weight(self.normal(out))]
        return self.op("Gemm", *inputs, name=name, transB=int(trans_b))

    # Operators whose form depends on the opset

    def slice(
        self, x: str, axes: Sequence[int], starts: Sequence[int], ends: Sequence[int], steps: Sequence[int] = ()
    ) -> str:
        if self.opset < 10:
            return self.op("Slice", x, axes=list(axes), starts=list(starts), ends=list(ends))
        return self.op("Slice", x, *[self.ints(*v) for v in (starts, ends, axes, *([steps] if steps else []))])

    def split(self, x: str, sizes: Sequence[int], axis: int = 1) -> list[str]:
        if self.opset < 13:
            return self.ops("Split", x, outputs=len(sizes), axis=axis, split=list(sizes))
        return self.ops("Split", x, self.ints(*sizes), outputs=len(sizes), axis=axis)

    def squeeze(self, x: str, axes: Sequence[int] = ()) -> str:
        return self._with_axes("Squeeze", x, axes, 13)

    def unsqueeze(self, x: str, axes: Sequence[int]) -> str:
        return self._with_axes("Unsqueeze", x, axes, 13)

    def reduce(self, op_type: str, x: str, axes: Sequence[int], keepdims: int = 1) -> str:
        return self._with_axes(op_type, x, axes, 13 if op_type == "ReduceSum" else 18, keepdims=keepdims)

    def pad(self, x: str, pads: Sequence[int], mode: str = "constant") -> str:
        if self.opset < 11:
            return self.op("Pad", x, pads=list(pads), mode=mode)
        return self.op("Pad", x, self.ints(*pads), mode=mode)

    def reshape(self, x: str, *target: int) -> str:
        return self.op("Reshape", x, self.ints(*target))

    def _with_axes(self, op_type: str, x: str, axes: Sequence[int], as_input_from: int, **more: Any) -> str:
        if not axes:
            return self.op(op_type, x, **more)
        if self.opset < as_input_from:
            return self.op(op_type, x, axes=list(axes), **more)
        return self.op(op_type, x, self.ints(*axes), **more)

    # The model

    def output(self, *tensors: str) -> Net:
        self._outputs += tensors
        return self

    def model(self) -> onnx.ModelProto:
        """The model, which onnx.checker accepts."""
        inputs = list(self._inputs)
        if self.ir_version < 4:
            inputs += [
                helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in self.initializers.values()
            ]
        outputs = [onnx.ValueInfoProto(name=name, type=self._types[name]) for name in self._outputs]
        graph = helper.make_graph(self.nodes, "net", inputs, outputs, list(self.initializers.values()))
        domains = sorted({node.domain for node in self.nodes} - {""})
        opsets = [helper.make_opsetid("", self.opset), *[helper.make_opsetid(domain, 1) for domain in domains]]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=self.ir_version)
        onnx.checker.check_model(model, full_check=True)
        return model

    def _infer(self, node: onnx.NodeProto) -> None:
        schema = onnx.defs.get_schema(node.op_type, self.opset)
        types = {name: self._types[name] for name in node.input if name}
        data = {name: numpy_helper.from_array(self.constants[name], name) for name in types if name in self.constants}
        opsets = [helper.make_opsetid("", self.opset)]
        found = onnx.shape_inference.infer_node_outputs(
            schema, node, types, data, opset_imports=opsets, ir_version=self.ir_version
        )
        for name in node.output:
            if name:
                self._learn(name, found[name])

    def _learn(self, name: str, kind: onnx.TypeProto) -> None:
        self._types[name] = kind
        assert kind.tensor_type.HasField("shape"), f"onnx can't infer the shape of {name}: give it by shapes="
        dims = kind.tensor_type.shape.dim
        self.shapes[name] = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in dims)


def feeds_for(
    model: onnx.ModelProto, seed: int = 0, dynamic: int = 2, shapes: Mapping[str, Sequence[int]] | None = None
) -> dict[str, Array]:
    """Random values for the inputs, in given shapes or the declared ones; dynamic axes get a given length."""
    random = np.random.default_rng(seed)
    stored = {tensor.name for tensor in model.graph.initializer}
    feeds = {}
    for value in model.graph.input:
        if value.name not in stored:
            declared = [d.dim_value or dynamic for d in value.type.tensor_type.shape.dim]
            shape = declared if shapes is None else shapes[value.name]
            dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            feeds[value.name] = np.asarray(random.standard_normal(shape)).astype(dtype)
    return feeds


def masks_for(traced: Trace, kept: Mapping[str, Sequence[int]]) -> dict[str, npt.NDArray[np.bool_]]:
    """Masks from kept indices."""
    return {name: np.isin(np.arange(traced.consumers[name].channels), list(k)) for name, k in kept.items()}


def prune(
    model: onnx.ModelProto, kept: Mapping[str, Sequence[int]], **settings: Any
) -> tuple[Trace, Plan, onnx.ModelProto]:
    """Trace, plan and emit, for masks given as kept indices."""
    traced = trace(model)
    plan = make_plan(traced, masks_for(traced, kept), Settings(**settings))
    return traced, plan, emit(model, traced, plan)


class Masked:
    """The masked model that emitted ones are held against; it runs once on each feed, however many these are."""

    def __init__(
        self,
        model: onnx.ModelProto,
        masks: Mapping[str, npt.NDArray[np.bool_]],
        *feeds: Mapping[str, Any],
        optimise: bool = True,
        strict: bool = True,
    ) -> None:
        """Run it.

        Args:
            model: the model that is pruned.
            masks: by consumer what it keeps.
            feeds: what to run on; random values if there are none.
            optimise: False to run all models as they are written: onnxruntime computes quantised graphs otherwise.
            strict: False for outputs that may hold NaN or infinity, or be of float16.
        """
        self.feeds = feeds or (feeds_for(model),)
        self.optimise, self.strict = optimise, strict
        reference = masked_model(model, masks)
        self.outputs = [run(reference, feed, optimise=optimise) for feed in self.feeds]

    def check(self, emitted: onnx.ModelProto, where: str = "") -> None:
        """An emitted model is valid, and computes what the masked one does."""
        onnx.checker.check_model(emitted, full_check=True)
        for feed, wanted in zip(self.feeds, self.outputs, strict=True):
            problem = differences(run(emitted, feed, optimise=self.optimise), wanted, strict=self.strict)
            assert not problem, f"{where}: {problem}" if where else problem


def assert_equal_outputs(
    emitted: onnx.ModelProto, reference: onnx.ModelProto, feeds: Mapping[str, Array], *, optimise: bool = True
) -> None:
    """The design's tolerance, for every output."""
    found, wanted = (run(model, feeds, optimise=optimise) for model in (emitted, reference))
    problem = differences(found, wanted, strict=True)
    assert not problem, problem


def check_emission(
    model: onnx.ModelProto, kept: Mapping[str, Sequence[int]], *, optimise: bool = True, **settings: Any
) -> onnx.ModelProto:
    """Emit, check that the model is valid and equals the masked one; returns it."""
    _, plan, emitted = prune(model, kept, **settings)
    Masked(model, plan.masks(), optimise=optimise).check(emitted)
    return emitted
