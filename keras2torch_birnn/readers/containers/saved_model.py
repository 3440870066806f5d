"""The SavedModel folder of tf.keras 2.0 to 2.15 and of tf_keras.

``saved_model.pb`` and ``keras_metadata.pb`` describe the layers, ``variables/`` is a checkpoint.
TensorFlow's functions and operations in it, and the files in ``assets``, are never used.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from keras2torch_birnn.errors import damaged, in_place, invalid
from keras2torch_birnn.readers.containers.container import Architecture, OpenPath
from keras2torch_birnn.readers.containers.members import Folder
from keras2torch_birnn.readers.containers.tensorflow_container import (
    TensorFlowContainer,
    open_bundle,
    read_graph,
)
from keras2torch_birnn.readers.tensorflow.bundle import TensorBundle
from keras2torch_birnn.readers.tensorflow.keras_metadata import (
    KERAS_METADATA,
    SAVED_MODEL,
    SavedObjects,
    read_saved_objects,
)
from keras2torch_birnn.readers.tensorflow.layer_weights import LayerNaming, NamedLayers, Place
from keras2torch_birnn.readers.tensorflow.object_graph import ROOT, Graph

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
            bundle = open_bundle(members, VARIABLES)
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

    def find_layers(self) -> tuple[LayerNaming, Place]:
        """Return how layers are told apart, and where the model is."""
        if not self.graph:
            raise damaged("variables without the objects that have them", VARIABLES)
        return NamedLayers(self.graph, self._objects), Place(ROOT, ROOT)
