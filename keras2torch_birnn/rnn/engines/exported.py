"""Recurrent layers in an exported graph: any number of steps, and masks without packing.

The loop is one node, a scan of torch, with the step inside: without it, a graph would hold one copy
of the step for each step of the example. Torch's kernel is one node, too. Packing depends on the
values of the lengths, as no graph may. It is not needed: the padding lies behind the valid steps,
and cannot change them. B batch, T time, F features, H units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor
from torch.onnx import is_in_onnx_export

from keras2torch_birnn.rnn.layer import RnnCall, RnnLayer, RnnResult, State, Weights
from keras2torch_birnn.rnn.masks import expand_dims_like, reverse, zero_past
from keras2torch_birnn.rnn.tensor_memory import is_exporting_by_torch
from keras2torch_birnn.rnn.torch_private import find, last_name

# ---- the loop -----------------------------------------------------------------------------------


class Shared(NamedTuple):
    """Tensors that every step reads. masks: of the state's dropout, all of one shape."""

    weight: Tensor
    bias: Tensor | None = None
    masks: tuple[Tensor, ...] = ()

    def present(self) -> tuple[Tensor, ...]:
        """Return the tensors that are not None, in order."""
        biases = () if self.bias is None else (self.bias,)
        return (self.weight, *biases, *self.masks)

    def with_values(self, tensors: Sequence[Tensor]) -> Shared:
        """Return a copy with other tensors, given in the order of ``present``."""
        first_mask = 1 if self.bias is None else 2
        bias = None if self.bias is None else tensors[1]
        return Shared(tensors[0], bias, tuple(tensors[first_mask:]))


# (input product of one step, state, what every step reads) -> new state
Advance: TypeAlias = Callable[[Tensor, State, Shared], State]
# (outputs of all steps, final state)
Run: TypeAlias = tuple[Tensor, State]


class Scan(NamedTuple):
    """Torch's scan: the function for dynamo, which lifts what a step reads, and the operator."""

    function: Callable[..., Any]
    operator: Callable[..., Any]


def _find_scan() -> Scan | None:
    """Return torch's scan, which has no public name."""
    function, operator = find("scan"), find("scan_op")
    return None if function is None or operator is None else Scan(function, operator)


SCAN = _find_scan()


def records_loop() -> bool:
    """Return whether a graph is being exported that can hold a loop as one node."""
    return bool(is_exporting_by_torch() and SCAN is not None)


def record_loop(
    advance: Advance,
    products: Tensor,
    lengths: Tensor | None,
    state: State,
    shared: Shared,
) -> Run:
    """Run a loop over products (B, T, ...) as one node.

    Steps at or past ``lengths`` (B,) leave the state alone, and are not differentiated. Returns the
    first state after every step, (B, T, ...), and the final state.
    """
    steps = products.transpose(0, 1)
    valid = None
    if lengths is not None:
        valid = torch.arange(steps.shape[0], device=steps.device)[:, None] < lengths
        # Here, because AOTInductor knows no open size inside of the step.
        valid = expand_dims_like(valid, state[0][None])
    step = _keep_masked(advance, masked=valid is not None)
    outputs, final = _run_scan(step, steps, valid, state, shared)
    return outputs.transpose(0, 1), final


def _keep_masked(advance: Advance, *, masked: bool) -> Callable[..., State]:
    """Wrap a step so that rows whose step is masked keep their state."""

    def step(product: Tensor, counts: Any, state: State, shared: Shared) -> State:
        if not masked:
            return advance(product, state, shared)
        # The derivative of a masked step may be infinite, and zero times that is NaN.
        read = tuple(s.masked_fill(~counts, 0.0) for s in state)
        new = advance(product, read, shared)
        return tuple(torch.where(counts, a, b) for a, b in zip(new, state, strict=True))

    return step


