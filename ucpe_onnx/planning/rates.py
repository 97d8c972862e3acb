"""How fast onnxruntime's kernels are: predicted times in microseconds, from rates that are calibrated or assumed.

A time is the work of a kernel (:mod:`ucpe_onnx.planning.kernels`) times the rates of its family. All methods take
channel counts as numbers or as numpy arrays, and cost a few microseconds themselves.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np

from ucpe_onnx.planning import kernels
from ucpe_onnx.planning.default_rates import FLOAT, INT8
from ucpe_onnx.planning.kernels import AMOUNTS, MEGA, Amounts
from ucpe_onnx.runtime.target import Target

Coefficients: TypeAlias = Mapping[str, Mapping[str, float]]
"""Microseconds per amount, by family and amount."""

RATES_VERSION = 2
"""Of the meaning of the rates: others are not read."""


@dataclass(frozen=True)
class Rates:
    """Everything needed to predict kernel times.

    Attributes:
        coefficients: microseconds per amount of work, by family and amount (see ``kernels.AMOUNTS``).
        block: channels in a block of the layout of the convolutions; 1: they have no blocked layout.
        read_multiple: a convolution that reads another number of channels leaves that layout.
        align: without a blocked layout, what the kernels fill widths up to.
        threads: threads that share a kernel's work.
        fuses_add: the convolution does a following Add itself.
        precision: of the convolutions, ``float32`` or ``int8``.
        element_bytes: size of an activation's element.
        origin: where the numbers are from, in words.
    """

    coefficients: Coefficients
    block: int = 16
    read_multiple: int = 4
    align: int = 1
    threads: int = 1
    fuses_add: bool = True
    precision: str = "float32"
    element_bytes: int = 4
    origin: str = "defaults"
    _flat: Mapping[str, tuple[tuple[str, float], ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        frozen = {family: MappingProxyType(dict(values)) for family, values in self.coefficients.items()}
        object.__setattr__(self, "coefficients", MappingProxyType(frozen))
        used = {family: tuple((k, rate) for k, rate in values.items() if rate) for family, values in frozen.items()}
        object.__setattr__(self, "_flat", used)

    @property
    def call_us(self) -> float:
        """What one more node costs, however little it does."""
        return self.coefficients["slice"]["call"]

    def time_us(self, family: str, amounts: Amounts) -> Any:
        """Time of a kernel of a family that does so much."""
        return sum(rate * amounts[name] for name, rate in self._flat[family])

    def conv_us(
        self,
        cin: Any,
        cout: Any,
        kernel: tuple[int, int] = (1, 1),
        out_positions: int = 1,
        in_positions: int | None = None,
        *,
        groups: int = 1,
        width: int | None = None,
    ) -> Any:
        """Time of a convolution, its own reorders included where it can't stay in the blocked layout.

        Args:
            cin: channels that it reads, of all groups.
            cout: channels that it makes, of all groups.
            kernel: height and width of the window.
            out_positions: height times width of its output, times the batch.
            in_positions: likewise of its input; None: as many.
            groups: of the convolution; a depthwise one is for :meth:`depthwise_us`.
            width: of the output; None: it is about square.
        """
        read = in_positions or out_positions
        if self.block == 1:
            return self._plain_us(cin, cout, kernel, out_positions, read, groups=groups)
        inside = (cin // groups < self.block) & (groups == 1) | (cin // groups % self._inside(groups) == 0)
        if groups > 1:
            inside = inside & (cout // groups % self.block == 0)

        def blocked() -> Any:
            work = kernels.blocked_conv(
                cin,
                cout,
                kernel,
                out_positions,
                read,
                block=self.block,
                threads=self.threads,
                width=width,
                groups=groups,
            )
            deep = self.time_us("pointwise" if kernel == (1, 1) else "spatial", work)
            if groups > 1 or np.min(cin) >= self.block:
                return deep
            return _choose(cin < self.block, lambda: self.time_us("shallow", work), lambda: deep)

        def outside() -> Any:
            plain = self._plain_us(cin, cout, kernel, out_positions, read, groups=groups)
            return plain + self._outside_us(cin * read, cout * out_positions)

        return _choose(inside, blocked, outside)

    def transposed_us(
        self,
        cin: Any,
        cout: Any,
        kernel: tuple[int, int],
        out_positions: int,
        in_positions: int,
        *,
        groups: int = 1,
    ) -> Any:
        """Time of a transposed convolution, which has no blocked layout: its own reorders are included."""
        work = kernels.transposed_conv(
            cin, cout, kernel, out_positions, in_positions, element=self.element_bytes, groups=groups
        )
        return self.time_us("plain", work) + self._outside_us(cin * in_positions, cout * out_positions)

    def depthwise_us(
        self,
        channels: Any,
        kernel: tuple[int, int] = (3, 3),
        out_positions: int = 1,
        in_positions: int | None = None,
    ) -> Any:
        """Time of a depthwise convolution, with its reorders where it can't stay in the blocked layout."""
        read = in_positions or out_positions

        def work(block: int) -> Amounts:
            return kernels.depthwise_conv(
                channels, kernel, out_positions, in_positions=read, block=block, element=self.element_bytes
            )

        if self.block == 1:
            return self.time_us("plain-depthwise", work(1))
        return _choose(
            channels % self.read_multiple == 0,
            lambda: self.time_us("depthwise", work(self.block)),
            lambda: (
                self.time_us("plain-depthwise", work(1)) + self._outside_us(channels * read, channels * out_positions)
            ),
        )

    def gemm_us(self, rows: int, cin: Any, cout: Any) -> Any:
        """Time of a product of so many rows with a constant matrix: Gemm, MatMul."""
        return self.time_us("gemm", kernels.gemm(rows, cin, cout, element=self.element_bytes))

    def reorder_us(self, written: Any) -> Any:
        """Time to bring a tensor of so many bytes into the blocked layout, or out of it; 0 where there is none."""
        return self.time_us("reorder", kernels.moved(written)) if self.block > 1 else 0.0 * written

    def gather_us(self, written: Any, channels: Any = 0) -> Any:
        """Time of a Gather of so many channels that writes so many bytes."""
        return self.time_us("gather", kernels.moved(written, channels))

    def slice_us(self, written: Any) -> Any:
        """Time of a Slice or Split of channels that writes so many bytes."""
        return self.time_us("slice", kernels.moved(written))

    def concat_us(self, written: Any) -> Any:
        """Time of a Concat of channels that writes so many bytes."""
        return self.time_us("concat", kernels.moved(written))

    def add_us(self, written: Any) -> Any:
        """Time of an Add of two tensors that no convolution does."""
        return self.time_us("add", kernels.moved(written))

    def pointwise_us(self, written: Any, *, curved: bool = False) -> Any:
        """Time of an activation or a normalisation that stands alone; ``curved``: with an exponential, as Sigmoid."""
        return self.time_us("curved" if curved else "straight", kernels.moved(written))

    def normal_us(self, written: Any, channels: Any) -> Any:
        """Time of a batch normalisation that stands alone, outside of the blocked layout."""
        return self.time_us("normal", kernels.moved(written, channels))

    def partial_us(self, cout: Any, out_positions: int, kernel: tuple[int, int] = (1, 1)) -> Any:
        """Time of one more part of a partial sum, beyond that of its convolution."""
        written = cout * out_positions * self.element_bytes
        if not self.fuses_add:
            return self.add_us(written)
        return self.time_us("partial" if kernel == (1, 1) else "partial-spatial", {"write": written / MEGA})

    def fused_us(self, written: Any) -> Any:
        """What an activation other than Relu adds to the convolution that does it: a pass over its output."""
        return self.time_us("fused", {"write": written / MEGA}) if self.block > 1 else 0.0 * written

    def describe(self) -> list[tuple[str, str]]:
        """Rows of a label and a value, to be printed."""
        layout = f"blocks of {self.block} channels" if self.block > 1 else "no blocked layout"
        rows = [("rates", self.origin), ("convolutions", f"{self.precision}, {layout}, threads: {self.threads}")]
        for label, family, amount, scale, unit in _SHOWN:
            rate = self.coefficients.get(family, {}).get(amount, 0.0)
            if rate > 0 and (self.block > 1) != family.startswith("plain"):
                rows.append((label, f"{scale / rate:.1f} {unit}"))
        rows.append(("one more node", f"{self.call_us:.1f} us"))
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        values = {name: getattr(self, name) for name in _PLAIN_FIELDS}
        return {"version": RATES_VERSION, **values, "coefficients": _plain(self.coefficients)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Rates:
        """Read what :meth:`to_dict` wrote.

        Raises:
            ValueError: it is not that, is of another version, or holds a number that can't be a rate.
        """
        if not isinstance(values, Mapping) or values.get("version") != RATES_VERSION:
            raise ValueError("not rates of this version")
        try:
            coefficients = {
                family: {name: float(values["coefficients"][family][name]) for name in names}
                for family, names in AMOUNTS.items()
            }
            rates = cls(coefficients, **{name: _TYPES[name](values[name]) for name in _PLAIN_FIELDS})
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"rates are incomplete: {error}") from error
        numbers = [rate for family in coefficients.values() for rate in family.values()]
        if not all(math.isfinite(rate) and rate >= 0 for rate in numbers) or rates.block < 1 or rates.threads < 1:
            raise ValueError("rates are not finite and positive")
        return rates

    def _outside_us(self, read: Any, made: Any) -> Any:
        """Reorders on both sides of a kernel outside the blocked layout, by the elements that it reads and makes."""
        return self.reorder_us(4 * read) + self.reorder_us(4 * made)

    def _inside(self, groups: int) -> int:
        return self.read_multiple if groups == 1 else self.block

    def _plain_us(
        self, cin: Any, cout: Any, kernel: tuple[int, int], out_positions: int, in_positions: int, *, groups: int
    ) -> Any:
        work = kernels.plain_conv(
            cin, cout, kernel, out_positions, in_positions, element=self.element_bytes, groups=groups, align=self.align
        )
        return self.time_us("plain", work)


