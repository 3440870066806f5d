"""Content of a checkpoint, written to and read from ``.pt`` and ``.safetensors``."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from keras2torch_birnn.errors import (
    InvalidModelFileError,
    UsageError,
    expecting_keras,
    invalid,
    printable,
)
from keras2torch_birnn.golden import Golden
from keras2torch_birnn.progress import begin
from keras2torch_birnn.readers.input_files import Window, open_file, parse_object
from keras2torch_birnn.readers.kept import KeptModel
from keras2torch_birnn.readers.steps import infer_shapes, parse, read_weights
from keras2torch_birnn.saving.checkpoint_kind import FORMAT
from keras2torch_birnn.saving.validation import (
    KERAS_MODEL,
    NOT_OURS,
    REMEDY,
    STATE_DICT_REMEDY,
    check_archive,
    check_tensors,
)
from keras2torch_birnn.spec import Kept, ModelSpec

_HEAD = 4096  # bytes that tell what else a file is
_GOLDEN = "golden/"  # prefix of golden tensors in safetensors; no parameter's name has a slash


def name_golden(golden: Golden) -> dict[str, Tensor]:
    """Name the golden tensors as in safetensors."""
    return {
        f"{_GOLDEN}{kind}/{i:06d}": value
        for kind, values in (("inputs", golden.inputs), ("outputs", golden.outputs))
        for i, value in enumerate(values)
    }


def _describe_golden(golden: Golden) -> dict[str, Any]:
    return {
        "made_by": golden.made_by,
        "rounding": golden.rounding,
        "roundings": list(golden.roundings),
    }


def make_metadata(kept: Kept, golden: Golden, requires_grad: Mapping[str, bool]) -> dict[str, str]:
    """Make the metadata of a ``.safetensors`` file."""
    texts = {
        "format": FORMAT,
        **kept._asdict(),
        "golden": json.dumps(_describe_golden(golden)),
    }
    return texts | ({"requires_grad": json.dumps(requires_grad)} if requires_grad else {})


def make_content(
    kept: Kept, tensors: Mapping[str, Tensor], golden: Golden, requires_grad: Mapping[str, bool]
) -> dict[str, Any]:
    """Make the plain dict of a ``.pt`` file."""
    named = name_golden(golden)
    return {
        "format": FORMAT,  # first, because checkpoint_kind looks for it there
        **kept._asdict(),
        **({"requires_grad": dict(requires_grad)} if requires_grad else {}),
        "state_dict": {n: t for n, t in tensors.items() if n not in named},
        "golden": {
            kind: [tensors[name] for name in named if name.startswith(f"{_GOLDEN}{kind}/")]
            for kind in ("inputs", "outputs")
        }
        | _describe_golden(golden),
    }


def first_line(error: Exception) -> str:
    """Return the first line of an error's text."""
    return printable(str(error).strip().partition("\n")[0])


def read_content(path: Path) -> dict[str, Any]:
    """Read a checkpoint's dict from either format, and check its keys and their types."""
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        begin("loading", size)
        window = Window(file, 0, size)
        start = window.head(8)
        if start.startswith(b"\x89HDF"):
            raise InvalidModelFileError(*KERAS_MODEL)
        if start.startswith(b"PK"):
            check_archive(window)
            content = _from_torch(file)
        else:
            content = _from_safetensors(path, window)
    if content and content.get("format") is None and content.get("architecture") is None:
        raise InvalidModelFileError(f"{NOT_OURS} (a state_dict?)", STATE_DICT_REMEDY)
    version = content.get("format")
    if isinstance(version, str) and version != FORMAT and version.startswith("keras2torch_birnn/"):
        old = version == "keras2torch_birnn/1"
        raise InvalidModelFileError(
            f"format {printable(version)}, this k2t reads {FORMAT}",
            "convert it again" if old else "upgrade keras2torch_birnn",
        )
    texts = dict.fromkeys(("format", *Kept._fields), str)
    wanted = texts | {"state_dict": Mapping, "golden": Mapping}
    for key, kind in wanted.items():
        if not isinstance(content.get(key), kind):
            raise InvalidModelFileError(NOT_OURS, REMEDY, place=key)
    if content["format"] != FORMAT:
        raise InvalidModelFileError(NOT_OURS, REMEDY, place="format")
    check_tensors(content["state_dict"], "state_dict")
    return content


