"""The engines behind one door: ``run`` computes one layer's recurrence by the engine a call allows.

native: our kernel (float32 on CPU). fused: torch's own (oneDNN, cuDNN). loop: the equations step by
step, for everything. ``choice`` says which is wanted; here is decided whether this very call can
have it. B batch, T time, F features, H units, G gates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from keras2torch_birnn.errors import UsageError
from keras2torch_birnn.rnn.choice import VARIABLE, Choice, Wish, native_pays, wish
from keras2torch_birnn.rnn.loop import Cell, DropoutRates, Weights, run_loop
from keras2torch_birnn.rnn.masks import compact, reverse, spread, zero_past
from keras2torch_birnn.rnn.merge import MERGE
from keras2torch_birnn.rnn.native.gradient import Inputs, gradient, run_keeping
from keras2torch_birnn.rnn.native.library import NativeCell, missing
from keras2torch_birnn.rnn.native.op import (
    by_direction,
    can_run,
    is_tracing,
    lengths_of_padded,
    run_native,
)

State: TypeAlias = tuple[Tensor, ...]
# Outputs (B, T, H) in the order of time, one per direction or one for both if they were to be
# merged; final states, one per direction.
Result: TypeAlias = tuple[tuple[Tensor, ...], tuple[State, ...]]

# Torch's functions behind nn.LSTM, nn.GRU and nn.RNN, by cell kind and activation.
KERNELS: Mapping[tuple[str, str], Callable[..., Any]] = {
    ("LSTM", "tanh"): torch.lstm,
    ("GRU", "tanh"): torch.gru,
    ("SimpleRNN", "tanh"): torch.rnn_tanh,
    ("SimpleRNN", "relu"): torch.rnn_relu,
}


class Recurrence(NamedTuple):
    """What every engine needs to know of one layer: its cell and the weights of its directions.

    ``kernel``: torch's function that computes this cell, ``native``: the cell in our kernel's
    numbers; None where there is none. ``training``: the layer is in training mode. ``engine``: the
    engine the caller chose, None for what ``K2T_ENGINE`` says.
    """

    cell: Cell
    weights: tuple[Weights, ...]
    kernel: Callable[..., Any] | None = None
    native: NativeCell | None = None
    dropout: DropoutRates | None = None
    training: bool = False
    engine: Wish | None = None

    @property
    def states(self) -> int:
        """h, and an LSTM's c."""
        return 2 if self.cell.kind == "LSTM" else 1


def run(
    layer: Recurrence,
    x: Tensor,
    lengths: Tensor | None,
    start: tuple[State, ...] | None,
    merge: str | None = None,
) -> Result:
    """Compute a layer's outputs (B, T, H) in the order of time and its final states.

    x: (B, T, F). lengths: (B,), the steps of each row that count; outputs past them are zero, and a
    row without any keeps the state it had. start: a state for each direction, None for zeros.
    merge: the merge mode (a key of ``MERGE``) of two directions, None to keep them apart.

    Raises:
        UsageError: the forced engine cannot run this call. ValueError: x does not fit the weights.
    """
    features = layer.weights[0].ih.shape[1]
    if x.dim() != 3 or x.shape[2] != features:
        raise ValueError(f"an input (batch, time, {features}) is expected, found {list(x.shape)}")
    return RUN[decide(layer, x, lengths, start).engine](layer, x, lengths, start, merge)


def decide(
    layer: Recurrence, x: Tensor, lengths: Tensor | None, start: tuple[State, ...] | None
) -> Choice:
    """Say which engine runs this call, and why; arguments as for ``run``.

    Raises:
        UsageError: the forced engine cannot run it.
    """
    engine = wish(layer.engine)
    dropping = layer.training and bool(layer.dropout)
    if engine in ("auto", "native"):
        lacking = _not_native(layer, x, start, dropping=dropping)
        if engine == "native":
            if lacking:
                raise UsageError(f"{VARIABLE}=native: {lacking}", "use auto")
            return _CHOSEN_NATIVE
        if not lacking and _native_wanted(layer, x, lengths, start):
            return _NATIVE
    if layer.kernel is None:
        if engine == "fused":
            raise UsageError(f"{VARIABLE}=fused: torch has no kernel for this layer", "use auto")
        return _ONLY_LOOP
    if engine == "loop":
        return _CHOSEN_LOOP
    if dropping:
        return _DROPPING
    # Packing depends on values, which a graph must not.
    return _EXPORTED if lengths is not None and _exporting() else _FUSED


