"""The engines behind one door: ``run`` computes one layer's recurrence by the engine a call allows.

native: our kernel (float32 on CPU). fused: torch's own (oneDNN, cuDNN). loop: the equations step by
step, for everything. graph: the loop recorded on a GPU. ``engine_choice`` says which is wanted;
here is decided whether this very call can have it. B batch, T time, F features, H units, G gates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from keras2torch_birnn.errors import UsageError
from keras2torch_birnn.rnn.call import Asked, Result, State
from keras2torch_birnn.rnn.checked import check_shape
from keras2torch_birnn.rnn.cuda_graph import cannot_record, run_recorded
from keras2torch_birnn.rnn.engine_choice import VARIABLE, Choice, Wish, native_pays, wish
from keras2torch_birnn.rnn.loop import Cell, DropoutRates, Weights, run_loop
from keras2torch_birnn.rnn.masks import compact, reverse, spread, zero_past
from keras2torch_birnn.rnn.merge import MERGE
from keras2torch_birnn.rnn.native.gradient import gradient, run_keeping
from keras2torch_birnn.rnn.native.library import NativeCell, missing
from keras2torch_birnn.rnn.native.op import (
    by_direction,
    can_run,
    is_tracing,
    lengths_of_padded,
    run_native,
)
from keras2torch_birnn.rnn.plain import are_mapped, have_memory, have_tangents, is_plain

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

    def states(self) -> int:
        """h, and an LSTM's c."""
        return 2 if self.cell.kind == "LSTM" else 1


def run(layer: Recurrence, asked: Asked) -> Result:
    """Compute a layer's outputs and final states.

    Raises:
        UsageError: the forced engine cannot run this call, or x does not fit the weights.
    """
    check_shape(asked.x.shape, layer.weights[0].ih.shape[1])
    chosen = decide(layer, asked).engine
    if asked.x.shape[1] == 0:
        return no_steps((layer,), asked)
    return RUN[chosen](layer, to_keep(asked) if torch.is_grad_enabled() else asked)


def no_steps(layers: Sequence[Recurrence], asked: Asked) -> Result:
    """Give the last layer's outputs of no steps, and the states of all layers as they were."""
    nothing = tuple(_nothing(asked.x, w) for w in layers[-1].weights)
    zeros = tuple(z for layer in layers for z in _zeros(layer, asked.x))
    return merged(nothing, asked.merge), asked.start or zeros


def _nothing(x: Tensor, weights: Weights) -> Tensor:
    """(B, 0, H), of x and a weight, which then have gradients of zero."""
    return x.sum(dim=2, keepdim=True) * weights.hh[0]


def _zeros(layer: Recurrence, x: Tensor) -> tuple[State, ...]:
    """States of zeros, for each direction."""
    zero = x.new_zeros(x.shape[0], layer.weights[0].hh.shape[1])
    return ((zero,) * layer.states(),) * len(layer.weights)


def to_keep(asked: Asked) -> Asked:
    """Copy what was made in inference mode, which autograd cannot keep for a gradient."""
    if torch.compiler.is_compiling():
        return asked
    x, lengths, start, merge, final = asked
    counted = () if lengths is None else (lengths,)
    if not any(map(Tensor.is_inference, (x, *asked.states(), *counted))):
        return asked
    states = start and tuple(tuple(map(_usable, state)) for state in start)
    return Asked(_usable(x), None if lengths is None else _usable(lengths), states, merge, final)


def _usable(tensor: Tensor) -> Tensor:
    return tensor.clone() if tensor.is_inference() else tensor


def decide(layer: Recurrence, asked: Asked) -> Choice:
    """Say which engine runs this call, and why.

    Raises:
        UsageError: the forced engine cannot run it.
    """
    engine = wish(layer.engine)
    if engine == "folded":
        raise UsageError(f"{VARIABLE}=folded: a layer that stands alone", "use fused")
    dropping = layer.training and layer.dropout is not None and layer.dropout.drop()
    if engine in ("auto", "native"):
        lacking = _not_native(layer, asked, dropping=dropping)
        if engine == "native":
            if lacking:
                raise UsageError(f"{VARIABLE}=native: {lacking}", "use auto")
            return _CHOSEN_NATIVE
        if not lacking and _native_wanted(layer, asked):
            return _NATIVE
    if engine == "loop":
        return _CHOSEN_LOOP
    if engine == "graph":
        if lacking := _not_graph(layer, asked, dropping=dropping):
            raise UsageError(f"{VARIABLE}=graph: {lacking}", "use auto")
        return _CHOSEN_GRAPH
    if layer.kernel is None:
        if engine == "fused":
            raise UsageError(f"{VARIABLE}=fused: torch has no kernel for this layer", "use auto")
        return _ONLY_LOOP if _not_graph(layer, asked, dropping=dropping) else _GRAPH
    if dropping:
        return _DROPPING
    if not torch.compiler.is_compiling() and _is_transformed(_tensors(layer, asked)):
        return _TRANSFORMED
    return _FUSED if asked.lengths is None or can_pack(asked.x, asked.lengths) else _UNPACKED


