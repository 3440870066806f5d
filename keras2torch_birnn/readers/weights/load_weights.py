"""Load the weights of a parsed model: locate them, check them against its shapes, read them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from keras2torch_birnn.errors import (
    K2TError,
    WeightMismatchError,
    expecting_keras,
    gather,
    printable,
)
from keras2torch_birnn.progress import advance, begin
from keras2torch_birnn.readers.config.parsing import Parsing, Whole
from keras2torch_birnn.readers.config.policies import common_dtype, mixture_note
from keras2torch_birnn.readers.containers.container import Container
from keras2torch_birnn.readers.hdf5.arrays import StoredArray
from keras2torch_birnn.readers.weights.input_shapes import with_input_shape
from keras2torch_birnn.readers.weights.layouts import Layout
from keras2torch_birnn.readers.weights.masked_steps import resolve_masked_steps
from keras2torch_birnn.readers.weights.paths import WeightPaths, layout_of
from keras2torch_birnn.readers.weights.repeated_layers import repeated_note
from keras2torch_birnn.readers.weights.slots import Key, layers_by_owner, replace_layers
from keras2torch_birnn.schema import SCHEMA, ShapeError
from keras2torch_birnn.schema.custom_layers import named_weights
from keras2torch_birnn.schema.shape_inference import infer_model
from keras2torch_birnn.spec import (
    Array,
    Generation,
    LayerSpec,
    Structure,
    shape_fits,
    with_dtype,
)

# Values that are looked at together, so that what is made of them stays small.
_BLOCK = 1 << 18


def load_weights(
    root: LayerSpec,
    container: Container,
    parsing: Parsing,
    whole: Whole | None = None,
    *,
    values: bool,
) -> tuple[LayerSpec, tuple[str, ...]]:
    """Return the model with its weights, and notes about them.

    whole: the model of which ``root`` is a part, None if it is whole. All of its weights are
    located, and those of other parts then left out.

    values: read them;
    else zeros stand for them, but in a model with layers of a plugin, which may use its weights in
    any way.

    Raises:
        WeightMismatchError: weights are missing, superfluous, or of other shapes than the
            configuration implies.
    """
    located = find_weights(root, container, parsing, whole)
    notes = list(located.notes)
    values = values or any(layer.class_name not in SCHEMA for layer in located.root.walk())
    if values:
        arrays = (array for row in located.rows for array in row.arrays.values())
        begin("reading weights", sum(array.nbytes for array in arrays))
    layers = {row.owner: _read(row, located.layout, notes, values=values) for row in located.rows}
    notes += repeated_note(located.stored)
    root = replace_layers(located.root, layers)
    dtype = common_dtype([array for one in layers.values() for array in one.weights.values()])
    if parsing.generation.name in ("tf.keras", "keras3"):
        notes = [*notes, *mixture_note(parsing.floats, dtype)]
    return with_dtype(root, dtype), tuple(notes)


@dataclass(frozen=True)
class StoredLayer:
    """A layer with weights, and the arrays in the file that hold them, by name.

    ``layer`` has the options that its weights determine. ``owner``: the path from the root to it.
    """

    owner: Key
    layer: LayerSpec
    arrays: Mapping[str, StoredArray]


@dataclass(frozen=True)
class LocatedWeights:
    """The arrays of a file that are a model's weights, checked but not read.

    ``root``: the model with the options that its weights determine, but without weights.
    ``layout``: how the arrays of a row become the weights of Keras 2.
    """

    root: LayerSpec
    rows: tuple[StoredLayer, ...]
    layout: Layout
    notes: tuple[str, ...]

    @property
    def stored(self) -> Mapping[Key, Mapping[str, StoredArray]]:
        """The arrays by owner and name."""
        return {row.owner: row.arrays for row in self.rows}


def find_weights(
    root: LayerSpec,
    container: Container,
    parsing: Parsing,
    whole: Whole | None = None,
) -> LocatedWeights:
    """Locate the weights of a parsed model, and check their shapes and dtypes.

    whole: as ``load_weights`` takes them.

    Raises:
        WeightMismatchError: weights are missing, superfluous, or of other shapes than the
            configuration implies.
    """
    generation, layout = parsing.generation, layout_of(parsing.generation)
    with expecting_keras("weights"):
        paths = _locate(root, container, generation, whole)
    names = container.written_names(paths)
    root, notes = resolve_masked_steps(root, names, generation, parsing.of_tensorflow_1)
    arrays = iter(container.store.arrays([path for row in paths.values() for path in row.values()]))
    stored = {owner: {name: next(arrays) for name in names} for owner, names in paths.items()}
    root = _infer_input_shape(root, stored)
    rows = tuple(
        StoredLayer(owner, layout.infer(layer, stored[owner]), stored[owner])
        for owner, layer in layers_by_owner(root)
        if owner in stored
    )
    problems = [problem for row in rows for problem in _list_problems(row, layout)]
    if problems:
        raise gather(problems)
    root = replace_layers(root, {row.owner: row.layer for row in rows})
    return LocatedWeights(root, rows, layout, tuple(notes))


def _locate(
    root: LayerSpec, container: Container, generation: Generation, whole: Whole | None
) -> WeightPaths:
    if whole is None:
        return container.locate_weights(root, generation)
    inside = {owner for owner, _ in layers_by_owner(root)}
    paths = container.locate_weights(whole.model, generation, whole.left_out)
    return {owner: found for owner, found in paths.items() if owner in inside}


def _infer_input_shape(
    root: LayerSpec, stored: Mapping[Key, Mapping[str, StoredArray]]
) -> LayerSpec:
    """Infer the input's shape from the first weights, where the file lacks it, and all others."""
    known = with_input_shape(root, stored)
    if known is root:
        return root
    problems: list[K2TError] = []
    known = infer_model(known, problems)
    if problems:
        raise gather(problems)
    return known