_TYPES: Mapping[str, Callable[[Any], Any]] = {
    "block": int,
    "read_multiple": int,
    "align": int,
    "threads": int,
    "fuses_add": bool,
    "precision": str,
    "element_bytes": int,
    "origin": str,
}
_PLAIN_FIELDS = tuple(_TYPES)

_SHOWN = (
    ("1x1 convolution", "pointwise", "set4", 1e3, "GFLOP/s"),
    ("spatial convolution", "spatial", "set4", 1e3, "GFLOP/s"),
    ("depthwise convolution", "depthwise", "mflop", 1e3, "GFLOP/s"),
    ("convolution", "plain", "mflop", 1e3, "GFLOP/s"),
    ("depthwise convolution", "plain-depthwise", "mflop", 1e3, "GFLOP/s"),
    ("reorder", "reorder", "write", 1e3, "GB/s"),
)


def default_rates(target: Target, threads: int = 1) -> Rates:
    """Rates that were measured elsewhere: ratios carry over better than absolute figures.

    They were measured with one thread; more threads are taken to share arithmetic and traffic evenly.

    Args:
        target: the runtime.
        threads: threads within an operator, 0 for onnxruntime's default.
    """
    shared = working_threads(threads)
    table = {**FLOAT, **INT8} if target.precision == "int8" else FLOAT
    coefficients = {
        family: {name: rate if name == "call" else rate / shared for name, rate in values.items()}
        for family, values in table.items()
    }
    return rates_of(target, shared, coefficients, f"defaults for {target.name}")


def rates_of(target: Target, threads: int, coefficients: Coefficients, origin: str) -> Rates:
    """Rates with what a target says about the layout."""
    return Rates(
        coefficients,
        block=target.block if target.blocked else 1,
        read_multiple=target.read_multiple,
        align=1 if target.blocked or not target.aligned else target.block,
        threads=threads,
        fuses_add=target.fuses_add,
        precision=target.precision,
        element_bytes=target.element_bytes,
        origin=origin,
    )


def working_threads(threads: int) -> int:
    """The number of threads that onnxruntime uses when it is told so many; 0 leaves it to onnxruntime."""
    return threads or os.cpu_count() or 1


def _choose(condition: Any, yes: Callable[[], Any], no: Callable[[], Any]) -> Any:
    """One of two times, element by element; what no element needs is not computed."""
    if isinstance(condition, bool) or condition.all() or not condition.any():
        return yes() if condition is True or (condition is not False and condition.all()) else no()
    return np.where(condition, yes(), no())


def _plain(coefficients: Coefficients) -> dict[str, dict[str, float]]:
    return {family: dict(values) for family, values in coefficients.items()}
