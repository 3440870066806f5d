"""Gradients of a layer's gradients: few sweeps over the steps, all else for all steps at once.

A step computes sums a = W_ih x + W_hh h + biases, then carries k on, k' = C(a, k), then shows it,
h' = S(a, k'). An LSTM carries c; the others carry and show h. Only the product with h leads from
one unit to another and from step to step. So C, S and their derivatives are taken for all steps at
once, and a step of a sweep is one product and a few sums.

A gradient is a sweep back, from the last step to the first: da, dk and dh. What its own gradients
are asked for moves x, states and weights: a sweep on, from the first step to the last, finds how a,
k and h move with them. That changes the derivatives of C and S, and with them da, dk and dh; a
second sweep back takes this change to x, states and weights.

D directions, T time, B batch, K sums of a unit, F features, H units. Sequences are (D, T, B, ...),
in the order in which each direction reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from keras2torch_birnn.rnn.call import RnnCall, State
from keras2torch_birnn.rnn.engines.engine import float_tensors, replace_float_tensors, zero_states
from keras2torch_birnn.rnn.layer import Cell, RnnLayer
from keras2torch_birnn.rnn.masks import reverse, zero_past


def _carry_lstm(cell: Cell, a: Tensor, c: Tensor) -> Tensor:
    i, f, g = a.unbind(-2)
    return cell.recurrent_activation(f) * c + cell.recurrent_activation(i) * cell.activation(g)


def _show_lstm(cell: Cell, a: Tensor, c: Tensor) -> Tensor:
    return cell.recurrent_activation(a[..., 0, :]) * cell.activation(c)


def _show_carried(_: Cell, a: Tensor, h: Tensor) -> Tensor:
    return h


def _carry_gru_after(cell: Cell, a: Tensor, h: Tensor) -> Tensor:
    of_input, a_r, a_z, of_state = a.unbind(-2)
    r, z = cell.recurrent_activation(a_r), cell.recurrent_activation(a_z)
    return z * h + (1 - z) * cell.activation(of_input + r * of_state)


def _carry_simple_rnn(cell: Cell, a: Tensor, _: Tensor) -> Tensor:
    return cell.activation(a[..., 0, :])


class _Equations(NamedTuple):
    """C of the first of the sums a (..., K, H), and S of the others.

    sums: K. carried: the number of sums that C reads. inputs, recurrent: the sums that W_ih and
    W_hh are part of. order: the gates of W_ih in the order of these sums; those of W_hh have it.
    """

    carry: Callable[[Cell, Tensor, Tensor], Tensor]
    show: Callable[[Cell, Tensor, Tensor], Tensor]
    sums: int
    carried: int
    inputs: slice
    recurrent: slice
    order: tuple[int, ...]


# GRU before is missing: it has two products a step, one after the other.
_EQUATIONS: Mapping[str, _Equations] = {
    "LSTM": _Equations(_carry_lstm, _show_lstm, 4, 3, slice(4), slice(4), (0, 1, 2, 3)),
    "GRU": _Equations(_carry_gru_after, _show_carried, 4, 4, slice(3), slice(1, 4), (2, 0, 1)),
    "SimpleRNN": _Equations(_carry_simple_rnn, _show_carried, 1, 1, slice(1), slice(1), (0,)),
}
# Floats of all sums a at once. The memory of more would come from the system anew for every tensor.
_PART = 1 << 20
_KEPT_C = 4  # of an LSTM, in what the kernel keeps; h before the step is the last for all cells


class SecondGradients(NamedTuple):
    """Gradients of what a gradient was made of.

    d_out: of the gradient of the outputs, (B, T, D * H). d_final: of that of the final states,
    (D * S, B, H), S states of each direction. tensors: of ``float_tensors``.
    """

    d_out: Tensor
    d_final: Tensor
    tensors: tuple[Tensor, ...]


def can_sweep(layer: RnnLayer, call: RnnCall) -> bool:
    """Return whether ``second_gradients`` computes a call.

    It knows no dropout and no GRU that resets the state before the product.
    """
    return layer.cell.kind in _EQUATIONS and not call.masks and 0 not in call.x.shape


def second_gradients(
    layer: RnnLayer,
    call: RnnCall,
    kept: Sequence[Tensor],
    d_out: Tensor | None,
    d_final: Tensor | None,
    moves: Sequence[Tensor | None],
) -> SecondGradients:
    """Compute second gradients of a layer without merge; they cannot be differentiated again.

    kept: of ``run_keeping``. d_out, d_final: gradients of the outputs (B, T, D * H) and the final
    states (D * S, B, H). moves: gradients of the gradients of ``float_tensors``. None for zeros.
    """
    equations, count = _EQUATIONS[layer.cell.kind], len(call.states())
    tensors = float_tensors(layer, call)
    given = [torch.zeros_like(t) if m is None else m for t, m in zip(tensors, moves, strict=True)]
    with torch.no_grad(), torch.autocast(call.x.device.type, enabled=False):
        moved_layer, move_of_x, move_of_start = replace_float_tensors(layer, given, count)
        every = _Rows(call, kept, d_out, d_final, move_of_x, move_of_start)
        weights, moved = _stack_weights(equations, layer), None
        if any(m is not None for m in moves[1 + count :]):
            moved = _stack_weights(equations, moved_layer)
        found = [_sweep(layer, weights, moved, every.take(one)) for one in _split(layer, call)]
    of_rows, together = 1 + count, list(zip(*(one.tensors for one in found), strict=True))
    return SecondGradients(
        torch.cat([one.d_out for one in found]),
        torch.cat([one.d_final for one in found], dim=1),
        (
            *map(torch.cat, together[:of_rows]),
            *(sum(of[1:], of[0]) for of in together[of_rows:]),
        ),
    )


class _Rows(NamedTuple):
    """Arguments of ``second_gradients`` that have rows of a batch, and how x and states move."""

    call: RnnCall
    kept: Sequence[Tensor]
    d_out: Tensor | None
    d_final: Tensor | None
    move_of_x: Tensor
    move_of_start: tuple[State, ...] | None

    def take(self, rows: slice) -> _Rows:
        """Return some of the rows."""
        call, lengths = self.call, self.call.lengths
        return _Rows(
            call._replace(
                x=call.x[rows],
                lengths=None if lengths is None else lengths[rows],
                initial_state=_take_states(call.initial_state, rows),
            ),
            [one[rows] for one in self.kept],
            None if self.d_out is None else self.d_out[rows],
            None if self.d_final is None else self.d_final[:, rows],
            self.move_of_x[rows],
            _take_states(self.move_of_start, rows),
        )


def _take_states(states: tuple[State, ...] | None, rows: slice) -> tuple[State, ...] | None:
    return None if states is None else tuple(tuple(s[rows] for s in state) for state in states)


def _split(layer: RnnLayer, call: RnnCall) -> list[slice]:
    """Split the rows of a batch into about equal parts of up to ``_PART`` sums."""
    batch, steps, _ = call.x.shape
    units, equations = layer.get_weight_hh().shape[1], _EQUATIONS[layer.cell.kind]
    parts = -(-batch * equations.sums * units * layer.count_directions() * steps // _PART)
    each = -(-batch // min(parts, batch))
    return [slice(i, i + each) for i in range(0, batch, each)]


def _sweep(
    layer: RnnLayer, weights: _Weights, moved: _Weights | None, rows: _Rows
) -> SecondGradients:
    """Return second gradients of some rows. moved: how the weights move, None if they do not."""
    call, kept, d_out, d_final, move_of_x, move_of_start = rows
    equations, lengths = weights.equations, call.lengths
    directions, count = layer.count_directions(), len(call.states())
    is_lstm = layer.state_count() > 1
    no_states = zero_states(layer, call.x)
    start = _stack_states(call.initial_state or no_states)
    zero = torch.zeros_like(start.h)

    # All steps, and the derivatives of each.
    x = _in_order([call.x] * directions, lengths)
    h = _in_order([one[..., -1, : zero.shape[2]] for one in kept], lengths)
    k = h
    if is_lstm:
        after = _in_order([one[..., _KEPT_C, : zero.shape[2]] for one in kept], lengths)
        k = torch.cat((start.k[:, None], after[:, :-1]), dim=1)
    points, slopes = _differentiate(layer.cell, equations, weights.make_sums(x, h), k)
    counts = None if lengths is None else _count_steps(lengths, call.x)
    steps = _Steps(_Slopes(*(d.detach() for d in slopes)), weights, counts)

    # The gradient.
    last = _States(zero, zero)
    if d_final is not None:
        last = _stack_states([one.unbind(0) for one in d_final.chunk(directions)])
        last = last if is_lstm else _States(last.h, zero)
    given = _NONE
    if d_out is not None:
        given = given._replace(after=_in_order(d_out.chunk(directions, dim=2), lengths))
    first = steps.sweep_back(last, given)

    # How a, k and h move.
    move = _in_order([move_of_x] * directions, lengths)
    pushes = moved.make_sums(x, h) if moved is not None else torch.zeros_like(slopes.a)
    _part(pushes, equations.inputs).add_(_multiply(move, weights.ih))
    moving = steps.sweep_on(pushes, _stack_states(move_of_start or no_states))

    # What that changes, taken to the tensors.
    given = _find_changes(steps, points, slopes, first, moving)
    if moved is not None:
        given = given._replace(h=moved.lead_to_h(first.a))
    second = steps.sweep_back(_States(zero, zero), given)
    of_x = weights.lead_to_x(second.a)
    if moved is not None:
        of_x += moved.lead_to_x(first.a)
    inputs, recurrent = equations.inputs, equations.recurrent
    moved_h = moving.states.h[:, :-1]
    of_weights = _Weights(
        equations,
        _add_over_time((_part(second.a, inputs), x), (_part(first.a, inputs), move)),
        _add_over_time((_part(second.a, recurrent), h), (_part(first.a, recurrent), moved_h)),
        second.a.sum(dim=(1, 2)),
    )
    of_start = second.start if is_lstm else _States(second.start.h + second.start.k, zero)
    end = _States(*(each[:, -1] for each in moving.states))
    return SecondGradients(
        torch.cat(_in_time(moving.states.h[:, 1:], lengths), dim=2),
        torch.stack(_unstack_states(end, is_lstm=is_lstm)),
        (
            torch.stack(_in_time(of_x, lengths)).sum(dim=0),
            *_unstack_states(of_start, is_lstm=is_lstm)[:count],
            *_unstack_weights(of_weights, layer),
        ),
    )


# ---- layout --------------------------------------------------------------------------------------


def _in_order(every: Sequence[Tensor], lengths: Tensor | None) -> Tensor:
    """Put sequences (B, T, F) of all directions in the order of reading, zeros past the lengths."""
    found = [zero_past(x, lengths) for x in every]
    read = torch.stack([reverse(x, lengths) if d else x for d, x in enumerate(found)])
    return read.transpose(1, 2).contiguous()


def _in_time(read: Tensor, lengths: Tensor | None) -> list[Tensor]:
    """Undo ``_in_order``."""
    found = [x.transpose(0, 1) for x in read]
    return [zero_past(reverse(x, lengths) if d else x, lengths) for d, x in enumerate(found)]


def _count_steps(lengths: Tensor, x: Tensor) -> Tensor:
    """Return which steps of each row count, (T, B, 1), for x (B, T, F)."""
    return (torch.arange(x.shape[1], device=x.device)[:, None] < lengths)[..., None]


class _States(NamedTuple):
    """h and k of all directions, (D, B, H), or what belongs to them."""

    h: Tensor
    k: Tensor


def _stack_states(states: Sequence[State]) -> _States:
    return _States(torch.stack([s[0] for s in states]), torch.stack([s[-1] for s in states]))


def _unstack_states(states: _States, *, is_lstm: bool) -> list[Tensor]:
    """Return the states direction by direction: h, and an LSTM's c."""
    return [s for pair in zip(*states, strict=True) for s in pair[: 1 + is_lstm]]


