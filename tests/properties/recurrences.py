"""Random recurrent layers: in every direction, stacked, with initial states of every origin, read in every way."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.properties.layers import _CHANNELS
from tests.properties.sequences import Sequences

WEIGHTS = {"recurrent": 4, "state_reader": 1, "residual_recurrent": 1, "reversed": 1}
"""Steps of this module, with how often they are drawn."""

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_ACTIVATIONS = {"LSTM": 3, "GRU": 2, "RNN": 1}
_FUNCTIONS = ["Relu", "Tanh", "Sigmoid", "Softsign", "HardSigmoid"]


class Recurrences(Sequences):
    """Adds recurrent layers on (steps, n, features); what has another form is made such a sequence first."""

    def steps(self) -> str | None:
        x = self.tensor(3, lambda s: s[0] <= 12 and s[1] <= 8 and s[2] <= 64)
        if x is not None and self.choose(4):
            return x
        x = self.sequence()
        return x and self.net.op("Transpose", x, perm=[1, 0, 2])

    def recurrent(self) -> None:
        """LSTM, GRU or RNN; some hidden units may be read by no recurrence."""
        x = self.steps()
        if x is not None:
            op_type, hidden = self.pick(list(_GATES)), self.pick([1, 2, 3, 4, 5, 8, 20])
            self.read_units(self.layer(x, op_type, hidden, self.pick(["forward", "reverse", "bidirectional"])))

    def residual_recurrent(self) -> None:
        """A layer that is added to what it reads: two recurrences over the same units, maybe."""
        x = self.tensor(3, lambda s: s[0] <= 12 and s[2] <= 20)
        if x is not None:
            made = self.layer(x, self.pick(list(_GATES)), self.shape(x)[2], "forward")
            y = self.squeezed(made[0], 1) if made[0] else None
            self.keep(y and self.net.op("Add", x, y))

    def reversed(self) -> None:
        """Every sample backwards, as far as it is long."""
        x = self.tensor(3)
        if x is not None and self.knows("ReverseSequence"):
            time = self.choose(2)
            lengths = self.net.ints(*[self.int(1, self.shape(x)[time]) for _ in range(self.shape(x)[1 - time])])
            self.keep(self.net.op("ReverseSequence", x, lengths, time_axis=time, batch_axis=1 - time))

    def state_reader(self) -> None:
        """A layer over a state (directions, n, units), mostly the last of a recurrence."""
        x = self.tensor(3, lambda s: s[0] <= 2)
        if x is not None:
            self.keep(self.project(self.squeezed(x, 0) if self.shape(x)[0] == 1 and self.flag() else x, 3))

    def layer(self, x: str, op_type: str, hidden: int, direction: str) -> list[str]:
        """A recurrent layer; the names of its outputs, "" for one that is left out."""
        net, count, rows = self.net, 1 + (direction == "bidirectional"), _GATES[op_type] * hidden
        t, n, width = self.shape(x)
        recurrence = net.normal(count, rows, hidden) * 0.5
        recurrence[:, :, [unit for unit in range(hidden) if not self.choose(4)]] = 0
        inputs = [x, self.hidden(net.normal(count, rows, width)), self.hidden(recurrence)]
        inputs.append(self.hidden(net.normal(count, 2 * rows)) if self.flag() else "")
        lengths = np.array([self.int(1, t) for _ in range(n)], dtype=np.int32) if not self.choose(4) else None
        inputs.append("" if lengths is None else net.weight(lengths))
        states = 1 + (op_type == "LSTM")
        inputs += [self.state(x, count, hidden) for _ in range(states)]
        if op_type == "LSTM":
            inputs.append(self.hidden(net.normal(count, 3 * hidden)) if not self.choose(3) else "")
        shapes = [(t, count, n, hidden), *[(count, n, hidden)] * states]
        names = [f"r{len(net.shapes)}_{i}" for i in range(self.int(1, len(shapes)))]
        if len(names) > 1 and not self.choose(3):
            names[0], shapes[0] = "", ()
        options = {"hidden_size": hidden, "direction": direction, **self.form(op_type, count)}
        net.ops(op_type, *inputs, outputs=names, shapes=shapes[: len(names)], name=self.name(op_type), **options)
        net.shapes.pop("", None)
        return names

    def form(self, op_type: str, directions: int) -> dict[str, Any]:
        """Attributes that change what happens to each unit."""
        options: dict[str, Any] = {}
        if not self.choose(3):
            options["activations"] = [self.pick(_FUNCTIONS) for _ in range(directions * _ACTIVATIONS[op_type])]
        if not self.choose(4):
            options["clip"] = 0.6
        if op_type == "GRU":
            options["linear_before_reset"] = self.choose(2)
        if op_type == "LSTM" and not self.choose(4):
            options["input_forget"] = 1
        return options

    def state(self, x: str, directions: int, hidden: int) -> str:
        """An initial state (directions, n, hidden): none, given, computed, or zeros of a length known at run time."""
        net, n = self.net, self.shape(x)[1]
        kind = self.pick(["none", "none", "constant", "zeros", "earlier", "projected", "input"])
        if kind == "constant":
            return self.hidden(net.normal(directions, n, hidden))
        if kind == "zeros":
            batch = net.op("Gather", net.op("Shape", x), net.ints(1), axis=0)
            shape = net.op("Concat", net.ints(directions), batch, net.ints(hidden), axis=0)
            return net.op("ConstantOfShape", shape, shapes=[(directions, n, hidden)])
        if kind == "earlier":
            return self.tensor(3, lambda s: s == (directions, n, hidden)) or ""
        if kind == "projected":
            before = self.tensor(3, lambda s: s[:2] == (directions, n))
            return (before and self.project(before, hidden)) or ""
        if kind == "input" and not self.choose(3):
            return net.input(f"state{len(net.shapes)}", (directions, n, hidden))
        return ""

    def read_units(self, made: list[str]) -> None:
        """Keep what a layer makes: as it is, without the axis of directions, or with the directions side by side."""
        every, *last = made
        self.keep(*last)
        if not every:
            return
        t, count, n, hidden = self.shape(every)
        kind = self.pick(["whole", "joined", "joined", "summed", "read"])
        if kind == "read":
            every = self.net.op("MatMul", every, self.net.weight(self.net.normal(hidden, self.pick(_CHANNELS))))
        elif kind == "summed":
            every = self.squeezed(self.net.op("ReduceMax", every, axes=[1]), 1) if self.net.opset < 18 else every
        elif kind == "joined" and (count > 1 or self.flag()):  # (t, directions, n, units) as (t, n, directions * units)
            every = self.net.op("Transpose", every, perm=[0, 2, 1, 3])
            every = self.net.reshape(every, t, n, self.pick([-1, count * hidden]))
        elif kind == "joined":
            every = self.squeezed(every, 1)
        self.keep(every)

    def squeezed(self, x: str, axis: int) -> str:
        """Without an axis of length 1; where there is none, as it is."""
        if self.shape(x)[axis] != 1:
            return x
        if self.net.opset < 13:
            return self.net.op("Squeeze", x, axes=[axis])
        return self.net.op("Squeeze", x, self.net.ints(axis))