def _list_problems(row: StoredLayer, layout: Layout) -> Iterator[K2TError]:
    """Yield what of a layer's arrays does not fit its options: shapes and dtypes."""
    layer, schema = row.layer, SCHEMA.get(row.layer.class_name)
    expected = named_weights(layer) or layout.shapes(layer, row.arrays)
    shape: Structure = layer.input_shape
    if schema is not None:
        try:
            schema.weights(layer.config, shape)
        except ShapeError as error:
            yield WeightMismatchError(str(error), place=layer.place)
    integers = schema.integer_weights if schema is not None else ()
    for name, array in row.arrays.items():
        wanted = expected.get(name)
        if wanted is not None and not shape_fits(array.shape, wanted):
            shown = ", ".join("any" if size is None else str(size) for size in wanted)
            yield WeightMismatchError(
                f"{name} {array.shape}, the configuration implies ({shown})",
                "the file is damaged or belongs to another model",
                place=array.path,
            )
        elif array.dtype.kind != "f" and name not in integers:
            yield WeightMismatchError(
                f"{name} holds {array.dtype.name}, float weights are expected", place=array.path
            )


def _read(row: StoredLayer, layout: Layout, notes: list[str], *, values: bool) -> LayerSpec:
    """Return the layer with its weights; add a note for each that is not finite."""
    weights: dict[str, Any] = {}
    for name, array in row.arrays.items():
        if not values:
            weights[name] = np.broadcast_to(np.zeros((), array.dtype), array.shape)
            continue
        weights[name] = array.read()
        if not _are_finite(weights[name]):
            place = printable(row.layer.place)
            notes.append(f"{place}: {name} holds values that are not finite")
    return replace(row.layer, weights=layout.join(row.layer, weights))


def _are_finite(values: Array) -> bool:
    """Tell whether no value is infinite or NaN, and report that they are read."""
    advance(values.nbytes)
    flat = values.reshape(-1)
    return all(np.isfinite(flat[at : at + _BLOCK]).all() for at in range(0, flat.size, _BLOCK))
