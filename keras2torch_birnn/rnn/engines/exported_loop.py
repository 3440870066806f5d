"""The loop over time in an exported graph: one node with the step inside, for any number of steps.

``torch.export`` records a scan, ``torch.jit.trace`` a scripted loop. Without them, a graph would
hold one copy of the step for each step of the example. B batch, T time.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor

from keras2torch_birnn.rnn.call import State
from keras2torch_birnn.rnn.engines.engine import is_exporting_by_torch
from keras2torch_birnn.rnn.engines.scripted_loop import make_loop
from keras2torch_birnn.rnn.masks import expand_dims_like
from keras2torch_birnn.rnn.tensor_memory import is_tracing

# (input product of one step, state, recurrent weight, recurrent bias) -> new state
Advance: TypeAlias = Callable[[Tensor, State, Tensor, Tensor | None], State]
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
    try:
        from torch._higher_order_ops.scan import scan, scan_op
    except ImportError:
        return None
    return Scan(scan, scan_op)


SCAN = _find_scan()


def records_loop() -> bool:
    """Return whether a graph is being exported that can hold a loop as one node."""
    return is_tracing() or bool(is_exporting_by_torch() and SCAN is not None)


def record_loop(
    advance: Advance,
    products: Tensor,
    lengths: Tensor | None,
    state: State,
    weight: Tensor,
    bias: Tensor | None,
) -> Run:
    """Run a loop over products (B, T, ...) as one node.

    Steps at or past ``lengths`` (B,) leave the state alone, and are not differentiated. Returns the
    first state after every step, (B, T, ...), and the final state.
    """
    steps = products.transpose(0, 1)
    valid = None
    if lengths is not None:
        valid = torch.arange(steps.shape[0], device=steps.device)[:, None] < lengths
    run = _run_scripted if is_tracing() else _run_scan
    outputs, final = run(
        _keep_masked(advance, masked=valid is not None), steps, valid, state, weight, bias
    )
    return outputs.transpose(0, 1), final


def _keep_masked(advance: Advance, *, masked: bool) -> Callable[..., State]:
    """Make a step that takes the new state in the rows where it counts."""

    def step(product: Tensor, counts: Any, state: State, weight: Tensor, bias: Any) -> State:
        if not masked:
            return advance(product, state, weight, bias)
        keep = expand_dims_like(counts, state[0])
        # The derivative of a masked step may be infinite, and zero times that is NaN.
        read = tuple(torch.where(keep, s, torch.zeros_like(s)) for s in state)
        new = advance(product, read, weight, bias)
        return tuple(torch.where(keep, a, b) for a, b in zip(new, state, strict=True))

    return step


def _run_scan(
    step: Callable[..., State],
    products: Tensor,
    valid: Tensor | None,
    state: State,
    weight: Tensor,
    bias: Tensor | None,
) -> Run:
    def combine(*flat: Tensor) -> list[Tensor]:
        carried, given, more = (
            flat[:count],
            flat[count : count + len(steps)],
            flat[count + len(steps) :],
        )
        new = step(given[0], given[-1], carried, more[0], more[1] if bias is not None else None)
        return [*(s.contiguous() for s in new), new[0].clone()]  # none may share memory

    found: Any = SCAN
    count = len(state)
    begin = [s.clone(memory_format=torch.contiguous_format) for s in state]
    steps = [products] if valid is None else [products, valid]
    more = (weight,) if bias is None else (weight, bias)
    if torch.compiler.is_dynamo_compiling():  # it takes the public form, and lifts what that reads
        final, outputs = found.function(
            lambda s, given: _split(combine(*s, *given, *more), count), begin, steps
        )
        return outputs, tuple(final)
    flat = found.operator(combine, begin, steps, additional_inputs=more)
    return flat[count], tuple(flat[:count])


def _split(flat: list[Tensor], count: int) -> tuple[list[Tensor], Tensor]:
    return flat[:count], flat[count]


def _run_scripted(
    step: Callable[..., State],
    products: Tensor,
    valid: Tensor | None,
    state: State,
    weight: Tensor,
    bias: Tensor | None,
) -> Run:
    """Run a scripted loop around a step that is traced on its own.

    What is absent (a mask, a bias, the second state) is an empty tensor there, which no step reads.
    """
    nothing = products.new_zeros(products.shape[0], 0)
    second = state[1] if len(state) == 2 else nothing[0]

    def flat(
        product: Tensor, counts: Tensor, h: Tensor, c: Tensor, weight: Tensor, given: Tensor
    ) -> tuple[Tensor, Tensor]:
        carried = (h, c)[: len(state)]
        new = step(product, counts, carried, weight, None if bias is None else given)
        return new[0], new[1] if len(new) == 2 else c

    given = (
        products,
        nothing if valid is None else valid,
        state[0],
        second,
        weight,
        nothing[0] if bias is None else bias,
    )
    first = (given[0][0], given[1][0], *given[2:])
    outputs, h, c = _loop_around(_trace_apart(flat, first))(*given)
    return outputs, (h, c)[: len(state)]


def _trace_apart(function: Callable[..., Any], example: tuple[Tensor, ...]) -> Any:
    """Trace a function on its own, while an outer trace pauses."""
    engine: Any = torch._C
    outer = engine._get_tracing_state()
    engine._set_tracing_state(None)
    try:
        with torch.no_grad():
            given = tuple(tensor.detach().clone() for tensor in example)
            return cast(Any, torch.jit).trace(function, given, check_trace=False)
    finally:
        engine._set_tracing_state(outer)


def _loop_around(step: Any) -> Any:
    with warnings.catch_warnings():
        # Torch recommends torch.export, but this is for those who trace.
        warnings.simplefilter("ignore")
        return cast(Any, torch.jit).script(make_loop(step))