class _Weights(NamedTuple):
    """The parameters of all directions, or what belongs to them.

    ih (D, G * H, F), hh (D, G * H, H) for the G gates, bias (D, K, H).
    """

    equations: _Equations
    ih: Tensor
    hh: Tensor
    bias: Tensor

    def make_sums(self, x: Tensor, h: Tensor) -> Tensor:
        """Compute the sums a (D, T, B, K, H) before the activations, from x and h (D, T, B, H)."""
        a = self.bias[:, None, None].repeat(1, *x.shape[1:3], 1, 1)
        _part(a, self.equations.inputs).add_(_multiply(x, self.ih))
        _part(a, self.equations.recurrent).add_(_multiply(h, self.hh))
        return a

    def lead_to_x(self, a: Tensor) -> Tensor:
        """Propagate derivatives with respect to a (D, T, B, K, H) back to x."""
        return _multiply(_part(a, self.equations.inputs), self.ih.mT)

    def lead_to_h(self, a: Tensor) -> Tensor:
        """Propagate derivatives with respect to a (D, T, B, K, H) back to h."""
        return _multiply(_part(a, self.equations.recurrent), self.hh.mT)


def _stack_weights(equations: _Equations, layer: RnnLayer) -> _Weights:
    ih, hh, biases = [], [], []
    for one in layer.get_weights():
        ih.append(_rows_of_gates(one.ih, equations.order))
        hh.append(one.hh)
        bias = one.hh.new_zeros(equations.sums, one.hh.shape[1])
        if one.bias_ih is not None:
            rows = _rows_of_gates(one.bias_ih, equations.order)
            bias[equations.inputs] += rows.view(len(equations.order), -1)
        if one.bias_hh is not None:
            bias[equations.recurrent] += one.bias_hh.view(len(equations.order), -1)
        biases.append(bias)
    return _Weights(equations, torch.stack(ih), torch.stack(hh), torch.stack(biases))


