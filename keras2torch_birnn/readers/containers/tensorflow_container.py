"""Containers of TensorFlow: their weights are variables of tracked objects in a checkpoint."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from keras2torch_birnn import limits
from keras2torch_birnn.readers.containers.container import Container
from keras2torch_birnn.readers.containers.members import Folder
from keras2torch_birnn.readers.hdf5.arrays import StoredArray
from keras2torch_birnn.readers.tensorflow.bundle import TensorBundle
from keras2torch_birnn.readers.tensorflow.layer_weights import (
    LayerNaming,
    Place,
    locate_variables,
)
from keras2torch_birnn.readers.tensorflow.object_graph import (
    GRAPH_KEY,
    Graph,
    model_variables,
    read_checkpoint_graph,
)
from keras2torch_birnn.readers.weights.paths import WeightPaths
from keras2torch_birnn.readers.weights.store import Kind, Store
from keras2torch_birnn.spec import Generation, LayerSpec

KEY_ENDING = "/.ATTRIBUTES/VARIABLE_VALUE"


def open_bundle(members: Folder, prefix: str) -> TensorBundle:
    """Open a checkpoint of these members: its index, then the shards that the index counts.

    Raises:
        InvalidModelFileError: damaged, hostile, or a file is missing.
    """
    index = members.open(f"{prefix}.index")
    return TensorBundle(index, prefix, members.open)


def read_graph(bundle: TensorBundle) -> Graph:
    """Read the tracked objects of a checkpoint; none of one of TensorFlow 1.

    Raises:
        InvalidModelFileError: damaged.
    """
    if GRAPH_KEY not in bundle:
        return ()
    return read_checkpoint_graph(memoryview(bundle.text(GRAPH_KEY, limits.MAX_OBJECT_GRAPH_BYTES)))


@dataclass(frozen=True)
class BundleStore(Store):
    """The tensors of a checkpoint as a ``Store`` without groups. A path is a key of the table."""

    bundle: TensorBundle

    def kind(self, path: str) -> Kind | None:
        """Return the kind of object at ``path``; None if there is none."""
        return "dataset" if path in self.bundle else None

    def members(self, group: str) -> dict[str, Kind]:
        """Return nothing: there are no groups."""
        return {}

    def arrays(self, paths: Sequence[str]) -> list[StoredArray]:
        """Return the arrays at ``paths``, checked but not read."""
        return self.bundle.arrays(paths, [path.removesuffix(KEY_ENDING) for path in paths])


class TensorFlowContainer(Container):
    """A container whose weights are tracked objects of a checkpoint."""

    def __init__(self, bundle: TensorBundle, graph: Graph) -> None:
        super().__init__(BundleStore(bundle))
        self.bundle = bundle
        self.graph = graph
        variables = (one.variable for one in graph if one.variable is not None)
        self._written = {one.key: one.full_name for one in variables}

    @abstractmethod
    def find_layers(self) -> tuple[LayerNaming, Place]:
        """Return how layers are told apart, and where the model is.

        Raises:
            WeightMismatchError, UnsupportedLayerError: the model is not there.
        """

    def locate_weights(
        self, root: LayerSpec, generation: Generation, left_out: frozenset[str] = frozenset()
    ) -> WeightPaths:
        """Find the path of every weight."""
        naming, place = self.find_layers()
        located = locate_variables(root, self.graph, naming, place, left_out)
        return {
            owner: {name: one.key for name, one in found.items()}
            for owner, found in located.items()
        }

    def written_names(self, paths: WeightPaths) -> WeightPaths:
        """Return the names that Keras gave the weights."""
        return {
            owner: {name: self._written.get(path, "") for name, path in found.items()}
            for owner, found in paths.items()
        }

    def weight_names(self) -> Mapping[str, str]:
        """Return Keras' name -> path, of all variables but an optimizer's."""
        if not self.graph:
            return {key: key for key in self.bundle.keys if self.bundle.holds_numbers(key)}
        found = sorted(model_variables(self.graph), key=lambda one: one.key)
        times = Counter(one.full_name for one in found)
        return {
            one.full_name
            if one.full_name and times[one.full_name] == 1
            else one.key.removesuffix(KEY_ENDING): one.key
            for one in found
        }
