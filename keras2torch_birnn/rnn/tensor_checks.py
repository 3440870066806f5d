"""Checks of the tensors that a caller gives, before anything computes with them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from keras2torch_birnn.errors import ArgumentTypeError, ArgumentValueError
from keras2torch_birnn.rnn.layer import State


def check_tensor(place: str, value: Any, expected: Any) -> None:
    """Refuse an object that is neither a tensor nor a stand-in for one, as ``torch.fx`` has them.

    ``expected``: a dtype, or the module whose weights have it.

    Raises:
        ArgumentTypeError: it is neither.
    """
    if isinstance(value, Tensor) or hasattr(type(value), "__torch_function__"):
        return
    dtype = expected if isinstance(expected, torch.dtype) else _float_dtype(expected)
    found = f"a torch.Tensor of {dtype} is expected, found {_kind(value)}"
    raise ArgumentTypeError(found, _advice(value, dtype), place=place)


def _kind(value: Any) -> str:
    """Return the full name of a value's class, and the dtype of an array."""
    named = type(value)
    home = "" if named.__module__ == "builtins" else f"{named.__module__}."
    of = f" of {value.dtype}" if isinstance(value, np.ndarray) else ""
    return f"{home}{named.__qualname__}{of}"


def _advice(value: Any, expected: torch.dtype) -> str:
    if isinstance(value, PackedSequence):
        return "use pad_packed_sequence and a mask"
    if isinstance(value, np.ndarray | np.generic | list | tuple | int | float):
        return f"use torch.as_tensor(..., dtype={expected})"
    return ""


def _float_dtype(module: nn.Module) -> torch.dtype:
    """Return the dtype of a module's first weight of floats."""
    kinds = (p.dtype for p in module.parameters() if p.is_floating_point())
    return next(kinds, torch.get_default_dtype())


def check_dtypes(x: Tensor, states: Sequence[State] | None, weight: Tensor, place: str) -> None:
    """Refuse tensors of another dtype than the weights, unless autocast brings them together.

    states: named ``place`` in the error. Callers skip this check where there are none and x has the
    dtype: a short call would feel it.

    Raises:
        ArgumentTypeError: one of them has another.
    """
    _check_dtype("input", x, weight)
    for state in chain.from_iterable(states or ()):
        _check_dtype(place, state, weight)


def _check_dtype(place: str, value: Tensor, weight: Tensor) -> None:
    kind = weight.dtype
    if value.dtype is kind:
        return
    if type(value) not in _OWN_TYPES or type(weight) not in _OWN_TYPES:
        return  # a subclass may compute with any
    if value.dtype in _CAST and _autocasts(value.device.type):
        return
    advice = f"use {place}.to({kind})"
    if value.is_floating_point():
        advice += f", or module.to({value.dtype})"
    found = f"{kind} is expected, which the weights have, found {value.dtype}"
    raise ArgumentTypeError(found, advice, place=place)


_OWN_TYPES = (Tensor, nn.Parameter)
_CAST = (torch.float32, torch.float16, torch.bfloat16)


def _autocasts(device: str) -> bool:
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def check_shape(shape: torch.Size, features: int) -> None:
    """Refuse the shape of an input that is not (batch, time, features).

    Raises:
        ArgumentValueError: it has other dimensions, or another last size.
    """
    if len(shape) != 3 or shape[2] != features:
        raise ArgumentValueError(
            f"an input (batch, time, {features}) is expected, found {list(shape)}"
        )


def check_states(states: Sequence[State], shapes: Sequence[Sequence[int]]) -> None:
    """Refuse initial states that are not tensors of these shapes, for each direction.

    Raises:
        ArgumentValueError: there are more or fewer, or one has another shape.
    """
    found = sum(map(len, states))
    if any(len(state) != len(shapes) for state in states):
        raise ArgumentValueError(
            f"{len(shapes) * len(states)} states are expected, found {found}", place="initial_state"
        )
    for of_direction in states:
        for state, shape in zip(of_direction, shapes, strict=True):
            if tuple(state.shape) != tuple(shape):
                raise ArgumentValueError(
                    f"a state {list(shape)} is expected, found {list(state.shape)}",
                    place="initial_state",
                )
