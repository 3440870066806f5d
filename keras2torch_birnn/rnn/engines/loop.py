"""The engine "loop": the cells' equations in a loop over time. It runs everything.

The input product of the whole sequence is taken at once, before the loop. B batch, T time,
F features, H units, G gates. Gates in torch's order: LSTM i, f, g, o; GRU r, z, n.
Equations: Keras 2.2.4 ``layers/recurrent.py`` and Keras 3 ``layers/rnn/{lstm,gru,simple_rnn}.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from keras2torch_birnn.rnn.cell_kind import GRU_BEFORE
from keras2torch_birnn.rnn.engines.exported import Advance, Shared, record_loop, records_loop
from keras2torch_birnn.rnn.layer import (
    Cell,
    DropoutMasks,
    RnnCall,
    RnnLayer,
    RnnResult,
    State,
    Weights,
)
from keras2torch_birnn.rnn.masks import expand_dims_like, reverse, zero_past
from keras2torch_birnn.rnn.tensor_memory import is_exporting_by_torch

# (cell, gates' input product of one step (B, G*H), state, what every step reads) -> new state
Step = Callable[[Cell, Tensor, State, Shared], State]


def _recurrent(h: Tensor, shared: Shared, gates: slice) -> Tensor:
    """Compute h weight_hh^T + bias_hh for some gates; h is dropped by each gate's mask, if any."""
    weight, masks, size = shared.weight, shared.masks, h.shape[1]
    rows = slice(gates.start * size, gates.stop * size)
    bias = None if shared.bias is None else shared.bias[rows]
    if not masks:
        return functional.linear(h, weight[rows], bias)
    parts = [
        functional.linear(h * masks[g % len(masks)], weight[g * size : (g + 1) * size])
        for g in range(gates.start, gates.stop)
    ]
    product = torch.cat(parts, dim=1)
    return product if bias is None else product + bias


def lstm_step(cell: Cell, x: Tensor, state: State, shared: Shared) -> State:
    """Compute c' = f c + i g; h' = o act(c')."""
    h, c = state
    i, f, g, o = (x + _recurrent(h, shared, slice(0, 4))).chunk(4, dim=1)
    sigma, act = cell.recurrent_activation, cell.activation
    c = sigma(f) * c + sigma(i) * act(g)
    return sigma(o) * act(c), c


def gru_after_step(cell: Cell, x: Tensor, state: State, shared: Shared) -> State:
    """Compute n = act(x_n + r (h U_n + b_n)); h' = z h + (1 - z) n: reset after the product."""
    (h,) = state
    x_r, x_z, x_n = x.chunk(3, dim=1)
    h_r, h_z, h_n = _recurrent(h, shared, slice(0, 3)).chunk(3, dim=1)
    r = cell.recurrent_activation(x_r + h_r)
    z = cell.recurrent_activation(x_z + h_z)
    n = cell.activation(x_n + r * h_n)
    return (z * h + (1 - z) * n,)


def gru_before_step(cell: Cell, x: Tensor, state: State, shared: Shared) -> State:
    """Compute n = act(x_n + (r h) U_n); h' = z h + (1 - z) n: reset before the product."""
    (h,) = state
    x_r, x_z, x_n = x.chunk(3, dim=1)
    h_r, h_z = _recurrent(h, shared, slice(0, 2)).chunk(2, dim=1)
    r = cell.recurrent_activation(x_r + h_r)
    z = cell.recurrent_activation(x_z + h_z)
    n = cell.activation(x_n + _recurrent(r * h, shared, slice(2, 3)))
    return (z * h + (1 - z) * n,)


def simple_rnn_step(cell: Cell, x: Tensor, state: State, shared: Shared) -> State:
    """Compute h' = act(x + h U)."""
    return (cell.activation(x + _recurrent(state[0], shared, slice(0, 1))),)


