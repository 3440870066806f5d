"""The shared library through ctypes: its structures, its lists, and whether it is there. No torch.

``kernel.h`` says the same in C++ and is the one to read for shapes and layouts.
"""

from __future__ import annotations

import ctypes
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from keras2torch_birnn.rnn.native.loading import NoKernelError, load
from keras2torch_birnn.schema import ACTIVATION_OPTIONS
from keras2torch_birnn.spec import LayerSpec

# enum K2tKind
KINDS: Mapping[str, int] = {"LSTM": 0, "GRU": 1, "GRU before": 2, "SimpleRNN": 3}

# Gates of each kind.
GATES: Mapping[int, int] = {0: 4, 1: 3, 2: 3, 3: 1}

# enum K2tActivation: an activation without options, or with the one option named
ACTIVATIONS: Mapping[str, int] = {
    name: code
    for code, name in enumerate(
        (
            "linear",
            "tanh",
            "sigmoid",
            "hard_sigmoid_0.2",
            "hard_sigmoid_1/6",
            "relu",
            "relu6",
            "leaky_relu",
            "elu",
            "selu",
            "softsign",
            "silu",
            "hard_silu",
            "hard_tanh",
        )
    )
}
_PARAMETERS = {"leaky_relu": "negative_slope", "elu": "alpha"}

_FALLING = {ACTIVATIONS["silu"], ACTIVATIONS["hard_silu"]}

# enum K2tMerge; "concat" is two outputs that lie side by side
MERGES: Mapping[str, int] = {"concat": 0, "sum": 1, "mul": 2, "ave": 3}

# Bits of k2t_instruction_sets, best first.
INSTRUCTION_SETS: Mapping[str, int] = {"AVX-512": 4, "AVX2": 2, "plain": 1}

_pointer, _int, _double = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double


class Shape(ctypes.Structure):
    """``K2tShape``."""

    _fields_ = (("kind", _int), ("features", _int), ("units", _int))


class Array(ctypes.Structure):
    """``K2tArray``."""

    _fields_ = (("data", _pointer), ("size", _int))


class Weights(ctypes.Structure):
    """``K2tWeights``."""

    _fields_ = (
        ("shape", Shape),
        ("directions", _int),
        ("packed", _pointer * 2),
        ("sources", _pointer * 2),
        ("fingerprints", ctypes.c_uint64 * 2),
    )


# ``K2tRun``, as bytes: a ctypes structure takes five times as long to fill, and a short call would
# feel it. Q is a pointer.
RUN = struct.Struct("Q 2q 2d 4q Q 2q Q 2Q 2Q Q Q 2Q")


class Gradient(ctypes.Structure):
    """``K2tGradient``."""

    _fields_ = (
        ("shape", Shape),
        ("activation", _int),
        ("recurrent_activation", _int),
        ("activation_parameter", _double),
        ("recurrent_activation_parameter", _double),
        ("directions", _int),
        ("batch", _int),
        ("time", _int),
        ("threads", _int),
        ("lengths", _pointer),
        ("packed", _pointer * 2),
        ("kept", _pointer * 2),
        ("c_0", _pointer * 2),
        ("d_out", _pointer),
        ("d_out_batch_stride", _int),
        ("d_out_time_stride", _int),
        ("d_final", _pointer),
        ("d_gates", _pointer * 2),
        ("d_start", _pointer),
    )


@dataclass(frozen=True)
class NativeCell:
    """A cell in the kernel's numbers."""

    kind: int
    activation: int
    recurrent_activation: int
    parameters: tuple[float, float] = (0.0, 0.0)  # of the two activations

    @property
    def states(self) -> int:
        """h, and an LSTM's c."""
        return 2 if self.kind == KINDS["LSTM"] else 1

    @property
    def numbers(self) -> tuple[int, int, int]:
        """Kind, activation and recurrent_activation."""
        return self.kind, self.activation, self.recurrent_activation

    @property
    def differentiable(self) -> bool:
        """Whether the kernel has this cell's gradient.

        It takes an activation's derivative from its output, which tells it of those alone that
        never fall.
        """
        codes = (self.activation, self.recurrent_activation)
        return not _FALLING.intersection(codes) and min(self.parameters) >= 0


