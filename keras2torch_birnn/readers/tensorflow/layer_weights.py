"""Find the weights of every layer among the objects that TensorFlow tracked.

Edges have the names of Python attributes (``forward_layer``, ``cell``, ``kernel``). The layers of a
model are ``layer-0``, ``layer-1``, ...: in a SavedModel Keras' metadata name them; a checkpoint has
only their numbers, which are those of the configuration (``edges_by_number``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from keras2torch_birnn.errors import WeightMismatchError, printable
from keras2torch_birnn.readers.tensorflow.object_graph import (
    ROOT,
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
# A model, and the number of its object -> name of each layer that it has there -> edge to it.
Edges = Callable[[LayerSpec, int], Mapping[str, str]]


def edges_by_name(graph: Graph, objects: SavedObjects) -> Edges:
    """Tell the layers of a SavedModel apart by the names in Keras' metadata.

    The objects there are numbered otherwise than in its checkpoint, whose ``graph`` this is.
    """
    pairs, waiting = {ROOT: ROOT}, [ROOT]
    while waiting:
        number = waiting.pop()
        saved = objects.graph[pairs[number]].children
        for edge, child in graph[number].children.items():
            if edge in saved and child not in pairs:
                pairs[child] = saved[edge]
                waiting.append(child)

    def edges(model: LayerSpec, number: int) -> Mapping[str, str]:
        # A plugin's layer without get_config has no name in the configuration of a Sequential: it
        # is the one layer of its class that no other name stands for.
        there = objects.layers(pairs[number]) if number in pairs else {}
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

    return edges


def edges_by_number(graph: Graph, *, may_count_inputs: bool = False) -> Edges:
    """Tell the layers of a checkpoint apart by their numbers in the list of the configuration.

    A functional model numbers its InputLayers; a Sequential does so in TensorFlow 2.1 alone
    (``may_count_inputs``), where all its other layers have one number more. In any other version
    one layer more is a layer that the configuration lacks, such as a Masking.
    """

    def edges(model: LayerSpec, number: int) -> Mapping[str, str]:
        children = graph[number].children
        names = [layer.name for layer in model.graph.layers] if model.graph else []
        there = sum(map(is_layer_edge, children))
        first = 0
        if model.class_name == "Sequential":
            names = names[1:]  # the InputLayer, of the file or of our own
            first = there - len(names)
        fits = first == 0
        if first == 1 and may_count_inputs and "layer-0" in children:
            below = walk(graph, children["layer-0"], _NO_WEIGHTS)
            fits = not any(graph[one].variable for one in below)
        if there != first + len(names) or not fits:
            raise WeightMismatchError(
                f"{there} layers where the configuration has {len(names)}",
                "the configuration belongs to another model",
                place=printable(model.place or model.name),
            )
        return {name: f"layer-{number}" for number, name in enumerate(names, first)}

    return edges


def locate_variables(
    root: LayerSpec,
    graph: Graph,
    edges: Edges,
    number: int,
    left_out: frozenset[LayerPath] = frozenset(),
) -> Located:
    """Find every weight: layer -> name of the weight -> variable.

    ``number``: of the model's object. ``left_out``: the paths of layers that are passed over.

    Raises:
        WeightMismatchError: a weight is missing, or a variable of a layer is no weight of it.
    """
    search = _Search(graph, edges, left_out)
    search.model(root, number)
    search.check_all_used()
    return search.found


@dataclass
class _Search:
    """One search: what was found so far. ``layers``: object -> the place of a layer there."""

    graph: Graph
    edges: Edges
    left_out: frozenset[LayerPath]
    found: Located = field(default_factory=dict)
    used: set[int] = field(default_factory=set)
    layers: dict[int, str] = field(default_factory=dict)

    def model(self, model: LayerSpec, number: int) -> None:
        """Find the weights of all layers of a model."""
        edges, children = self.edges(model, number), self.graph[number].children
        known = {layer.name for layer in model.graph.layers} if model.graph else set()
        for layer in model.graph.layers if model.graph else ():
            inner = children.get(edges[layer.name]) if layer.name in edges else None
            if inner is not None:
                self.layer(layer, inner)
            elif layer.class_name != "InputLayer" and layer.class_name not in OPS:
                raise WeightMismatchError(
                    f"no layer {printable(layer.name)}", _WRONG, place=layer.place
                )
        for name, edge in edges.items():
            if name not in known and edge in children:
                self.layers.setdefault(children[edge], name)

    def layer(self, layer: LayerSpec, number: int) -> None:
        """Find the weights of a layer and of all inside it."""
        if layer.path in self.left_out:
            return
        if layer.graph is not None:
            self.model(layer, number)
            return
        self.layers.setdefault(number, layer.place)
        for key, part in layer.parts.items():
            edges = ("cells", key) if layer.class_name == STACK else (key,)
            self.layer(part, self._follow(layer, number, edges))
        weights = {name: self._weight(layer, number, name) for name in _weight_names(layer)}
        if weights:
            self.found[layer.path] = {name: self._value(one) for name, one in weights.items()}
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

    def _follow(self, layer: LayerSpec, number: int, edges: Sequence[str]) -> int:
        for edge in edges:
            inner = self.graph[number].children.get(edge)
            if inner is None:
                raise WeightMismatchError(
                    f"{printable(layer.class_name)} without {printable(edge)}",
                    _WRONG,
                    place=printable(layer.place),
                )
            number = inner
        return number

    def _weight(self, layer: LayerSpec, owner: int, name: str) -> int:
        """Find a weight, which may be that of a layer inside ("query/kernel")."""
        *inside, last = name.split("/")
        here: int | None = owner
        if layer.class_name in OWN_CELL and "kernel" not in self.graph[owner].children:
            here = self._follow(layer, owner, ["cell"])
        groups = SCHEMA[layer.class_name].groups if layer.class_name in SCHEMA else {}
        for part in inside:
            children = {} if here is None else self.graph[here].children
            here = next((children[n] for n in groups.get(part, (part,)) if n in children), None)
        number = None if here is None else self._variable(here, last)
        if number is None and layer.class_name not in SCHEMA:
            cell = None if here is None else self.graph[here].children.get("cell")
            number = None if cell is None else self._variable(cell, last)
            number = self._by_full_name(owner, inside, last) if number is None else number
        if number is None:
            advice = _WRONG
            if layer.class_name not in SCHEMA:
                names = ", ".join(map(printable, self._names_below(owner))) or "none"
                advice = f"the weights of this layer are {names}"
            raise WeightMismatchError(
                f"no weight {printable(name)}", advice, place=printable(layer.place)
            )
        return number

    def _names_below(self, owner: int) -> list[str]:
        """Return the paths of attributes that lead from a layer to its weights, the shortest."""
        names, waiting = dict[int, str](), {owner: ""}
        while waiting:
            following: dict[int, str] = {}
            for number, path in waiting.items():
                names[number] = path
                for edge, child in self.graph[number].children.items():
                    if edge not in _NO_WEIGHTS | _LISTS and child not in names:
                        following.setdefault(child, f"{path}/{edge}" if path else edge)
            waiting = following
        return [path for number, path in names.items() if self.graph[number].variable is not None]

    def _by_full_name(self, owner: int, inside: Sequence[str], last: str) -> int | None:
        """Find a weight of a plugin's layer by the names of Keras, as in an ``.h5`` file."""
        found = [
            number
            for number, one in self._variables_below(owner)
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

    def _variables_below(self, owner: int) -> Iterator[tuple[int, Variable]]:
        for number in sorted(walk(self.graph, owner, _NO_WEIGHTS)):
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
