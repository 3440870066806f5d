"""Gradients by a second run within torch, which can be differentiated again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def differentiate(
    run: Callable[[Sequence[Tensor]], Sequence[Tensor | None]],
    tensors: Sequence[Tensor],
    needs_input_grad: Sequence[bool],
    gradients: Sequence[Tensor | None],
) -> tuple[Tensor | None, ...]:
    """Return the gradients of an autograd function's arguments by a second run.

    The function has one argument before tensors. The result is in a graph where gradients need
    gradients. run: the outputs for tensors, None for one that they do not reach. gradients: of the
    outputs, None for zeros.
    """
    needed, twice = needs_input_grad[1:], torch.is_grad_enabled()
    # Of tensors that depend on one another, such as a state that is made of x, each gets its own
    # gradient alone: autograd adds what flows on from one to another.
    tensors = tuple(
        t.view_as(t) if twice else t.detach().requires_grad_(need)
        for t, need in zip(tensors, needed, strict=True)
    )
    with torch.enable_grad():
        pairs = [
            (output, g)
            for output, g in zip(run(tensors), gradients, strict=True)
            if g is not None and output is not None and output.requires_grad
        ]
        if not pairs:
            return (None,) * len(needs_input_grad)
        outputs, given = zip(*pairs, strict=True)
        wanted = [t for t, need in zip(tensors, needed, strict=True) if need]
        found = iter(
            torch.autograd.grad(outputs, wanted, given, create_graph=twice, allow_unused=True)
        )
    return None, *(next(found) if need else None for need in needed)