_NATIVE = Choice("native", "measured the fastest for float32 on CPU")
_CHOSEN_NATIVE = Choice("native", "chosen")
_FUSED = Choice("fused", "torch's own kernel")
_CHOSEN_LOOP = Choice("loop", "chosen")
_ONLY_LOOP = Choice("loop", "neither torch nor the native kernel computes this call")
_DROPPING = Choice("loop", "Keras drops with one mask for all steps; torch's kernel has none")
_EXPORTED = Choice("loop", "a masked layer in an exported graph")


def _not_native(
    layer: Recurrence, x: Tensor, start: tuple[State, ...] | None, *, dropping: bool
) -> str:
    """Why the native kernel cannot run this call; empty if it can."""
    if layer.native is None:
        return missing() or "the native kernel lacks an activation of this layer"
    if is_tracing():
        return "what torch.jit traces must be torch's"
    if dropping or not can_run(_tensors(layer, x, start)):
        return "the kernel computes float32 on CPU, without dropout"
    return ""


def _native_wanted(
    layer: Recurrence, x: Tensor, lengths: Tensor | None, start: tuple[State, ...] | None
) -> bool:
    """Whether native is the better engine for this call."""
    if _exporting():
        return False
    weights = layer.weights[0].hh.numel()
    if layer.kernel is not None and lengths is None and not native_pays(x.shape[0], weights):
        return False
    if not _differentiated(layer, x, start):
        return True
    # In training the gradient is wanted at once, and torch's engines have all of them.
    lacking = layer.training and not (layer.native and layer.native.differentiable)
    return not (lacking or torch.compiler.is_compiling())


def _tensors(layer: Recurrence, x: Tensor, start: tuple[State, ...] | None) -> list[Tensor]:
    return [x, *(s for state in start or () for s in state), *_flat(layer.weights)]


def _differentiated(layer: Recurrence, x: Tensor, start: tuple[State, ...] | None) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in _tensors(layer, x, start))


def run_masked(
    sequences: Callable[[Tensor, Tensor | None, tuple[State, ...] | None, str | None], Result],
    x: Tensor,
    mask: Tensor,
    start: tuple[State, ...] | None,
    rules: Sequence[str],
    merge: str | None = None,
) -> Result:
    """``sequences`` (as ``run``) on the steps that ``mask`` (B, T) says count, and on nothing else.

    ``rules``: what stands at the other steps of each direction (``masks.spread``).

    Raises:
        ValueError: the mask has not a value for each step of x.
    """
    if mask.shape != x.shape[:2]:
        raise ValueError(f"a mask {list(x.shape[:2])} is expected, found {list(mask.shape)}")
    zeros = set(rules) == {"zeros"}  # which merge to zeros
    counted = lengths_of_padded(mask)
    compacted, lengths = compact(x, mask) if counted is None else (x, counted)
    outputs, states = sequences(compacted, lengths, start, merge if zeros else None)
    if counted is not None and zeros:
        return outputs, states
    outputs = tuple(
        spread(out, mask, start[d][0] if start else None, backward=d == 1, rule=rules[d])
        for d, out in enumerate(outputs)
    )
    return outputs if zeros else merged(outputs, merge), states


def merged(outputs: tuple[Tensor, ...], merge: str | None) -> tuple[Tensor, ...]:
    """The two directions' outputs as one, unless they are to stay apart."""
    return outputs if merge is None else (MERGE[merge](*outputs),)


# Older torch tells compiling only.
_is_exporting: Any = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)


def _exporting() -> bool:
    """Whether a graph is being exported, or traced by ``torch.jit``."""
    return bool(_is_exporting() or is_tracing())


def _flat(weights: Sequence[Weights]) -> list[Tensor]:
    """All parameters in torch's order, without those that are absent."""
    return [p for w in weights for p in w if p is not None]


# ---- loop --------------------------------------------------------------------------------------


def _run_loops(
    layer: Recurrence,
    x: Tensor,
    lengths: Tensor | None,
    start: tuple[State, ...] | None,
    merge: str | None,
) -> Result:
    """Every direction by the loop; the second reads the valid steps turned round."""
    outputs, states = [], []
    dropout = layer.dropout if layer.training else None
    for d, weights in enumerate(layer.weights):
        zero = x.new_zeros(x.shape[0], weights.hh.shape[1])
        begin = start[d] if start else (zero,) * layer.states
        read = reverse(x, lengths) if d else x
        out, state = run_loop(layer.cell, weights, read, lengths, begin, dropout)
        outputs.append(reverse(out, lengths) if d else out)
        states.append(state)
    return merged(tuple(zero_past(out, lengths) for out in outputs), merge), tuple(states)


# ---- fused -------------------------------------------------------------------------------------