def _unstack_weights(weights: _Weights, layer: RnnLayer) -> list[Tensor]:
    """Return the parameters that a layer has, direction by direction."""
    equations = weights.equations
    places = [equations.order.index(gate) for gate in range(len(equations.order))]
    found: list[Tensor] = []
    for own, ih, hh, bias in zip(layer.get_weights(), *weights[1:], strict=True):
        of_inputs = bias[equations.inputs].flatten()
        every = (
            _rows_of_gates(ih, places),
            hh,
            _rows_of_gates(of_inputs, places),
            bias[equations.recurrent].flatten(),
        )
        found += [mine for mine, given in zip(every, own, strict=True) if given is not None]
    return found


def _rows_of_gates(rows: Tensor, order: Sequence[int]) -> Tensor:
    """Put the rows (G * H, ...) of gates in this order."""
    blocks = rows.chunk(len(order))
    return torch.cat([blocks[gate] for gate in order])


def _part(a: Tensor, which: slice) -> Tensor:
    """Return some of the sums a (..., K, H) side by side, in the same memory."""
    return a[..., which, :].flatten(-2)


def _multiply(x: Tensor, weight: Tensor) -> Tensor:
    """Return x (D, T, B, F) times weight (D, G * H, F): (D, T, B, G * H)."""
    return torch.bmm(x.flatten(1, 2), weight.mT).view(*x.shape[:3], -1)


