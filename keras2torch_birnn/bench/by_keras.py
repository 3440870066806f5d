"""Contenders on Keras. For a worker process only: nothing else may import Keras."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from keras2torch_birnn.bench.case import (
    CLASSES,
    RATE,
    Case,
    Model,
    Prepared,
    Stack,
    input_of,
    layers_of,
    mask_of,
)
from keras2torch_birnn.errors import UsageError
from keras2torch_birnn.spec import Array
from keras2torch_birnn.verification.keras_child import load_model
from keras2torch_birnn.verification.live_keras import files_for_keras

Runner = Callable[[], Any]


def prepare(case: Case, how: str, device: str, inputs: list[Array]) -> Prepared:
    """Prepare a case for "predict", "function" (tf.function), "xla" (compiled by XLA) or "call".

    Training: "train" or "train-xla".
    """
    package = case.package if isinstance(case, Model) else "keras"
    keras = _package(package)
    if how != "call":
        _threads_of_tensorflow()
    if isinstance(case, Model):
        model = _from_file(case)
        given = inputs
    else:
        model = _stack(keras, case)
        mask = mask_of(case)
        given = [input_of(case), *([] if mask is None else [mask])]
    one = given[0] if len(given) == 1 else given
    runs = _versions(keras, how)
    if how in ("train", "train-xla"):
        return _training(keras, model, how, one, runs)
    run = _runner(model, how, one)
    return Prepared(run, run, runs)


def _training(keras: Any, model: Any, how: str, inputs: Any, runs: str) -> Prepared:
    """Prepare ``train_on_batch`` towards zeros: the loss is the mean of the squared outputs."""
    model.compile(keras.optimizers.SGD(RATE), loss="mse", jit_compile=how == "train-xla")
    zeros = np.zeros(model.output_shape, dtype="f4")

    def step() -> None:
        model.train_on_batch(inputs, zeros)

    def after_one_step() -> Any:
        step()
        return model.predict_on_batch(inputs)

    return Prepared(step, after_one_step, runs)


def _package(name: str) -> Any:
    if name == "tf_keras":
        import tf_keras

        return tf_keras
    import keras

    return keras


def _versions(keras: Any, how: str) -> str:
    if how == "call":
        import torch

        return f"Keras {keras.__version__}, torch {torch.__version__}"
    import tensorflow

    return f"Keras {keras.__version__}, TensorFlow {tensorflow.__version__}"


def _threads_of_tensorflow() -> None:
    import tensorflow

    threads = int(os.environ["OMP_NUM_THREADS"])
    tensorflow.config.threading.set_intra_op_parallelism_threads(threads)
    tensorflow.config.threading.set_inter_op_parallelism_threads(threads)


def _from_file(case: Model) -> Any:
    config = None if case.config is None else Path(case.config)
    with tempfile.TemporaryDirectory() as folder:
        files = files_for_keras(Path(folder), Path(case.path), config)
        if isinstance(files, str):
            raise UsageError(files)
        return load_model(case.package, *map(str, files))


def _stack(keras: Any, stack: Stack) -> Any:
    """Build the layers with their weights; a masked case has the mask as second input."""
    x = keras.Input((stack.time, stack.features), batch_size=stack.batch)
    inputs, mask = [x], None
    if stack.masked:
        mask = keras.Input((stack.time,), batch_size=stack.batch, dtype="bool")
        inputs.append(mask)
    options: dict[str, Any] = {"return_sequences": True}
    if stack.rnn != "rnn":
        options["recurrent_activation"] = _gate(keras, stack.recurrent_activation)
    if stack.rnn == "gru":
        options["reset_after"] = stack.reset_after
    out, made = x, []
    for _ in range(stack.layers):
        cell = getattr(keras.layers, CLASSES[stack.rnn])(stack.units, **options)
        made.append(keras.layers.Bidirectional(cell, merge_mode=stack.merge))
        out = made[-1](out, mask=mask)
        if mask is not None:
            # Another tensor, without the mask: the loss is to count every step.
            out = keras.layers.Lambda(lambda y: y + 0.0, mask=lambda *_: None)(out)
    for layer, spec in zip(made, layers_of(stack), strict=True):
        halves = spec.parts.values()
        layer.set_weights([w for half in halves for w in half.weights.values()])
    return keras.Model(inputs, out)


def _gate(keras: Any, name: str) -> Any:
    """Return Keras 3's hard_sigmoid (slope 1/6), or the older one (slope 0.2) written out."""
    if name != "hard_sigmoid_0.2":
        return {"hard_sigmoid_1/6": "hard_sigmoid"}.get(name, name)

    def hard_sigmoid_of_keras_2(x: Any) -> Any:
        return keras.ops.clip(0.2 * x + 0.5, 0.0, 1.0)

    # Bidirectional copies its layer by way of the config.
    return keras.saving.register_keras_serializable("k2t")(hard_sigmoid_of_keras_2)


def _runner(model: Any, how: str, inputs: Any) -> Runner:
    if how == "predict":
        rows = (inputs[0] if isinstance(inputs, list) else inputs).shape[0]
        return lambda: model.predict(inputs, batch_size=rows, verbose=0)
    if how == "call":
        import torch

        def call() -> Any:
            with torch.inference_mode():
                return model(inputs, training=False)

        return call
    import tensorflow

    function = tensorflow.function(
        lambda x: model(x, training=False), jit_compile=True if how == "xla" else None
    )
    tensors = (
        [tensorflow.constant(x) for x in inputs]
        if isinstance(inputs, list)
        else tensorflow.constant(np.asarray(inputs))
    )
    return lambda: _waited(function(tensors))


def _waited(outputs: Any) -> Any:
    """Wait for the outputs, and return them as arrays: TensorFlow computes asynchronously."""
    if isinstance(outputs, dict):
        return {k: v.numpy() for k, v in outputs.items()}
    return [y.numpy() for y in outputs] if isinstance(outputs, list | tuple) else outputs.numpy()
