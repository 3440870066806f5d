"""TensorFlow's checkpoints: ``save_weights(PREFIX)`` and ``tf.train.Checkpoint(...).save(PREFIX)``.

Given as PREFIX, as PREFIX.index, or as the folder whose file ``checkpoint`` names the latest one.
There is no architecture in them: ``--config`` gives it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from keras2torch_birnn.errors import (
    InvalidModelFileError,
    MissingArchitectureError,
    UnsupportedLayerError,
    UnsupportedOptionError,
    printable,
)
from keras2torch_birnn.readers.advice import HOW_TO_WRAP
from keras2torch_birnn.readers.config.generations import version_by_shape
from keras2torch_birnn.readers.containers.container import Architecture, OpenPath
from keras2torch_birnn.readers.containers.files import INDEX, read_text
from keras2torch_birnn.readers.containers.members import Folder, check_name
from keras2torch_birnn.readers.containers.tensorflow_container import (
    TensorFlowContainer,
    open_bundle,
    read_graph,
)
from keras2torch_birnn.readers.tensorflow.layer_weights import (
    LayerNaming,
    NumberedLayers,
    Place,
)
from keras2torch_birnn.readers.tensorflow.object_graph import ROOT, is_optimizer, walk
from keras2torch_birnn.readers.tensorflow.table import is_table

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
        folder = source.path if source.window is None else source.path.parent
        members = Folder(folder, opening)
        whole = source.window is None
        prefix = latest(members) if whole else source.path.name.removesuffix(INDEX)
        bundle = open_bundle(members, prefix)
        container = cls(bundle, read_graph(bundle))
        container.beside = container.bundle.shard_names
        if container.graph and _FIRST_LAYER in container.graph[ROOT].children:
            container.checkpoint = folder / prefix
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
        """Return what ``--config`` says of the training.

        Raises:
            UnsupportedOptionError: it says nothing.
        """
        found = super().compiled(config)
        if found is None:
            raise UnsupportedOptionError("holds no compiled training", _HOW_TO_SAY)
        return found

    def find_layers(self) -> tuple[LayerNaming, Place]:
        """Return how layers are told apart, and where the model is."""
        naming = NumberedLayers(self.graph, may_count_inputs=self._may_count_inputs)
        return naming, Place(self._find_model())

    def _find_model(self) -> int:
        """Find the model among the objects: the root, or the only one with layers below it.

        Raises:
            UnsupportedOptionError: it is one of Keras 3; UnsupportedLayerError: there is none, or
                there are weights outside of it, too.
        """
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
