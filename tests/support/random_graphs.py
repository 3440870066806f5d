"""Random models: graphs of random layers, in the form that ``fixtures/graphs.py`` builds.

Every draw is a model that fits together: nothing is drawn and thrown away. A graph holds several
inputs, branches that merge, layers and models that are shared, models inside models, states that
start other layers, and masks, made by an Embedding or a Masking or passed as an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import strategies as st
from random_layers import (
    NEW,
    UNITS,
    VOCABULARY,
    Layer,
    Shape,
    Source,
    Tensor,
    bidirectional,
    cell,
    output_shape,
    rank,
    single,
)

# A graph: inputs, steps, outputs, shared; see fixtures/graphs.py.
Graph = dict[str, Any]
FREE_STEPS = 7  # what fixtures/graphs.py gives an undeclared first size
STATES = {"LSTM": 2, "GRU": 1, "SimpleRNN": 1}
ELEMENTWISE = ("Add", "Multiply", "Average", "Maximum", "Minimum", "Subtract")


@dataclass
class Drawing:
    """A graph that grows: what there is to read, what was drawn, what nobody has read yet."""

    source: Source
    depth: int
    inputs: list[tuple[str, str, tuple[int | None, ...]]] = field(default_factory=list)
    steps: list[tuple[Any, ...]] = field(default_factory=list)
    shared: dict[str, Layer] = field(default_factory=dict)
    tensors: list[Tensor] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    prefix: str = ""
    count: int = 0
    operations: bool = False  # draw functions of tensors, too, as Python's operators

    # ---- tensors and steps ---------------------------------------------------------------------

    def new(self, like: Tensor, shape: Shape, *, masked: bool | None = None) -> Tensor:
        """A tensor with a name of its own; its first size is free if that of ``like`` is."""
        masked = like.masked if masked is None else masked
        self.count += 1
        name, several = f"{self.prefix}t{self.count}", len(shape) > 1
        made = Tensor(name, shape, like.free and several, masked and several)
        self.tensors.append(made)
        self.unread.append(name)
        return made

    def input(self, kind: str, shape: Shape, *, free: bool = False) -> Tensor:
        """A new input of the model."""
        name = f"{self.prefix}in{len(self.inputs)}"
        self.inputs.append((name, kind, (None, *shape[1:]) if free else shape))
        self.unread.append(name)
        return Tensor(name, shape, free, False, whole=kind.startswith("ids"))

    def step(
        self,
        layer: Layer | str,
        given: Tensor | Sequence[Tensor] | Mapping[str, Tensor],
        *made: Tensor,
        **keywords: Any,
    ) -> None:
        """``layer`` reads ``given`` and makes ``made``; a tuple is several arguments."""
        several = (given,) if isinstance(given, Tensor) else tuple(given)
        names = given.name if isinstance(given, Tensor) else type(given)(t.name for t in several)
        said = [value[1:] for value in _texts(keywords) if value.startswith("@")]
        self.read(*(t.name for t in several), *said)
        targets = made[0].name if len(made) == 1 else [t.name for t in made]
        self.steps.append(
            (targets, layer, names, keywords) if keywords else (targets, layer, names)
        )

    def read(self, *names: str) -> None:
        """Somebody has read these."""
        self.unread = [name for name in self.unread if name not in names]

    def latest(self, fits: Callable[[Tensor], bool]) -> list[Tensor]:
        """Tensors that fit, the newest first."""
        return [t for t in reversed(self.tensors) if fits(t)]

    # ---- one layer -----------------------------------------------------------------------------

    def apply(self, layer: Layer, x: Tensor) -> Tensor:
        """A layer with one input and output; sometimes shared with another tensor of that shape."""
        masked = x.masked or layer[0] == "Masking" or "mask_zero" in str(layer)
        out = self.new(x, output_shape(layer, x.shape), masked=masked)
        twins = [t for t in self.tensors if _alike(t, x) and t not in (x, out)]
        if twins and self.source.often():
            name = f"{self.prefix}shared{len(self.shared)}"
            self.shared[name] = layer
            self.step(name, x, out)
            twin = self.source.pick(twins)
            self.step(name, twin, self.new(twin, out.shape, masked=masked or twin.masked))
        else:
            self.step(layer, x, out)
        return out

    def dense(self, x: Tensor, units: int) -> Tensor:
        """Apply a Dense of this width."""
        return self.apply_plain(("Dense", {"units": units, "activation": "tanh"}), x)

    def apply_plain(self, layer: Layer, x: Tensor) -> Tensor:
        """Apply a layer that is never shared."""
        out = self.new(x, output_shape(layer, x.shape))
        self.step(layer, x, out)
        return out

    def layer(self, x: Tensor) -> None:
        """Any layer with one input."""
        self.apply(single(self.source, x), x)

    # ---- recurrent layers with states ----------------------------------------------------------

    def recurrent(self, x: Tensor) -> None:
        """A recurrent layer that gives its states, starts from others, or is passed a mask."""
        starts = [t for t in self.latest(rank(1)) if t.shape[0] < 12]
        begun = bool(starts) and self.source.often()
        units = self.source.pick(starts).shape[0] if begun else self.source.pick(UNITS)
        fixed = {"return_sequences": self.source.often(), "return_state": self.source.often()}
        make = bidirectional if self.source.often() else cell
        layer = make(self.source, x, units, **fixed)
        half = layer[1].get("layer", layer)
        count = STATES[half[0]] * (2 if layer[0] == "Bidirectional" else 1)
        keywords: dict[str, Any] = {}
        if begun:
            found = [t for t in starts if t.shape[0] == units]
            states = [self.source.pick(found) for _ in range(count)]
            keywords["initial_state"] = [f"@{t.name}" for t in states]
        elif self.source.seldom() and not self.prefix and (not x.free or x.shape[0] == FREE_STEPS):
            keywords["mask"] = f"@{self.input('bool', x.shape[:1], free=x.free).name}"
        heads = self.heads(x, layer, half)
        masked = x.masked or "mask" in keywords
        outs = [self.new(x, shape, masked=masked) for shape in heads]
        states = []
        if fixed["return_state"]:
            states = [self.new(x, (units,), masked=False) for _ in range(count)]
        self.step(layer, x, *outs, *states, **keywords)

    def heads(self, x: Tensor, layer: Layer, half: Layer) -> list[Shape]:
        """The shapes of a recurrent layer's outputs without the states."""
        without = {**half[1], "return_state": False}
        one = output_shape((half[0], without), x.shape)
        if layer[0] != "Bidirectional":
            return [one]
        mode = layer[1].get("merge_mode", "concat")
        width = one[-1] * (2 if mode == "concat" else 1)
        return [(*one[:-1], width)] * (2 if mode is None else 1)

    # ---- operators -----------------------------------------------------------------------------

    def operation(self, x: Tensor) -> None:
        """One of Python's operators: with a number or a tensor of that shape, or a part of x."""
        name, every, steps = f"@{x.name}", _part(), x.shape[0]
        other = f"@{self.source.pick([t for t in self.tensors if _alike(t, x)]).name}"
        calls: list[tuple[str, list[Any], Shape]] = [
            ("op.mul", [name, 2.5], x.shape),
            ("op.sub", [1.0, name], x.shape),
            ("op.truediv", [name, 3.0], x.shape),
            ("op.neg", [name], x.shape),
            ("op.add", [name, other], x.shape),
            ("op.mul", [name, other], x.shape),
        ]
        few = (*x.shape[:-1], min(2, x.shape[-1]))
        parts = [((*[every] * len(x.shape), _part(0, 2)), few)] if len(x.shape) > 1 else []
        if len(x.shape) > 1:
            parts += [((every, -1), x.shape[1:]), ((every, _part(step=-1)), x.shape)]
        if len(x.shape) > 1 and steps > 1 and not x.free:
            parts += [((every, _part(1)), (steps - 1, *x.shape[1:]))]
        calls += [("op.getitem", [name, key], shape) for key, shape in parts]
        function, given, shape = self.source.pick(calls)
        like = replace(x, free=x.free and len(shape) == len(x.shape))
        made = self.new(like, shape, masked=False)
        self.read(*(text[1:] for text in _texts(given) if text.startswith("@")))
        self.steps.append((made.name, ("call", function), given))

    # ---- several inputs ------------------------------------------------------------------------

    def merge(self, x: Tensor) -> None:
        """An elementwise merge with tensors of the same shape."""
        name = self.source.pick(ELEMENTWISE)
        others = [t for t in self.tensors if _alike(t, x) and t != x] or [
            self.dense(x, x.shape[-1])
        ]
        count = 1 if name == "Subtract" else self.source.pick((1, 2))
        given = [x, *(self.source.pick(others) for _ in range(count))]
        masked = any(t.masked for t in given)
        self.step((name, {}), given, self.new(x, x.shape, masked=masked))

    def concatenate(self, x: Tensor) -> None:
        """Along the features, with a tensor of any width."""
        others = [
            t for t in self.tensors if t.shape[:-1] == x.shape[:-1] and t.free == x.free and t != x
        ] or [x]
        other = self.source.pick(others)
        shape = (*x.shape[:-1], x.shape[-1] + other.shape[-1])
        masked = x.masked or other.masked
        self.step(("Concatenate", {}), [x, other], self.new(x, shape, masked=masked))

    def concatenate_steps(self, x: Tensor) -> None:
        """Along the steps."""
        others = [
            t
            for t in self.tensors
            if t.shape[1:] == x.shape[1:] and len(t.shape) > 1 and not (t.free or t.masked)
        ]
        # Keras fails where one of the two has a mask.
        other = self.source.pick([x] if x.masked else [x, *others])
        shape = (x.shape[0] + other.shape[0], *x.shape[1:])
        self.step(("Concatenate", {"axis": 1}), [x, other], self.new(x, shape))

    def dot(self, x: Tensor) -> None:
        """Products of features; with steps that are declared, for they become features."""
        others = [t for t in self.latest(rank(1, 2)) if t.shape[-1] == x.shape[-1] and not t.free]
        other = self.source.pick(others)
        axes = len(x.shape), len(other.shape)
        shape = (*x.shape[:-1], *other.shape[:-1]) or (1,)
        options = {"axes": axes, **self.source.some(normalize=True)}
        self.step(("Dot", options), [x, other], self.new(x, shape, masked=False))

    def attention(self, x: Tensor) -> None:
        """Attention of x over a tensor of the same width."""
        value = self.source.pick(self.latest(rank(2)))
        if value.shape[-1] != x.shape[-1]:
            value = self.dense(value, x.shape[-1])
        name = self.source.pick(("Attention", "AdditiveAttention"))
        options = self.source.some(use_scale=self.source.often(), dropout=0.2)
        if name == "Attention":
            options |= self.source.some(score_mode="concat")
        keywords = {"use_causal_mask": True} if self.source.seldom() else {}
        out = self.new(x, (*x.shape[:-1], value.shape[-1]))
        self.step((name, options), [x, value], out, **keywords)

    def heads_of_attention(self, x: Tensor) -> None:
        """Multi-head attention of x over any tensor."""
        value = self.source.pick(self.latest(rank(2)))
        options: dict[str, Any] = {"num_heads": self.source.pick((1, 2)), "key_dim": 3}
        name, more = "MultiHeadAttention", {"value_dim": 5, "output_shape": 5, "dropout": 0.1}
        options |= self.source.some(**more, use_bias=self.source.often())
        shape = (*x.shape[:-1], options.get("output_shape", x.shape[-1]))
        keywords = {"use_causal_mask": True} if self.source.seldom() else {}
        self.step((name, options), (x, value), self.new(x, shape), **keywords)

    # ---- models inside -------------------------------------------------------------------------

    def nested(self, x: Tensor) -> None:
        """A model inside, of one or two inputs, sometimes called twice."""
        others = [t for t in self.latest(rank(1, 2)) if t != x]
        given = [x, *([self.source.pick(others)] if others and self.source.often() else [])]
        name = f"{self.prefix}model{len(self.shared)}"
        inner = Drawing(self.source, self.depth - 1, prefix=f"{name}_", operations=self.operations)
        for outer in given:
            start = inner.input("float", outer.shape, free=outer.free)
            inner.dense(replace(start, masked=outer.masked), 3)
        inner.grow(self.source.pick((1, 2, 3)))
        graph, outs = inner.graph(), inner.ends()
        self.shared[name] = ("Functional", {**graph, "name": name})
        for _ in range(2 if self.source.seldom() else 1):
            made = [self.new(out, out.shape) for out in outs]
            self.step(name, given[0] if len(given) == 1 else given, *made)

    # ---- the whole -----------------------------------------------------------------------------

    def grow(self, count: int) -> None:
        """Draw so many steps, each from one of the newest tensors."""
        for _ in range(count):
            x = self.source.pick(self.tensors[-3:][::-1])
            kinds: list[Callable[[Tensor], None]] = [self.layer] * 5
            if rank(2)(x):
                kinds += [self.recurrent] * 4
            if rank(2)(x) and self.source.package in NEW:
                kinds += [self.attention, self.heads_of_attention]
            if rank(1, 2, fixed=True)(x):
                kinds += [self.dot]
            if rank(2, 3, fixed=True)(x):
                kinds += [self.concatenate_steps]
            kinds += [self.merge, self.concatenate]
            if self.operations:
                kinds += [self.operation] * 2
            if self.depth > 0 and rank(1, 2)(x):
                kinds += [self.nested]
            self.source.pick(kinds)(x)

    def ends(self) -> list[Tensor]:
        """Return the tensors that no step has read."""
        return [t for t in self.tensors if t.name in self.unread]

    def graph(self) -> Graph:
        """Return the graph so far; tensors that no step has read are its outputs."""
        outputs = [t.name for t in self.ends()]
        return {
            "inputs": self.inputs,
            "steps": self.steps,
            "outputs": outputs[0] if len(outputs) == 1 else outputs,
            "shared": self.shared,
        }

    def begin(self) -> None:
        """An input, and the layer that reads it where it holds ids or padding."""
        kind = self.source.pick(("ids_padded", "ids", "float", "padded", "short", "image", "text"))
        free = self.source.often()
        steps = FREE_STEPS if free else self.source.pick((7, 5, 11))
        if kind == "short":
            self.tensors.append(self.input("float", (self.source.pick(UNITS),)))
        elif kind == "image":
            self.tensors.append(self.input("float", (steps, 5, 2), free=free))
        elif kind == "float":
            self.tensors.append(self.input("float", (steps, 3), free=free))
        elif kind == "padded":
            self.apply(("Masking", {}), self.input("float_padded", (steps, 3), free=free))
        elif kind == "text":
            ids = self.input("ids_padded", (steps, 3), free=free)
            self.apply(_embedding(mask=self.source.often()), ids)
        else:
            ids = self.input(kind, (steps,), free=free)
            encode = kind == "ids" and self.source.keras3 and self.source.seldom()
            one_hot = ("CategoryEncoding", {"num_tokens": VOCABULARY, "output_mode": "one_hot"})
            self.apply(one_hot if encode else _embedding(mask=kind == "ids_padded"), ids)


