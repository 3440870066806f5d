"""Find the weights of every layer among the objects that TensorFlow tracked.

Edges have the names of Python attributes (``forward_layer``, ``cell``, ``kernel``). The layers of a
model are ``layer-0``, ``layer-1``, ...: in a SavedModel Keras' metadata name them; a checkpoint has
only their numbers, which are those of the configuration (``NumberedLayers``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from keras2torch_birnn.errors import WeightMismatchError, printable
from keras2torch_birnn.readers.tensorflow.object_graph import (
    Graph,
    SavedObjects,
    Variable,
    is_layer_edge,
    walk,
)
from keras2torch_birnn.readers.weights.slots import KERAS2
from keras2torch_birnn.readers.weights.v3 import OWN_CELL
from keras2torch_birnn.schema import OPS, SCHEMA
from keras2torch_birnn.schema.custom_layers import named_weights, python_name
from keras2torch_birnn.schema.recurrent import STACK
from keras2torch_birnn.spec import LayerPath, LayerSpec

# Edges of a layer that lead to no weights: what it carries from batch to batch, and what Keras
# keeps for itself.
_NO_WEIGHTS = frozenset({"keras_api", "states", "optimizer", "_random_generator"})
# Edges to lists of weights that other edges name.
_LISTS = frozenset({"variables", "trainable_variables", "non_trainable_variables", "layers"})
# Attributes that are not called as the weight is (Normalization of tf.keras since 2.6).
_ATTRIBUTES: Mapping[str, str] = {"mean": "adapt_mean", "variance": "adapt_variance"}
_WRONG = "the file is incomplete or belongs to another model"

Located = dict[LayerPath, dict[str, Variable]]


@dataclass(frozen=True)
class Place:
    """An object in the graph of a checkpoint, and the same in that of a SavedModel."""

    number: int
    saved: int = 0


class LayerNaming(Protocol):
    """How the layers of a model are told apart."""

    def edges(self, model: LayerSpec, place: Place) -> Mapping[str, str]:
        """Return layer name -> edge, of all layers that the model has there."""
        ...

    def follow(self, place: Place, edge: str) -> Place | None:
        """Return the object at the end of an edge; None if there is no such edge."""
        ...


@dataclass(frozen=True)
class NamedLayers:
    """The layers of a SavedModel: by the names in Keras' metadata."""

    graph: Graph
    objects: SavedObjects

    def edges(self, model: LayerSpec, place: Place) -> Mapping[str, str]:
        """Return layer name -> edge.

        A plugin's layer without ``get_config`` has no name in the configuration of a Sequential:
        it is the one layer of its class that no other name stands for.
        """
        there = self.objects.layers(place.saved)
        found = {name: edge for name, (edge, _) in there.items()}
        layers = model.graph.layers if model.graph else ()
        free = there.keys() - {layer.name for layer in layers}
        for layer in layers:
            if layer.name in found or layer.class_name in SCHEMA:
                continue
            own = python_name(layer.class_name)
            names = [name for name in free if python_name(there[name][1]) == own]
            if len(names) == 1:
                free.remove(names[0])
                found[layer.name] = found.pop(names[0])
        return found

    def follow(self, place: Place, edge: str) -> Place | None:
        """Follow an edge in both graphs, and return the object there."""
        number = self.graph[place.number].children.get(edge)
        saved = self.objects.graph[place.saved].children.get(edge)
        return None if number is None or saved is None else Place(number, saved)


