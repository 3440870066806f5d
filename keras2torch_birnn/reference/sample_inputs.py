"""Random inputs for a model: ids below the vocabulary, padding of every kind. NumPy only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from keras2torch_birnn.limits import MAX_TRIED_BATCHES
from keras2torch_birnn.reference.input_sizes import (
    Shapes,
    declare_shapes,
    fill_shape,
    fill_shapes,
    shapes_agree,
)
from keras2torch_birnn.schema import AUGMENTATION, DROPOUT, OPS, RESHAPED, SCHEMA
from keras2torch_birnn.schema.custom_layers import custom_layer_of, own_vocabulary
from keras2torch_birnn.schema.dtype_flow import declared_dtype
from keras2torch_birnn.schema.shape_inference import check_batch_memory, limit_rows
from keras2torch_birnn.spec import Array, Constant, Graph, LayerSpec, ModelSpec, leaves, tensors

# Rows of a batch: a full one, and one for each kind of padding.
ROWS = 5
# Layers that hand on their input's values (not their places), at inference.
HANDS_ON = frozenset(("InputLayer", *RESHAPED, *DROPOUT, *AUGMENTATION))
# Layers that take ids -> their option that says how many there are.
_VOCABULARY: Mapping[str, str] = {
    "Embedding": "input_dim",
    "CategoryEncoding": "num_tokens",
}
# Integers of unknown use are below this and below every vocabulary of the model; below two where a
# plugin's layer may take them for ids and does not state their number.
_WHOLE, _FEWEST = 10, 2


@dataclass(frozen=True)
class InputFacts:
    """Facts on one model input: ids below ``vocabulary``, reals or, with ``is_bool``, bools.

    ``is_integer``: it is declared as integers, also where no vocabulary is found. ``padding``: the
    value of a masked step.
    """

    shape: tuple[int | None, ...] | None
    vocabulary: int | None = None
    padding: float | None = None
    is_bool: bool = False
    is_integer: bool = False


def input_facts(model: ModelSpec) -> tuple[InputFacts, ...]:
    """Return facts on every input, in order, found by following its values through the graph."""
    names = [ref.layer for ref in leaves(model.graph.inputs)]
    found = {name: _declared(model.graph.layer(name)) for name in names}
    for origin, layer, sure in _readers(model.graph, {name: name for name in names}):
        facts = found[origin]
        if not (sure or facts.is_integer):
            continue
        if (size := _vocabulary(layer)) is not None:
            found[origin] = replace(
                facts,
                vocabulary=min(size, facts.vocabulary or size),
                padding=0.0 if layer.config.get("mask_zero") else facts.padding,
            )
        elif layer.class_name == "Masking":
            found[origin] = replace(facts, padding=layer.config["mask_value"])
    least = _least_vocabulary(model)
    return tuple(
        replace(one, vocabulary=least) if one.is_integer and one.vocabulary is None else one
        for one in (found[name] for name in names)
    )


def _least_vocabulary(model: ModelSpec) -> int:
    """Return the number of ids that every layer of the model accepts."""
    silent = any(
        custom_layer_of(layer) is not None and _vocabulary(layer) is None
        for layer in model.root.walk()
    )
    sizes = [_vocabulary(layer) for layer in model.root.walk()]
    return min((_WHOLE, *([_FEWEST] if silent else []), *(size for size in sizes if size)))


def _vocabulary(layer: LayerSpec) -> int | None:
    """Return the number of ids that a layer accepts; None if it does not take ids."""
    if custom_layer_of(layer) is not None:
        return own_vocabulary(layer)
    option = _VOCABULARY.get(layer.class_name)
    return None if option is None else int(layer.config[option])


def _declared(layer: LayerSpec) -> InputFacts:
    kind = declared_dtype(layer)
    return InputFacts(
        layer.config["shape"], is_bool=kind == "bool", is_integer=kind.startswith("int")
    )


def _readers(graph: Graph, origins: Mapping[str, str]) -> Iterator[tuple[str, LayerSpec, bool]]:
    """Yield (model input, layer, sure) for every layer that reads ids or padding as it is.

    ``sure``: False where a plugin's layer reads several tensors, of which only some are ids.
    """
    known: dict[tuple[str, int], str] = {}
    for call in graph.calls:
        layer = graph.layer(call.layer)
        if layer.class_name == "InputLayer":
            if call.layer in origins:
                known[call.layer, 0] = origins[call.layer]
            continue
        refs = list(tensors(call.args))
        sources = [known.get((ref.layer, ref.call)) for ref in refs]
        if not any(sources):
            continue
        inner = layer.parts["layer"] if layer.class_name == "TimeDistributed" else layer
        if inner.graph is not None:
            ends = [ref.layer for ref in leaves(inner.graph.inputs)]
            reached = {e: s for e, s in zip(ends, sources, strict=False) if s}
            yield from _readers(inner.graph, reached)
        elif custom_layer_of(inner) is not None and _vocabulary(inner) is not None:
            yield from ((source, inner, len(sources) == 1) for source in sources if source)
        elif sources[0] and (len(sources) == 1 or inner.class_name == "CategoryEncoding"):
            if inner.class_name == "Masking" or _vocabulary(inner) is not None:
                yield sources[0], inner, True
            if inner.class_name in HANDS_ON:
                known[call.layer, call.index] = sources[0]


Shape: TypeAlias = tuple[int, ...]
OpenShape: TypeAlias = tuple[int | None, ...]
# How real numbers are drawn
Values: TypeAlias = Callable[[np.random.Generator, Shape], Array]


def normal(rng: np.random.Generator, shape: Shape) -> Array:
    """Draw normal numbers: they reach every weight, and drive some trained models into chaos."""
    return rng.standard_normal(shape).astype(np.float32)


def _shares(rng: np.random.Generator, shape: Shape) -> Array:
    """Draw rows that are positive and sum to 1."""
    x = rng.random(shape) ** 4
    shares: Array = (x / x.sum(axis=-1, keepdims=True)).astype(np.float32)
    return shares


def _one_hot(rng: np.random.Generator, shape: Shape) -> Array:
    """Draw rows with a single 1."""
    hot: Array = np.eye(shape[-1], dtype=np.float32)[rng.integers(0, shape[-1], shape[:-1])]
    return hot


def _times(factor: float) -> Values:
    return lambda rng, shape: normal(rng, shape) * np.float32(factor)


# In the order in which they are tried: the first is the hardest on a wrong model.
_KINDS: Mapping[str, Values] = {
    "normal numbers": normal,
    "rows that sum to 1": _shares,
    "one-hot rows": _one_hot,
    "normal numbers times 0.1": _times(0.1),
    "normal numbers times 0.01": _times(0.01),
}


class Drawn(NamedTuple):
    """Inputs of a model, and a description of them."""

    name: str
    arrays: tuple[Array, ...]


def candidates(
    model: ModelSpec, *, steps: int, seed: int, shorten: bool = False
) -> Iterator[Drawn]:
    """Draw several batches of different kinds, one at a time: see ``draw_inputs``.

    After those of the file's own length follow shorter ones, where the model allows that.
    """
    seen: set[bytes] = set()
    facts = input_facts(model)
    for short in (False, True):
        shapes = _choose_shapes(model, facts, steps, shorten=shorten or short)
        for name, values in _KINDS.items():
            arrays = _draw_all(facts, shapes, seed, values)
            drawn = b"".join(repr(x.shape).encode() + x.tobytes() for x in arrays)
            if drawn not in seen:  # ids are drawn alike, and not every model has a shorter input
                seen.add(drawn)
                yield Drawn(f"{name}, {steps} steps" if short else name, arrays)


def draw_inputs(model: ModelSpec, *, steps: int, seed: int) -> tuple[Array, ...]:
    """Draw one batch: float32 or int32 arrays, ``steps`` or the next fitting size for a free axis.

    Where a mask begins at an input, rows are full, right-padded, left-padded, gappy and empty.
    """
    facts = input_facts(model)
    return _draw_all(facts, _choose_shapes(model, facts, steps, shorten=False), seed, normal)


def check_memory(model: ModelSpec, *, steps: int, shorten: bool) -> None:
    """Refuse a model whose batches would need too much memory.

    Raises:
        UnsupportedOptionError: it is one.
    """
    _choose_shapes(model, input_facts(model), steps, shorten=shorten)


def _choose_shapes(
    model: ModelSpec, facts: tuple[InputFacts, ...], steps: int, *, shorten: bool
) -> list[Shape]:
    """Choose the shapes of a batch, each axis included; see ``draw_inputs``.

    shorten: use ``steps`` also for a fixed second axis, where the model lets itself be computed on
    that (one that flattens its steps does not).
    """
    declared = [f.shape for f in facts]
    if shorten and all(_can_shorten(shape, steps) for shape in declared):
        shorter = [
            (shape[0], steps, *shape[2:]) if shape and _has_steps(f) else shape
            for f, shape in zip(facts, declared, strict=True)
        ]
        fits = _fits(model, [fill_shape(shape, steps) for shape in shorter])
        declared = shorter if fits else declared
    filled = fill_shapes(model, declared, steps)
    rows = ROWS if any(f.padding is not None for f in facts) else 3
    rows = next((shape[0] for shape in filled if shape and shape[0]), None) or _fitting_rows(
        model, filled, rows
    )
    known = [shape or (None, steps) for shape in filled]
    if not any(shape[0] for shape in known):
        fewer = limit_rows(model, _size_rows(known, 1), rows)
        rows = fewer if fewer == rows or _fits(model, _size_rows(known, fewer)) else rows
    shapes = _size_rows(known, rows)
    check_batch_memory(model, shapes)
    return shapes


def _size_rows(shapes: Iterable[OpenShape], rows: int) -> list[Shape]:
    return [_sized(shape, rows) for shape in shapes]


def _sized(shape: OpenShape, rows: int) -> Shape:
    return tuple(rows if size is None else size for size in (None, *shape[1:]))


def _draw_all(
    facts: Sequence[InputFacts], shapes: Sequence[Shape], seed: int, values: Values
) -> tuple[Array, ...]:
    """Draw an array for each input."""
    rng = np.random.default_rng(seed)
    return tuple(
        _draw(f, shape, place, rng, values)
        for place, (f, shape) in enumerate(zip(facts, shapes, strict=True))
    )


def _fitting_rows(model: ModelSpec, shapes: Shapes, rows: int) -> int:
    """Return ``rows``, or a number of rows that an operation demands without an input's saying so.

    ``tf.reshape(x, (32, -1, 5))`` and constants of 32 rows fit no other batch.
    """
    if not any(layer.class_name in OPS for layer in model.root.walk()):
        return rows
    sizes = [rows, *_sizes_of_operations(model)]
    return next((n for n in sizes if _fits(model, [s and _sized(s, n) for s in shapes])), rows)


def _sizes_of_operations(model: ModelSpec) -> list[int]:
    """Return the numbers that may be a batch, or the least one that an index points into.

    They are in options of operations, first axes of constants, and the largest constant indices.
    """
    found: set[int] = set()
    for layer in model.root.walk():
        if layer.class_name in OPS:
            found.update(_numbers_in(list(layer.config.values())))
            found.update(index + 1 for index in _numbers_in(layer.config.get("key")))
        for call in layer.graph.calls if layer.graph is not None else ():
            for given in leaves(call.args):
                values = given.values if isinstance(given, Constant) else (given,)
                found.update(given.shape[:1] if isinstance(given, Constant) else ())
                found.add(max(_numbers_in(values), default=0) + 1)
    several = sorted(size for size in found if size > 1)
    return [*several, 1][:MAX_TRIED_BATCHES]  # one row fits most, and shows least


def _numbers_in(value: Any) -> Iterator[int]:
    if type(value) is int:
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _numbers_in(part)


def _has_steps(facts: InputFacts) -> bool:
    """Tell whether the second axis is time: reals (B, F) are a vector, such as an initial state."""
    ids = facts.vocabulary is not None or facts.is_bool
    return facts.shape is not None and (len(facts.shape) > 2 or (ids and len(facts.shape) > 1))


def _can_shorten(shape: tuple[int | None, ...] | None, steps: int) -> bool:
    return shape is None or len(shape) < 3 or shape[1] is None or shape[1] > steps


def free_steps(model: ModelSpec) -> ModelSpec:
    """Return the model with a free time axis wherever its weights do not fix the length.

    One axis of time that is fixed keeps all of them as they are. An axis of one value is no time:
    layers such as a CategoryEncoding remove it, and only if it has one.
    """
    freed = [
        (one.shape[0], None, *one.shape[2:])
        if one.shape and _has_steps(one) and one.shape[1] != 1
        else one.shape
        for one in input_facts(model)
    ]
    if not all(_fits(model, [fill_shape(shape, steps) for shape in freed]) for steps in (7, 11)):
        return model
    return declare_shapes(model, freed)


def _fits(model: ModelSpec, shapes: Shapes) -> bool:
    """Tell whether shapes and weights agree with inputs of these shapes."""
    if any(layer.class_name not in SCHEMA for layer in model.root.walk()):
        return False  # the output shape of a plugin's layer is not known then
    return shapes_agree(model, shapes)


def _draw(
    facts: InputFacts, shape: Shape, place: int, rng: np.random.Generator, values: Values
) -> Array:
    x: Array
    if facts.is_bool:
        return np.asarray(rng.random(shape) < 0.6)
    if facts.vocabulary is not None:
        first = 1 if facts.padding is not None and facts.vocabulary > 1 else 0
        x = rng.integers(first, facts.vocabulary, shape).astype(np.int32)
    else:
        x = values(rng, shape)
    if facts.padding is None or len(shape) < 2:
        return x
    for row in range(len(x)):  # other kinds meet in a row of each input
        x[row, ~_kept((row + place) % ROWS, shape[1])] = facts.padding
    return x


def _kept(kind: int, steps: int) -> Array:
    """Return the valid steps of a row: all, a left part, a right part, some, none."""
    t = np.arange(steps)
    part = max(1, (2 * steps) // 3)
    kinds: list[Array] = [t >= 0, t < part, t >= steps - part, (t * 7 + 3) % 5 > 1, t < 0]
    return kinds[kind]
