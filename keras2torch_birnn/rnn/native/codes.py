"""The numbers that Python shares with the native library, by name. No torch.

``codes.h`` lists the same; ``tests/rnn/test_codes.py`` compares them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from keras2torch_birnn.rnn.cell_kind import CELL_KINDS
from keras2torch_birnn.rnn.native.processors import kernels_of
from keras2torch_birnn.schema.merge_modes import MERGE_MODES


def _number(*names: str) -> Mapping[str, int]:
    return {name: code for code, name in enumerate(names)}


KINDS: Mapping[str, int] = {name: kind.native_code for name, kind in CELL_KINDS.items()}

# By code: the numbers of gates and of states (h, and an LSTM's c).
GATES: Mapping[int, int] = {kind.native_code: kind.gates for kind in CELL_KINDS.values()}
STATES: Mapping[int, int] = {kind.native_code: kind.states for kind in CELL_KINDS.values()}

# An activation without options, or with the one option that is named.
ACTIVATIONS = _number(
    *("linear", "tanh", "sigmoid", "hard_sigmoid_0.2", "hard_sigmoid_1/6", "relu", "relu6"),
    *("leaky_relu", "elu", "selu", "softsign", "silu", "hard_silu"),
)
ACTIVATION_PARAMETERS: Mapping[str, str] = {"leaky_relu": "negative_slope", "elu": "alpha"}
# These fall somewhere, so that their derivative is no function of their value, and the kernel has
# none. So do those with an option below 0.
FALLING = (ACTIVATIONS["silu"], ACTIVATIONS["hard_silu"])

# What a call returns.
RESULTS = _number(
    *("done", "no memory", "wrong length", "stale", "by torch", "unknown code"),
)
STALE, BY_TORCH = RESULTS["stale"], RESULTS["by torch"]

# The operations of a program, and the variants of some of them.
OPERATIONS = _number(
    *("recurrent", "read", "truncate", "look_up", "map", "reduce"),
    *("softmax", "normalize", "multiply", "convolve", "pool"),
)
MAPS = _number(
    *("copy", "add", "multiply", "divide", "maximum", "minimum"),
    *("equal", "not_equal", "less", "less_equal", "select", "multiply_add", "over_root"),
    "activation",
)
REDUCTIONS = _number("sum", "maximum")
POOLINGS = _number("maximum", "mean")
NUMBERS = _number("int32", "int64", "bool", "float32")  # dtypes

# Bits, best first.
INSTRUCTION_SETS: Mapping[str, int] = kernels_of("float32")
ReducedPrecision = Literal["bfloat16", "int8"]
REDUCED: Mapping[ReducedPrecision, Mapping[str, int]] = {
    precision: kernels_of(precision) for precision in get_args(ReducedPrecision)
}
Precision = Literal["float32", ReducedPrecision]
"""Precision of the factors of products in recurrent layers."""
PRECISIONS: tuple[Precision, ...] = ("float32", *REDUCED)


def merge_code(merge: str | None) -> int:
    """Return the code of a merge mode, which is 0 where the directions keep outputs of their own.

    None keeps both apart, and "concat" is both side by side.
    """
    return 0 if merge is None else MERGE_MODES[merge].native_code
