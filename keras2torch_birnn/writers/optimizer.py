"""Optimizer slots of a model's file: they belong to the weights before the training in torch."""

from __future__ import annotations

from typing import Any, Literal

from keras2torch_birnn.errors import UsageError, printable
from keras2torch_birnn.readers.containers.container import Container
from keras2torch_birnn.readers.containers.saved_model import SavedModel
from keras2torch_birnn.readers.containers.tensorflow_container import TensorFlowContainer
from keras2torch_birnn.readers.containers.tfjs import TensorFlowJS
from keras2torch_birnn.readers.tensorflow.object_graph import is_optimizer
from keras2torch_birnn.readers.weights.legacy import weights_group
from keras2torch_birnn.readers.weights.store import Store
from keras2torch_birnn.spec import Generation
from keras2torch_birnn.trainers.optimizer import KerasOptimizer

Choice = Literal["keep", "drop", "write"]
KEPT_NOTE = (
    "the optimizer's state was kept, and is that of the weights before: training on in Keras "
    "begins with it (optimizer=drop removes it)"
)
_H5_OF_KERAS_3 = (
    "load_model of Keras 3 builds the optimizer of an .h5 without variables and cannot train on "
    "with it: compile the model again there, or use a .keras file; k2t.training reads the state"
)
_SAVED_MODEL = (
    "load_model of Keras leaves the optimizer's state in a SavedModel out and begins anew; "
    "tf.train.Checkpoint(...).restore and k2t.training read it"
)
# The groups below the root of an HDF5 file: of a whole model, and of the layout of .keras files.
_GROUPS = ("/optimizer_weights", "/optimizer")
_LEVELS = 6


def parse_choice(value: Any) -> Choice:
    """Parse what to do with the optimizer's state; None keeps it.

    Raises:
        UsageError: no such choice, or an optimizer that is not Keras'.
    """
    if isinstance(value, KerasOptimizer):
        return "write"
    if value in (None, "keep"):
        return "keep"
    if value == "drop":
        return "drop"
    if not isinstance(value, str) or value == "write":
        raise UsageError(
            "only the state of an optimizer that k2t.training made can be written back",
            "give it as optimizer=, or keep or drop that of the file",
        )
    raise UsageError(f"optimizer {printable(value)!r}: keep or drop is expected")


def describe_loading(container: Container, generation: Generation) -> tuple[str, ...]:
    """Return a note where Keras does not go on with the optimizer's state of a file."""
    if isinstance(container, SavedModel):
        return (_SAVED_MODEL,)
    of_h5 = container.kind == "hdf5" and generation.name == "keras3"
    return (_H5_OF_KERAS_3,) if of_h5 else ()


def has_optimizer(container: Container) -> bool:
    """Tell whether a model's files hold the state of an optimizer."""
    if isinstance(container, TensorFlowContainer):
        return any(map(is_optimizer, container.graph))
    if isinstance(container, TensorFlowJS):
        return container.has_optimizer
    return bool(optimizer_groups(container.store))


def optimizer_groups(store: Store) -> list[str]:
    """Return the groups of an HDF5 store that hold the state of an optimizer."""
    if weights_group(store) == "/":  # groups are layers there
        return []
    return [group for group in _GROUPS if _holds_arrays(store, group)]


def _holds_arrays(store: Store, group: str, depth: int = 0) -> bool:
    if depth > _LEVELS or store.kind(group) != "group":
        return False
    members = store.members(group)
    return "dataset" in members.values() or any(
        _holds_arrays(store, f"{group}/{name}", depth + 1) for name in members
    )