def _add_over_time(*pairs: tuple[Tensor, Tensor]) -> Tensor:
    """Return the products of sums (D, T, B, G * H) and x (D, T, B, F), added up: (D, G * H, F)."""
    found = [torch.bmm(a.flatten(1, 2).mT, x.flatten(1, 2)) for a, x in pairs]
    return sum(found[1:], found[0])


# ---- steps ---------------------------------------------------------------------------------------


class _Slopes(NamedTuple):
    """Derivatives of C and S by a (D, T, B, K, H), of C by k, and of S by k', (D, T, B, H)."""

    a: Tensor
    k: Tensor
    k_after: Tensor


def _differentiate(
    cell: Cell, equations: _Equations, a: Tensor, k: Tensor
) -> tuple[tuple[Tensor, Tensor, Tensor], _Slopes]:
    """Return a, k and k', and the derivatives there, which can be differentiated by these."""
    with torch.enable_grad():
        a, k = a.detach().requires_grad_(), k.detach().requires_grad_()
        carried = equations.carry(cell, a[..., : equations.carried, :], k)
        k_after = carried.detach().requires_grad_()
        shown = equations.show(cell, a[..., equations.carried :, :], k_after)
        points = (a, k, k_after)
        total = carried.sum() + shown.sum()
        found = torch.autograd.grad(total, points, create_graph=True, materialize_grads=True)
    return points, _Slopes(*found)


class _Given(NamedTuple):
    """Derivatives of a result that are given for every step, None for zeros.

    By a (D, T, B, K, H); by k and h before the step, by k' and h' after it, (D, T, B, H).
    """

    a: Tensor | None = None
    k: Tensor | None = None
    h: Tensor | None = None
    k_after: Tensor | None = None
    after: Tensor | None = None


_NONE = _Given()


class _Back(NamedTuple):
    """Derivatives of a result by a, k' and h' of every step, and by the first state."""

    a: Tensor
    k_after: Tensor
    after: Tensor
    start: _States


