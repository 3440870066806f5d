"""TensorFlow's own containers: a SavedModel folder, and a checkpoint."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from keras2torch_birnn import limits
from keras2torch_birnn.errors import (
    InvalidModelFileError,
    MissingArchitectureError,
    UnsupportedLayerError,
    UnsupportedOptionError,
    damaged,
    in_place,
    invalid,
    printable,
)
from keras2torch_birnn.readers.config.classes import HOW_TO_WRAP
from keras2torch_birnn.readers.config.generations import version_by_shape
from keras2torch_birnn.readers.containers.container import Architecture, Container, OpenPath
from keras2torch_birnn.readers.input_files import INDEX, Folder, check_name, read_text
from keras2torch_birnn.readers.tensorflow.bundle import KEY_ENDING, TensorBundle, is_table
from keras2torch_birnn.readers.tensorflow.layer_weights import (
    Edges,
    edges_by_name,
    edges_by_number,
    locate_variables,
)
from keras2torch_birnn.readers.tensorflow.object_graph import (
    GRAPH_KEY,
    KERAS_METADATA,
    ROOT,
    SAVED_MODEL,
    Graph,
    SavedObjects,
    is_optimizer,
    model_variables,
    read_checkpoint_graph,
    read_saved_objects,
    walk,
)
from keras2torch_birnn.readers.weights.paths import WeightPaths
from keras2torch_birnn.spec import Generation, LayerPath, LayerSpec


def read_graph(bundle: TensorBundle) -> Graph:
    """Read the tracked objects of a checkpoint; none of one of TensorFlow 1."""
    if bundle.kind(GRAPH_KEY) is None:
        return ()
    return read_checkpoint_graph(memoryview(bundle.text(GRAPH_KEY, limits.MAX_OBJECT_GRAPH_BYTES)))


class TensorFlowContainer(Container):
    """A container whose weights are tracked objects of a checkpoint.

    ``checkpoint``: its prefix on disk, if Keras' ``load_weights`` reads it.
    """

    checkpoint: Path | None = None

    def __init__(self, bundle: TensorBundle, graph: Graph) -> None:
        super().__init__(bundle)
        self.bundle, self.graph = bundle, graph
        variables = (one.variable for one in graph if one.variable is not None)
        self._written = {one.key: one.full_name for one in variables}

    @abstractmethod
    def find_layers(self) -> tuple[Edges, int]:
        """Return how layers are told apart, and where the model is."""

    def locate_weights(
        self, root: LayerSpec, generation: Generation, left_out: frozenset[LayerPath] = frozenset()
    ) -> WeightPaths:
        """Find the path of every weight."""
        edges, number = self.find_layers()
        located = locate_variables(root, self.graph, edges, number, left_out)
        return {
            layer: {name: one.key for name, one in found.items()}
            for layer, found in located.items()
        }

    def written_names(self, paths: WeightPaths) -> WeightPaths:
        """Return the names that Keras gave the weights."""
        return {
            layer: {name: self._written.get(path, "") for name, path in found.items()}
            for layer, found in paths.items()
        }

    def weight_names(self) -> Mapping[str, str]:
        """Return Keras' name -> path, of all variables but an optimizer's."""
        if not self.graph:
            return {key: key for key in self.bundle.keys()}
        found = sorted(model_variables(self.graph), key=lambda one: one.key)
        times = Counter(one.full_name for one in found)
        return {
            one.full_name
            if one.full_name and times[one.full_name] == 1
            else one.key.removesuffix(KEY_ENDING): one.key
            for one in found
        }


# ---- SavedModel ----------------------------------------------------------------------------------


# The SavedModel folder of tf.keras 2.0 to 2.15 and of tf_keras.
#
# ``saved_model.pb`` and ``keras_metadata.pb`` describe the layers, ``variables/`` is a checkpoint.
# TensorFlow's functions and operations in it, and the files in ``assets``, are never used.


VARIABLES = "variables/variables"


class SavedModel(TensorFlowContainer):
    """A SavedModel with Keras' layers."""

    kind = "savedmodel"

    def __init__(self, bundle: TensorBundle, graph: Graph, objects: SavedObjects) -> None:
        super().__init__(bundle, graph)
        self._objects = objects

    @staticmethod
    def recognises(source: OpenPath) -> bool:
        """Tell whether the source is a folder with ``saved_model.pb``."""
        return source.window is None and (source.path / SAVED_MODEL).exists()

    @classmethod
    def open(cls, source: OpenPath, opening: ExitStack) -> SavedModel:
        """Read the objects and open the weights."""
        members = Folder(source.path, opening)
        metadata = members.open(KERAS_METADATA) if members.holds(KERAS_METADATA) else None
        saved_model = members.open(SAVED_MODEL)
        with in_place(SAVED_MODEL):
            objects = read_saved_objects(saved_model, metadata)
        with in_place(VARIABLES):
            bundle = TensorBundle(members, VARIABLES)
            container = cls(bundle, read_graph(bundle), objects)
        container.checkpoint = source.path / VARIABLES
        return container

    def architecture(self, config: Mapping[str, Any] | None) -> Architecture:
        """Find the architecture and its Keras version; ``config``: the JSON of ``--config``."""
        found = self._objects.model()
        version = found.get("keras_version")
        if not isinstance(version, str):
            raise invalid("without keras_version", "metadata of Keras")
        return Architecture(config or found, version, str(found.get("backend") or ""))

    def compiled(self, config: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        """Find what the model was compiled with; ``config``: the JSON of ``--config``."""
        found = self._objects.model().get("training_config")
        return found if isinstance(found, Mapping) else super().compiled(config)

    def find_layers(self) -> tuple[Edges, int]:
        """Return how layers are told apart, and where the model is."""
        if not self.graph:
            raise damaged("variables without the objects that have them", VARIABLES)
        return edges_by_name(self.graph, self._objects), ROOT


# ---- checkpoints ---------------------------------------------------------------------------------


# TensorFlow's checkpoints: ``save_weights(PREFIX)`` and ``tf.train.Checkpoint(...).save(PREFIX)``.
#
# Given as PREFIX, as PREFIX.index, or as the folder whose file ``checkpoint`` names the latest one.
# There is no architecture in them: ``--config`` gives it.


# The file in which TensorFlow notes its checkpoints, and what it says of the latest one.
STATE = "checkpoint"
_LATEST = re.compile(r'^model_checkpoint_path: "([^"\n]*)"$', re.MULTILINE)
_FIRST_LAYER = "layer-0"
# Where a model of Keras 3 has its layers.
_OF_KERAS3 = frozenset({"_operations", "_functional"})
# The Keras of TensorFlow 2.0 to 2.2. That of 2.1 numbers the InputLayer of a Sequential, too.
_MAY_COUNT_INPUTS = re.compile(r"2\.[23]\.\d+-tf")
_NAMES_SHOWN = 10
_HOW_TO_SAY = (
    "a TensorFlow checkpoint has no more than the optimizer's numbers: add training_config, with "
    "optimizer_config (class_name, config) and loss, to the JSON of --config"
)


class TensorFlowCheckpoint(TensorFlowContainer):
    """A checkpoint; ``--config`` gives the architecture."""

    kind = "tf_checkpoint"
    _may_count_inputs = False

    @staticmethod
    def recognises(source: OpenPath) -> bool:
        """Tell whether the source is an index, or a folder with a note of its latest checkpoint."""
        if source.window is None:
            return (source.path / STATE).exists()
        return source.path.name.endswith(INDEX) and is_table(source.window)

    @classmethod
    def open(cls, source: OpenPath, opening: ExitStack) -> TensorFlowCheckpoint:
        """Open the index and its shards, which are beside it."""
        whole = source.window is None
        members = Folder(source.path if whole else source.path.parent, opening)
        prefix = latest(members) if whole else source.path.name.removesuffix(INDEX)
        bundle = TensorBundle(members, prefix)
        container = cls(bundle, read_graph(bundle))
        if container.graph and _FIRST_LAYER in container.graph[ROOT].children:
            container.checkpoint = members.path / prefix
        return container

    def architecture(self, config: Mapping[str, Any] | None) -> Architecture:
        """Return what ``--config`` gives."""
        if not self.graph:
            raise InvalidModelFileError(
                "a checkpoint of TensorFlow 1: names of variables, but no layers",
                "save the Keras model as .h5 there, or take its arrays with k2t.weights",
            )
        self._find_model()
        if config is None:
            raise MissingArchitectureError(
                "a TensorFlow checkpoint: it holds weights but no architecture",
                "give the text of model.to_json() with --config ARCH.json",
            )
        version = str(config.get("keras_version") or "") or version_by_shape(config)
        if not version:
            raise InvalidModelFileError(
                "the architecture does not say which keras_version wrote it",
                "give the text of model.to_json() with --config ARCH.json",
            )
        self._may_count_inputs = _MAY_COUNT_INPUTS.fullmatch(version) is not None
        return Architecture(config, version, str(config.get("backend") or ""))

    def compiled(self, config: Mapping[str, Any] | None) -> Mapping[str, Any]:
        """Return what ``--config`` says of the training."""
        found = super().compiled(config)
        if found is None:
            raise UnsupportedOptionError("holds no compiled training", _HOW_TO_SAY)
        return found

    def find_layers(self) -> tuple[Edges, int]:
        """Return how layers are told apart, and where the model is."""
        edges = edges_by_number(self.graph, may_count_inputs=self._may_count_inputs)
        return edges, self._find_model()

    def _find_model(self) -> int:
        """Find the model among the objects: the root, or the only one with layers below it."""
        children = self.graph[ROOT].children
        if any(_OF_KERAS3 & self.graph[n].children.keys() for n in (ROOT, *children.values())):
            raise UnsupportedOptionError(
                "a TensorFlow checkpoint of Keras 3",
                "write the weights with model.save_weights(NAME.weights.h5), or take the arrays "
                "with k2t.weights",
            )
        if self._has_layers(ROOT):
            return ROOT
        models = {n for n in children.values() if self._has_layers(n)}
        others = [name for name, n in children.items() if n not in models and self._learns(n)]
        if len(models) == 1 and not others:
            return models.pop()
        if models and not others:
            raise UnsupportedLayerError(
                f"a checkpoint of {len(models)} models",
                "save the weights of one of them, or take all arrays with k2t.weights",
            )
        names = list(self.weight_names())
        shown = ", ".join(printable(name) for name in names[:_NAMES_SHOWN])
        more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
        raise UnsupportedLayerError(
            f"weights of a model that its own Python code defines ({shown or 'none'}{more})",
            HOW_TO_WRAP,
        )

    def _has_layers(self, number: int) -> bool:
        """Tell whether an object is a model of which Keras tracked the layers by their numbers."""
        return _FIRST_LAYER in self.graph[number].children

    def _learns(self, start: int) -> bool:
        """Tell whether an object holds weights, not a counter or an optimizer."""
        if self.graph[start].variable is not None or is_optimizer(self.graph[start]):
            return False
        below = walk(self.graph, start, frozenset({"keras_api", "optimizer"}))
        return any(self.graph[number].variable is not None for number in below)


def latest(members: Folder) -> str:
    """Return the prefix of the checkpoint that the file ``checkpoint`` of a folder names.

    Raises:
        InvalidModelFileError: it names none, or one outside of the folder.
    """
    text = read_text(members.open(STATE), STATE)
    found = _LATEST.search(text)
    if found is None:
        raise InvalidModelFileError(
            "names no model_checkpoint_path", "give the prefix of the checkpoint", place=STATE
        )
    prefix = found[1]
    check_name(prefix)
    if not members.holds(f"{prefix}{INDEX}"):
        raise InvalidModelFileError(
            f"there is no {printable(prefix)}{INDEX}",
            "give the prefix of another checkpoint",
            place=STATE,
        )
    return prefix
