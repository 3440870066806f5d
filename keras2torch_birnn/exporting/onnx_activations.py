"""Activations of recurrent cells in ONNX' words; alpha and beta as its operators define them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from keras2torch_birnn.rnn.activations import FUNCTIONS, Activation


class OnnxActivation(NamedTuple):
    """An activation of ONNX' LSTM, GRU and RNN, and its constants.

    saturates: whether it is exactly 0 far below zero and exactly 1 far above.
    """

    name: str
    alpha: tuple[float, ...] = ()
    beta: tuple[float, ...] = ()
    saturates: bool = False


def _relu(negative_slope: float = 0.0) -> OnnxActivation:
    return OnnxActivation("LeakyRelu", (negative_slope,)) if negative_slope else _plain("Relu")()


def _plain(
    name: str,
    alpha: tuple[float, ...] = (),
    beta: tuple[float, ...] = (),
    *,
    saturates: bool = False,
) -> Callable[[], OnnxActivation]:
    return lambda: OnnxActivation(name, alpha, beta, saturates)


# By the explicit name; called with the options, a TypeError says that ONNX has no such option.
# Not here, although ONNX has them: Softplus, which ONNX Runtime 1.32 computes as log(1 + exp(x)),
# infinite from 89 on; ThresholdedRelu, which is 0 at the threshold, where Keras' relu is not;
# ScaledTanh, which Keras does not have.
_ACTIVATIONS: Mapping[str, Callable[..., OnnxActivation | None]] = {
    "sigmoid": _plain("Sigmoid", saturates=True),
    "tanh": _plain("Tanh"),
    "relu": _relu,
    "linear": _plain("Affine", (1.0,), (0.0,)),
    "hard_sigmoid_0.2": _plain("HardSigmoid", (0.2,), (0.5,), saturates=True),
    "hard_sigmoid_1/6": _plain("HardSigmoid", (1 / 6,), (0.5,), saturates=True),
    "elu": lambda alpha=1.0: OnnxActivation("Elu", (alpha,)),
    "leaky_relu": lambda negative_slope=0.2: OnnxActivation("LeakyRelu", (negative_slope,)),
    "softsign": _plain("Softsign"),
}
_NAMES = {id(function): name for name, function in FUNCTIONS.items()}


def describe(activation: Activation) -> tuple[str, dict[str, Any]]:
    """Return the explicit name of an activation, and its options."""
    if isinstance(activation, partial):
        return _NAMES[id(activation.func)], dict(activation.keywords)
    return _NAMES[id(activation)], {}


def to_onnx(activation: Activation) -> OnnxActivation | None:
    """Return the activation of ONNX that computes the same; None if there is none."""
    name, options = describe(activation)
    make = _ACTIVATIONS.get(name)
    try:
        return None if make is None else make(**options)
    except TypeError:
        return None
