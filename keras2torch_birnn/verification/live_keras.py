"""Compute the model's outputs in live Keras, if one is installed that can load the file.

Keras always runs in a child process: this process never imports Keras or TensorFlow. Old files are
loaded by ``tf_keras`` only: Keras 3 would silently change their hard_sigmoid.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from keras2torch_birnn.errors import in_file, printable
from keras2torch_birnn.limits import MAX_KERAS_SECONDS
from keras2torch_birnn.readers import read_architecture
from keras2torch_birnn.readers.containers import opened
from keras2torch_birnn.readers.containers.container import ModelSource, Source, source_of
from keras2torch_birnn.readers.containers.live_model import write_live
from keras2torch_birnn.readers.containers.tensorflow import TensorFlowContainer
from keras2torch_birnn.readers.containers.tfjs import TensorFlowJS
from keras2torch_birnn.readers.steps import holds_model, read_given_config
from keras2torch_birnn.spec import Array, ModelSpec
from keras2torch_birnn.suggestions import advise_extra
from keras2torch_birnn.verification.allow_list import foreign_name

CHILD = Path(__file__).with_name("keras_child.py")
# Half-precision dtype -> factor by which it is coarser than float32
_COARSENESS = {"float16": 2.0**13, "bfloat16": 2.0**16}
_ERROR = re.compile(r"[\w.]*(Error|Exception)\b")
# What every Keras says of a class or function that it does not have.
_UNKNOWN = re.compile(r"Could not locate|Unknown [\w ]+:")


@dataclass(frozen=True)
class KerasAnswer:
    """Outputs of live Keras, and its name and version.

    ``coarseness``: factor by which its arithmetic is coarser than float32.
    """

    name: str
    outputs: tuple[Array, ...]
    coarseness: float = 1.0


@dataclass(frozen=True)
class NoAnswer:
    """The reason why live Keras did not compute the model.

    ``foreign``: the file names what is not Keras' own. ``unknown``: Keras lacks a class or function
    that the reference takes for Keras' own, so one of the two is wrong about the model.
    """

    reason: str
    foreign: bool = False
    unknown: bool = False


def keras_for(spec: ModelSpec) -> str:
    """Return the package of today that computes as the Keras that wrote the file."""
    return "keras" if spec.generation.name == "keras3" else "tf_keras"


def _reason_against(spec: ModelSpec) -> str | None:
    """Return why no current Keras computes what the file's own Keras did, or None."""
    old = spec.generation.name == "keras2"
    masked = any(
        layer.class_name == "Masking" or layer.config.get("mask_zero") for layer in spec.root.walk()
    )
    if old and masked:
        return "tf_keras treats masked steps unlike the multi-backend Keras that wrote the file"
    return None


def ask_keras(
    model: ModelSource | Source, config: Path | None, spec: ModelSpec, inputs: Sequence[Array]
) -> KerasAnswer | NoAnswer:
    """Compute live Keras' outputs on these inputs, or return why that cannot be done.

    A live model itself is not run, which could change its states: its Keras writes it to a file.
    """
    source = source_of(model)
    if source.path is not None:
        return _ask_about_file(source.path, config, spec, inputs)
    with tempfile.TemporaryDirectory(prefix="k2t-") as folder:
        with in_file(source.name):
            file = write_live(source.model, Path(folder))
        return _ask_about_file(file, config, spec, inputs)


def reason_against_keras(model: Path, config: Path | None, spec: ModelSpec) -> NoAnswer | None:
    """Return why Keras is not given a file: it is not installed, computes otherwise, or may not."""
    package = keras_for(spec)
    reason = _reason_against(spec)
    if reason is not None:
        return NoAnswer(reason)
    if find_spec(package) is None or find_spec("tensorflow") is None:
        return NoAnswer(f"{package} is not installed ({advise_extra('keras')})")
    foreign = foreign_name(read_architecture(model, config=config))
    if foreign is not None:
        return NoAnswer(f"the file names {foreign}, which is not Keras' own", foreign=True)
    return None


