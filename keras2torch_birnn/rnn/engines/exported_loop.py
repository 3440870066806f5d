"""The loop over time in an exported graph: one node with the step inside, for any number of steps.

``torch.export`` records a scan. Without it, a graph would hold one copy of the step for each step
of the example. B batch, T time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from keras2torch_birnn.rnn.layer import State
from keras2torch_birnn.rnn.masks import expand_dims_like
from keras2torch_birnn.rnn.tensor_memory import is_exporting_by_torch
from keras2torch_birnn.rnn.torch_private import find


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
