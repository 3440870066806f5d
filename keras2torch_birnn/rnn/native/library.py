"""ctypes bindings of libk2t.so: structures, enumerations, and why it is missing. No torch.

``kernel.h`` describes shapes and layouts.
"""

from __future__ import annotations

import ctypes
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from keras2torch_birnn.rnn.cell_kind import CELL_KINDS, kind_of
from keras2torch_birnn.rnn.native.loading import NoKernelError, load
from keras2torch_birnn.schema import ACTIVATION_OPTIONS
from keras2torch_birnn.spec import LayerSpec

# enum K2tKind
KINDS: Mapping[str, int] = {name: kind.native_code for name, kind in CELL_KINDS.items()}

# By code: the numbers of gates and of states (h, and an LSTM's c).
GATES: Mapping[int, int] = {kind.native_code: kind.gates for kind in CELL_KINDS.values()}
STATES: Mapping[int, int] = {kind.native_code: kind.states for kind in CELL_KINDS.values()}

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
_OPTIONS = {"leaky_relu": "negative_slope", "elu": "alpha"}

# Bits of k2t_instruction_sets, best first.
INSTRUCTION_SETS: Mapping[str, int] = {"AVX-512": 4, "AVX2": 2, "plain": 1}

_pointer, _int, _double = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double


class Shape(ctypes.Structure):
    """``K2tShape``."""

    _fields_ = (("kind", _int), ("features", _int), ("units", _int), ("apart", _int))


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
RUN = struct.Struct("Q 2q 2d 4q Q 2q Q 2Q 2Q Q Q 2Q 2Q 2Q")

# ``K2tStack``, ``K2tStackLayer`` and ``K2tStackStates`` likewise.
STACK = struct.Struct("Q 4q Q 2q Q q Q")
STACK_LAYER = struct.Struct("Q 2q 2d 2q")
STACK_STATES = struct.Struct("2Q 2Q Q Q")


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
        ("x", _pointer),
        ("x_batch_stride", _int),
        ("x_time_stride", _int),
        ("input_masks", _pointer * 2),
        ("state_masks", _pointer * 2),
        ("d_out", _pointer),
        ("d_out_batch_stride", _int),
        ("d_out_time_stride", _int),
        ("d_final", _pointer),
        ("d_weights", _pointer * 8),
        ("d_x", _pointer),
        ("d_start", _pointer),
    )


@dataclass(frozen=True)
class NativeCell:
    """A cell in the kernel's codes."""

    kind: int
    activation: int
    recurrent_activation: int
    options: tuple[float, float] = (0.0, 0.0)  # of the two activations

    @property
    def states(self) -> int:
        """The number of states: h, and an LSTM's c."""
        return STATES[self.kind]

    @property
    def codes(self) -> tuple[int, int, int]:
        """Kind, activation and recurrent_activation."""
        return self.kind, self.activation, self.recurrent_activation


def to_native_cell(layer: LayerSpec) -> NativeCell | None:
    """Return an LSTM, GRU or SimpleRNN in the kernel's codes; None if it lacks an activation."""
    config, gate = layer.config, layer.config.get("recurrent_activation", "linear")
    return find_native_cell(kind_of(layer), config["activation"], gate)


def find_native_cell(kind: str, activation: Any, recurrent_activation: Any) -> NativeCell | None:
    """Return a kind of cell (a key of ``CELL_KINDS``) and its activations in the kernel's codes.

    None if the kernel lacks one of the activations.
    """
    act, gate = _find_activation(activation), _find_activation(recurrent_activation)
    if act is None or gate is None:
        return None
    return NativeCell(KINDS[kind], act[0], gate[0], (act[1], gate[1]))


def _find_activation(value: Any) -> tuple[int, float] | None:
    """Return the code and the option of an activation of a spec; None if the kernel lacks it."""
    name = value if isinstance(value, str) else value["name"]
    if name not in ACTIVATIONS:
        return None
    options = {key: option.default for key, option in ACTIVATION_OPTIONS.get(name, {}).items()}
    given = {} if isinstance(value, str) else {k: v for k, v in value.items() if k != "name"}
    known = _OPTIONS.get(name)
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


def why_missing() -> str:
    """Return why there is no native kernel; empty if there is one."""
    absence = _absence()
    return "" if absence is None else absence.found


@cache
def warn_once_if_missing() -> None:
    """Warn once that the layers run without the native kernel, with the way to get it."""
    if (absence := _absence()) is not None:
        warnings.warn(
            f"recurrent layers run without the native kernel, slower on CPU: {absence}",
            RuntimeWarning,
            stacklevel=2,
        )


@cache
def library() -> ctypes.CDLL:
    """Load the library and declare its functions.

    Raises:
        NoKernelError: it does not exist, or does not fit.
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
    found.k2t_run_stack.argtypes = (_int, ctypes.c_char_p)
    found.k2t_run_stack.restype = _int
    found.k2t_run_program.argtypes = (_int, ctypes.c_char_p)
    found.k2t_run_program.restype = _int
    found.k2t_width.argtypes = (_int, _int)
    found.k2t_width.restype = _int
    found.k2t_kept_parts.argtypes = (_int,)
    found.k2t_kept_parts.restype = _int
    found.k2t_gradient_packed_size.argtypes = (_int, ctypes.POINTER(Shape))
    found.k2t_gradient_packed_size.restype = _int
    found.k2t_gradient_pack.argtypes = (_int, ctypes.POINTER(Shape), *[_pointer] * 3)
    found.k2t_gradient_pack.restype = None
    found.k2t_gradient.argtypes = (_int, ctypes.POINTER(Gradient))
    found.k2t_gradient.restype = _int
    found.k2t_use_threads_of.argtypes = (_pointer,)
    found.k2t_use_threads_of.restype = None
    return found


@cache
def instruction_set() -> int:
    """Return the best instruction set of this processor, as the kernel's bit."""
    have = library().k2t_instruction_sets()
    return next(bit for bit in INSTRUCTION_SETS.values() if have & bit)