def _is_transformed(tensors: Sequence[Tensor]) -> bool:
    return have_tangents(tensors) or are_mapped(tensors)


def can_pack(*tensors: Tensor) -> bool:
    """Tell whether masked sequences may be packed, which depends on values, as no graph may."""
    if is_exporting() or torch.compiler.is_compiling():
        return False
    return have_memory(tensors)


_NATIVE = Choice("native", "measured the fastest for float32 on CPU")
_CHOSEN_NATIVE = Choice("native", "chosen")
_FUSED = Choice("fused", "torch's own kernel")
_CHOSEN_LOOP = Choice("loop", "chosen")
_CHOSEN_GRAPH = Choice("graph", "chosen")
_GRAPH = Choice("graph", "the loop, recorded: torch has no kernel for this layer")
_ONLY_LOOP = Choice("loop", "neither torch nor the native kernel computes this call")
_DROPPING = Choice("loop", "Keras drops with one mask for all steps; torch's kernel has none")
_TRANSFORMED = Choice("loop", "torch's kernels lack forward-mode derivatives and vmap")
_UNPACKED = Choice("loop", "a masked layer in a graph, or tensors without values to pack by")

# It looks for files, where torch.compile cannot follow; torch gives the function no types.
_missing: Callable[[], str] = cast(Any, torch.compiler).assume_constant_result(missing)


def _not_native(layer: Recurrence, asked: Asked, *, dropping: bool) -> str:
    """Why the native kernel cannot run this call; empty if it can."""
    if layer.native is None:
        return _missing() or "the native kernel lacks an activation of this layer"
    if is_tracing():
        return "what torch.jit traces must be torch's"
    if dropping or not can_run(_tensors(layer, asked)):
        return "the kernel computes float32 on CPU, without dropout, from plain tensors"
    if asked.lengths is not None and not torch.compiler.is_compiling():
        return "" if is_plain((asked.lengths,)) else "the lengths are not a plain tensor"
    return ""


def _not_graph(layer: Recurrence, asked: Asked, *, dropping: bool) -> str:
    """Why the loop cannot be recorded for this call; empty if it can."""
    if dropping or _differentiated(layer, asked):
        return "gradients and dropout cannot be recorded"
    if is_exporting() or torch.compiler.is_compiling():
        return "what is compiled or exported cannot be recorded"
    return cannot_record(asked, _flat(layer.weights))


def _native_wanted(layer: Recurrence, asked: Asked) -> bool:
    """Whether native is the better engine for this call, which it can run."""
    if _is_exporting():
        return False
    weights = layer.weights[0].hh.numel()
    unmasked = layer.kernel is not None and asked.lengths is None
    if unmasked and not native_pays(layer.cell.kind, asked.x.shape[0], weights):
        return False
    if not _differentiated(layer, asked):
        return True
    # In training the gradient is wanted at once, and torch's engines have all of them.
    lacking = layer.training and not (layer.native and layer.native.differentiable)
    return not (lacking or torch.compiler.is_compiling())


def _tensors(layer: Recurrence, asked: Asked) -> list[Tensor]:
    """Those that may have gradients: x, the start's states, the weights."""
    return [asked.x, *asked.states(), *_flat(layer.weights)]


def _differentiated(layer: Recurrence, asked: Asked) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in _tensors(layer, asked))


def run_masked(
    sequences: Callable[[Asked], Result], asked: Asked, mask: Tensor, rules: tuple[str, ...]
) -> Result:
    """``sequences`` (as ``run``) on the steps that ``mask`` (B, T) says count, and on nothing else.

    In a mask of another dtype than bool zero is false. ``rules``: what stands at the other steps of
    each direction (``masks.spread``).

    Raises:
        ValueError: the mask has not a value for each step of x.
    """
    x, _, start, merge, final = asked
    if mask.shape != x.shape[:2]:
        raise ValueError(f"a mask {list(x.shape[:2])} is expected, found {list(mask.shape)}")
    if mask.dtype is not torch.bool:
        mask = mask.bool()
    elif torch.is_grad_enabled() and not torch.compiler.is_compiling():
        mask = _usable(mask)
    zeros = rules in _ZEROS  # which merge to zeros
    counted = lengths_of_padded(mask)
    compacted, lengths = compact(x, mask) if counted is None else (x, counted)
    outputs, states = sequences(Asked(compacted, lengths, start, merge if zeros else None, final))
    if counted is not None and zeros:
        return outputs, states
    outputs = tuple(
        spread(out, mask, start[d][0] if start else None, backward=d == 1, rule=rules[d])
        for d, out in enumerate(outputs)
    )
    return outputs if zeros else merged(outputs, merge), states