class _Moving(NamedTuple):
    """How a of every step moves, and the states (D, T + 1, B, H) before and after it."""

    a: Tensor
    states: _States


class _Steps(NamedTuple):
    """Describe all steps to the sweeps over them.

    counts: which of them count in each row, (T, B, 1), None for all; others keep the state.
    """

    by: _Slopes
    weights: _Weights
    counts: Tensor | None

    def sweep_on(self, pushes: Tensor, start: _States) -> _Moving:
        """Sweep forward: return the directional derivatives of a, k and h of every step.

        pushes (D, T, B, K, H): how a moves for other reasons than h; it is changed. start: how the
        first state moves.
        """
        equations, across = self.weights.equations, self.weights.hh.mT
        directions, steps, batch, _, units = pushes.shape
        states = _States(*(pushes.new_empty(directions, steps + 1, batch, units) for _ in "hk"))
        states.h[:, 0], states.k[:, 0] = start
        h, k = start
        for t in range(steps):
            a = pushes[:, t]
            _part(a, equations.recurrent).baddbmm_(h, across)
            parts = self.by.a[:, t] * a
            k_after = parts[:, :, : equations.carried].sum(2) + self.by.k[:, t] * k
            h_after = self.by.k_after[:, t] * k_after
            if equations.carried < equations.sums:
                h_after += parts[:, :, equations.carried :].sum(2)
            k, h = self._choose(t, k_after, k), self._choose(t, h_after, h)
            states.h[:, t + 1], states.k[:, t + 1] = h, k
        return _Moving(pushes, states)

    def sweep_back(self, last: _States, given: _Given) -> _Back:
        """Return all derivatives of a result. last: those by the last state."""
        dh, dk = last
        of_a, of_k, of_h = (torch.empty_like(by) for by in (self.by.a, self.by.k, self.by.k))
        for t in reversed(range(self.by.a.shape[1])):
            dh = _add(dh, given.after, t)
            dk_after = _add(dk + self.by.k_after[:, t] * dh, given.k_after, t)
            da = torch.mul(self.by.a[:, t], self.spread(dk_after, dh), out=of_a[:, t])
            if given.a is not None:
                da += given.a[:, t]
            if self.counts is not None:
                da.masked_fill_(~self.counts[t, :, None], 0.0)
            of_k[:, t], of_h[:, t] = dk_after, dh
            dk = self._choose(t, _add(self.by.k[:, t] * dk_after, given.k, t), dk)
            before = torch.bmm(_part(da, self.weights.equations.recurrent), self.weights.hh)
            dh = self._choose(t, _add(before, given.h, t), dh)
        return _Back(of_a, of_k, of_h, _States(dh, dk))

    def spread(self, dk: Tensor, dh: Tensor) -> Tensor:
        """Return of two derivatives (..., H) the one that each sum leads to, (..., K, H)."""
        equations = self.weights.equations
        if equations.carried == equations.sums:
            return dk[..., None, :]
        each = dk[..., None, :].expand(*dk.shape[:-1], equations.carried, -1)
        return torch.cat((each, dh[..., None, :]), dim=-2)

    def _choose(self, t: int, new: Tensor, old: Tensor) -> Tensor:
        return new if self.counts is None else torch.where(self.counts[t], new, old)


def _add(total: Tensor, given: Tensor | None, t: int) -> Tensor:
    return total if given is None else total + given[:, t]


def _find_changes(
    steps: _Steps,
    points: tuple[Tensor, Tensor, Tensor],
    slopes: _Slopes,
    first: _Back,
    moving: _Moving,
) -> _Given:
    """Return the derivatives by a, k and k' of what the movement adds to the gradient's sum."""
    dk, dh = first.k_after, first.after
    if steps.counts is not None:
        dk, dh = (torch.where(steps.counts, d, 0.0) for d in (dk, dh))
    k = moving.states.k
    factors = (steps.spread(dk, dh) * moving.a, dk * k[:, :-1], dh * k[:, 1:])
    bent = [(d, f) for d, f in zip(slopes, factors, strict=True) if d.requires_grad]
    if not bent:  # C and S are linear
        return _NONE
    by, times = zip(*bent, strict=True)
    of_a, of_k, of_k_after = torch.autograd.grad(by, points, times, materialize_grads=True)
    return _Given(a=of_a, k=of_k, k_after=of_k_after)
