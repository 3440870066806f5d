"""The parsed model: frozen data between the readers and everything else. NumPy only.

All names are Keras' (``units``, ``kernel``). Every value is explicit: defaults, renamed keys and
rules of the Keras that wrote the file are applied by ``readers``.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Array: TypeAlias = "npt.NDArray[Any]"
Shape: TypeAlias = tuple[int | None, ...]
# The shape of a tensor, or a tuple / dict of such where a layer has several; None: unknown.
Shapes: TypeAlias = "Shape | tuple[Shapes, ...] | Mapping[str, Shapes] | None"
# A tensor, or a tuple / dict of such: the structure in which Keras passes tensors around.
Structure: TypeAlias = Any


@dataclass(frozen=True)
class TensorRef:
    """Output number ``output`` of call number ``call`` of layer ``layer`` of the same graph.

    ``masked``: False where Keras has dropped the tensor's mask before this use of it. As a property
    of the use, not of the tensor, it does not count in comparisons.
    """

    layer: str
    call: int = 0
    output: int = 0
    masked: bool = field(default=True, compare=False)


@dataclass(frozen=True)
class Constant:
    """Constant argument of a call, in the place of a tensor: flat in row-major order, and a shape.

    ``kind``: "float", "int32", "int64" or "bool"; None where the file does not declare it.
    """

    values: tuple[float, ...]
    shape: tuple[int, ...]
    kind: str | None = None

    def array(self) -> Array:
        """Return the numbers in NumPy's default dtype for them."""
        import numpy as np  # many commands need none

        return np.array(self.values).reshape(self.shape)


# The inputs or outputs of a graph, in the structure in which Keras has them.
Tensors: TypeAlias = "TensorRef | tuple[Tensors, ...] | Mapping[str, Tensors]"


@dataclass(frozen=True)
class Call:
    """One use of a layer. ``args`` and ``kwargs`` are structures of TensorRef and plain values."""

    layer: str
    index: int
    args: tuple[Structure, ...]
    kwargs: Mapping[str, Structure] = field(default_factory=dict)


@dataclass(frozen=True)
class Graph:
    """Layers and their calls in order: straight-line code, inputs first."""

    layers: tuple[LayerSpec, ...]
    calls: tuple[Call, ...]
    inputs: Tensors
    outputs: Tensors

    def layer(self, name: str) -> LayerSpec:
        """Return the layer called ``name``."""
        return self._by_name[name]

    @property
    def _by_name(self) -> dict[str, LayerSpec]:
        cached: dict[str, LayerSpec] | None = self.__dict__.get("_names")
        if cached is None:
            cached = {layer.name: layer for layer in self.layers}
            object.__setattr__(self, "_names", cached)
        return cached


@dataclass(frozen=True)
class LayerSpec:
    """A layer: its class, all of its options, its weights by Keras' names, its inner layers.

    Attributes:
        class_name: The class of Keras.
        name: The name of the layer.
        config: Keras' options under Keras' names, as the file states them.
        weights: The arrays by Keras' names.
        parts: What a wrapper wraps: ``layer``, or ``forward_layer`` and ``backward_layer``.
        graph: What a model holds (class ``Sequential`` or ``Functional``).
        place: Where in the file the layer is, for messages.
        input_shape: A structure of shapes with None for a size that is free, or None where nothing
            is known.
        output_shape: As ``input_shape``.
        semantics: What the reader inferred or settled by the Keras version (``masked_output``,
            ``passes_mask``, ...); it is empty for a plugin's class.
        training: Regularizers and constraints by Keras' names of the options.
    """

    class_name: str
    name: str
    config: Mapping[str, Any]
    weights: Mapping[str, Array] = field(default_factory=dict)
    parts: Mapping[str, LayerSpec] = field(default_factory=dict)
    graph: Graph | None = None
    place: str = ""
    input_shape: Shapes = None
    output_shape: Shapes = None
    semantics: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """``config`` and ``semantics`` in one mapping, as the spec's JSON text holds them."""
        return {**self.config, **self.semantics}

    def walk(self) -> Iterator[LayerSpec]:
        """Yield this layer, then every layer inside it, in the file's order."""
        yield self
        for part in self.parts.values():
            yield from part.walk()
        for layer in self.graph.layers if self.graph else ():
            yield from layer.walk()

    def map_inner(self, change: Callable[[str, LayerSpec], LayerSpec]) -> LayerSpec:
        """Return this layer with the layers right inside it changed.

        ``change`` takes the key of a part, or a layer's name in the graph, and the layer.
        """
        graph = self.graph
        if graph is not None:
            graph = replace(graph, layers=tuple(change(one.name, one) for one in graph.layers))
        parts = {key: change(key, part) for key, part in self.parts.items()}
        return replace(self, parts=parts, graph=graph) if parts or graph else self


