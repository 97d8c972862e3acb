"""Recurrent layers: by torch's own kernels where these compute the same, else step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from ucpe_onnx.train.network.call import Call, Operator, Result, filled

State: TypeAlias = tuple[Tensor, ...]
"""What goes from step to step, (batch, hidden) each: the output and, for an LSTM, the cell."""

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": F.elu,
    "hardsigmoid": lambda x: torch.clamp(0.2 * x + 0.5, 0.0, 1.0),
    "leakyrelu": F.leaky_relu,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "tanh": torch.tanh,
}


@dataclass(frozen=True)
class Cell:
    """The parameters of one direction; the rows of the gates are one below the other, in ONNX's order.

    Attributes:
        weight: (gates * hidden, width), for the input.
        recurrence: (gates * hidden, hidden), for the output before.
        biases: (gates * hidden) of the input and of the recurrence.
        peepholes: (3 * hidden) from the cell to the gates input, output, forget; None for none.
        activations: names, in small letters.
        clip: bound on what activations read; 0 for none.
        coupled: the forget gate is what the input gate leaves (LSTM).
        reset_after: the reset gate acts on the product with the recurrence, not on its input (GRU).
    """

    weight: Tensor
    recurrence: Tensor
    biases: tuple[Tensor, Tensor]
    peepholes: Tensor | None
    activations: tuple[str, ...]
    clip: float
    coupled: bool
    reset_after: bool

    def activate(self, index: int, x: Tensor) -> Tensor:
        """Apply one of the activations, after the clip."""
        x = torch.clamp(x, -self.clip, self.clip) if self.clip else x
        return _ACTIVATIONS[self.activations[index]](x)

    def parameters(self, order: Sequence[int]) -> list[Tensor]:
        """Weight, recurrence and biases with the gates in another order, as torch's kernels take them."""
        tensors = (self.weight, self.recurrence, *self.biases)
        if len(order) == 1:
            return list(tensors)
        return [torch.cat([t.chunk(len(order))[gate] for gate in order]) for t in tensors]


@dataclass(frozen=True)
class Kind:
    """A kind of recurrent layer.

    Attributes:
        states: tensors that go from step to step.
        defaults: names of the activations.
        step: one step, from what the input contributes and the state before.
        fused: the whole sequence by torch's kernel; None if that computes something else.
    """

    states: int
    defaults: tuple[str, ...]
    step: Callable[[Cell, Tensor, State], State]
    fused: Callable[[Cell, Tensor, State], tuple[Tensor, State] | None]


def _lstm_step(cell: Cell, x: Tensor, state: State) -> State:
    h, c = state
    put, out, forget, new = (x + h @ cell.recurrence.T + cell.biases[1]).chunk(4, -1)
    if cell.peepholes is not None:
        peep_put, peep_out, peep_forget = cell.peepholes.chunk(3)
        put, forget = put + peep_put * c, forget + peep_forget * c
    put = cell.activate(0, put)
    forget = 1 - put if cell.coupled else cell.activate(0, forget)
    c = forget * c + put * cell.activate(1, new)
    if cell.peepholes is not None:
        out = out + peep_out * c
    # What the cell gives is not clipped, as onnxruntime has it.
    return cell.activate(0, out) * _ACTIVATIONS[cell.activations[2]](c), c


def _lstm_fused(cell: Cell, x: Tensor, state: State) -> tuple[Tensor, State] | None:
    if cell.peepholes is not None or cell.clip or cell.coupled or cell.activations != _LSTM.defaults:
        return None
    y, h, c = torch.lstm(
        x, _one_layer(state), cell.parameters((0, 2, 3, 1)), *_settings()
    )  # input, output, forget, cell -> input, forget, cell, output
    return y, (h[0], c[0])


def _gru_step(cell: Cell, x: Tensor, state: State) -> State:
    (h,) = state
    update_x, reset_x, new_x = x.chunk(3, -1)
    rows, bias = cell.recurrence.chunk(3), cell.biases[1].chunk(3)
    update = cell.activate(0, update_x + h @ rows[0].T + bias[0])
    reset = cell.activate(0, reset_x + h @ rows[1].T + bias[1])
    new_h = reset * (h @ rows[2].T + bias[2]) if cell.reset_after else (reset * h) @ rows[2].T + bias[2]
    new = cell.activate(1, new_x + new_h)
    return ((1 - update) * new + update * h,)


def _gru_fused(cell: Cell, x: Tensor, state: State) -> tuple[Tensor, State] | None:
    if cell.clip or not cell.reset_after or cell.activations != _GRU.defaults:
        return None
    y, h = torch.gru(
        x, _one_layer(state)[0], cell.parameters((1, 0, 2)), *_settings()
    )  # update, reset, new -> reset, update, new
    return y, (h[0],)


def _rnn_step(cell: Cell, x: Tensor, state: State) -> State:
    return (cell.activate(0, x + state[0] @ cell.recurrence.T + cell.biases[1]),)


def _rnn_fused(cell: Cell, x: Tensor, state: State) -> tuple[Tensor, State] | None:
    kernel = {"tanh": torch.rnn_tanh, "relu": torch.rnn_relu}.get(cell.activations[0])
    if kernel is None or cell.clip:
        return None
    y, h = kernel(x, _one_layer(state)[0], cell.parameters((0,)), *_settings())
    return y, (h[0],)


def _settings() -> tuple[bool, int, float, bool, bool, bool]:
    """Biases, one layer, no dropout; cuDNN keeps what a gradient needs only while "training"; one way, steps first."""
    return True, 1, 0.0, torch.is_grad_enabled(), False, False


def _one_layer(state: State) -> list[Tensor]:
    return [tensor.unsqueeze(0).contiguous() for tensor in state]


