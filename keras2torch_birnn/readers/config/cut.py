"""Cut a parsed model: it starts at the inputs of some layers and ends at the outputs of others.

A pure function of the graph, before anything in it is refused. The tensors that enter the first
layers become inputs; what the outputs need besides (other inputs, other branches) stays. In a model
within a model the inner graph is cut, and the outer one passes the new inputs on, so that every
layer keeps its path, by which its weights are found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from keras2torch_birnn.errors import K2TError, UsageError, invalid, printable
from keras2torch_birnn.readers.config.cut_masks import MaskSource, MaskSources, carry_masks
from keras2torch_birnn.readers.config.cut_names import Path
from keras2torch_birnn.readers.config.sequential import stated_input_shape
from keras2torch_birnn.readers.config.text_layers import is_text_layer
from keras2torch_birnn.schema.custom_layers import output_count
from keras2torch_birnn.schema.dtype_flow import Node, dtype_of, known_dtypes
from keras2torch_birnn.schema.shape_inference import infer_model, shape_leaves
from keras2torch_birnn.spec import (
    Call,
    Graph,
    LayerSpec,
    Shape,
    Structure,
    TensorRef,
    leaves,
    map_structure,
    tensors,
)

_NO_INPUT = 1 << 30


@dataclass(frozen=True)
class Entrance:
    """A tensor at which the part starts, as an input of the new model.

    ``source``: path of the layer that gave it. ``mask``: what it may have had. ``order``: the first
    of the model's inputs on which it depended. ``number``: of the model's input that it is, if it
    is one.
    """

    layer: LayerSpec
    source: str
    mask: MaskSource | None
    order: int
    number: int | None = None


# An input of a graph that was cut: the number of an old one, or a new one.
NewInput: TypeAlias = int | Entrance


@dataclass(frozen=True)
class Part:
    """Part of a model that remains, and its inputs in order."""

    model: LayerSpec
    inputs: tuple[NewInput, ...]


def cut_model(
    model: LayerSpec,
    known: LayerSpec,
    first: Sequence[Path],
    last: Sequence[Path],
    masks: MaskSources,
    stated: Mapping[str, Shape],
    *,
    root: bool = True,
) -> Part:
    """Cut a model at these paths within it.

    known: the same model with the shapes that could be inferred, where a layer that is not
    supported has a class that no table knows. masks: what its inputs may have. stated: input
    shapes that the file states for single layers, by place.

    Raises:
        UsageError: these layers do not bound a part, or not only one; InvalidModelFileError: a
            model in the model is called with other tensors than it takes.
    """
    return _Cutting(model, known, masks, stated, root=root).cut(first, last)


class _Cutting:
    """One graph on its way. ``entrances``: new inputs by name; ``swaps``: what they replace."""

    def __init__(
        self,
        model: LayerSpec,
        known: LayerSpec,
        masks: MaskSources,
        stated: Mapping[str, Shape],
        *,
        root: bool,
    ) -> None:
        self.model, self.known_model, self.stated, self.root = model, known, stated, root
        self.graph, self.known = _graph(model), _graph(known)
        self.layers = {layer.name: layer for layer in self.graph.layers}
        self.calls = {(call.layer, call.index): call for call in self.graph.calls}
        self.carried = carry_masks(self.known, masks)
        self.dtypes = known_dtypes(self.known)
        self.order = _first_inputs(self.graph)
        self.numbers = {one.layer: n for n, one in enumerate(leaves(self.graph.inputs))}
        self.labels: Counter[str] = Counter()
        self.entrances: dict[str, Entrance] = {}
        self.swaps: dict[TensorRef, TensorRef] = {}

    def cut(self, first: Sequence[Path], last: Sequence[Path]) -> Part:
        """Cut the graph; see ``cut_model``."""
        parts = self._cut_inner(first, last)
        outputs = self._outputs(last, parts) if last else self.graph.outputs
        for path in first:
            if len(path) == 1:
                self._enter(path[0])
        swapped = {
            node: replace(call, args=self._swap(call.args), kwargs=self._swap(call.kwargs))
            for node, call in self.calls.items()
        }
        self._check_outputs(outputs)
        needed = _needed(swapped, outputs, self.entrances)
        for path in first:
            if not any(node[0] == path[0] for node in needed):
                raise UsageError(
                    f"--from {self._path(path[0])}: nothing of it reaches the "
                    + ("layer of --to" if last else "model's output"),
                    "name layers before and after each other",
                )
        calls = [call for node, call in swapped.items() if node in needed]
        self._check_ends({path[0] for path in last if len(path) > 1}, calls)
        return self._assemble(calls, outputs)

    # ---- models inside ----------------------------------------------------------------------

    def _cut_inner(self, first: Sequence[Path], last: Sequence[Path]) -> dict[str, Part]:
        """Cut the models in this one; their calls then pass on the new inputs."""
        parts: dict[str, Part] = {}
        for name in dict.fromkeys(path[0] for path in (*first, *last) if len(path) > 1):
            calls = self._independent_calls(name)
            given = [self.carried.get(ref) for ref in tensors(calls[0].args)]
            part = cut_model(
                self.layers[name],
                self.known.layer(name),
                [path[1:] for path in first if path[0] == name and len(path) > 1],
                [path[1:] for path in last if path[0] == name and len(path) > 1],
                given,
                self.stated,
                root=False,
            )
            self.layers[name] = part.model
            for call in calls:
                self.calls[name, call.index] = self._pass_on(call, part)
            parts[name] = part
        return parts

    def _pass_on(self, call: Call, part: Part) -> Call:
        """Call a model that was cut with its remaining inputs and the new ones."""
        if "mask" in call.kwargs:
            raise UsageError(
                f"{self._path(call.layer)} is called with a mask, so no layer inside can be named",
                "name it itself, or a layer outside",
            )
        given = list(leaves(call.args))
        inputs = list(leaves(_graph(self.graph.layer(call.layer)).inputs))
        if len(given) != len(inputs) or not all(isinstance(one, TensorRef) for one in given):
            raise invalid(
                f"a model of {len(inputs)} inputs that is called with {len(given)} tensors",
                self._path(call.layer),
            )
        args = tuple(
            self._pass_new(one, given) if isinstance(one, Entrance) else given[one]
            for one in part.inputs
        )
        return replace(call, args=(args[0] if len(args) == 1 else args,), kwargs={})

    def _pass_new(self, inner: Entrance, refs: Sequence[TensorRef]) -> TensorRef:
        """Pass a new input of an inner model on as an input of this model."""
        order = self._order_of(refs[inner.order]) if inner.order < len(refs) else _NO_INPUT
        new = replace(inner, order=order, number=None)
        if inner.number is not None:  # what this model gave it
            ref = refs[inner.number]
            if self._starts_at(ref):
                return ref
            new = replace(new, source=self._path(ref.layer), number=self.numbers.get(ref.layer))
        return self._add(inner.layer.name, new)

    # ---- where it starts --------------------------------------------------------------------

    def _enter(self, name: str) -> None:
        """Replace the tensors that enter a layer by new inputs of the model."""
        calls = self._independent_calls(name)
        refs = list(dict.fromkeys(ref for c in calls for ref in tensors((c.args, c.kwargs))))
        shapes = self._shapes(refs)
        if shapes == [None]:
            text = is_text_layer(self.known.layer(refs[0].layer))
            stated = None if text else self.stated.get(self._place(name))
            shapes = [stated or self._own_shape(name)]
        for ref, shape in zip(refs, shapes, strict=True):
            if ref in self.swaps or self._starts_at(ref):
                continue
            kind = dtype_of(ref, self.dtypes)
            if kind == "size":
                raise UsageError(
                    f"--from {self._path(name)}: reads the size of a tensor before it",
                    "name a layer before or behind it",
                )
            config = {
                "trainable": True,
                "shape": shape,
                "dtype": self._dtype(ref, name, kind),
            }
            label = f"{name}_input"
            layer = LayerSpec("InputLayer", label, config, place=label)
            new = Entrance(
                layer,
                self._path(ref.layer),
                self.carried.get(ref),
                self._order_of(ref),
                self.numbers.get(ref.layer),
            )
            self.swaps[ref] = self._add(label, new)

    def _starts_at(self, ref: TensorRef) -> bool:
        """Tell whether a tensor is an input of the model that the user has."""
        return self.root and self.layers[ref.layer].class_name == "InputLayer"

    def _add(self, wanted: str, entrance: Entrance) -> TensorRef:
        """Add a new input under a name that is free."""
        name = wanted
        while name in self.layers or name in self.entrances:
            self.labels[wanted] += 1
            name = f"{wanted}_{self.labels[wanted] + 1}"
        layer = replace(entrance.layer, name=name, place=self._place(name))
        self.entrances[name] = replace(entrance, layer=layer)
        return TensorRef(name)

    def _shapes(self, refs: Sequence[TensorRef]) -> list[Shape | None]:
        """Infer the shapes of tensors; None where nothing is known."""
        unheard: list[K2TError] = []  # of layers that may be cut away
        graph = replace(self.known, outputs=tuple(refs))
        found: Structure = infer_model(replace(self.known_model, graph=graph), unheard).output_shape
        return [next(shape_leaves(one)) for one in found]

    def _own_shape(self, name: str) -> Shape | None:
        """Return the shape that a model in the model states for its first input."""
        layer = self.known.layer(name)
        if layer.graph is None:
            return None
        shape: Shape | None = stated_input_shape(layer.graph)
        return shape

    def _dtype(self, ref: TensorRef, name: str, kind: str) -> str:
        """Return the dtype of a new input: ids where ids are read or a text layer gave them."""
        giver = self.known.layer(ref.layer)
        said = giver.semantics.get("gives")
        if said is not None:
            return str(said)
        if kind == "float" and self.layers[name].class_name == "Embedding":
            return "int64"
        return kind if kind in ("int32", "int64", "bool") else "float32"

    # ---- where it ends ----------------------------------------------------------------------

    def _outputs(self, last: Sequence[Path], parts: Mapping[str, Part]) -> Structure:
        """Return the outputs of the named layers, one after the other."""
        found: list[TensorRef] = []
        for name in dict.fromkeys(path[0] for path in last):
            calls = self._calls_of(name)
            if len(calls) > 1:
                raise UsageError(
                    f"--to {self._path(name)}: is called {len(calls)} times",
                    "name a layer that is called once",
                )
            part = parts.get(name)
            graph = self.layers[name].graph if part else None
            count = len(list(leaves(graph.outputs))) if graph else self._count(name)
            found += [TensorRef(name, calls[0].index, number) for number in range(count)]
        return found[0] if len(found) == 1 else tuple(found)

    def _count(self, name: str) -> int:
        """Count the outputs of a layer."""
        layer = self.known.layer(name)
        if layer.graph is not None:
            return len(list(leaves(layer.graph.outputs)))
        if layer.output_shape is not None:
            return len(list(shape_leaves(layer.output_shape)))
        every = ((call.args, call.kwargs) for call in self.graph.calls)
        read = [ref.output for ref in tensors((*every, self.graph.outputs)) if ref.layer == name]
        return max(output_count(layer), 1 + max(read, default=0))

    def _check_outputs(self, outputs: Structure) -> None:
        for ref in tensors(outputs):
            if ref in self.swaps:
                raise UsageError(
                    f"the output of {self._path(ref.layer)} is before --from",
                    "name the outputs of the part with --to",
                )

    def _check_ends(self, ended: Collection[str], calls: Sequence[Call]) -> None:
        """Refuse layers behind a model that now ends somewhere inside."""
        for call in calls:
            behind = [ref.layer for ref in tensors((call.args, call.kwargs)) if ref.layer in ended]
            if behind:
                raise UsageError(
                    f"--to: {self._path(call.layer)} is behind {self._path(behind[0])}, inside "
                    "of which another one is named",
                    "name layers of one model only",
                )

    # ---- putting it together ----------------------------------------------------------------

    def _assemble(self, calls: Sequence[Call], outputs: Structure) -> Part:
        """Make the model of the calls that are left."""
        kept = {call.layer for call in calls}
        read = {ref.layer for call in calls for ref in tensors((call.args, call.kwargs))}
        new = {name: one for name, one in self.entrances.items() if name in read}
        olds = [ref.layer for ref in leaves(self.graph.inputs)]
        items: list[tuple[int, int, str, NewInput]] = [
            (number, 0, name, number) for number, name in enumerate(olds) if name in kept
        ]
        items += [(one.order, 1, name, one) for name, one in new.items()]
        items.sort(key=lambda item: item[:2])
        graph = Graph(
            (
                *(one.layer for one in new.values()),
                *(layer for name, layer in self.layers.items() if name in kept),
            ),
            (*(Call(name, 0, ()) for name in new), *calls),
            tuple(TensorRef(name) for _, _, name, _ in items),
            outputs,
        )
        return Part(replace(self.model, graph=graph), tuple(one for _, _, _, one in items))

    def _calls_of(self, name: str) -> list[Call]:
        found = [call for node, call in self.calls.items() if node[0] == name]
        if not found:
            raise UsageError(
                f"{self._path(name)} is a layer of the file that its model never calls",
                "name another layer",
            )
        return found

    def _independent_calls(self, name: str) -> list[Call]:
        """Return the calls of a layer, none of which reads what another gave."""
        calls = self._calls_of(name)
        below = _below(self.graph, {(call.layer, call.index) for call in calls})
        if any((call.layer, call.index) in below for call in calls):
            raise UsageError(
                f"{self._path(name)} is called {len(calls)} times, also on what it gave itself",
                "name a layer that is called once",
            )
        return calls

    def _order_of(self, ref: TensorRef) -> int:
        return self.order.get((ref.layer, ref.call), _NO_INPUT)

    def _swap(self, structure: Structure) -> Structure:
        def swapped(leaf: object) -> object:
            return self.swaps.get(leaf, leaf) if isinstance(leaf, TensorRef) else leaf

        return map_structure(swapped, structure)

    def _place(self, name: str) -> str:
        return name if self.root else f"{self.model.place}/{name}"

    def _path(self, name: str) -> str:
        return printable(self._place(name))


def _graph(model: LayerSpec) -> Graph:
    if model.graph is None:
        raise TypeError("a layer without graph is no model")
    return model.graph


def _first_inputs(graph: Graph) -> dict[Node, int]:
    """Return for every call the first of the graph's inputs on which it depends."""
    numbers = {ref.layer: number for number, ref in enumerate(leaves(graph.inputs))}
    found: dict[Node, int] = {}
    for call in graph.calls:
        before = [found[ref.layer, ref.call] for ref in tensors((call.args, call.kwargs))]
        own = numbers.get(call.layer, _NO_INPUT)
        found[call.layer, call.index] = min([own, *before])
    return found


def _below(graph: Graph, tops: set[Node]) -> set[Node]:
    """Return the calls that depend on one of these."""
    found: set[Node] = set()
    for call in graph.calls:
        before = {(ref.layer, ref.call) for ref in tensors((call.args, call.kwargs))}
        if not (before.isdisjoint(found) and before.isdisjoint(tops)):
            found.add((call.layer, call.index))
    return found


def _needed(
    calls: Mapping[Node, Call], outputs: Structure, entrances: Iterable[str]
) -> frozenset[Node]:
    """Return the calls on which the outputs depend."""
    found: set[Node] = set()
    waiting = [(ref.layer, ref.call) for ref in tensors(outputs)]
    fed = frozenset(entrances)
    while waiting:
        node = waiting.pop()
        if node in found or node[0] in fed:
            continue
        found.add(node)
        call = calls[node]
        waiting += [(ref.layer, ref.call) for ref in tensors((call.args, call.kwargs))]
    return frozenset(found)
