"""Values that a shell completes: those of an option, the layers of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import typer

from keras2torch_birnn.schema.shipped import SHIPPED
from keras2torch_birnn.spec import LayerSpec

Completion = Callable[[str], list[str]]


def complete_values(known: Iterable[str]) -> Completion:
    """Return a function that completes one of these values."""
    values = tuple(known)

    def complete(incomplete: str) -> list[str]:
        return [value for value in values if value.startswith(incomplete)]

    return complete


def complete_merges(incomplete: str) -> list[str]:
    """Complete the last of several merge modes, or all of them."""
    from keras2torch_birnn.merge_modes import MERGE_MODES

    before, comma, last = incomplete.rpartition(",")
    modes = [*MERGE_MODES, *(() if comma else ("all",))]
    return [f"{before}{comma}{mode}" for mode in modes if mode.startswith(last)]


def complete_plugins(incomplete: str) -> list[str]:
    """Complete the name of a shipped plugin, or of a Python file."""
    folder = Path(incomplete) if incomplete.endswith("/") else Path(incomplete).parent
    inside = sorted(folder.iterdir()) if folder.is_dir() else ()
    files = [f"{one}/" if one.is_dir() else str(one) for one in inside]
    python = (name for name in files if name.endswith((".py", "/")))
    return [name for name in (*SHIPPED, *python) if name.startswith(incomplete)]


def complete_classes(incomplete: str) -> list[str]:
    """Complete the class of a layer that can be converted."""
    from keras2torch_birnn.cli.catalogue import catalogue

    return [row.class_name for row in catalogue() if row.class_name.startswith(incomplete)]


def complete_layers(ctx: typer.Context, incomplete: str) -> list[str]:
    """Complete the path of a layer of the model that is before it on the line."""
    # Where the option in front has no value yet, the parser gives up and leaves the arguments here.
    model = next((one for one in ctx.args if not one.startswith("-")), None)
    if model is None:
        return []
    from keras2torch_birnn.readers import read_with_problems

    try:
        spec, _ = read_with_problems(Path(model), values=False)
    except Exception:  # the command will say so
        return []
    return [path for path in _list_layers(spec.root) if path.startswith(incomplete)]


def _list_layers(model: LayerSpec, before: str = "") -> Iterator[str]:
    for layer in model.graph.layers if model.graph is not None else ():
        if layer.class_name != "InputLayer":
            yield before + layer.name
        yield from _list_layers(layer, f"{before}{layer.name}/")