@dataclass(frozen=True)
class NumberedLayers:
    """The layers of a checkpoint: by their numbers in the list of the configuration.

    ``may_count_inputs``: the InputLayer of a Sequential may have a number.
    """

    graph: Graph
    may_count_inputs: bool = False

    def edges(self, model: LayerSpec, place: Place) -> Mapping[str, str]:
        """Return layer name -> edge.

        A functional model numbers its InputLayers; a Sequential does so in TensorFlow 2.1 alone,
        where all its other layers have one number more. In any other version one layer more is a
        layer that the configuration lacks, such as a Masking.
        """
        names = [layer.name for layer in model.graph.layers] if model.graph else []
        there = sum(map(is_layer_edge, self.graph[place.number].children))
        first = 0
        if model.class_name == "Sequential":
            names = names[1:]  # the InputLayer, of the file or of our own
            first = there - len(names)
        counts_input = first == 1 and self.may_count_inputs
        fits = first == 0 or (counts_input and not self._holds_variables(place, "layer-0"))
        if there != first + len(names) or not fits:
            raise WeightMismatchError(
                f"{there} layers where the configuration has {len(names)}",
                "the configuration belongs to another model",
                place=printable(model.place or model.name),
            )
        return {name: f"layer-{number}" for number, name in enumerate(names, first)}

    def follow(self, place: Place, edge: str) -> Place | None:
        """Return the object at the end of an edge."""
        number = self.graph[place.number].children.get(edge)
        return None if number is None else Place(number)

    def _holds_variables(self, place: Place, edge: str) -> bool:
        start = self.follow(place, edge)
        numbers = () if start is None else walk(self.graph, start.number, _NO_WEIGHTS)
        return start is None or any(self.graph[number].variable for number in numbers)


def locate_variables(
    root: LayerSpec,
    graph: Graph,
    naming: LayerNaming,
    place: Place,
    left_out: frozenset[LayerPath] = frozenset(),
) -> Located:
    """Find every weight: layer -> name of the weight -> variable. ``place``: the model's.

    ``left_out``: the paths of layers that are passed over.

    Raises:
        WeightMismatchError: a weight is missing, or a variable of a layer is no weight of it.
    """
    search = _Search(graph, naming, left_out)
    search.model(root, place)
    search.check_all_used()
    return search.found