def _run_fused(
    layer: Recurrence,
    x: Tensor,
    lengths: Tensor | None,
    start: tuple[State, ...] | None,
    merge: str | None,
) -> Result:
    """One call of torch's kernel for all directions, packed where lengths count."""
    kernel: Any = layer.kernel
    directions, units = len(layer.weights), layer.weights[0].hh.shape[1]
    if start is None:
        zero = x.new_zeros(directions, x.shape[0], units)
        begin: tuple[Tensor, ...] = (zero,) * layer.states
    else:
        begin = tuple(torch.stack(parts) for parts in zip(*start, strict=True))
    packed: PackedSequence | None = None
    empty: Tensor | None = None
    if lengths is not None and x.shape[0] > 0:
        # Sorted here, so that the states can be sorted alike.
        order = lengths.argsort(descending=True)
        back = order.argsort()
        counts = lengths[order].cpu()
        if counts[-1] == 0:
            empty = lengths[order] == 0
        packed = pack_padded_sequence(x[order], counts.clamp(min=1), batch_first=True)
        begin = tuple(s[:, order] for s in begin)
    hx = begin if layer.cell.kind == "LSTM" else begin[0]
    weights = _flat(layer.weights)
    has_biases = layer.weights[0].bias_ih is not None
    # one layer, no dropout between layers
    fixed = (weights, has_biases, 1, 0.0, layer.training, directions == 2)
    if packed is None:
        out, *final = kernel(x, hx, *fixed, True)
    else:
        out, *final = kernel(packed.data, packed.batch_sizes, hx, *fixed)
        again = PackedSequence(out, packed.batch_sizes)
        out, _ = pad_packed_sequence(again, batch_first=True, total_length=x.shape[1])
        if empty is not None:  # torch knows no row without a step: what it made of the first goes
            out = out.masked_fill(empty[:, None, None], 0)
            final = [torch.where(empty[:, None], s, f) for f, s in zip(final, begin, strict=True)]
        out, final = out[back], [f[:, back] for f in final]
    states = tuple(tuple(f[d] for f in final) for d in range(directions))
    if merge == "concat":
        return (out,), states
    return merged(out.chunk(directions, dim=2), merge), states


# ---- native ------------------------------------------------------------------------------------


def _run_native(
    layer: Recurrence,
    x: Tensor,
    lengths: Tensor | None,
    start: tuple[State, ...] | None,
    merge: str | None,
) -> Result:
    if not _differentiated(layer, x, start):
        return _by_kernel(layer, x, lengths, start, merge)
    if layer.training and _native(layer).differentiable:
        return _keeping(layer, x, lengths, start, merge)
    states = [s for state in start or () for s in state]
    recomputed: Any = _Recomputed
    fixed = _Fixed(layer, lengths, merge, len(states))
    flat = cast(tuple[Tensor, ...], recomputed.apply(fixed, x, *states, *_flat(layer.weights)))
    n, each = len(layer.weights), layer.states
    outputs = len(flat) - n * each
    return flat[:outputs], tuple(
        flat[outputs + d * each : outputs + (d + 1) * each] for d in range(n)
    )


def _keeping(
    layer: Recurrence,
    x: Tensor,
    lengths: Tensor | None,
    start: tuple[State, ...] | None,
    merge: str | None,
) -> Result:
    """By the kernel, which keeps what its gradient needs; merged by torch, which knows its own."""
    states = [s for state in start or () for s in state]
    kept: Any = _Kept
    fixed = _Fixed(layer, lengths, None, len(states))
    out, final = kept.apply(fixed, x, *states, *_flat(layer.weights))
    finals = by_direction(final, _native(layer))
    if merge == "concat":
        return (out,), finals
    return merged(out.chunk(len(layer.weights), dim=2), merge), finals


@dataclass(frozen=True)
class _Fixed:
    """A call without the tensors that may have gradients; ``states``: how many it starts with."""

    layer: Recurrence
    lengths: Tensor | None
    merge: str | None
    states: int


def _native(layer: Recurrence) -> NativeCell:
    if layer.native is None:
        raise TypeError("a layer without native cell")
    return layer.native


def _by_kernel(
    layer: Recurrence,
    x: Tensor,
    lengths: Tensor | None,
    start: tuple[State, ...] | None,
    merge: str | None,
) -> Result:
    return run_native(_native(layer), layer.weights, x, lengths, start, merge)


def _unshaped(result: Result) -> tuple[Tensor, ...]:
    return *result[0], *(s for state in result[1] for s in state)


