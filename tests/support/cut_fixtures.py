"""Models of tutorials that must be cut; a part of a model is fed what the whole computed."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from specs import FIXTURES

from keras2torch_birnn.readers.config.architecture import Parsing, parse_architecture
from keras2torch_birnn.readers.config.generations import generation_of
from keras2torch_birnn.reference import Trace
from keras2torch_birnn.spec import Array, Cut, LayerSpec, ModelSpec, leaves, tensors

CUT = FIXTURES / "cut"
MANIFEST: Mapping[str, Any] = json.loads((CUT / "manifest.json").read_text("utf-8"))
ROWS: Mapping[str, Mapping[str, Any]] = {row["file"]: row for row in MANIFEST["files"]}
# Every way to name the part of every file.
CUTS = [(file, number) for file, row in ROWS.items() for number in range(len(row["cuts"]))]


def unpacked(file: str, folder: Path) -> tuple[Path, Path | None]:
    """Return the paths of model and architecture; what is packed is unpacked into ``folder``."""
    row = ROWS[file]
    path = CUT / file
    if row["model"]:
        with tarfile.open(path) as archive:
            archive.extractall(folder, filter="data")
        path = folder / row["model"]
    config = (folder if row["model"] else path.parent) / row["config"]
    return path, config if row["config"] else None


def cut_of(file: str, number: int = 0) -> Cut:
    """Return one of the ways to name the part."""
    named = ROWS[file]["cuts"][number]
    return Cut(tuple(named["from"]), tuple(named["to"]))


def recorded(file: str) -> tuple[list[Array], list[Array]]:
    """Return inputs and outputs of the part, as Keras computed them."""
    with np.load(CUT / ROWS[file]["arrays"]) as data:
        names = sorted(data.files)
        return [data[n] for n in names if n[0] == "x"], [data[n] for n in names if n[0] == "y"]


# ---- graphs by hand -----------------------------------------------------------------------------


def layer(class_name: str, name: str, nodes: Any = None, **config: Any) -> dict[str, Any]:
    """Describe a layer as tf.keras does; ``nodes``: the names of what each call reads."""
    entry = {"class_name": class_name, "name": name, "config": {"name": name, **config}}
    calls = [] if nodes is None else nodes
    return {**entry, "inbound_nodes": [[[*_ref(ref), {}] for ref in call] for call in calls]}


def _ref(text: str) -> list[Any]:
    name, _, call = text.partition("#")
    return [name, int(call or 0), 0]


def functional(
    inputs: Sequence[str], outputs: Sequence[str], *layers: dict[str, Any], name: str = "model"
) -> dict[str, Any]:
    """Describe a functional model."""
    return {
        "class_name": "Functional",
        "name": name,
        "config": {
            "name": name,
            "layers": list(layers),
            "input_layers": [_ref(one) for one in inputs],
            "output_layers": [_ref(one) for one in outputs],
        },
    }


def parsed(model: dict[str, Any], version: str = "2.15.0") -> tuple[LayerSpec, Parsing]:
    """Parse a description."""
    parsing = Parsing(generation_of(version))
    return parse_architecture(model, parsing), parsing


# ---- parts and wholes ---------------------------------------------------------------------------


def fed(whole: ModelSpec, cut: Cut, part: ModelSpec, inputs: Sequence[Array], trace: Trace) -> Any:
    """Return inputs of the part: what the whole computed at the cut; None if that is not known."""
    names = [one.name for one in part.input_layers()]
    known = dict(zip((one.name for one in whole.input_layers()), inputs, strict=True))
    known |= dict(_entering(whole, cut, trace, known))
    return [known[name] for name in names] if all(name in known for name in names) else None


def _entering(
    whole: ModelSpec, cut: Cut, trace: Trace, known: Mapping[str, Array]
) -> Iterator[tuple[str, Array]]:
    """Yield the name of each new input and its value."""
    for path in cut.first:
        calls = [call for call in whole.graph.calls if call.layer == path]
        refs = dict.fromkeys(ref for c in calls for ref in tensors((c.args, c.kwargs)))
        count = 0
        for ref in refs:
            if ref.layer in known:
                continue
            count += 1
            step = ref.layer if ref.call == 0 else f"{ref.layer}#{ref.call}"
            found = trace.layers.get(step)
            if found is not None:
                label = f"{path}_input" + (f"_{count}" if count > 1 else "")
                yield label, list(leaves(found))[ref.output]