def _ask_about_file(
    model: Path, config: Path | None, spec: ModelSpec, inputs: Sequence[Array]
) -> KerasAnswer | NoAnswer:
    """Compute outputs by the installed Keras in a child process, or return why it cannot."""
    package = keras_for(spec)
    against = reason_against_keras(model, config, spec)
    if against is not None:
        return against
    with tempfile.TemporaryDirectory() as folder:
        input_file, output_file = Path(folder, "in.npz"), Path(folder, "out.npz")
        named_inputs: dict[str, Any] = {f"in_{i}": x for i, x in enumerate(inputs)}
        np.savez(input_file, **named_inputs)
        files = files_for_keras(Path(folder), model, config)
        if isinstance(files, str):
            return NoAnswer(files)
        arguments = [package, files[0], input_file, output_file, *files[1:]]
        environment = {
            **os.environ,
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "CUDA_VISIBLE_DEVICES": "",
            "KERAS_BACKEND": "tensorflow",
        }
        try:
            done = subprocess.run(
                [sys.executable, str(CHILD), *map(str, arguments)],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=MAX_KERAS_SECONDS,
                env=environment,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return NoAnswer(f"{package} did not finish in {MAX_KERAS_SECONDS} s")
        if done.returncode or not output_file.exists():
            message = printable(_message(done.stderr))
            unknown = _UNKNOWN.search(done.stderr) is not None
            return NoAnswer(f"{package} fails on this file: {message}", unknown=unknown)
        with np.load(output_file) as data:
            count = sum(name.startswith("out_") for name in data.files)
            outputs = tuple(data[f"out_{i}"] for i in range(count))
            coarse = max((_COARSENESS.get(str(kind), 1.0) for kind in data["kinds"]), default=1.0)
            return KerasAnswer(f"{package} {data['version']}", outputs, coarse)


def files_for_keras(folder: Path, model: Path, config: Path | None) -> tuple[Path, ...] | str:
    """Return what Keras can load: a model, or weights and their architecture; or why it cannot.

    A SavedModel is never loaded: its functions would run. Keras builds the model from its JSON and
    reads the checkpoint in it. folder: for JSON, and for links with
    the suffix by which Keras recognises the format.
    """
    config = _as_json(folder, config)
    with opened(model) as container:
        if isinstance(container, TensorFlowContainer) and container.checkpoint is not None:
            if config is not None:
                return container.checkpoint.resolve(), config.resolve()
            found = container.architecture(None)
            written = folder / "arch.json"
            facts = {"keras_version": found.version, "backend": found.backend}
            written.write_text(json.dumps({**found.model, **facts}), encoding="utf-8")
            return container.checkpoint.resolve(), written
        if isinstance(container, TensorFlowContainer | TensorFlowJS):
            return f"Keras cannot load this kind of file ({container.kind})"
    named = folder / f"model{_suffix(model, config)}"
    try:
        named.symlink_to(model.resolve())
    except OSError:  # Windows asks for a right that few users have
        shutil.copyfile(model, named)
    return named, *([config.resolve()] if config else [])


def _message(text: str) -> str:
    """Return the line of a traceback that holds the error message."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if _ERROR.match(line)]
    return (errors or lines or ["no message"])[-1]


def _as_json(folder: Path, config: Path | None) -> Path | None:
    """Return a file with the JSON of the architecture, which may be given as a model."""
    if config is None or not holds_model(config):
        return config
    path = folder / "architecture.json"
    path.write_text(json.dumps(read_given_config(config)), encoding="utf-8")
    return path


def _suffix(model: Path, config: Path | None) -> str:
    with model.open("rb") as file:
        zipped = file.read(2) == b"PK"
    if config is None:
        return ".keras" if zipped else ".h5"
    return ".weights.h5" if model.name.endswith(".weights.h5") else ".h5"
