"""Layers models of TensorFlow.js: ``model.json`` and the files of weights that it names.

Written by ``tensorflowjs_converter`` (Python) and by ``model.save()`` (JavaScript). Their order of
weights is not the model's: a weight belongs to the layer whose name is part of its own name.
Source: tfjs 4.22 ``tfjs-core/src/io/io_utils.ts`` and ``tfjs-layers/src/models.ts``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from keras2torch_birnn.errors import (
    InvalidModelFileError,
    UnsupportedOptionError,
    WeightMismatchError,
    invalid,
    printable,
)
from keras2torch_birnn.readers.config.generations import version_by_shape
from keras2torch_birnn.readers.containers.container import Architecture, Container, OpenPath
from keras2torch_birnn.readers.containers.files import read_text
from keras2torch_birnn.readers.containers.members import Folder
from keras2torch_birnn.readers.containers.tfjs_manifest import (
    Manifest,
    ManifestStore,
    read_manifest,
)
from keras2torch_birnn.readers.files.strict_json import objects_in, parse_object
from keras2torch_birnn.readers.weights.layouts import Layout
from keras2torch_birnn.readers.weights.legacy import layer_entries
from keras2torch_birnn.readers.weights.paths import WeightPaths, layout_of
from keras2torch_birnn.readers.weights.slots import Key
from keras2torch_birnn.readers.weights.v3 import v3_groups, v3_paths
from keras2torch_birnn.spec import Generation, LayerSpec

_HEAD = re.compile(rb'(\xef\xbb\xbf)?\s*\{.{0,4000}"(modelTopology|weightsManifest)"', re.DOTALL)
_JAVASCRIPT = "tfjs-layers"
# TF.js has the defaults and equations of this Keras.
_SAME_AS = "2.2.4"
# Options for which TF.js writes null where Keras has a default.
_NULL_OPTIONS = ("implementation", "mask_zero", "unit_forget_bias", "input_length")
_NUMBERED = re.compile(r"(.*/)?vars/\d{1,9}")
_LOOKED_AT = 64  # parts of a weight's name that are looked at, from its end


class TensorFlowJS(Container):
    """A ``model.json`` with the files that it names: ``names``.

    ``has_optimizer``: there are weights of an optimizer in them, too.
    """

    kind = "tfjs"

    def __init__(self, manifest: Manifest, model: Mapping[str, Any]) -> None:
        super().__init__(ManifestStore(manifest.weights))
        self._weights, self._model = manifest.weights, model
        self.names, self.has_optimizer = manifest.names, manifest.has_optimizer

    @staticmethod
    def recognises(source: OpenPath) -> bool:
        """Tell whether the source is the ``model.json`` of a model."""
        return source.window is not None and bool(_HEAD.match(source.head))

    @classmethod
    def open(cls, source: OpenPath, opening: ExitStack) -> TensorFlowJS:
        """Read the JSON and open the files beside it."""
        members = Folder(source.path.parent, opening)
        model = parse_object(read_text(source.opened, "").removeprefix("\ufeff"), place="")
        topology = model.get("modelTopology")
        is_graph = isinstance(topology, Mapping) and "node" in topology
        if model.get("format") == "graph-model" or is_graph:
            raise InvalidModelFileError(
                "a TF.js graph model: operations, without the layers that they were made of",
                "give the Keras model that it was converted from, or convert that with "
                "--output_format=tfjs_layers_model",
            )
        if not isinstance(topology, Mapping):
            raise invalid("without modelTopology")
        container = cls(read_manifest(model.get("weightsManifest"), members), topology)
        container.beside = container.names
        return container

    def architecture(self, config: Mapping[str, Any] | None) -> Architecture:
        """Find the architecture and its Keras version; ``config``: the JSON of ``--config``."""
        model = self._model.get("model_config", self._model)
        if isinstance(model, str):  # converters before 0.8 wrote JSON inside of JSON
            model = parse_object(model, place="model_config")
        if not isinstance(model, Mapping) or not {"class_name", "config"} <= model.keys():
            raise invalid("without class_name, config", "modelTopology")
        version = str(self._model.get("keras_version") or "")
        if version.startswith(_JAVASCRIPT):
            translated = _to_keras(model)
            return Architecture(config or translated, _SAME_AS, writer=version)
        version = version or version_by_shape(model) or _SAME_AS
        return Architecture(config or model, version, str(self._model.get("backend") or ""))

    def compiled(self, config: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        """Find what the model was compiled with; ``config``: the JSON of ``--config``."""
        found = self._model.get("training_config")
        return found if isinstance(found, Mapping) else super().compiled(config)

    def locate_weights(
        self, root: LayerSpec, generation: Generation, left_out: frozenset[str] = frozenset()
    ) -> WeightPaths:
        """Find the path of every weight: the layers whose names are in it decide.

        In models that were converted from a ``.keras`` file the paths are numbered as there.
        """
        names = list(self._weights)
        if not any(map(_NUMBERED.fullmatch, names)):
            return locate_by_names(root, names, layout_of(generation), left_out)
        paths = v3_paths(root, self.store, generation, left_out)
        used = {path.lstrip("/") for found in paths.values() for path in found.values()}
        aside = tuple(v3_groups(root, self.store, generation, left_out))
        extra = next((n for n in names if n not in used and not f"/{n}".startswith(aside)), None)
        if extra is not None:
            raise _homeless(extra, "no layer")
        return paths

    def weight_names(self) -> Mapping[str, str]:
        """Return name -> path."""
        return {name: name for name in self._weights}


# ---- from TF.js to Keras -----------------------------------------------------------------------


def _to_keras(model: Any) -> Any:
    """Return a configuration of TF.js in the words of Keras.

    Raises:
        UnsupportedOptionError: it has a mask and a Bidirectional, wherever they are: TF.js drops
            the mask there, Keras does not.
    """
    translated = _translate(model)
    layers = [one for one in objects_in(translated) if isinstance(one.get("config"), Mapping)]
    kinds = [layer.get("class_name") for layer in layers]
    embeds = (one for one, kind in zip(layers, kinds, strict=True) if kind == "Embedding")
    masks = "Masking" in kinds or any(one["config"].get("mask_zero") for one in embeds)
    if masks and "Bidirectional" in kinds:
        raise UnsupportedOptionError(
            "a mask in a TF.js model with a Bidirectional: TF.js ignores it there, Keras does not",
            "convert the Keras model that it was made from, or remove Masking and mask_zero",
            place="modelTopology",
        )
    return translated


def _translate(value: Any) -> Any:
    """Translate a configuration and all in it."""
    if isinstance(value, list):
        return list(map(_translate, value))
    if not isinstance(value, Mapping):
        return value
    found = {key: _translate(one) for key, one in value.items()}
    config = found.get("config")
    if "class_name" in found and isinstance(config, dict):
        for key in _NULL_OPTIONS:
            if config.get(key, 0) is None:
                del config[key]
        if found["class_name"] == "RNN" and "cell" in config:
            config.pop("cells", None)  # those of the cell, once more
    return found


def locate_by_names(
    root: LayerSpec,
    names: Sequence[str],
    layout: Layout,
    left_out: frozenset[str] = frozenset(),
) -> WeightPaths:
    """Give every weight to the one layer, however deep in models, whose name is in its own.

    left_out: the places of layers whose weights are passed over.

    Raises:
        WeightMismatchError: none, or several; or they are not those of the layer.
    """
    layers = dict(_layers(root, ()))
    owners: dict[str, set[Key]] = {}
    for owner, layer in layers.items():
        for inner in (layer, *_layers_inside(layer)):
            owners.setdefault(inner.name, set()).add(owner)
    listed: dict[Key, list[str]] = {}
    for name in names:
        own = _longest(name, owners)
        if len(own) != 1:
            raise _homeless(name, "several layers" if own else "no layer")
        listed.setdefault(own.pop(), []).append(name)
    found: dict[Key, dict[str, str]] = {}
    for owner, layer in layers.items():
        if layer.place in left_out:
            continue
        found |= layer_entries(layer, owner, listed.get(owner, ()), printable(layer.place), layout)
    return found


def _homeless(name: str, what: str) -> WeightMismatchError:
    return WeightMismatchError(
        f"a weight of {what} of the configuration",
        "the files belong to another model",
        place=printable(name),
    )


def _longest(name: str, owners: Mapping[str, set[Key]]) -> set[Key]:
    """Return the owners of all layers in a name, of those that have most parts ("enc/1")."""
    parts = name.split("/")[:-1][-_LOOKED_AT:]
    for count in range(len(parts), 0, -1):
        runs = ("/".join(parts[at : at + count]) for at in range(len(parts) - count + 1))
        found = {owner for run in runs for owner in owners.get(run, ())}
        if found:
            return found
    return set()


def _layers(model: LayerSpec, owner: Key) -> Iterator[tuple[Key, LayerSpec]]:
    """Yield the layers of a model and of the models in it, but no model itself."""
    for layer in model.graph.layers if model.graph else ():
        here = (*owner, layer.name)
        if layer.graph is None:
            yield here, layer
        else:
            yield from _layers(layer, here)


def _layers_inside(layer: LayerSpec) -> Iterator[LayerSpec]:
    """Yield the layers of a model that a layer wraps."""
    for part in layer.parts.values():
        if part.graph is not None:
            yield from (inner for _, inner in _layers(part, ()))
        yield from _layers_inside(part)