_ZEROS = {("zeros",), ("zeros", "zeros")}


def merged(outputs: tuple[Tensor, ...], merge: str | None) -> tuple[Tensor, ...]:
    """The two directions' outputs as one, unless they are to stay apart."""
    return outputs if merge is None else (MERGE[merge](*outputs),)


# Torch 2.6 tells compiling only, and 2.7 to 2.9 answer alike within a graph: torch's engines then.
_is_exporting: Any = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)


def is_exporting() -> bool:
    """Whether a graph is being exported, or traced by ``torch.jit``."""
    return bool(_is_exporting() or is_tracing())


def _flat(weights: Sequence[Weights]) -> list[Tensor]:
    """All parameters in torch's order, without those that are absent."""
    return [p for p in chain.from_iterable(weights) if p is not None]


# ---- loop --------------------------------------------------------------------------------------


def _run_loops(layer: Recurrence, asked: Asked) -> Result:
    """Every direction by the loop; the second reads the valid steps turned round."""
    x, lengths, start, merge, _ = asked
    outputs, states = [], []
    dropout = layer.dropout if layer.training else None
    x = zero_past(x, lengths)
    start = start or _zeros(layer, x)
    for d, (weights, begin) in enumerate(zip(layer.weights, start, strict=True)):
        read = reverse(x, lengths) if d else x
        out, state = run_loop(layer.cell, weights, read, lengths, begin, dropout)
        outputs.append(reverse(out, lengths) if d else out)
        states.append(state)
    return merged(tuple(zero_past(out, lengths) for out in outputs), merge), tuple(states)


def _run_graph(layer: Recurrence, asked: Asked) -> Result:
    """The loop, recorded."""
    absent = tuple(p is None for p in chain.from_iterable(layer.weights))
    compute = partial(_run_loops, layer)
    return run_recorded(compute, asked, _flat(layer.weights), (layer.cell, absent))


# ---- fused -------------------------------------------------------------------------------------


def _run_fused(layer: Recurrence, asked: Asked) -> Result:
    """One call of torch's kernel for all directions."""
    return run_kernel((layer,), asked)


def run_kernel(layers: Sequence[Recurrence], asked: Asked) -> Result:
    """One call of torch's kernel, packed where lengths count.

    layers: alike but for their weights, each but the first reading both directions of the one
    before side by side. ``asked.start`` and the final states are those of all layers, each with
    its directions.
    """
    x, lengths, start, merge, _ = asked
    layer = layers[0]
    kernel: Any = layer.kernel
    directions, units = len(layer.weights), layer.weights[0].hh.shape[1]
    number = len(layers) * directions
    if start is None:
        zero = x.new_zeros(number, x.shape[0], units)
        begin: tuple[Tensor, ...] = (zero,) * layer.states()
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
            x = zero_past(x, lengths)  # a step of each row without any is read
        packed = pack_padded_sequence(x[order], counts.clamp(min=1), batch_first=True)
        begin = tuple(s[:, order] for s in begin)
    hx = begin if layer.cell.kind == "LSTM" else begin[0]
    weights = [p for one in layers for p in _flat(one.weights)]
    has_biases = layer.weights[0].bias_ih is not None
    # no dropout between layers
    fixed = (weights, has_biases, len(layers), 0.0, layer.training, directions == 2)
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
    states = tuple(tuple(f[i] for f in final) for i in range(number))
    if merge == "concat":
        return (out,), states
    return merged(out.chunk(directions, dim=2), merge), states


# ---- native ------------------------------------------------------------------------------------


def _run_native(layer: Recurrence, asked: Asked) -> Result:
    if not _differentiated(layer, asked):
        return run_native(_native(layer), layer.weights, asked)
    if layer.training and _native(layer).differentiable:
        return _keeping(layer, asked)
    recomputed: Any = _Recomputed
    found = recomputed.apply(_Fixed.of(layer, asked), *_tensors(layer, asked))
    flat = cast(tuple[Tensor, ...], found)
    n, each = len(layer.weights), layer.states()
    outputs = len(flat) - n * each
    return flat[:outputs], tuple(
        flat[outputs + d * each : outputs + (d + 1) * each] for d in range(n)
    )