STEPS: Mapping[str, Step] = {
    "LSTM": lstm_step,
    "GRU": gru_after_step,
    GRU_BEFORE: gru_before_step,
    "SimpleRNN": simple_rnn_step,
}


def run_loop(
    cell: Cell,
    w: Weights,
    x: Tensor,
    lengths: Tensor | None,
    initial_state: State,
    dropout: DropoutMasks | None = None,
) -> tuple[Tensor, State]:
    """Read x (B, T, F) from t = 0 on; steps at or past ``lengths`` (B,) leave the state alone.

    There x holds zeros. Returns outputs (B, T, H) and the final state.
    """
    masks = () if dropout is None else dropout.state
    products = _input_product(w, x, () if dropout is None else dropout.inputs)
    advance, shared = partial(STEPS[cell.kind], cell), Shared(w.hh, w.bias_hh, masks)
    return loop_over(advance, products, lengths, initial_state, shared)


def loop_over(
    advance: Advance, products: Tensor, lengths: Tensor | None, state: State, shared: Shared
) -> tuple[Tensor, State]:
    """Advance a state by every step of products (B, T, ...); in an exported graph as one node.

    Steps at or past ``lengths`` (B,) leave the state alone. Returns the first state after every
    step, (B, T, ...), and the final state.
    """
    if records_loop():
        return record_loop(advance, products, lengths, state, shared)
    valid = None
    if lengths is not None:
        steps = torch.arange(products.shape[1], device=products.device)
        valid = expand_dims_like(steps, products) < expand_dims_like(lengths, products[:, 0])
    outputs: list[Tensor] = []
    for t, product in enumerate(products.unbind(dim=1)):
        counts = None if valid is None else valid[t]
        new = advance(product, _read(counts, state), shared)
        state = _where(counts, new, state)
        outputs.append(state[0])
    return torch.stack(outputs, dim=1), state


def _where(counts: Tensor | None, new: State, old: State) -> State:
    """Take the new state in the rows where the step counts."""
    if counts is None:
        return new
    return tuple(torch.where(counts, a, b) for a, b in zip(new, old, strict=True))


def _read(counts: Tensor | None, state: State) -> State:
    """Replace the state by zeros in the rows where the step does not count.

    The derivative there may be infinite, and zero times that is NaN.
    """
    if counts is None or not torch.is_grad_enabled():
        return state
    return tuple(torch.where(counts, s, torch.zeros_like(s)) for s in state)


def _input_product(w: Weights, x: Tensor, masks: tuple[Tensor, ...]) -> Tensor:
    """Return x weight_ih^T + bias_ih; x is dropped by one mask, or by one for each gate, if any."""
    if is_exporting_by_torch():
        x = x.clone(memory_format=torch.contiguous_format)  # it would fix a size by its stride
    if len(masks) <= 1:
        dropped = x * masks[0][:, None] if masks else x
        return functional.linear(dropped, w.ih, w.bias_ih)
    rows = w.ih.chunk(len(masks), dim=0)
    parts = [functional.linear(x * m[:, None], row) for row, m in zip(rows, masks, strict=True)]
    product = torch.cat(parts, dim=2)
    return product if w.bias_ih is None else product + w.bias_ih


def run_directions(layer: RnnLayer, call: RnnCall) -> RnnResult:
    """Run every direction by the loop; the second reads the valid steps in reverse."""
    lengths, outputs, states = call.lengths, [], []
    x = zero_past(call.x, lengths)
    initial = call.initial_state or layer.zero_states(x)
    for d, (weights, state) in enumerate(zip(layer.get_weights(), initial, strict=True)):
        read = reverse(x, lengths) if d else x
        masks = call.masks[d] if call.masks else None
        out, last = run_loop(layer.cell, weights, read, lengths, state, masks)
        outputs.append(reverse(out, lengths) if d else out)
        states.append(last)
    return tuple(zero_past(out, lengths) for out in outputs), tuple(states)