@dataclass
class _Search:
    """One search: what was found so far. ``layers``: object -> the place of a layer there."""

    graph: Graph
    naming: LayerNaming
    left_out: frozenset[LayerPath]
    found: Located = field(default_factory=dict)
    used: set[int] = field(default_factory=set)
    layers: dict[int, str] = field(default_factory=dict)

    def model(self, model: LayerSpec, place: Place) -> None:
        """Find the weights of all layers of a model."""
        edges = self.naming.edges(model, place)
        known = {layer.name for layer in model.graph.layers} if model.graph else set()
        for layer in model.graph.layers if model.graph else ():
            edge = edges.get(layer.name)
            inner = None if edge is None else self.naming.follow(place, edge)
            if inner is not None:
                self.layer(layer, inner)
            elif layer.class_name != "InputLayer" and layer.class_name not in OPS:
                raise WeightMismatchError(
                    f"no layer {printable(layer.name)}", _WRONG, place=layer.place
                )
        for name, edge in edges.items():
            extra = None if name in known else self.naming.follow(place, edge)
            if extra is not None:
                self.layers.setdefault(extra.number, name)

    def layer(self, layer: LayerSpec, place: Place) -> None:
        """Find the weights of a layer and of all inside it."""
        if layer.path in self.left_out:
            return
        if layer.graph is not None:
            self.model(layer, place)
            return
        self.layers.setdefault(place.number, layer.place)
        for key, part in layer.parts.items():
            edges = ("cells", key) if layer.class_name == STACK else (key,)
            self.layer(part, self._follow(layer, place, edges))
        weights = {name: self._weight(layer, place, name) for name in _weight_names(layer)}
        if weights:
            self.found[layer.path] = {n: self._value(number) for n, number in weights.items()}
            self.used.update(weights.values())

    def check_all_used(self) -> None:
        """Raise if a layer has a variable that is none of its weights."""
        seen: set[int] = set()  # every object once, however many layers lead to it
        for start, name in self.layers.items():
            for number in walk(self.graph, start, _NO_WEIGHTS, seen):
                variable = self.graph[number].variable
                if variable is not None and number not in self.used:
                    raise WeightMismatchError(
                        f"the weight {printable(variable.full_name or variable.key)} has no place "
                        "in the configuration",
                        "the configuration belongs to another model, or a plugin does not name it "
                        "in weights=",
                        place=printable(name),
                    )

    def _follow(self, layer: LayerSpec, place: Place, edges: Sequence[str]) -> Place:
        for edge in edges:
            inner = self.naming.follow(place, edge)
            if inner is None:
                raise WeightMismatchError(
                    f"{printable(layer.class_name)} without {printable(edge)}",
                    _WRONG,
                    place=printable(layer.place),
                )
            place = inner
        return place

    def _weight(self, layer: LayerSpec, place: Place, name: str) -> int:
        """Find a weight, which may be that of a layer inside ("query/kernel")."""
        *inside, last = name.split("/")
        here: int | None = place.number
        if layer.class_name in OWN_CELL and "kernel" not in self.graph[place.number].children:
            here = self._follow(layer, place, ["cell"]).number
        groups = SCHEMA[layer.class_name].groups if layer.class_name in SCHEMA else {}
        for part in inside:
            children = {} if here is None else self.graph[here].children
            here = next((children[n] for n in groups.get(part, (part,)) if n in children), None)
        number = None if here is None else self._variable(here, last)
        if number is None and layer.class_name not in SCHEMA:
            cell = None if here is None else self.graph[here].children.get("cell")
            number = None if cell is None else self._variable(cell, last)
            number = self._by_full_name(place, inside, last) if number is None else number
        if number is None:
            advice = _WRONG
            if layer.class_name not in SCHEMA:
                names = ", ".join(map(printable, self._names_below(place))) or "none"
                advice = f"the weights of this layer are {names}"
            raise WeightMismatchError(
                f"no weight {printable(name)}", advice, place=printable(layer.place)
            )
        return number

    def _names_below(self, place: Place) -> list[str]:
        """Return the paths of attributes that lead from a layer to its weights, the shortest."""
        names, waiting = dict[int, str](), {place.number: ""}
        while waiting:
            following: dict[int, str] = {}
            for number, path in waiting.items():
                names[number] = path
                for edge, child in self.graph[number].children.items():
                    if edge not in _NO_WEIGHTS | _LISTS and child not in names:
                        following.setdefault(child, f"{path}/{edge}" if path else edge)
            waiting = following
        return [path for number, path in names.items() if self.graph[number].variable is not None]

    def _by_full_name(self, place: Place, inside: Sequence[str], last: str) -> int | None:
        """Find a weight of a plugin's layer by the names of Keras, as in an ``.h5`` file."""
        found = [
            number
            for number, one in self._variables_below(place)
            if _label(one) == last
            if KERAS2.split(one.full_name, ())[0][-len(inside) or None :] == tuple(inside)
        ]
        return found[0] if len(found) == 1 else None

    def _variable(self, here: int, name: str) -> int | None:
        """Find a variable by its attribute, else by what Keras called it."""
        children = self.graph[here].children
        for edge in (name, _ATTRIBUTES.get(name, name)):
            if edge in children and self.graph[children[edge]].variable is not None:
                return children[edge]
        called = [
            number
            for number in dict.fromkeys(children.values())
            if (variable := self.graph[number].variable) is not None
            if _label(variable) == name
        ]
        return called[0] if len(called) == 1 else None

    def _variables_below(self, place: Place) -> Iterator[tuple[int, Variable]]:
        for number in sorted(walk(self.graph, place.number, _NO_WEIGHTS)):
            variable = self.graph[number].variable
            if variable is not None:
                yield number, variable

    def _value(self, number: int) -> Variable:
        variable = self.graph[number].variable
        if variable is None:
            raise TypeError(f"object {number} is no variable")
        return variable


def _weight_names(layer: LayerSpec) -> Sequence[str]:
    own = named_weights(layer)  # of a plugin's layer
    return tuple(KERAS2.shapes(layer, {}) if own is None else own)


def _label(variable: Variable) -> str:
    return KERAS2.split(variable.full_name, ())[1]
