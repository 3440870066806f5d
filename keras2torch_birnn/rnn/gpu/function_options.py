"""The activations that the Triton kernels have, with the numbers they take. No torch."""

from __future__ import annotations

from collections.abc import Mapping

# Name in ``functional.activations.FUNCTIONS`` -> its options in the kernel's order, with Keras'
# defaults; None is no limit.
FUNCTION_OPTIONS: Mapping[str, Mapping[str, float | None]] = {
    **{
        name: {}
        for name in (
            "linear relu6 selu silu hard_silu mish sigmoid hard_sigmoid_0.2 hard_sigmoid_1/6 "
            "log_sigmoid tanh hard_tanh tanh_shrink softplus softsign exponential sparse_plus "
            "sparse_sigmoid softmax log_softmax"
        ).split()
    },
    "relu": {"negative_slope": 0.0, "threshold": 0.0, "max_value": None},
    "leaky_relu": {"negative_slope": 0.2},
    "elu": {"alpha": 1.0},
    "celu": {"alpha": 1.0},
    "gelu": {"approximate": 0.0},
    "hard_shrink": {"threshold": 0.5},
    "soft_shrink": {"threshold": 0.5},
    "squareplus": {"b": 4.0},
}

# Those whose value at one unit depends on all units.
WHOLE_ROWS = frozenset({"softmax", "log_softmax"})