# Outputs at masked steps, see ``rnn.masks.spread``. "fails": that Keras raises.
MaskedOutput = Literal[
    "zeros",
    "zeros_unreversed",
    "previous_output",
    "previous_state",
    "previous_first_state",
    "fails",
]


@dataclass(frozen=True)
class Generation:
    """The Keras that wrote a file: its family, and its version as the file has it.

    What differs between them is in ``readers.config.generations``.
    """

    name: Literal["keras1", "keras2", "tf.keras", "keras3"]
    version: str

    @property
    def numbers(self) -> tuple[int, ...]:
        """The first three numbers of the version; "2.2.4-tf" is that of TensorFlow 1.13 to 2.1."""
        return tuple(map(int, re.findall("[0-9]+", self.version)[:3]))


@dataclass(frozen=True)
class Cut:
    """The layers at which a model was cut: its first ones and its last ones, by path.

    Empty: the model's own inputs, or outputs.
    """

    first: tuple[str, ...] = ()
    last: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.first or self.last)

    @property
    def options(self) -> str:
        """The options of the command line that cut so."""
        named = [*(("--from", one) for one in self.first), *(("--to", one) for one in self.last)]
        return " ".join(f"{option} {shlex.quote(name)}" for option, name in named)


NO_CUT = Cut()
LayerNames: TypeAlias = str | Iterable[str]
"""Name or path of a layer, or several."""


def cut_at(first: LayerNames, last: LayerNames) -> Cut:
    """Make a cut of what a user gives: one name or several."""
    both = ((names,) if isinstance(names, str) else tuple(names) for names in (first, last))
    return Cut(*both)


@dataclass(frozen=True)
class ModelSpec:
    """A whole model: its root layer, the Keras that wrote it, and notes for the user.

    Attributes:
        root: The outermost layer; of a cut model what is left.
        generation: The Keras that wrote the file.
        notes: What a reader should know without being an error.
        cut: Where the file's model was cut.
    """

    root: LayerSpec
    generation: Generation
    notes: tuple[str, ...] = ()
    cut: Cut = NO_CUT

    @property
    def graph(self) -> Graph:
        """Graph of the root layer."""
        if self.root.graph is None:
            raise TypeError("the root of a model is a model")
        return self.root.graph

    def input_layers(self) -> tuple[LayerSpec, ...]:
        """Return the InputLayers, in the order of the model's inputs."""
        return tuple(self.graph.layer(ref.layer) for ref in leaves(self.graph.inputs))

    def to_json(self) -> str:
        """Write the model without its arrays (their shapes stay) as JSON text."""
        cut = {"cut": {"from": self.cut.first, "to": self.cut.last}} if self.cut else {}
        return json.dumps(
            {
                "generation": self.generation.__dict__,
                "notes": self.notes,
                **cut,
                "root": _layer_to_json(self.root),
            }
        )