class _Recomputed(torch.autograd.Function):
    """Forward by the native kernel; backward runs the layer once more, keeping what it needs.

    Most calls in evaluation mode never ask for the gradient that they allow.
    """

    @staticmethod
    def forward(ctx: Any, fixed: _Fixed, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Tensors: x, the start's states, the weights."""
        ctx.save_for_backward(*tensors)
        ctx.fixed = fixed
        layer, x, start = _taken(fixed, tensors)
        return _unshaped(_by_kernel(layer, x, fixed.lengths, start, fixed.merge))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, states and weights; they have gradients themselves."""
        return _gradients_again(ctx.fixed, ctx.saved_tensors, ctx.needs_input_grad, gradients)


class _Kept(torch.autograd.Function):
    """Forward and backward by the native kernel."""

    @staticmethod
    def forward(ctx: Any, fixed: _Fixed, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Tensors: x, the start's states, the weights. Outputs side by side, and final states."""
        out, final, kept = run_keeping(_inputs(fixed, tensors))
        ctx.save_for_backward(*tensors, *kept)
        ctx.fixed = fixed
        ctx.set_materialize_grads(False)
        return out, final

    @staticmethod
    def backward(
        ctx: Any, d_out: Tensor | None, d_final: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Gradients of x, states and weights; they have gradients themselves."""
        fixed, needed = ctx.fixed, ctx.needs_input_grad
        directions = len(fixed.layer.weights)
        saved = ctx.saved_tensors  # asked for once: inside a checkpoint they are recomputed then
        tensors, kept = saved[:-directions], saved[-directions:]
        if torch.is_grad_enabled():  # gradients of gradients: the kernel's own have none
            none = (None,)
            outputs = none * directions if d_out is None else d_out.chunk(directions, dim=2)
            states = none * directions * fixed.layer.states
            if d_final is not None:
                states = d_final.unbind(0)
            return _gradients_again(fixed, tensors, needed, (*outputs, *states))
        d_x, d_start, d_parameters = gradient(
            _inputs(fixed, tensors),
            kept,
            d_out,
            d_final,
            of_x=needed[1],
        )
        present = [
            d
            for direction, weights in zip(d_parameters, fixed.layer.weights, strict=True)
            for d, p in zip(direction, weights, strict=True)
            if p is not None
        ]
        return None, d_x, *d_start[: fixed.states], *present


def _gradients_again(
    fixed: _Fixed,
    tensors: Sequence[Tensor],
    needs_input_grad: Sequence[bool],
    gradients: Sequence[Tensor | None],
) -> tuple[Tensor | None, ...]:
    """The gradients of the tensors, of one run more; for gradients of gradients, of torch's."""
    needed, twice = needs_input_grad[1:], torch.is_grad_enabled()
    if not twice:
        tensors = tuple(
            t.detach().requires_grad_(need) for t, need in zip(tensors, needed, strict=True)
        )
    with torch.enable_grad():
        layer, x, start = _taken(fixed, tensors)
        if not twice and _native(layer).differentiable:
            again = _keeping(layer, x, fixed.lengths, start, fixed.merge)
        else:
            by_torch = layer._replace(engine="torch")
            again = run(by_torch, x, fixed.lengths, start, fixed.merge)
        asked = [(o, g) for o, g in zip(_unshaped(again), gradients, strict=True) if g is not None]
        wanted = [t for t, need in zip(tensors, needed, strict=True) if need]
        outputs, given = zip(*asked, strict=True)
        found = iter(
            torch.autograd.grad(outputs, wanted, given, create_graph=twice, allow_unused=True)
        )
    return None, *(next(found) if need else None for need in needed)


def _inputs(fixed: _Fixed, tensors: Sequence[Tensor]) -> Inputs:
    layer, x, _ = _taken(fixed, tensors)
    start = tensors[1 : 1 + fixed.states]
    return Inputs(_native(layer), layer.weights, x, fixed.lengths, start)


def _taken(
    fixed: _Fixed, tensors: Sequence[Tensor]
) -> tuple[Recurrence, Tensor, tuple[State, ...] | None]:
    """The layer with these weights, x and start."""
    layer, states = fixed.layer, fixed.states
    x, rest = tensors[0], iter(tensors[1 + states :])
    weights = tuple(
        Weights(
            next(rest),
            next(rest),
            None if w.bias_ih is None else next(rest),
            None if w.bias_hh is None else next(rest),
        )
        for w in layer.weights
    )
    each = layer.states
    start = tuple(tuple(tensors[1 + i : 1 + i + each]) for i in range(0, states, each))
    return layer._replace(weights=weights), x, start or None


RUN: Mapping[str, Callable[..., Result]] = {
    "loop": _run_loops,
    "fused": _run_fused,
    "native": _run_native,
}
