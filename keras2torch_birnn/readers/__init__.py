"""Bytes -> ModelSpec: containers first, then dialects. Never imports torch, h5py or Keras."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from keras2torch_birnn import deferred
from keras2torch_birnn.errors import (
    InvalidModelFileError,
    K2TError,
    MissingArchitectureError,
    WeightMismatchError,
    gather,
    in_file,
    printable,
)
from keras2torch_birnn.own import named_weights
from keras2torch_birnn.readers import keras1
from keras2torch_birnn.readers.architecture import Parsing, parse_architecture
from keras2torch_birnn.readers.arrays import Contiguous, StoredArray
from keras2torch_birnn.readers.backends import check_backend
from keras2torch_birnn.readers.containers import Container, open_container, open_file
from keras2torch_birnn.readers.generations import consequences, generation_of, version_by_shape
from keras2torch_birnn.readers.layouts import KERAS2, Layout, is_cudnn
from keras2torch_birnn.readers.legacy_weights import legacy_paths, weights_group
from keras2torch_birnn.readers.limits import JSON_BYTES
from keras2torch_birnn.readers.masked_steps import choice_of, settle_masked_steps
from keras2torch_birnn.readers.number_kinds import check_kinds
from keras2torch_birnn.readers.own_layers import check_names
from keras2torch_birnn.readers.penalties import penalty_note
from keras2torch_birnn.readers.policies import common_dtype, mixture_note
from keras2torch_birnn.readers.quantized import whole_numbers
from keras2torch_birnn.readers.slots import Key, fill, slots
from keras2torch_birnn.readers.sniff import ContainerKind
from keras2torch_birnn.readers.strict_json import decode_text, parse_object
from keras2torch_birnn.readers.unrolled import check_calls
from keras2torch_birnn.readers.v3_weights import is_v3, v3_paths
from keras2torch_birnn.readers.vocabularies import with_vocabularies
from keras2torch_birnn.readers.window import Window
from keras2torch_birnn.schema import SCHEMA, ShapeError
from keras2torch_birnn.shapes import check_sizes, infer_model
from keras2torch_birnn.spec import LayerSpec, MaskedSteps, ModelSpec, with_dtype

PathLike = str | os.PathLike[str]
How = Literal["read", "deferred", "shapes"]


@dataclass(frozen=True)
class Architecture:
    """The parsed JSON of a model, the Keras version and the backend that go with it."""

    model: Mapping[str, Any]
    version: str
    backend: str = ""


def read_model(
    path: PathLike,
    *,
    config: PathLike | None = None,
    masked_steps: str | None = None,
) -> ModelSpec:
    """Read a Keras model file, or a weights file with ``config`` (the text of ``to_json()``).

    Layers that a loaded plugin takes come with the options and weights that it names, see
    ``own.py``. ``masked_steps``: see ``masked_steps.py``.

    Raises:
        InvalidModelFileError: broken, hostile, or no model; WeightMismatchError: weights and
            configuration differ; UnsupportedLayerError, UnsupportedOptionError: all that cannot
            be converted.
    """
    spec, problems = survey(path, config=config, masked_steps=masked_steps)
    if problems:
        with in_file(path):
            raise gather(problems)
    return spec


def survey(
    path: PathLike,
    *,
    config: PathLike | None = None,
    masked_steps: str | None = None,
    weights: How = "read",
) -> tuple[ModelSpec, list[K2TError]]:
    """The same, but what is not supported is returned; the weights are read only if there is none.

    ``weights``: "read", or "shapes" (see ``opened``).

    Raises:
        InvalidModelFileError, WeightMismatchError: as ``read_model``.
    """
    with opened(path, config=config, masked_steps=masked_steps, weights=weights) as found:
        return found


@contextmanager
def opened(
    path: PathLike,
    *,
    config: PathLike | None = None,
    masked_steps: str | None = None,
    weights: How = "deferred",
) -> Iterator[tuple[ModelSpec, list[K2TError]]]:
    """The same, with the file open. It must not have changed when it is closed.

    ``weights``: "read"; "deferred", large matrices are still to be read (see ``deferred.py``), as
    long as the file is open; "shapes", no weight is read, zeros stand for them. A model with layers
    of a plugin is always read: nobody knows what that does with a weight.
    """
    given = None if config is None else _read_json(config)
    with in_file(path), open_container(path) as container:
        architecture = _architecture(container, given)
        parsing = Parsing(generation_of(architecture.version))
        choice = choice_of(masked_steps, parsing.generation)
        root = parse_architecture(architecture.model, parsing)
        check_names(root, parsing.problems)
        check_calls(root)
        problems, more = check_backend(architecture.backend, parsing.generation, root)
        parsing.problems += problems
        more += [*penalty_note(parsing.penalties), *_misnamed(path, container.kind)]
        notes = [consequences(parsing.generation), *parsing.notes, *more]
        if not parsing.problems:
            check_kinds(root, parsing.generation, parsing.problems)
            root = with_vocabularies(root, container, parsing.generation, parsing.problems)
        if not parsing.problems:
            root = infer_model(root, parsing.problems)
            check_sizes(root)
        if not parsing.problems:
            root, found = _with_weights(root, container, parsing, choice, weights)
            notes += found
        spec = ModelSpec(root, parsing.generation, tuple(notes), choice)
        yield spec, parsing.problems


def _misnamed(path: PathLike, kind: ContainerKind) -> list[str]:
    """A note where name and content differ. HDF5 files called .keras are not rare: TensorFlow 2
    wrote them.
    """
    named_hdf5 = Path(path).suffix.lower() in (".h5", ".hdf5")
    return (
        ["the file is a .keras archive by its content"]
        if kind == "keras_zip" and named_hdf5
        else []
    )


def read_architecture(path: PathLike, *, config: PathLike | None = None) -> Mapping[str, Any]:
    """The parsed JSON of the model, as it stands in the file or in ``config``.

    Raises:
        InvalidModelFileError: there is none, or it is broken.
    """
    given = None if config is None else _read_json(config)
    with in_file(path), open_container(path) as container:
        return _architecture(container, given).model


def _read_json(path: PathLike) -> Mapping[str, Any]:
    with in_file(path), open_file(Path(path)) as file:
        size = os.fstat(file.fileno()).st_size
        if size > JSON_BYTES:
            raise InvalidModelFileError(f"more than {JSON_BYTES} bytes of JSON", "refused")
        text = decode_text(Window(file, 0, size).read(size), place="")
        return parse_object(text, place="", needed=["class_name", "config"])


def _architecture(container: Container, given: Mapping[str, Any] | None) -> Architecture:
    """Find the architecture and the version: in an archive, in attributes, or in ``given``."""
    if container.config_text is not None:
        model = parse_object(container.config_text, place="config.json", needed=["class_name"])
        metadata = parse_object(container.metadata_text or "{}", place="metadata.json")
        return Architecture(given or model, str(metadata.get("keras_version") or ""))
    root = container.store.attributes("/", ["model_config", "keras_version", "backend"])
    backend = str(root.get("backend") or (given or {}).get("backend") or "")
    version = str(root.get("keras_version") or "")
    text = root.get("model_config")
    if given is None and isinstance(text, str):
        model = parse_object(text, place="model_config", needed=["class_name", "config"])
        return Architecture(model, version or version_by_shape(model) or "1.0", backend)
    if given is None and text is not None:
        raise InvalidModelFileError("model_config is no text", "refused")
    if given is None:
        raise _without_architecture(container)
    version = version or str(given.get("keras_version") or "") or version_by_shape(given)
    return Architecture(given, version or "1.0", backend)


def _without_architecture(container: Container) -> K2TError:
    members = container.store.members("/")
    if weights_group(container.store) or is_v3(members) or "model_weights" in members:
        return MissingArchitectureError(
            "holds weights but no architecture",
            "give the text of model.to_json() with --config ARCH.json",
        )
    return InvalidModelFileError(
        "an HDF5 file without model_config: not a Keras model",
        "a Keras model or weights file is expected",
    )


# ---- weights ----------------------------------------------------------------------------------


def _with_weights(
    root: LayerSpec,
    container: Container,
    parsing: Parsing,
    choice: MaskedSteps | None,
    how: How,
) -> tuple[LayerSpec, tuple[str, ...]]:
    group = weights_group(container.store)
    layout = keras1.LAYOUT if parsing.generation.name == "keras1" else KERAS2
    if group is not None:
        paths = legacy_paths(root, container.store, group, layout)
    elif is_v3(container.store.members("/")):
        paths = v3_paths(root, container.store, parsing.generation)
    elif any(True for _ in slots(root)):
        raise WeightMismatchError("no weights in the file", "save the whole model again")
    else:
        paths = {}
    root, notes = settle_masked_steps(
        root, paths, parsing.generation, choice, parsing.of_tensorflow_1
    )
    stored = _stored(paths, container)
    root = fill(root, stored, layout.settle)
    root = _known_input(root, stored)
    problems: list[K2TError] = []
    root = infer_model(root, problems)
    fill(root, stored, lambda layer, weights: _check(layer, weights, layout, problems))
    if problems:
        raise gather(problems)
    if any(layer.class_name not in SCHEMA for layer in root.walk()):
        how = "read"
    root = fill(root, stored, lambda layer, found: _read(layer, found, layout, notes, how))
    kind = common_dtype([array for layer in root.walk() for array in layer.weights.values()])
    if parsing.generation.name in ("tf.keras", "keras3"):
        notes = [*notes, *mixture_note(parsing.floats, kind)]
    return with_dtype(root, kind), tuple(notes)


def _stored(
    paths: Mapping[Key, Mapping[str, str]], container: Container
) -> dict[Key, dict[str, StoredArray]]:
    flat = [path for names in paths.values() for path in names.values()]
    arrays = iter(container.store.arrays(flat))
    return {owner: {n: next(arrays) for n in names} for owner, names in paths.items()}


def _known_input(root: LayerSpec, stored: Mapping[Key, Mapping[str, StoredArray]]) -> LayerSpec:
    """Where the file tells no input shape, take it from the first layer's weights.

    Keras 2.2.4 and 2.3.1 lose it for a Sequential with an explicit InputLayer; models built on
    their first call never had it.
    """
    graph = root.graph
    if graph is None or len(graph.layers) < 2:
        return root
    first, *chain = graph.layers
    if first.class_name != "InputLayer" or first.config["shape"] is not None:
        return root
    follower = next((one for one in chain if one.class_name not in _KEEP_SHAPE), chain[0])
    inner: LayerSpec | None = follower
    while inner is not None and inner.parts:
        inner = next(iter(inner.parts.values()))
    owner = next((key for key in stored if key[0] == follower.name), None)
    shape = _input_shape(inner, stored.get(owner, {}) if owner else {})
    if shape is None:
        return root
    steps = follower.class_name == "TimeDistributed" or (len(shape) == 2 and _has_steps(chain))
    shape = (shape[0], None, *shape[1:]) if steps and follower.class_name != "Embedding" else shape
    named = replace(first, config={**first.config, "shape": shape})
    return replace(root, graph=replace(graph, layers=(named, *graph.layers[1:])))


# Layers that keep the shape, whatever it is, and layers that need (B, T, F).
_KEEP_SHAPE = frozenset(
    "Activation ActivityRegularization AlphaDropout BatchNormalization Dropout GaussianDropout "
    "GaussianNoise Identity LayerNormalization Masking SpatialDropout1D".split()
)
_NEED_STEPS = frozenset(
    "AveragePooling1D Bidirectional Conv1D Cropping1D GRU GlobalAveragePooling1D "
    "GlobalMaxPooling1D LSTM Masking MaxPooling1D RNN SeparableConv1D SimpleRNN SpatialDropout1D "
    "TimeDistributed UpSampling1D ZeroPadding1D".split()
)


def _has_steps(chain: Sequence[LayerSpec]) -> bool:
    """Whether one of the layers that change at most the last axis, or the next, needs steps."""
    for layer in chain:
        if layer.class_name in _NEED_STEPS:
            return True
        if layer.class_name not in _KEEP_SHAPE | {"Dense"}:
            return False
    return False


def _input_shape(
    layer: LayerSpec | None, weights: Mapping[str, StoredArray]
) -> tuple[int | None, ...] | None:
    if layer is None:
        return None
    if layer.class_name == "Embedding":
        return (None, None)
    if "kernel" not in weights or len(weights["kernel"].shape) < 2:
        return None
    if layer.class_name == "EinsumDense":  # whose equation does not need it
        return None
    width = weights["kernel"].shape[-2] * layer.config.get("groups", 1)
    return (None, width) if layer.class_name == "Dense" else (None, None, width)


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
    whole = SCHEMA[layer.class_name].whole if layer.class_name in SCHEMA else ()
    bits8 = whole_numbers(layer)
    for name, array in weights.items():
        wanted = expected.get(name)
        if wanted is not None and not _fits(array.shape, wanted):
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


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(
        w is None or s == w for s, w in zip(shape, wanted, strict=True)
    )


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
        and array.nbytes >= deferred.LEAST_BYTES
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
        elif how == "deferred" and _may_wait(layer, name, stored):
            weights[name] = deferred.Deferred.whole(array)
        else:
            weights[name] = array.read()
    for name, values in weights.items():
        if how != "shapes" and not deferred.is_finite(values):
            notes.append(f"{printable(layer.place)}: {name} holds values that are not finite")
    return replace(layer, weights=layout.join(layer, weights))