_LSTM = Kind(2, ("sigmoid", "tanh", "tanh"), _lstm_step, _lstm_fused)
_GRU = Kind(1, ("sigmoid", "tanh"), _gru_step, _gru_fused)
_RNN = Kind(1, ("tanh",), _rnn_step, _rnn_fused)


def lstm(call: Call, x: Tensor, weight: Tensor, recurrence: Tensor, *rest: Tensor | None) -> Result:
    """Long short-term memory."""
    bias, lengths, h, c, peepholes = filled(rest, 5)
    return _layer(call, _LSTM, _Given(x, weight, recurrence, bias, lengths, (h, c), peepholes))


def gru(call: Call, x: Tensor, weight: Tensor, recurrence: Tensor, *rest: Tensor | None) -> Result:
    """Gated recurrent unit."""
    bias, lengths, h = filled(rest, 3)
    return _layer(call, _GRU, _Given(x, weight, recurrence, bias, lengths, (h,)))


def rnn(call: Call, x: Tensor, weight: Tensor, recurrence: Tensor, *rest: Tensor | None) -> Result:
    """Plain recurrent layer."""
    bias, lengths, h = filled(rest, 3)
    return _layer(call, _RNN, _Given(x, weight, recurrence, bias, lengths, (h,)))


@dataclass(frozen=True)
class _Given:
    """What a node reads; parameters and initial states hold every direction."""

    x: Tensor
    weight: Tensor
    recurrence: Tensor
    bias: Tensor | None
    lengths: Tensor | None
    initial: tuple[Tensor | None, ...]
    peepholes: Tensor | None = None


def _layer(call: Call, kind: Kind, given: _Given) -> Result:
    """Both directions, or the one that there is: (steps, directions, batch, hidden), then the last states."""
    x, initial, lengths = given.x, given.initial, given.lengths
    batch_first = call.flag("layout")
    if batch_first:
        x = x.transpose(0, 1)
        initial = tuple(state if state is None else state.transpose(0, 1) for state in initial)
    if lengths is not None:
        lengths = None if bool((lengths == x.shape[0]).all()) else lengths.to(x.device)
    sequences, last = [], []
    for index, cell in enumerate(_cells(call, kind, given)):
        hidden = cell.recurrence.shape[1]
        state = tuple(x.new_zeros(x.shape[1], hidden) if s is None else s[index] for s in initial)
        if index == 1 or call.text("direction", "forward") == "reverse":
            y, state = _sequence(kind, cell, _reversed(x, lengths), state, lengths)
            sequences.append(_reversed(y, lengths))
        else:
            y, state = _sequence(kind, cell, x, state, lengths)
            sequences.append(y)
        last.append(state)
    states = [torch.stack(tensors) for tensors in zip(*last, strict=True)]
    y = torch.stack(sequences, 1)
    if batch_first:
        return y.permute(2, 0, 1, 3), *(state.transpose(0, 1) for state in states)
    return y, *states


def _cells(call: Call, kind: Kind, given: _Given) -> list[Cell]:
    """The parameters, direction by direction."""
    cells = []
    for index, names in enumerate(_activations(call, kind, given.weight.shape[0])):
        rows = given.weight.shape[1]
        both = given.x.new_zeros(2 * rows) if given.bias is None else given.bias[index]
        cell = Cell(
            weight=given.weight[index],
            recurrence=given.recurrence[index],
            biases=(both[:rows], both[rows:]),
            peepholes=None if given.peepholes is None else given.peepholes[index],
            activations=names,
            clip=call.number("clip", 0.0),
            coupled=call.flag("input_forget"),
            reset_after=call.flag("linear_before_reset"),
        )
        cells.append(cell)
    return cells


def _activations(call: Call, kind: Kind, directions: int) -> list[tuple[str, ...]]:
    """The names of every direction's activations."""
    if call.node.attributes.get("activation_alpha") or call.node.attributes.get("activation_beta"):
        raise call.refused("parameters of its activations")
    names = [name.decode().lower() for name in call.node.attributes.get("activations", ())]
    names = names or list(kind.defaults) * directions
    if unknown := [name for name in names if name not in _ACTIVATIONS]:
        raise call.refused(f"the activation {unknown[0]}")
    count = len(kind.defaults)
    return [tuple(names[count * i : count * (i + 1)]) for i in range(directions)]


def _sequence(kind: Kind, cell: Cell, x: Tensor, state: State, lengths: Tensor | None) -> tuple[Tensor, State]:
    """All steps of one direction: the outputs, (steps, batch, hidden), and the last state.

    Past the end of an example that is shorter than others the outputs are zero and the state stays.
    """
    if lengths is None and (done := kind.fused(cell, x, state)) is not None:
        return done
    given = x @ cell.weight.T + cell.biases[0]
    outputs = []
    for index in range(x.shape[0]):
        new = kind.step(cell, given[index], state)
        output = new[0]
        if lengths is not None:
            going = (index < lengths).unsqueeze(1)
            new = tuple(torch.where(going, after, before) for after, before in zip(new, state, strict=True))
            output = torch.where(going, output, torch.zeros_like(output))
        outputs.append(output)
        state = new
    return torch.stack(outputs), state


def _reversed(x: Tensor, lengths: Tensor | None) -> Tensor:
    """The steps in reverse; of an example that is shorter than others, its own."""
    if lengths is None:
        return x.flip(0)
    steps = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
    source = torch.where(steps < lengths, lengths - 1 - steps, steps)
    return x.gather(0, source.unsqueeze(2).expand(x.shape).to(torch.int64))


OPERATORS: dict[str, Operator] = {"GRU": gru, "LSTM": lstm, "RNN": rnn}