def native_cell(layer: LayerSpec) -> NativeCell | None:
    """An LSTM, GRU or SimpleRNN in the kernel's numbers; None if it has no such activation."""
    config = layer.config
    before = layer.class_name == "GRU" and not config["reset_after"]
    kind = "GRU before" if before else layer.class_name
    return native_numbers(kind, config["activation"], config.get("recurrent_activation", "linear"))


def native_numbers(kind: str, activation: Any, recurrent_activation: Any) -> NativeCell | None:
    """A kind of cell (a key of ``KINDS``) and explicit activations in the kernel's numbers."""
    act, gate = _activation(activation), _activation(recurrent_activation)
    if act is None or gate is None:
        return None
    return NativeCell(KINDS[kind], act[0], gate[0], (act[1], gate[1]))


def _activation(value: Any) -> tuple[int, float] | None:
    """Code and parameter of an explicit activation."""
    name = value if isinstance(value, str) else value["name"]
    if name not in ACTIVATIONS:
        return None
    options = {key: option.default for key, option in ACTIVATION_OPTIONS.get(name, {}).items()}
    given = {} if isinstance(value, str) else {k: v for k, v in value.items() if k != "name"}
    known = _PARAMETERS.get(name)
    if any(given[key] != options.get(key) for key in given if key != known):
        return None
    return ACTIVATIONS[name], 0.0 if known is None else float({**options, **given}[known])


@cache
def _absence() -> NoKernelError | None:
    try:
        library()
    except NoKernelError as error:
        return error
    return None


def missing() -> str:
    """Why there is no native kernel; empty if there is one."""
    absence = _absence()
    return "" if absence is None else absence.found


@cache
def say_once_if_missing() -> None:
    """Warn, the first time, that the layers run without the native kernel; say how to get it."""
    if (absence := _absence()) is not None:
        warnings.warn(
            f"recurrent layers run without the native kernel, slower on CPU: {absence}",
            RuntimeWarning,
            stacklevel=2,
        )


@cache
def library() -> ctypes.CDLL:
    """The loaded library.

    Raises:
        NoKernelError: it is not there, or does not fit.
    """
    found = load()
    found.k2t_instruction_sets.argtypes = ()
    found.k2t_instruction_sets.restype = _int
    found.k2t_packed_size.argtypes = (_int, ctypes.POINTER(Shape))
    found.k2t_packed_size.restype = _int
    found.k2t_pack.argtypes = (_int, ctypes.POINTER(Shape), *[_pointer] * 5)
    found.k2t_pack.restype = None
    found.k2t_fingerprint.argtypes = (_int, ctypes.POINTER(Array))
    found.k2t_fingerprint.restype = ctypes.c_uint64
    found.k2t_lengths.argtypes = (_pointer, _int, _int, _int, _int, _pointer)
    found.k2t_lengths.restype = _int
    found.k2t_run.argtypes = (_int, ctypes.c_char_p)
    found.k2t_run.restype = _int
    found.k2t_width.argtypes = (_int, _int)
    found.k2t_width.restype = _int
    found.k2t_kept_parts.argtypes = (_int,)
    found.k2t_kept_parts.restype = _int
    found.k2t_gradient_packed_size.argtypes = (_int, ctypes.POINTER(Shape))
    found.k2t_gradient_packed_size.restype = _int
    found.k2t_gradient_pack.argtypes = (_int, ctypes.POINTER(Shape), _pointer, _pointer)
    found.k2t_gradient_pack.restype = None
    found.k2t_gradient.argtypes = (_int, ctypes.POINTER(Gradient))
    found.k2t_gradient.restype = _int
    found.k2t_use_threads_of.argtypes = (_pointer,)
    found.k2t_use_threads_of.restype = None
    return found


@cache
def instruction_set() -> int:
    """The best instruction set of this processor, as the kernel's bit."""
    have = library().k2t_instruction_sets()
    return next(bit for bit in INSTRUCTION_SETS.values() if have & bit)
