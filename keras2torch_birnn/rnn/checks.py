"""Checks of what a caller gives: tensors, and arguments of ``BiLSTM``, ``BiGRU`` and ``BiRNN``."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from keras2torch_birnn.errors import ArgumentTypeError, ArgumentValueError
from keras2torch_birnn.rnn.activations import FUNCTIONS
from keras2torch_birnn.rnn.layer import State
from keras2torch_birnn.schema.merge_modes import MERGE_MODES, MergeName

# ---- tensors ------------------------------------------------------------------------------------


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


# ---- arguments of stacks ------------------------------------------------------------------------

MergeChoice: TypeAlias = MergeName | None
"""How the outputs of both directions are merged; None keeps them apart."""


def check_sizes(**sizes: int) -> None:
    """Refuse a size that is not a whole number of at least 1.

    Raises:
        ArgumentTypeError: one is no whole number. ArgumentValueError: one is below 1.
    """
    for name, size in sizes.items():
        expected = f"{name}={size!r}: a whole number of at least 1 is expected"
        if type(size) is not int:
            raise ArgumentTypeError(expected)
        if size < 1:
            raise ArgumentValueError(expected)


def check_flags(**flags: bool) -> None:
    """Refuse a flag that is neither True nor False.

    Raises:
        ArgumentTypeError: one of them is neither.
    """
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise ArgumentTypeError(f"{name}={flag!r}: True or False is expected")


def check_rate(rate: Any) -> None:
    """Refuse a dropout that is not a rate.

    Raises:
        ArgumentTypeError: not a number. ArgumentValueError: not between 0 and 1.
    """
    expected = f"dropout={rate!r}: a rate between 0 and 1 is expected"
    if isinstance(rate, bool) or not isinstance(rate, float | int):
        raise ArgumentTypeError(expected)
    if not 0.0 <= rate <= 1.0:
        raise ArgumentValueError(expected)


def resolve_nonlinearity(nonlinearity: str | None, activation: str) -> str:
    """Return the activation of an RNN, given as torch's nonlinearity or Keras' activation.

    Raises:
        ArgumentValueError: nn.RNN has no such nonlinearity, or the two differ.
    """
    if nonlinearity is None:
        return "tanh" if activation == "" else activation
    if nonlinearity not in ("tanh", "relu"):
        raise ArgumentValueError(
            f'nonlinearity={nonlinearity!r}: "tanh" or "relu" is expected',
            "name other functions as activation=; bias is the fifth argument, as in nn.RNN",
        )
    if activation not in ("", nonlinearity):
        raise ArgumentValueError(
            f"nonlinearity={nonlinearity!r} and activation={activation!r}: both name the same",
            "give one of them",
        )
    return nonlinearity


def check_function(name: Any) -> None:
    """Refuse an activation that no cell can have.

    Raises:
        ArgumentValueError: the name is unknown.
    """
    if name == "hard_sigmoid":
        raise ArgumentValueError(
            "hard_sigmoid means two things",
            'use "hard_sigmoid_0.2" (Keras 1 and 2) or "hard_sigmoid_1/6" (Keras 3 and torch)',
        )
    known = list(FUNCTIONS)
    if name not in known:
        from keras2torch_birnn.suggestions import unknown_value

        raise unknown_value(f"activation {name!r}", known, name, ArgumentValueError)


def resolve_merge_modes(
    merges: MergeChoice | Sequence[MergeChoice], num_layers: int
) -> tuple[MergeChoice, ...]:
    """Return the merge mode of every layer.

    Raises:
        ArgumentTypeError: neither a mode nor a list. ArgumentValueError: too few or too many, or a
            mode that its layer cannot have.
    """
    if merges is not None and not isinstance(merges, Sequence):
        raise ArgumentTypeError(f"merge_mode={merges!r}: a mode, or a list of modes is expected")
    if merges is None or isinstance(merges, str):
        merges = (merges,) * num_layers
    modes = tuple(merges)
    if len(modes) != num_layers:
        raise ArgumentValueError(f"merge_mode: {len(modes)} modes for {num_layers} layers")
    known = ", ".join(MERGE_MODES)
    for index, mode in enumerate(modes):
        if mode is None and index < num_layers - 1:
            raise ArgumentValueError(
                "merge_mode=None: only the last layer may keep both directions apart"
            )
        if mode is not None and mode not in tuple(MERGE_MODES):
            from keras2torch_birnn.suggestions import did_you_mean

            raise ArgumentValueError(
                f"merge_mode={mode!r}: one of {known} or None is expected",
                did_you_mean(mode, MERGE_MODES),
            )
    return modes