def _keeping(layer: Recurrence, asked: Asked) -> Result:
    """By the kernel, which keeps what its gradient needs; merged by torch, which knows its own."""
    kept: Any = _Kept
    fixed = _Fixed.of(layer, asked._replace(merge=None))
    out, final = kept.apply(fixed, *_tensors(layer, asked))
    finals = by_direction(final, _native(layer))
    if asked.merge == "concat":
        return (out,), finals
    return merged(out.chunk(len(layer.weights), dim=2), asked.merge), finals


@dataclass(frozen=True)
class _Fixed:
    """A call without the tensors that may have gradients; ``states``: how many it starts with."""

    layer: Recurrence
    lengths: Tensor | None
    merge: str | None
    states: int

    @staticmethod
    def of(layer: Recurrence, asked: Asked) -> _Fixed:
        return _Fixed(layer, asked.lengths, asked.merge, len(asked.states()))

    def with_tensors(self, tensors: Sequence[Tensor]) -> tuple[Recurrence, Asked]:
        """The layer and what it is asked for, with what ``_tensors`` gave, or others like it."""
        states = self.states
        rest = iter(tensors[1 + states :])
        weights = tuple(
            Weights(
                next(rest),
                next(rest),
                None if w.bias_ih is None else next(rest),
                None if w.bias_hh is None else next(rest),
            )
            for w in self.layer.weights
        )
        each = self.layer.states()
        start = tuple(tuple(tensors[1 + i : 1 + i + each]) for i in range(0, states, each))
        asked = Asked(tensors[0], self.lengths, start or None, self.merge)
        return self.layer._replace(weights=weights), asked


def _native(layer: Recurrence) -> NativeCell:
    if layer.native is None:
        raise TypeError("a layer without native cell")
    return layer.native


def _unshaped(result: Result) -> tuple[Tensor, ...]:
    return *result[0], *(s for state in result[1] for s in state)


class _Recomputed(torch.autograd.Function):
    """Forward by the native kernel; backward runs the layer once more, keeping what it needs.

    Most calls in evaluation mode never ask for the gradient that they allow.
    """

    @staticmethod
    def forward(ctx: Any, fixed: _Fixed, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Tensors: of ``_tensors``."""
        ctx.save_for_backward(*tensors)
        ctx.fixed = fixed
        layer, asked = fixed.with_tensors(tensors)
        return _unshaped(run_native(_native(layer), layer.weights, asked))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, states and weights; they have gradients themselves."""
        return _gradients_again(ctx.fixed, ctx.saved_tensors, ctx.needs_input_grad, gradients)


class _Kept(torch.autograd.Function):
    """Forward and backward by the native kernel."""

    @staticmethod
    def forward(ctx: Any, fixed: _Fixed, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Tensors: of ``_tensors``. Outputs side by side, and final states."""
        layer, asked = fixed.with_tensors(tensors)
        out, final, kept = run_keeping(_native(layer), layer.weights, asked)
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
        given = [d for d in (d_out, d_final) if d is not None]
        # The kernel's own gradients have none themselves, and are of plain tensors only.
        if torch.is_grad_enabled() or not is_plain([*given, *saved]):
            none = (None,)
            outputs = none * directions if d_out is None else d_out.chunk(directions, dim=2)
            states = none * directions * fixed.layer.states()
            if d_final is not None:
                states = d_final.unbind(0)
            return _gradients_again(fixed, tensors, needed, (*outputs, *states))
        layer, asked = fixed.with_tensors(tensors)
        d_x, d_start, d_parameters = gradient(
            _native(layer),
            layer.weights,
            asked,
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
    plain = is_plain([*tensors, *(g for g in gradients if g is not None)])
    if not twice:
        tensors = tuple(
            t.detach().requires_grad_(need) for t, need in zip(tensors, needed, strict=True)
        )
    with torch.enable_grad():
        layer, asked = fixed.with_tensors(tensors)
        if plain and not twice and _native(layer).differentiable:
            again = _keeping(layer, asked)
        else:
            # Batched by autograd (is_grads_batched) they are no reason for the loop.
            tangents = have_tangents(g for g in gradients if g is not None)
            again = run(layer._replace(engine="loop" if tangents else "torch"), asked)
        pairs = zip(_unshaped(again), gradients, strict=True)
        outputs, given = zip(*((o, g) for o, g in pairs if g is not None), strict=True)
        wanted = [t for t, need in zip(tensors, needed, strict=True) if need]
        found = iter(
            torch.autograd.grad(outputs, wanted, given, create_graph=twice, allow_unused=True)
        )
    return None, *(next(found) if need else None for need in needed)


RUN: Mapping[str, Callable[[Recurrence, Asked], Result]] = {
    "loop": _run_loops,
    "graph": _run_graph,
    "fused": _run_fused,
    "native": _run_native,
}
