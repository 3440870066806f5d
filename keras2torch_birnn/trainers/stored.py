"""The state of an optimizer in a file: which array is which slot of which weight.

HDF5 files list all variables of an optimizer in its own order (``optimizer_weights``), ``.keras``
files number them; a checkpoint of TensorFlow has them as tracked objects. Their order: scalars that
count, then the slots as ``KerasOptimizer.slot_names`` has them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from keras2torch_birnn.errors import InvalidModelFileError, WeightMismatchError, printable
from keras2torch_birnn.limits import MAX_NAMES
from keras2torch_birnn.readers.containers.container import Container
from keras2torch_birnn.readers.containers.tensorflow_container import (
    KEY_ENDING,
    TensorFlowContainer,
)
from keras2torch_birnn.readers.containers.tf_checkpoint import TensorFlowCheckpoint
from keras2torch_birnn.readers.hdf5.arrays import StoredArray
from keras2torch_birnn.readers.tensorflow.object_graph import (
    ROOT,
    Graph,
    TrackedObject,
    is_optimizer,
)
from keras2torch_birnn.spec import Generation
from keras2torch_birnn.trainers.compiled import CompiledTraining, OptimizerConfig, parse_compiled
from keras2torch_birnn.trainers.optimizer import KerasOptimizer

_LEGACY_GROUP, _GROUP = "/optimizer_weights", "/optimizer/vars"
_INNER = "/optimizer/inner_optimizer"  # inside of a LossScaleOptimizer, which lists it again
_OF_SCALING = 4  # iterations, learning rate, step counter and scale, listed before those inside
HOW_TO_BEGIN = 'give state="new" to begin with a new state, or compile and save it again'
# Numbers of the newer optimizers of tf.keras: iterations, learning rate.
_NUMBERS = ("_iterations", "_learning_rate")
# Numbers of OptimizerV2 that are no options.
_COUNTS = ("iter", "momentum_cache")
# Names of slots in checkpoints of OptimizerV2, by class and name of ours, where they differ.
_SLOT_NAMES: Mapping[tuple[str, str], str] = {
    ("", "v_hat"): "vhat",
    ("rmsprop", "squares"): "rms",
    ("rmsprop", "mean"): "mg",
    ("adadelta", "squares"): "accum_grad",
    ("adadelta", "steps"): "accum_var",
}


@dataclass(frozen=True)
class StoredState:
    """The arrays of an optimizer's state.

    ``iterations``, ``rate``: None where the file has none. ``shared``: numbers of the rule.
    ``slots``: name of a slot -> path of a weight -> array.
    """

    iterations: StoredArray | None
    rate: StoredArray | None
    shared: Mapping[str, StoredArray]
    slots: Mapping[str, Mapping[str, StoredArray]]

    def arrays(self) -> Iterator[StoredArray]:
        """Yield all arrays."""
        yield from (one for one in (self.iterations, self.rate) if one is not None)
        yield from self.shared.values()
        for found in self.slots.values():
            yield from found.values()


def read_compiled(
    container: Container, config_json: Mapping[str, Any] | None, generation: Generation
) -> CompiledTraining:
    """Read what was compiled; ``config_json``: that of ``--config``.

    A checkpoint of OptimizerV2 holds its options that are numbers, too. They are taken instead of
    those that are given, as TensorFlow does when it restores the checkpoint.

    Raises:
        UnsupportedOptionError, InvalidModelFileError: as ``parse_compiled``.
    """
    backend = container.architecture(config_json).backend
    compiled = parse_compiled(container.compiled(config_json), generation, backend)
    if is_scaled(container):
        compiled = replace(compiled, optimizer=replace(compiled.optimizer, scaled=True))
    optimizer = compiled.optimizer
    if not isinstance(container, TensorFlowCheckpoint) or optimizer.family != "legacy":
        return compiled
    found = _find_optimizer(container.graph)
    keys = {
        name: key
        for name, number in (found.children.items() if found else ())
        if name not in _unrestored(optimizer) and (key := _key(container.graph, number))
    }
    arrays = dict(zip(keys, container.store.arrays(list(keys.values())), strict=True))
    numbers = {name: float(one.read()) for name, one in arrays.items() if not one.shape}
    config = {**optimizer.config, **numbers}
    return replace(compiled, optimizer=replace(optimizer, config=config))


def _unrestored(optimizer: OptimizerConfig) -> tuple[str, ...]:
    """Return numbers of a checkpoint that are not taken as options.

    Nadam has the decay of its momenta in a variable, too, and computes with the exact number.
    """
    return (*_COUNTS, "decay") if optimizer.class_name.lower() == "nadam" else _COUNTS


def find_state(
    container: Container,
    weights: Sequence[StoredArray],
    optimizer: KerasOptimizer,
) -> StoredState | None:
    """Find the state of an optimizer; None if the file has none, as it was never used.

    weights: the arrays of the trained weights, in Keras' order.

    Raises:
        WeightMismatchError: the state is that of other weights; InvalidModelFileError: damaged.
    """
    return next(iter(find_copies(container, weights, optimizer)), None)


def find_copies(
    container: Container,
    weights: Sequence[StoredArray],
    optimizer: KerasOptimizer,
) -> tuple[StoredState, ...]:
    """Find all places of an optimizer's state, which a LossScaleOptimizer lists a second time.

    Raises:
        WeightMismatchError, InvalidModelFileError: as ``find_state``.
    """
    if isinstance(container, TensorFlowContainer):
        found = [_find_in_graph(container, weights, optimizer)]
    else:
        paths = _listed_paths(container, scaled=optimizer.settings.scaled)
        lists = [paths]
        if is_scaled(container):
            lists += [_numbered_paths(container, _GROUP)[_OF_SCALING:]]
        found = [_assign(container.store.arrays(one), weights, optimizer) for one in lists]
    return tuple(one for one in found if one is not None)


def _listed_paths(container: Container, *, scaled: bool) -> list[str]:
    store = container.store
    if store.kind(_LEGACY_GROUP) == "group":
        found = store.attributes(_LEGACY_GROUP, ["weight_names"]).get("weight_names")
        names = found if isinstance(found, list | tuple) else []
        return [f"{_LEGACY_GROUP}/{name}" for name in names][_OF_SCALING if scaled else 0 :]
    return _numbered_paths(container, f"{_INNER}/vars" if is_scaled(container) else _GROUP)


def _numbered_paths(container: Container, group: str) -> list[str]:
    store = container.store
    if store.kind("/optimizer") == "group" and store.kind(group) == "group":
        count = len(store.members(group))
        return [f"{group}/{number}" for number in range(min(count, MAX_NAMES))]
    return []


def is_scaled(container: Container) -> bool:
    """Tell whether the optimizer of an HDF5 file was inside of a LossScaleOptimizer.

    Keras puts it there by itself for a policy of mixed_float16, and writes it without.
    """
    if isinstance(container, TensorFlowContainer):
        return False
    return all(container.store.kind(name) == "group" for name in ("/optimizer", _INNER))


def _assign(
    arrays: Sequence[StoredArray],
    weights: Sequence[StoredArray],
    optimizer: KerasOptimizer,
) -> StoredState | None:
    """Give every array of an ordered list its meaning; None if there are no slots yet."""
    scalars = [array for array in arrays if not array.shape]
    rest = [array for array in arrays if array.shape]
    wanted = [
        (name, weight, shape)
        for names in optimizer.slot_names()
        for number, weight in enumerate(weights)
        for name in names
        if (shape := optimizer.slot_shape(name, number, weight.shape)) is not None
    ]
    if not arrays or (wanted and not rest):
        return None
    unused = len(rest) - len(wanted)
    if optimizer.settings.family == "keras2" and unused == len(weights):
        rest = rest[: len(wanted)]  # Keras 2 has a third slot of Adam even if it has no use
    if len(rest) != len(wanted):
        raise WeightMismatchError(
            f"the optimizer's state has {len(rest)} arrays, {len(weights)} trained weights need "
            f"{len(wanted)}",
            HOW_TO_BEGIN,
            place="optimizer",
        )
    slots: dict[str, dict[str, StoredArray]] = {}
    for array, (name, weight, shape) in zip(rest, wanted, strict=True):
        _check_slot(array, shape)
        slots.setdefault(name, {})[weight.path] = array
    return _with_scalars(scalars, slots, optimizer)


def _check_slot(array: StoredArray, shape: tuple[int, ...]) -> None:
    if array.shape != shape or array.dtype.kind != "f":
        raise WeightMismatchError(
            f"a slot {array.shape} of {array.dtype.name} where one of {shape} is expected",
            HOW_TO_BEGIN,
            place=printable(array.path),
        )


def _with_scalars(
    scalars: Sequence[StoredArray],
    slots: Mapping[str, Mapping[str, StoredArray]],
    optimizer: KerasOptimizer,
) -> StoredState:
    """Tell the scalars apart: the iterations, the learning rate, a number of the rule."""
    ahead = list(scalars)
    product = next(iter(optimizer.rule.shared()), "")
    iterations = ahead.pop(0) if ahead else None
    newer = optimizer.settings.family in ("keras3", "tf.keras")
    rate = ahead.pop(0) if newer and ahead and not optimizer.settings.schedule else None
    # tf.keras does not list its product, but may list the present rate of a schedule.
    listed = product and ahead and optimizer.settings.family != "tf.keras"
    shared = {product: ahead.pop(0)} if listed else {}
    unused = sum(map(optimizer.rule.unused_numbers, optimizer.variables))
    if len(ahead) != unused and optimizer.settings.family != "tf.keras":
        raise WeightMismatchError(
            f"{len(ahead)} numbers of the optimizer's state have no meaning here",
            HOW_TO_BEGIN,
            place=printable(ahead[0].path),
        )
    return StoredState(iterations, rate, shared, slots)


# ---- tracked objects ---------------------------------------------------------------------------


def _find_in_graph(
    container: TensorFlowContainer,
    weights: Sequence[StoredArray],
    optimizer: KerasOptimizer,
) -> StoredState | None:
    """Find an optimizer's state among the tracked objects of a TensorFlow checkpoint.

    Newer optimizers list all of their variables; those of OptimizerV2 have a slot for each weight
    and name. None if the file holds no optimizer, or none of its slots.

    Raises:
        WeightMismatchError: slots are missing or have another shape.
    """
    graph = container.graph
    found = _find_optimizer(graph)
    if found is None:
        return None
    if "_variables" in found.children:
        listed = graph[found.children["_variables"]].children
        keys = [_key(graph, listed[str(n)]) for n in range(len(listed)) if str(n) in listed]
        arrays = list(container.store.arrays([key for key in keys if key]))
        if all(array.shape for array in arrays):  # tf.keras 2.10 does not list its numbers
            numbers = [found.children.get(name, ROOT) for name in _NUMBERS]
            keys = [key for number in numbers if (key := _key(graph, number))]
            arrays = [*container.store.arrays(keys), *arrays]
        assigned = _assign(arrays, weights, optimizer)
        product = _key(graph, found.children.get("_u_product", ROOT))  # Nadam does not list it
        if assigned is None or not product:
            return assigned
        return replace(assigned, shared={"product": container.store.arrays([product])[0]})
    keys_of = {
        (key.removesuffix(KEY_ENDING), name): slot
        for of, name, number in _checked_slots(graph, found)
        if (key := _key(graph, of)) and (slot := _key(graph, number))
    }
    if not keys_of and any(optimizer.slot_names()):
        return None
    slots: dict[str, dict[str, StoredArray]] = {}
    for name in (name for names in optimizer.slot_names() for name in names):
        stored = _slot_name(optimizer, name)
        for weight in weights:
            key = keys_of.get((weight.path, stored), "")
            if not key:
                raise WeightMismatchError(
                    f"no slot {stored} of this weight", HOW_TO_BEGIN, place=printable(weight.path)
                )
            (array,) = container.store.arrays([key])
            _check_slot(array, weight.shape)
            slots.setdefault(name, {})[weight.path] = array
    names = _COUNTS if optimizer.rule.shared() else _COUNTS[:1]
    scalars = [_key(graph, found.children[name]) for name in names if name in found.children]
    assigned = _with_scalars(container.store.arrays(scalars), slots, optimizer)
    rate = _key(graph, found.children.get("learning_rate", ROOT))  # not that of a schedule
    return replace(assigned, rate=container.store.arrays([rate])[0]) if rate else assigned


def _slot_name(optimizer: KerasOptimizer, name: str) -> str:
    by_class = _SLOT_NAMES.get((optimizer.settings.class_name, name))
    return by_class or _SLOT_NAMES.get(("", name), name)


def _find_optimizer(graph: Graph) -> TrackedObject | None:
    """Find the only optimizer, or that of the model.

    Raises:
        InvalidModelFileError: there are several.
    """
    found = [number for number, one in enumerate(graph) if is_optimizer(one)]
    own = graph[ROOT].children.get("optimizer", -1) if graph else -1
    if own in found:
        return graph[own]
    if len(found) > 1:
        raise InvalidModelFileError(
            f"{len(found)} optimizers", "save the model with the one that trains it"
        )
    return graph[found[0]] if found else None


def _checked_slots(graph: Graph, optimizer: TrackedObject) -> Iterator[tuple[int, str, int]]:
    for of, name, number in optimizer.slots:
        if not (0 <= of < len(graph) and 0 <= number < len(graph)):
            raise InvalidModelFileError("a slot that is not in the graph", "the file is damaged")
        yield of, name, number


def _key(graph: Graph, number: int) -> str:
    variable = graph[number].variable
    return variable.key if variable is not None else ""
