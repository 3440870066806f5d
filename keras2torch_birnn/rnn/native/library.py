"""The library, by ctypes: structures, its file, its functions, why it is missing. No torch.

``kernel.h`` describes shapes and layouts.
"""

from __future__ import annotations

import ctypes
import struct
import sys
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from keras2torch_birnn.rnn.native import codes
from keras2torch_birnn.rnn.native.processors import kernels_of, source_hash
from keras2torch_birnn.schema import ACTIVATION_OPTIONS

_pointer, _int = ctypes.c_void_p, ctypes.c_int64


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
# feel it. In the words of a program, operands are in the place of addresses.
RUN = struct.Struct("3q 2d 20q")

# ``K2tProgram`` likewise; addresses follow it.
PROGRAM = struct.Struct("4q")


class Gradient(ctypes.Structure):
    """``K2tGradient``."""

    _fields_ = (
        ("d_out", _pointer),
        ("d_out_batch_stride", _int),
        ("d_out_time_stride", _int),
        ("d_final", _pointer),
        ("d_weights", _pointer * 8),
        ("d_x", _pointer),
        ("d_start", _pointer),
    )


def find_codes(
    kind: str, activation: Any, recurrent_activation: Any
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return a cell in the kernel's codes: kind and activations, and the activations' options.

    kind: a key of ``CELL_KINDS``. No codes if the kernel lacks one of the activations.
    """
    act, gate = _find_activation(activation), _find_activation(recurrent_activation)
    if act is None or gate is None:
        return (), ()
    return (codes.KINDS[kind], act[0], gate[0]), (act[1], gate[1])


def _find_activation(value: Any) -> tuple[int, float] | None:
    """Return the code and the option of an activation of a spec; None if the kernel lacks it."""
    name = value if isinstance(value, str) else value["name"]
    if name not in codes.ACTIVATIONS:
        return None
    options = {key: option.default for key, option in ACTIVATION_OPTIONS.get(name, {}).items()}
    given = {} if isinstance(value, str) else {k: v for k, v in value.items() if k != "name"}
    known = codes.ACTIVATION_PARAMETERS.get(name)
    if any(given[key] != options.get(key) for key in given if key != known):
        return None
    return codes.ACTIVATIONS[name], 0.0 if known is None else float({**options, **given}[known])


# ---- the file ------------------------------------------------------------------------------------

FOLDER = Path(__file__).parent
NAME = "libk2t.dll" if sys.platform == "win32" else "libk2t.so"


class NoKernelError(Exception):
    """Why there is no native kernel (``message``), and how to get one (``advice``)."""

    def __init__(self, message: str, advice: str) -> None:
        super().__init__(f"{message}; {advice}")
        self.message, self.advice = message, advice


def load(folder: Path = FOLDER) -> ctypes.CDLL:
    """Load the library of ``folder``, a copy of this one.

    Raises:
        NoKernelError: it does not exist, does not fit this system, or is not of these sources.
    """
    file = folder / NAME
    if not file.exists():
        where = folder.parents[1]
        raise NoKernelError(
            f"{where} was imported, where it was not built (was there a C++ compiler?)",
            f"start Python elsewhere if it is installed, or {advise_build(folder)}",
        )
    try:
        found = ctypes.CDLL(str(file))
    except OSError as error:
        raise NoKernelError(f"it cannot be loaded: {error}", advise_build(folder)) from None
    wanted = source_hash(folder)
    # Python without sources beside it came together with the library: an installer put both there.
    if wanted is not None and _built_from(found) != wanted:
        raise NoKernelError(f"{file} was built from other sources", advise_build(folder))
    return found


def _built_from(library: ctypes.CDLL) -> int | None:
    """Return the hash of the library's sources; None if the library is too old to have it."""
    try:
        tell = library.k2t_source_hash
    except AttributeError:
        return None
    tell.argtypes, tell.restype = (), ctypes.c_uint64
    found: int = tell()
    return found


def advise_build(folder: Path = FOLDER) -> str:
    """Return the command that builds the library of ``folder``, a clone or an installed package."""
    root = folder.parents[2]
    if (root / "setup.py").exists():
        return f"build it: pip install -e {root}"
    return "install keras2torch_birnn again, with --force-reinstall --no-deps"


# ---- the functions -------------------------------------------------------------------------------


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
    return "" if absence is None else absence.message


@cache
def warn_once_if_missing() -> None:
    """Warn once that the layers run without the native kernel, with the way to get it."""
    if (absence := _absence()) is not None:
        warnings.warn(
            f"recurrent layers run without the native kernel, slower on CPU: {absence}",
            RuntimeWarning,
            stacklevel=2,
        )


def check_code(code: int) -> None:
    """Raise the error of a return code of the kernel.

    Raises:
        MemoryError: no scratch memory. ValueError: a length does not fit. RuntimeError: the library
            does not know a code of the call.
    """
    if not code:
        return
    if code == codes.RESULTS["no memory"]:
        raise MemoryError("no memory for the native kernel's scratch")
    if code == codes.RESULTS["wrong length"]:
        raise ValueError("a length is below 0 or above the number of steps")
    if code == codes.RESULTS["unknown code"]:
        raise RuntimeError("the native kernel does not know a code of this call")


def _check_result(code: int, *_: Any) -> None:
    check_code(code)


def _check_size(size: int, *_: Any) -> int:
    if size < 0:
        check_code(codes.RESULTS["unknown code"])
    return size


_shape = ctypes.POINTER(Shape)
# Arguments, result, and a check of the result.
_FUNCTIONS: Mapping[str, tuple[Sequence[Any], Any, Any]] = {
    "k2t_instruction_sets": ((), _int, None),
    "k2t_packed_size": ((_int, _shape), _int, _check_size),
    "k2t_pack": ((_int, _shape, *[_pointer] * 5), _int, _check_result),
    "k2t_fingerprint": (
        (_int, ctypes.POINTER(Array), ctypes.POINTER(ctypes.c_uint64)),
        _int,
        _check_result,
    ),
    "k2t_lengths": ((_pointer, *[_int] * 4, _pointer), _int, None),
    "k2t_run": ((_int, ctypes.c_char_p), _int, None),
    "k2t_run_program": ((_int, ctypes.c_char_p), _int, None),
    "k2t_width": ((_int, _int), _int, _check_size),
    "k2t_kept_parts": ((_int,), _int, _check_size),
    "k2t_gradient_packed_size": ((_int, _shape), _int, _check_size),
    "k2t_gradient_pack": ((_int, _shape, *[_pointer] * 3), _int, _check_result),
    "k2t_gradient": ((_int, ctypes.c_char_p, ctypes.POINTER(Gradient)), _int, None),
    "k2t_use_threads_of": ((_pointer,), None, None),
}


@cache
def library() -> ctypes.CDLL:
    """Load the library and declare its functions.

    Raises:
        NoKernelError: it does not exist, or does not fit.
    """
    found = load()
    for name, (arguments, result, check) in _FUNCTIONS.items():
        function = getattr(found, name)
        function.argtypes, function.restype = arguments, result
        if check is not None:
            function.errcheck = check
    return found


def fingerprint(isa: int, sources: Any) -> int:
    """Return the fingerprint of four weights, an array of ``Array``, for one instruction set."""
    found = ctypes.c_uint64()
    library().k2t_fingerprint(isa, sources, ctypes.byref(found))
    return found.value


@cache
def find_sets(precision: str) -> Mapping[str, int]:
    """Return the instruction sets of this processor for a precision and their bits, best first.

    None where the processor, or the compiler that built the library, lacks all of them.

    Raises:
        NoKernelError: there is no library.
    """
    have = library().k2t_instruction_sets()
    return {name: bit for name, bit in kernels_of(precision).items() if have & bit}


def why_no_precision(precision: str) -> str:
    """Return which instructions for a precision this processor lacks; empty if it has some."""
    if find_sets(precision):
        return ""
    return f"this processor has no {', '.join(kernels_of(precision))}"


@cache
def instruction_set() -> int:
    """Return the best instruction set of this processor, as the kernel's bit."""
    return next(iter(find_sets("float32").values()))