def _from_torch(file: BinaryIO) -> dict[str, Any]:
    file.seek(0)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds on damaged files
        raise InvalidModelFileError(f"{NOT_OURS} ({first_line(error)})", REMEDY) from None
    return content if isinstance(content, dict) else {}


def _from_safetensors(path: Path, window: Window) -> dict[str, Any]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            texts = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (safetensors.SafetensorError, OSError) as error:
        from keras2torch_birnn.readers.containers.mistakes import CONVERTED, describe

        known = describe("head", [window.head(_HEAD)])
        what = first_line(error) if known in (None, CONVERTED) else known[0]
        raise InvalidModelFileError(f"{NOT_OURS} ({what})", REMEDY) from None
    golden: dict[str, Any] = {"inputs": [], "outputs": []}
    for name in sorted(n for n in tensors if n.startswith(_GOLDEN)):
        golden.setdefault(name.split("/")[1], []).append(tensors.pop(name))
    objects: dict[str, dict[str, Any]] = {}
    for place in ("golden", "requires_grad"):
        try:
            objects[place] = dict(parse_object(texts.get(place, "{}"), place=place))
        except InvalidModelFileError:
            raise InvalidModelFileError(NOT_OURS, REMEDY, place=place) from None
    return {
        "format": texts.get("format"),
        **{key: texts.get(key) for key in Kept._fields},
        "state_dict": tensors,
        "golden": golden | objects["golden"],
        "requires_grad": objects["requires_grad"],
    }


def parse_spec(content: Mapping[str, Any]) -> ModelSpec:
    """Parse a checkpoint's texts by the steps that read a model; zeros stand for its weights."""
    kept = Kept(*(content[key] for key in Kept._fields))
    container = KeptModel(kept)
    container.check_size(sum(tensor.numel() for tensor in content["state_dict"].values()))
    try:
        reading = infer_shapes(parse(container, cut=container.cut))
    except UsageError as error:
        raise invalid(f"its cut: {error.message}", "facts") from None
    unknown = {one.place for one in reading.parsing.unknown}
    for problem in reading.problems:
        if problem.place in unknown:  # k2t has converted it
            problem.advice = "load the plugin that supplies it (--plugin, or plugins=)"
    reading.check()
    with expecting_keras("facts"):
        reading = read_weights(reading, values=False)
    container.check_read(reading.parsing.generation, reading.root)
    return replace(reading.spec, notes=container.notes, kept=kept)


_GOLDEN_KEYS = frozenset({"inputs", "outputs", "made_by", "rounding", "roundings"})


def parse_golden(content: Mapping[str, Any]) -> Golden:
    """Parse and check a checkpoint's golden vectors."""
    inputs, outputs, roundings = (
        found if isinstance(found := content.get(key, []), list) else None
        for key in ("inputs", "outputs", "roundings")
    )
    made_by, rounding = content.get("made_by"), content.get("rounding")
    if (
        not content.keys() <= _GOLDEN_KEYS
        or not inputs
        or outputs is None
        or roundings is None
        or len(roundings) not in (0, len(outputs))
        or made_by not in ("reference", "model")
        or not isinstance(rounding, float)
        or not all(isinstance(one, float) for one in roundings)
    ):
        raise InvalidModelFileError(NOT_OURS, REMEDY, place="golden")
    check_tensors({str(i): t for i, t in enumerate((*inputs, *outputs))}, "golden", arrays=True)
    return Golden(tuple(inputs), tuple(outputs), made_by, rounding, tuple(roundings))
