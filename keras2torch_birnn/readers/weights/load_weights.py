"""Load the weights of a parsed model: locate them, check them against its shapes, read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from keras2torch_birnn import lazy_array
from keras2torch_birnn.errors import K2TError, WeightMismatchError, gather, printable
from keras2torch_birnn.readers.config.architecture import Parsing
from keras2torch_birnn.readers.config.policies import common_dtype, mixture_note
from keras2torch_birnn.readers.containers.container import Container
from keras2torch_birnn.readers.hdf5.arrays import Contiguous, StoredArray
from keras2torch_birnn.readers.weights.input_shapes import with_input_shape
from keras2torch_birnn.readers.weights.layouts import Layout, is_cudnn
from keras2torch_birnn.readers.weights.masked_steps import resolve_masked_steps
from keras2torch_birnn.readers.weights.paths import WeightPaths, layout_of
from keras2torch_birnn.readers.weights.quantized import whole_numbers
from keras2torch_birnn.readers.weights.slots import Key, fill
from keras2torch_birnn.readers.weights.store import Store
from keras2torch_birnn.schema import SCHEMA, ShapeError
from keras2torch_birnn.schema.custom_layers import named_weights
from keras2torch_birnn.schema.shape_inference import infer_model
from keras2torch_birnn.spec import LayerSpec, MaskedSteps, shape_fits, with_dtype

How = Literal["read", "lazy", "shapes"]


def load_weights(
    root: LayerSpec,
    container: Container,
    parsing: Parsing,
    choice: MaskedSteps | None,
    how: How,
) -> tuple[LayerSpec, tuple[str, ...]]:
    """Return the model with its weights, and notes about them.

    choice: the user's rule for masked steps, where the file leaves it open. how: "read" all;
    "lazy": leave large matrices in the file until they are used; "shapes": zeros instead of
    values. A model with layers of a plugin is always read: a plugin may use its weights in any way.

    Raises:
        WeightMismatchError: weights are missing, superfluous, or of other shapes than the
            configuration implies.
    """
    generation, layout = parsing.generation, layout_of(parsing.generation)
    paths = container.locate_weights(root, generation)
    names = container.written_names(paths)
    root, notes = resolve_masked_steps(root, names, generation, choice, parsing.of_tensorflow_1)
    stored = _find_arrays(paths, container.store)
    root = fill(root, stored, layout.infer)
    root = _infer_again(with_input_shape(root, stored))
    _check_arrays(root, stored, layout)
    if any(layer.class_name not in SCHEMA for layer in root.walk()):
        how = "read"
    root = fill(root, stored, lambda layer, found: _read(layer, found, layout, notes, how))
    dtype = common_dtype([array for layer in root.walk() for array in layer.weights.values()])
    if generation.name in ("tf.keras", "keras3"):
        notes = [*notes, *mixture_note(parsing.floats, dtype)]
    return with_dtype(root, dtype), tuple(notes)


def _find_arrays(paths: WeightPaths, store: Store) -> dict[Key, dict[str, StoredArray]]:
    flat = [path for names in paths.values() for path in names.values()]
    arrays = iter(store.arrays(flat))
    return {owner: {n: next(arrays) for n in names} for owner, names in paths.items()}


def _infer_again(root: LayerSpec) -> LayerSpec:
    """Infer the shapes again, with the input shape known from the weights."""
    problems: list[K2TError] = []
    root = infer_model(root, problems)
    if problems:
        raise gather(problems)
    return root


def _check_arrays(
    root: LayerSpec, stored: Mapping[Key, Mapping[str, StoredArray]], layout: Layout
) -> None:
    problems: list[K2TError] = []
    fill(root, stored, lambda layer, weights: _check(layer, weights, layout, problems))
    if problems:
        raise gather(problems)


def _check(
    layer: LayerSpec,
    weights: Mapping[str, StoredArray],
    layout: Layout,
    problems: list[K2TError],
) -> LayerSpec:
    expected = named_weights(layer) or layout.shapes(layer, weights)
    if layer.class_name in SCHEMA:
        try:
            SCHEMA[layer.class_name].weights(layer.config, layer.input_shape)
        except ShapeError as error:
            problems.append(WeightMismatchError(str(error), place=layer.place))
    whole = SCHEMA[layer.class_name].integer_weights if layer.class_name in SCHEMA else ()
    bits8 = whole_numbers(layer)
    for name, array in weights.items():
        wanted = expected.get(name)
        if wanted is not None and not shape_fits(array.shape, wanted):
            shown = ", ".join("any" if size is None else str(size) for size in wanted)
            problems.append(
                WeightMismatchError(
                    f"{name} {array.shape}, the configuration implies ({shown})",
                    "the file is damaged or belongs to another model",
                    place=array.path,
                )
            )
        elif name in bits8 and array.dtype.name != "int8":
            problems.append(
                WeightMismatchError(
                    f"{name} holds {array.dtype.name}, int8 is expected", place=array.path
                )
            )
        elif array.dtype.kind != "f" and name not in (*whole, *bits8):
            problems.append(
                WeightMismatchError(
                    f"{name} holds {array.dtype.name}, float weights are expected",
                    place=array.path,
                )
            )
    return layer


# Weights that builder and reference can take a few rows at a time.
_MAY_WAIT: Mapping[str, tuple[str, ...]] = {
    "Embedding": ("embeddings",),
    "Dense": ("kernel",),
    **dict.fromkeys(("LSTM", "GRU", "SimpleRNN"), ("kernel", "recurrent_kernel")),
}


def _may_wait(layer: LayerSpec, name: str, stored: Mapping[str, StoredArray]) -> bool:
    array = stored[name]
    return (
        name in _MAY_WAIT.get(layer.class_name, ())
        and isinstance(array.layout, Contiguous)
        and array.dtype.kind == "f"
        and array.nbytes >= lazy_array.LEAST_BYTES
        and not is_cudnn(layer, stored)
    )


def _read(
    layer: LayerSpec,
    stored: Mapping[str, StoredArray],
    layout: Layout,
    notes: list[str],
    how: How,
) -> LayerSpec:
    weights: dict[str, Any] = {}
    for name, array in stored.items():
        if how == "shapes":
            weights[name] = np.broadcast_to(np.zeros((), array.dtype), array.shape)
        elif how == "lazy" and _may_wait(layer, name, stored):
            array.check()
            weights[name] = lazy_array.LazyArray.whole(array)
        else:
            weights[name] = array.read()
    for name, values in weights.items():
        if how != "shapes" and not lazy_array.is_finite(values):
            notes.append(f"{printable(layer.place)}: {name} holds values that are not finite")
    return replace(layer, weights=layout.join(layer, weights))
