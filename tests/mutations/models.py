"""Models that no file of Keras holds, such as units equal to the width of the input."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import numpy as np
from specs import (
    CELLS,
    KERAS3,
    B,
    Fixture,
    T,
    bi,
    chain,
    dense,
    functional,
    hand_out_copies,
    layer,
    rnn,
    values,
    with_options,
)

from keras2torch_birnn.reference import compute
from keras2torch_birnn.spec import Call, LayerSpec, ModelSpec, TensorRef, leaves


def square(cell: str) -> LayerSpec:
    """Build a layer with as many units as features: a forgotten transpose fits."""
    options = {"return_sequences": True}
    return chain(bi(rnn(cell, 5, 5, **options), rnn(cell, 5, 5, seed=1, **options)))


def square_conv() -> LayerSpec:
    weights = {"kernel": values(5, 5, 5), "bias": values(5, seed=2)}
    config = {"filters": 5, "kernel_size": 5, "padding": "same"}
    return chain(layer("Conv1D", "conv", weights, **config))


def square_batch_norm() -> LayerSpec:
    """Build a normalization of axis 1, which is as long as the last axis."""
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    weights = {name: values(5, seed=i) for i, name in enumerate(names)}
    weights["moving_variance"] = weights["moving_variance"] ** 2
    # a window of 3 leaves 5 of the 7 steps
    return chain(
        layer(
            "Conv1D",
            "conv",
            {"kernel": values(3, 5, 5, seed=7)},
            filters=5,
            kernel_size=3,
            use_bias=False,
        ),
        layer("BatchNormalization", "norm", weights, axis=1),
    )


def pooled(kind: str, size: int) -> LayerSpec:
    """Build a pooling of every step: padding is equal at both ends if the size is odd."""
    return chain(layer(f"{kind}Pooling1D", "pool", pool_size=size, strides=1, padding="same"))


def started(cell: str) -> LayerSpec:
    """Build a Bidirectional whose initial states are inputs 1, 2, ... of the model."""
    options = {"return_sequences": True}
    spec = bi(rnn(cell, 5, 5, **options), rnn(cell, 5, 5, seed=1, **options))
    states = 4 if cell == "LSTM" else 2
    names = ["x", *(f"s{i}" for i in range(states))]
    call = Call(
        "bi", 0, (TensorRef("x"),), {"initial_state": tuple(TensorRef(n) for n in names[1:])}
    )
    inputs = [layer("InputLayer", name) for name in names]
    return functional([*inputs, spec], [call], tuple(TensorRef(n) for n in names), TensorRef("bi"))


BUILDERS: Mapping[str, Callable[[], LayerSpec]] = {
    **{f"square {cell}": functools.partial(square, cell) for cell in CELLS},
    **{f"started {cell}": functools.partial(started, cell) for cell in CELLS},
    "square Dense": lambda: chain(dense(5, 5)),
    "square Conv1D": square_conv,
    "square BatchNormalization": square_batch_norm,
    "pooled evenly": functools.partial(pooled, "Average", 3),
    "pooled unevenly": functools.partial(pooled, "Max", 2),
    "gate biases": lambda: chain(rnn("GRU", 5, 5, recurrent_activation="sigmoid")),
    "ids without a mask": lambda: chain(
        layer("Embedding", "ids", {"embeddings": values(13, 5)}, input_dim=13, output_dim=5),
        rnn("LSTM", 7, 5),
    ),
    "softmax over time": lambda: chain(
        layer("Activation", "act", activation={"name": "softmax", "axis": 1})
    ),
    "pair that goes backwards": lambda: chain(
        bi(
            rnn("LSTM", 5, 5, go_backwards=True, return_sequences=True),
            with_options(rnn("GRU before", 11, 5, seed=1, return_sequences=True)),
        )
    ),
}


@hand_out_copies
def build_fixture(name: str) -> Fixture:
    """Build one of ``BUILDERS`` in float32, with the reference's outputs."""
    root = BUILDERS[name]()
    spec = ModelSpec(root, KERAS3)
    names = [ref.layer for ref in leaves(root.graph.inputs)] if root.graph else []
    inputs = [values(B, T, 5)]
    inputs += [values(B, 5, seed=i) for i in range(1, len(names))]
    if any(one.class_name == "Embedding" for one in root.walk()):
        inputs = [np.arange(B * T).reshape(B, T) * 3 % 13]  # two rows hold a zero
    single = tuple(x.astype(np.float32) for x in inputs)
    return Fixture(spec, (single,), (compute(spec, single).outputs,))
