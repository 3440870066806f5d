"""Plugins and the fixtures of custom layers."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import fixture_files
import numpy as np
from commands import Run, k2t
from torch import nn
from torch_runs import outputs_of

from keras2torch_birnn.layers.building import build
from keras2torch_birnn.plugins import load_plugins
from keras2torch_birnn.plugins.checks import complete_shapes
from keras2torch_birnn.readers import read_model
from keras2torch_birnn.schema.custom_layers import REGISTERED
from keras2torch_birnn.spec import Array, ModelSpec

FIXTURES = fixture_files.FIXTURES / "plugins"
ENTRIES: Mapping[str, Any] = {
    entry["file"]: entry
    for entry in json.loads((FIXTURES / "manifest.json").read_text("utf-8"))["files"]
}
# What each file shows, for the choice of ``make test``: its case and its writer.
FEATURES: Mapping[str, list[tuple[str, ...]]] = {
    file: [("case", entry["case"]), ("label", entry["label"])] for file, entry in ENTRIES.items()
}
USERS = Path(__file__).parents[1] / "plugins" / "layers_of_users.py"
CENTER = FIXTURES / "tf.keras-2.15.0" / "center.h5"
LAMBDAS = FIXTURES / "keras-2.2.4" / "lambdas.h5"
AVERAGE = FIXTURES / "keras-2.2.4" / "average.h5"
EXAMPLES = Path(__file__).parents[2] / "examples" / "plugins"
AVERAGE_PLUGIN = str(EXAMPLES / "attention_weighted_average.py")
# Of the example's copies, gone with the process.
_COPIES = TemporaryDirectory()
ATOL, RTOL, EXACT = 1e-5, 1e-4, 1e-12
# A row of masked steps alone: its scores are around -10000, where float32 has steps of 0.001.
FAR = 5e-4

# A plugin for ``CenterSteps``; ``{mask}`` is what it says about masks.
PASSIVE = """
class Mine(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(layer.weights["scale"]))
        self.shift = nn.Parameter(torch.tensor(layer.weights["shift"]))

    def forward(self, x, mask=None):
        self.seen = mask
        return x * self.scale + self.shift

@k2t.converts("CenterSteps", weights=("scale", "shift"){mask})
def center(layer):
    return Mine(layer)
"""


@contextmanager
def forgetting_plugins() -> Iterator[None]:
    """Begin without plugins, forget those of the block, and bring the earlier ones back."""
    tables = _tables()
    kept = [dict(table) for table in tables]
    unregister_all()
    try:
        yield
    finally:
        unregister_all()
        for table, old in zip(tables, kept, strict=True):
            table.update(old)


def unregister_all() -> None:
    """Forget every plugin of this process."""
    for table in _tables():
        table.clear()
    for name in [n for n in sys.modules if n.startswith("keras2torch_birnn.plugins.")]:
        del sys.modules[name]


def _tables() -> tuple[dict[str, Any], ...]:
    return (
        REGISTERED.layers,
        REGISTERED.lambdas,
        REGISTERED.equations,
        REGISTERED.initial_states,
        REGISTERED.loaded,
    )


def plugin_of(file: str) -> str:
    """Return the name or path of the plugin that a fixture needs."""
    folder, _, case = file.partition("/")
    by_case = {
        "average": AVERAGE_PLUGIN,
        "contrib": "keras-contrib-crf",
        "addons": str(EXAMPLES / "tensorflow_addons_crf.py"),
    }
    if folder.startswith("self-attention"):
        return str(self_attention(folder.rpartition("-")[2]))
    start = case.partition("_")[0].partition(".")[0]
    return by_case.get(start, str(USERS))


@cache
def self_attention(edition: str) -> Path:
    """Return the example's plugin of keras-self-attention, set to an edition."""
    text = (EXAMPLES / "keras_self_attention.py").read_text("utf-8")
    assert 'EDITION = "0.51"' in text
    file = Path(_COPIES.name) / f"keras_self_attention_{edition}.py"
    file.write_text(text.replace('EDITION = "0.51"', f'EDITION = "{edition}"'), "utf-8")
    return file


def read_arrays(file: str) -> tuple[Array, list[Array]]:
    """Read the input and the outputs of a fixture."""
    with np.load(FIXTURES / ENTRIES[file]["npz"]) as data:
        count = sum(name.startswith("out_") for name in data.files)
        return data["in_0"], [data[f"out_{i}"] for i in range(count)]


def read(file: str) -> ModelSpec:
    config = ENTRIES[file]["config"]
    return complete_shapes(read_model(FIXTURES / file, config=config and FIXTURES / config))


def run(spec: ModelSpec, x: Array, dtype: str | None = None) -> list[Array]:
    """Compute the outputs of a model in torch."""
    x = x.astype(np.float64) if dtype and x.dtype.kind == "f" else x
    return outputs_of(build(spec, dtype=dtype), x)


def gives_what_keras_gave(model: nn.Module, file: str) -> bool:
    """Tell whether a converted model computes what is recorded of a fixture."""
    x, wanted = read_arrays(file)
    return not differ(outputs_of(model, x), wanted, ATOL, RTOL)


def differ(a: list[Array], b: list[Array], atol: float, rtol: float) -> bool:
    return len(a) != len(b) or not all(
        x.shape == y.shape and np.allclose(x, y, atol=atol, rtol=rtol)
        for x, y in zip(a, b, strict=True)
    )


def write_plugin(folder: Path, text: str) -> Path:
    """Write a plugin; the imports are added."""
    file = folder / "mine.py"
    start = "import torch\nfrom torch import nn\nimport keras2torch_birnn as k2t\n"
    file.write_text(start + text, encoding="utf-8")
    return file


def converter(
    body: str = "return nn.Identity()", options: str = 'mask="passes"', name: str = "CenterSteps"
) -> str:
    """Return the text of a converter with this body, which names the weights of CenterSteps."""
    if name == "CenterSteps" and "weights=" not in options:
        options += ', weights=("scale", "shift")'
    return f'@k2t.converts("{name}", {options})\ndef mine(layer):\n    {body}\n'


def module_converter(arguments: str, body: str, options: str = 'mask="passes"') -> str:
    """Return the text of a module whose forward function has this body, and of its converter."""
    forward = f"    def forward(self, {arguments}):\n        {body}\n"
    return f"class Mine(nn.Module):\n{forward}{converter('return Mine()', options)}"


def changed_users(folder: Path, *changes: tuple[str, str]) -> Path:
    """Write the users' plugin with other words."""
    text = USERS.read_text("utf-8")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    file = folder / "changed.py"
    file.write_text(text, "utf-8")
    return file


def convert_and_verify(source: Path, out: Path, plugin: Path) -> Run:
    """Convert a model, and return how its verification against the reference ends."""
    done = k2t("convert", source, out, "--plugin", plugin)
    assert done.code == 0, done.err
    return k2t("verify", source, out, "--plugin", plugin, "--against", "reference")


def read_with_users(file: str) -> ModelSpec:
    load_plugins([USERS])
    return read(file)