def split_settings(
    settings: Mapping[str, Any], semantics: Container[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split settings into Keras' options and what is named in ``semantics``."""
    if not isinstance(settings, Mapping):
        raise TypeError("the settings of a layer are no mapping")
    return (
        {key: value for key, value in settings.items() if key not in semantics},
        {key: value for key, value in settings.items() if key in semantics},
    )


def leaves(structure: Structure) -> Iterator[Any]:
    """Yield the leaves of a structure (not tuple, list or dict), left to right."""
    if isinstance(structure, tuple | list):
        for value in structure:
            yield from leaves(value)
    elif isinstance(structure, Mapping):
        for value in structure.values():
            yield from leaves(value)
    else:
        yield structure


def tensors(structure: Structure) -> Iterator[TensorRef]:
    """Yield the tensors of a structure, left to right."""
    return (leaf for leaf in leaves(structure) if isinstance(leaf, TensorRef))


def shape_fits(shape: tuple[int | None, ...], wanted: tuple[int | None, ...]) -> bool:
    """Tell whether a shape matches ``wanted``, in which None matches any size."""
    return len(shape) == len(wanted) and all(
        w is None or f == w for f, w in zip(shape, wanted, strict=True)
    )


def format_shape(shape: Sequence[int | None]) -> str:
    """Write a shape for messages: ``(any, 3)``."""
    return f"({', '.join('any' if size is None else str(size) for size in shape)})"


_SEQUENCES = (tuple, list)


def map_structure(function: Any, structure: Structure) -> Structure:
    """Apply ``function`` to every leaf and keep the structure (lists become tuples)."""
    if isinstance(structure, Mapping):
        return {key: map_structure(function, value) for key, value in structure.items()}
    # Not as a union of types, which the compiler of older torch cannot read.
    if isinstance(structure, _SEQUENCES):
        return tuple(map_structure(function, value) for value in structure)
    return function(structure)


def _layer_to_json(layer: LayerSpec) -> dict[str, Any]:
    """Return the object of a layer in the JSON of a spec; what it has not is left out."""
    out: dict[str, Any] = {
        "class_name": layer.class_name,
        "name": layer.name,
        "config": layer.settings,
        "place": layer.place,
        "input_shape": layer.input_shape,
        "output_shape": layer.output_shape,
    }
    if layer.weights:
        out["weights"] = {
            name: {"shape": array.shape, "dtype": array.dtype.name}
            for name, array in layer.weights.items()
        }
    if layer.training:  # beside the config, where an older k2t does not look
        out["training"] = {key: dict(value) for key, value in layer.training.items()}
    if layer.parts:
        out["parts"] = {key: _layer_to_json(part) for key, part in layer.parts.items()}
    if layer.graph:
        out["graph"] = {
            "layers": [_layer_to_json(inner) for inner in layer.graph.layers],
            "calls": [
                {
                    "layer": call.layer,
                    "index": call.index,
                    "args": _refs_to_json(call.args),
                    "kwargs": _refs_to_json(call.kwargs),
                }
                for call in layer.graph.calls
            ],
            "inputs": _refs_to_json(layer.graph.inputs),
            "outputs": _refs_to_json(layer.graph.outputs),
        }
    return out


CONSTANT_KEYS = frozenset({"constant", "shape", "kind"})


def _refs_to_json(structure: Structure) -> Structure:
    return map_structure(_leaf_to_json, structure)


def is_encoded(value: Mapping[str, Any]) -> bool:
    """Tell whether an object of the JSON text stands for a tensor or a constant.

    An argument of a call may be a structure with the same keys, which hold tensors.
    """
    ref = value.get("tensor")
    if len(value) == 1 and isinstance(ref, tuple | list):
        return bool(ref) and isinstance(ref[0], str)
    return value.keys() == CONSTANT_KEYS and isinstance(value["constant"], tuple | list)


def _leaf_to_json(leaf: Any) -> Any:
    if isinstance(leaf, TensorRef):
        return {"tensor": [leaf.layer, leaf.call, leaf.output, *([] if leaf.masked else [False])]}
    if isinstance(leaf, Constant):
        return {"constant": leaf.values, "shape": leaf.shape, "kind": leaf.kind}
    return leaf


def with_dtype(layer: LayerSpec, dtype: np.dtype[Any]) -> LayerSpec:
    """Return the layer with all weights, also of inner layers, in this dtype."""
    weights = {name: array.astype(dtype, copy=False) for name, array in layer.weights.items()}
    return replace(layer, weights=weights).map_inner(lambda _, inner: with_dtype(inner, dtype))
