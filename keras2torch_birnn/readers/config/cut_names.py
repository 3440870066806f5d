"""Find the layers at which a model is to be cut, by path or by a name that is unique."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import TypeAlias

from keras2torch_birnn.errors import UsageError, printable
from keras2torch_birnn.spec import Cut, LayerSpec

# The names of a layer and of the models around it, outermost first.
Path: TypeAlias = tuple[str, ...]
_SHOWN = 8
_COMPARED = 1000  # names that are compared with a wrong one, which is slow


def find_layers(root: LayerSpec, cut: Cut) -> tuple[list[Path], list[Path]]:
    """Return the paths of the first and of the last layers of the part.

    Raises:
        UsageError: a name that no layer has, or several, or that names no layer of a graph.
    """
    known = dict(_named_layers(root))
    first = [_find("--from", name, known, root) for name in cut.first]
    last = [_find("--to", name, known, root) for name in cut.last]
    for option, paths in (("--from", first), ("--to", last)):
        _check_apart(option, paths)
    return first, last


def _named_layers(model: LayerSpec, outer: Path = ()) -> Iterator[tuple[Path, LayerSpec]]:
    """Yield every layer of the model's graph, and of the models in it."""
    for layer in model.graph.layers if model.graph else ():
        yield (*outer, layer.name), layer
        yield from _named_layers(layer, (*outer, layer.name))


def _find(option: str, name: str, known: Mapping[Path, LayerSpec], root: LayerSpec) -> Path:
    shown = f"{option} {printable(name)}"
    by_path = [path for path in known if "/".join(path) == name]
    found = by_path or [path for path in known if path[-1] == name]
    if not found:
        raise _no_layer(shown, name, known, root)
    if len(found) > 1:
        raise UsageError(
            f"{shown}: {len(found)} layers are called so",
            f"give the path of one: {_list(['/'.join(path) for path in found])}",
        )
    if known[found[0]].class_name == "InputLayer":
        starts = "the model starts there without it" if option == "--from" else "nothing ends there"
        raise UsageError(f"{shown}: is an input, not a layer that computes", starts)
    return found[0]


def _no_layer(
    shown: str, name: str, known: Mapping[Path, LayerSpec], root: LayerSpec
) -> UsageError:
    for path, layer in known.items():
        inside = [part for part in layer.walk() if part is not layer] if layer.parts else []
        if any(name in (part.place, part.name) for part in inside):
            outer = "/".join(path)
            return UsageError(
                f"{shown}: is inside the {printable(layer.class_name)} {printable(outer)}, which "
                "cannot be cut",
                f"name {printable(outer)} itself, or a layer beside it",
            )
    places = ["/".join(path) for path, layer in known.items() if layer.class_name != "InputLayer"]
    compared = [*places[:_COMPARED], *(path[-1] for path in list(known)[:_COMPARED])]
    close = get_close_matches(name, compared, _SHOWN)
    names = list(dict.fromkeys(close)) or places
    return UsageError(
        f"{shown}: no layer of the model {printable(root.name)} is called so",
        f"{'did you mean' if close else 'its layers are'}: {_list(names)}",
    )


def _list(names: Sequence[str]) -> str:
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(printable, names[:_SHOWN])) + more


def _check_apart(option: str, paths: Sequence[Path]) -> None:
    """Refuse a layer that is named twice, or whose model is named as well."""
    for number, path in enumerate(paths):
        for other in (*paths[:number], *paths[number + 1 :]):
            if path[: len(other)] == other:
                raise UsageError(
                    f"{option} {printable('/'.join(path))}: "
                    + ("is named twice" if path == other else "is inside of another that is named"),
                    "name each layer once",
                )