def _run_scan(
    step: Callable[..., State],
    products: Tensor,
    valid: Tensor | None,
    state: State,
    shared: Shared,
) -> Run:
    def combine(*flat: Tensor) -> list[Tensor]:
        first, end = count + len(steps), count + len(steps) + len(more)
        carried, given, fixed = flat[:count], flat[count:first], flat[first:end]
        new = step(given[0], given[-1], carried, shared.with_values(fixed))
        return [*(s.contiguous() for s in new), new[0].clone()]  # none may share memory

    found: Any = SCAN
    count = len(state)
    begin = [s.clone(memory_format=torch.contiguous_format) for s in state]
    steps = [products] if valid is None else [products, valid]
    more = shared.present()
    if torch.compiler.is_dynamo_compiling():  # it takes the public form, and lifts what that reads
        final, outputs = found.function(
            lambda s, step: _split(combine(*s, *step, *more), count), begin, steps
        )
        return outputs, tuple(final)
    given = (*more, *_open_sizes(products))
    flat = found.operator(combine, begin, steps, additional_inputs=given)
    return flat[count], tuple(flat[:count])


def _open_sizes(products: Tensor) -> tuple[Any, ...]:
    """Return the open sizes that a shape is computed from.

    AOTInductor makes room for the outputs of a scan, and looks for their sizes among its arguments:
    without them it fails with a KeyError (torch 2.13). A folded batch is a product of two.
    """
    found: dict[Any, Any] = {}
    for size in products.shape:
        if isinstance(size, torch.SymInt):
            node: Any = size.node
            for symbol in sorted(node.expr.free_symbols, key=str):
                found[symbol] = node.shape_env.create_symintnode(symbol, hint=None)
    return tuple(found.values())


def _split(flat: list[Tensor], count: int) -> tuple[list[Tensor], Tensor]:
    return flat[:count], flat[count]


# ---- torch's kernel -----------------------------------------------------------------------------


def _make_outputs(x: Tensor, hx: Tensor | Sequence[Tensor], *options: Any) -> tuple[Tensor, ...]:
    """Return tensors like a kernel's outputs; options: from the weights on, in torch's order."""
    states = (hx,) if isinstance(hx, Tensor) else hx
    directions = 2 if options[5] else 1
    out = x.new_empty(x.shape[0], x.shape[1], directions * states[0].shape[2])
    return out, *(s.clone() for s in states)


@contextmanager
def any_length(kernel: Any) -> Iterator[None]:
    """Let torch.export record a call of a kernel as one node for any number of steps.

    To learn the shapes of the outputs, torch runs the kernel on tensors without values, step by
    step, and so fixes the number of steps. Here it runs a function of the shapes instead. The names
    are torch's own, not public: without them torch does as it always does.
    """
    operator = getattr(torch.ops.aten, kernel.__name__).input
    table = getattr(operator, last_name("kernel_table"), None)
    cache = getattr(operator, last_name("kernel_cache"), None)
    key = getattr(find("dispatch_key"), "CompositeImplicitAutograd", None)
    if table is None or cache is None or key is None:
        yield
        return
    before = table.get(key)
    table[key] = _make_outputs
    cache.clear()
    try:
        yield
    finally:
        if before is None:
            del table[key]
        else:
            table[key] = before
        cache.clear()


def call_kernel(kernel: Any, x: Tensor, *arguments: Any) -> Any:
    """Call torch's kernel, such as ``torch.lstm``, on padded tensors; exports may leave T open."""
    if not is_exporting_by_torch() or torch.compiler.is_dynamo_compiling() or not _is_open(x):
        return kernel(x, *arguments)
    with any_length(kernel):
        return kernel(x, *arguments)


def _is_open(x: Tensor) -> bool:
    """Return whether a graph leaves the number of steps of x (B, T, F) open."""
    return isinstance(x.shape[1], torch.SymInt)


