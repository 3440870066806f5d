"""Check that a trained model was converted from the model whose weights it is to replace."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, TypeAlias

from keras2torch_birnn.errors import WeightMismatchError, printable
from keras2torch_birnn.spec import ModelSpec

_SHOWN = 80
_ADVICE = "give the model that OUT was converted from"
_Facts: TypeAlias = Mapping[str, Any]  # of a layer, as in the JSON text of a spec


@dataclass(frozen=True)
class _Difference:
    place: str
    trained: str
    source: str


def check_same_model(trained: ModelSpec, source: ModelSpec) -> None:
    """Refuse models with different layers, options, connections or Keras versions.

    Raises:
        WeightMismatchError: names the first difference.
    """
    there, here = (json.loads(spec.to_json()) for spec in (trained, source))
    first = next(_differences(there, here), None)
    if first is not None:
        raise WeightMismatchError(
            f"another model than that of OUT: {first.source} here, {first.trained} there",
            _ADVICE,
            place=printable(first.place),
        )


def _differences(trained: _Facts, source: _Facts) -> Iterator[_Difference]:
    before, after = (
        f"Keras {printable(one['generation']['name'])} {printable(one['generation']['version'])}"
        for one in (trained, source)
    )
    if before != after:
        yield _Difference("", before, after)
    yield from _of_layers(trained["root"], source["root"], "")


def _of_layers(trained: _Facts | None, source: _Facts | None, place: str) -> Iterator[_Difference]:
    """Yield the differences of two layers and of all inside them.

    An option that only one of them has is passed over: another version of k2t may have written it.
    """
    before, after = _describe(trained), _describe(source)
    if trained is None or source is None or before != after:
        yield _Difference(place, before, after)
        return
    was, now = trained["config"], source["config"]
    for option in now:
        if option in was and was[option] != now[option]:
            one, other = (f"{printable(option)}={_short(c[option])}" for c in (was, now))
            yield _Difference(place or source["name"], one, other)
    parts, own = trained.get("parts", {}), source.get("parts", {})
    for key in dict.fromkeys((*own, *parts)):
        yield from _of_layers(parts.get(key), own.get(key), f"{place}/{key}".lstrip("/"))
    yield from _of_graphs(trained.get("graph"), source.get("graph"), place)


def _of_graphs(trained: _Facts | None, source: _Facts | None, place: str) -> Iterator[_Difference]:
    if trained is None or source is None:
        if trained is not source:
            yield _Difference(place, _graph(trained), _graph(source))
        return
    for one, other in zip_longest(trained["layers"], source["layers"]):
        name = (one if other is None else other)["name"]
        yield from _of_layers(one, other, f"{place}/{name}".lstrip("/"))
    for key in ("calls", "inputs", "outputs"):
        for one, other in zip_longest(_items(trained[key]), _items(source[key])):
            if one != other:
                yield _Difference(place, f"{key[:-1]} {_short(one)}", f"{_short(other)}")


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _graph(graph: _Facts | None) -> str:
    return "a model" if graph is not None else "no model"


def _describe(layer: _Facts | None) -> str:
    if layer is None:
        return "nothing"
    return f"{printable(layer['name'])} ({printable(layer['class_name'])})"


def _short(value: Any) -> str:
    return printable(json.dumps(value), _SHOWN)
