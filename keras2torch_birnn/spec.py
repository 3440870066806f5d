"""The parsed model: frozen data between the readers and everything else. NumPy only.

All names are Keras' (``units``, ``kernel``). Every value is explicit: defaults, renamed keys and
rules of the Keras that wrote the file are applied by ``readers``.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Array: TypeAlias = "npt.NDArray[Any]"
Shape: TypeAlias = tuple[int | None, ...]
# The shape of a tensor, or a tuple / dict of such where a layer has several; None: unknown.
Shapes: TypeAlias = "Shape | tuple[Shapes, ...] | Mapping[str, Shapes] | None"
# Where in a model a layer is: names of layers, and keys of parts ("cell", "forward_layer").
LayerPath: TypeAlias = tuple[str, ...]
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
        path: Where in the model the layer is: from the root, which has none, to the layer.
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
    path: LayerPath = ()
    input_shape: Shapes = None
    output_shape: Shapes = None
    semantics: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """The path as a text, for messages."""
        return "/".join(self.path)

    @property
    def settings(self) -> dict[str, Any]:
        """``config`` and ``semantics`` in one mapping."""
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


class Kept(NamedTuple):
    """JSON texts of the file, which an OUT keeps, see ``readers.kept``.

    ``architecture``: Keras' own. ``facts``: what it does not tell.
    """

    architecture: str = ""
    facts: str = ""


@dataclass(frozen=True)
class ModelSpec:
    """A whole model: its root layer, the Keras that wrote it, and notes for the user.

    Attributes:
        root: The outermost layer; of a cut model what is left.
        generation: The Keras that wrote the file.
        notes: What a reader should know without being an error.
        cut: Where the file's model was cut.
        kept: What an OUT keeps of the file; empty texts where no file was read.
    """

    root: LayerSpec
    generation: Generation
    notes: tuple[str, ...] = ()
    cut: Cut = NO_CUT
    kept: Kept = field(default=Kept(), compare=False)

    @property
    def graph(self) -> Graph:
        """Graph of the root layer."""
        if self.root.graph is None:
            raise TypeError("the root of a model is a model")
        return self.root.graph

    def input_layers(self) -> tuple[LayerSpec, ...]:
        """Return the InputLayers, in the order of the model's inputs."""
        return tuple(self.graph.layer(ref.layer) for ref in leaves(self.graph.inputs))


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


def change_weights(layer: LayerSpec, change: Callable[[Any], Any]) -> LayerSpec:
    """Return the layer with ``change`` applied to all weights, also of inner layers."""
    weights = {name: change(array) for name, array in layer.weights.items()}
    changed = replace(layer, weights=weights)
    return changed.map_inner(lambda _, inner: change_weights(inner, change))


def with_dtype(layer: LayerSpec, dtype: np.dtype[Any]) -> LayerSpec:
    """Return the layer with all weights, also of inner layers, in this dtype."""
    return change_weights(layer, lambda array: array.astype(dtype, copy=False))


def without_values(spec: ModelSpec) -> ModelSpec:
    """Return the spec with zeros, which take no memory, in the place of its arrays."""
    return replace(spec, root=change_weights(spec.root, lambda one: zeros(one.shape, one.dtype)))


def zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Return zeros of any shape that take the memory of one."""
    import numpy as np  # many commands need none

    return np.broadcast_to(np.zeros((), dtype), shape)