def why_not_exported(layer: RnnLayer, call: RnnCall) -> str:
    """Return why torch's kernel should not be a node of a graph that is being exported.

    AOTInductor replaces the nodes by the steps of the example, whose number is then fixed, and does
    not say so; only for an LSTM it has a kernel, that of oneDNN.
    """
    if torch.compiler.is_dynamo_compiling():
        if call.lengths is not None or records_loop():
            return "dynamo would fix the number of steps of torch's kernel"
        return ""
    x, kind = call.x, layer.cell.kind
    if not _is_open(x) or (is_in_onnx_export() and kind in ("LSTM", "GRU")):
        return ""
    if kind == "LSTM" and x.is_cpu and x.dtype is torch.float32 and _has_onednn:
        return ""
    return "compilers would fix the number of steps of torch's kernel"


_has_onednn: bool = cast(Any, torch.backends).mkldnn.is_available()


# ---- its masks without packing ------------------------------------------------------------------

# What closes or opens an LSTM's gate for good: at 1000 the sigmoid is exactly 0 or 1.
_CLOSED = 1000.0


def run_unpacked(layer: RnnLayer, call: RnnCall) -> RnnResult:
    """Run torch's kernel over whole rows, one direction after the other.

    The second direction reads the valid steps turned round, padding behind them as before.
    """
    lengths = call.lengths
    # Padding may hold NaN, which a gate of zero does not stop.
    x = zero_past(call.x, lengths)
    initial = call.initial_state or layer.zero_states(x)
    outputs, states = [], []
    for d, (weights, begin) in enumerate(zip(layer.get_weights(), initial, strict=True)):
        read = reverse(x, lengths) if d else x
        out, final = _run_direction(layer, weights, read, begin, call)
        outputs.append(zero_past(reverse(out, lengths) if d else out, lengths))
        states.append(final)
    return tuple(outputs), tuple(states) if call.return_state else ()


def _run_direction(
    layer: RnnLayer, weights: Weights, x: Tensor, begin: State, call: RnnCall
) -> tuple[Tensor, State]:
    """Return the outputs (B, T, H), undefined after the lengths, and the states at the lengths."""
    lengths: Any = call.lengths
    kernel: Any = layer.cell.kernel
    is_lstm = layer.cell.kind == "LSTM"
    if is_lstm and call.return_state:
        x, weights = _hold_cell_state(x, weights, lengths)
    given = tuple(s[None] for s in begin)
    flat = [w for w in weights if w is not None]
    has_biases = weights.bias_ih is not None
    options = (flat, has_biases, 1, 0.0, layer.training, False, True)
    out, *final = call_kernel(kernel, x, given if is_lstm else given[0], *options)
    if not call.return_state:
        return out, ()
    last = (lengths - 1).clamp(min=0)
    index = expand_dims_like(last, out).expand(-1, 1, out.shape[2])
    at_end = (out.gather(1, index)[:, 0], *(f[0] for f in final[1:]))
    nothing = (lengths == 0)[:, None]
    return out, tuple(torch.where(nothing, s, e) for s, e in zip(begin, at_end, strict=True))


def _hold_cell_state(x: Tensor, w: Weights, lengths: Tensor) -> tuple[Tensor, Weights]:
    """Add an input that is 1 in the padding; its weights close gate i and open gate f: c' = c.

    It outweighs the others: the padding of x is zero, and h is at most 1 where a step came before.
    """
    padding = torch.arange(x.shape[1], device=x.device) >= lengths[:, None]
    others = w.hh.detach().abs().sum(dim=1)
    for bias in (w.bias_ih, w.bias_hh):
        others = others if bias is None else others + bias.detach().abs()
    i, f, g, o = (others + _CLOSED).chunk(4)
    column = torch.cat((-i, f, torch.zeros_like(g), torch.zeros_like(o)))
    wide = torch.cat((x, padding[..., None].to(x.dtype)), dim=2)
    return wide, w._replace(ih=torch.cat((w.ih, column[:, None]), dim=1))
