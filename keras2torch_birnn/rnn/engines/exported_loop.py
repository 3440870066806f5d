"""The loop over time in an exported graph: one node with the step inside, for any number of steps.

``torch.export`` records a scan, ``torch.jit.trace`` a scripted loop. Without them, a graph would
hold one copy of the step for each step of the example. B batch, T time.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor

from keras2torch_birnn.rnn.call import State
from keras2torch_birnn.rnn.engines.scripted_loop import make_loop
from keras2torch_birnn.rnn.masks import expand_dims_like
from keras2torch_birnn.rnn.tensor_memory import is_exporting_by_torch, is_tracing
from keras2torch_birnn.torch_private import find


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
        weight, *others = tensors
        bias = None if self.bias is None else others.pop(0)
        return Shared(weight, bias, tuple(others))


# (input product of one step, state, what every step reads) -> new state
Advance: TypeAlias = Callable[[Tensor, State, Shared], State]
# (outputs of all steps, final state)
Run: TypeAlias = tuple[Tensor, State]


class Scan(NamedTuple):
    """Torch's scan: the function for dynamo, which lifts what a step reads, and the operator."""

    function: Callable[..., Any]
    operator: Callable[..., Any]


def _find_scan() -> Scan | None:
    """Return torch's scan, which has no public name.

    None before torch 2.10, which cannot tell exports from compilations.
    """
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 10):
        return None
    function, operator = find("scan"), find("scan_op")
    return None if function is None or operator is None else Scan(function, operator)


SCAN = _find_scan()
_GET_TRACE: Any = find("get_trace")
_SET_TRACE: Any = find("set_trace")


def records_loop() -> bool:
    """Return whether a graph is being exported that can hold a loop as one node."""
    if is_tracing():
        return None not in (_GET_TRACE, _SET_TRACE)
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
    run = _run_scripted if is_tracing() else _run_scan
    outputs, final = run(
        _keep_masked(advance, masked=valid is not None), steps, valid, state, shared
    )
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


def _run_scripted(
    step: Callable[..., State],
    products: Tensor,
    valid: Tensor | None,
    state: State,
    shared: Shared,
) -> Run:
    """Run a scripted loop around a step that is traced on its own.

    What is absent (a mask, a bias, the second state) is an empty tensor there, which no step reads.
    """
    nothing = products.new_zeros(products.shape[0], 0)
    second = state[1] if len(state) == 2 else nothing[0]

    def flat(
        product: Tensor,
        counts: Tensor,
        h: Tensor,
        c: Tensor,
        weight: Tensor,
        bias: Tensor,
        masks: Tensor,
    ) -> tuple[Tensor, Tensor]:
        carried = (h, c)[: len(state)]
        given = Shared(
            weight,
            None if shared.bias is None else bias,
            masks.unbind(0) if shared.masks else (),
        )
        new = step(product, counts, carried, given)
        return new[0], new[1] if len(new) == 2 else c

    given = (
        products,
        nothing if valid is None else valid,
        state[0],
        second,
        shared.weight,
        nothing[0] if shared.bias is None else shared.bias,
        torch.stack(shared.masks) if shared.masks else nothing[0],
    )
    first = (given[0][0], given[1][0], *given[2:])
    outputs, h, c = _loop_around(_trace_apart(flat, first))(*given)
    return outputs, (h, c)[: len(state)]


def _trace_apart(function: Callable[..., Any], example: tuple[Tensor, ...]) -> Any:
    """Trace a function on its own, while an outer trace pauses."""
    outer = _GET_TRACE()
    _SET_TRACE(None)
    try:
        with torch.no_grad():
            given = tuple(tensor.detach().clone() for tensor in example)
            return cast(Any, torch.jit).trace(function, given, check_trace=False)
    finally:
        _SET_TRACE(outer)


def _loop_around(step: Any) -> Any:
    with warnings.catch_warnings():
        # Torch recommends torch.export, but this is for those who trace.
        warnings.simplefilter("ignore")
        return cast(Any, torch.jit).script(make_loop(step))