def _embedding(mask: bool) -> Layer:
    return "Embedding", {"input_dim": VOCABULARY, "output_dim": 3, "mask_zero": mask}


def _alike(a: Tensor, b: Tensor) -> bool:
    return (a.shape, a.free, a.masked, a.whole) == (b.shape, b.free, b.masked, b.whole)


def _part(start: int | None = None, stop: int | None = None, step: int | None = None) -> Any:
    """Return a slice as a literal; ``keras_worker`` makes slices of them."""
    return ("part", start, stop, step)


def _texts(structure: Any) -> Iterator[str]:
    if isinstance(structure, str):
        yield structure
    elif isinstance(structure, Mapping):
        yield from _texts(list(structure.values()))
    elif isinstance(structure, list):
        for part in structure:
            yield from _texts(part)


@st.composite
def graphs(draw: Callable[[Any], Any], package: str, *, operations: bool = False) -> Graph:
    """A graph for the Keras called ``package``: "keras", "tf_keras" or "keras2".

    operations: with Python's operators, which ``graph_specs`` does not know.
    """
    return draw_graph(Source(draw, package), operations=operations)


def draw_graph(source: Source, *, operations: bool = False) -> Graph:
    """Draw a graph from any source of choices."""
    drawing = Drawing(source, depth=2, operations=operations)
    for _ in range(drawing.source.pick((1, 2, 3))):
        drawing.begin()
    drawing.grow(drawing.source.pick(range(1, 9)))
    for tensor in drawing.ends():
        if tensor.name.startswith("in"):  # an input that nobody reads belongs to no model
            drawing.dense(tensor, 3)
    return drawing.graph()


def classes(graph: Graph) -> set[str]:
    """The layer classes of a graph, those inside others too."""
    found: set[str] = set()

    def visit(value: Any) -> None:
        if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], dict):
            found.add(value[0])
        if isinstance(value, Mapping):
            value = list(value.values())
        if isinstance(value, list | tuple):
            for part in value:
                visit(part)

    visit(graph)
    return found
