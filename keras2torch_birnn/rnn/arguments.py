"""Checks of the arguments of ``BiLSTM``, ``BiGRU`` and ``BiRNN``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from keras2torch_birnn.errors import ArgumentTypeError, ArgumentValueError
from keras2torch_birnn.rnn.activations import FUNCTIONS
from keras2torch_birnn.schema.merge_modes import MERGE_MODES, MergeName

MergeMode: TypeAlias = MergeName | None
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
    merges: MergeMode | Sequence[MergeMode], num_layers: int
) -> tuple[MergeMode, ...]:
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
