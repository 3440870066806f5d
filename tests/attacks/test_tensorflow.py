"""Hostile SavedModels, checkpoints and TF.js models: refused, and nothing beyond them is opened."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import by_commands
from commands import MASKED
from harness import Runner, one_line_each, refused
from tensorflow_files import (
    Node,
    bundle_files,
    checkpoint_tensors,
    entry,
    masked_crc,
    message,
    model_tree,
    number,
    table,
    varint,
    write_checkpoint,
    write_files,
    write_saved_model,
    write_tfjs,
)


def tree() -> Node:
    return model_tree(MASKED)[0]


def saved(change: Callable[[Node], None] = lambda root: None) -> Callable[[Path], Path]:
    """A SavedModel whose objects have been changed."""

    def build(folder: Path) -> Path:
        root = tree()
        change(root)
        return write_saved_model(folder / "model", root)

    return build


def saved_with(name: str, data: bytes) -> Callable[[Path], Path]:
    """A SavedModel in which one file is another."""

    def build(folder: Path) -> Path:
        model = saved()(folder)
        (model / name).write_bytes(data)
        return model

    return build


def checkpoint(**options: Any) -> Callable[[Path], Path]:
    """A checkpoint of which the index lies; its prefix."""

    def build(folder: Path) -> Path:
        (folder / "arch.json").write_text(json.dumps(model_tree(MASKED)[1]), encoding="utf-8")
        return write_files(folder / "ckpt", bundle_files(checkpoint_tensors(tree()), **options))

    return build


def with_index(data: bytes) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        prefix = checkpoint()(folder)
        prefix.with_name("ckpt.index").write_bytes(data)
        return prefix

    return build


def noted(text: str) -> Callable[[Path], Path]:
    """A folder whose note names another checkpoint."""

    def build(folder: Path) -> Path:
        write_checkpoint(folder / "run" / "ckpt", tree())
        (folder / "run" / "checkpoint").write_text(text, encoding="utf-8")
        return folder / "run"

    return build


def tfjs(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], Path]:
    return lambda folder: write_tfjs(folder / "web", MASKED, change=change)


def paths(*names: str) -> Callable[[Path], Path]:
    """A TF.js model whose manifest names these files."""

    def change(model: dict[str, Any]) -> None:
        model["weightsManifest"][0]["paths"] = list(names)

    return tfjs(change)


def huge_tfjs(model: dict[str, Any]) -> None:
    model["weightsManifest"][0]["weights"][0]["shape"] = [1 << 40, 1 << 40]


def deep(root: Node) -> None:
    """A chain of 5,000 objects below a layer, back to the root at its end."""
    here = root.children["layer-1"]
    for _ in range(5_000):
        here.children["next"] = Node()
        here = here.children["next"]
    here.children["root"] = root


def extra_below(root: Node) -> None:
    deep(root)
    here = root.children["layer-1"]
    while "next" in here.children:
        here = here.children["next"]
    here.children["w"] = Node(value=np.zeros(3, "f4"), full_name="hidden/w")


def lambda_layer(root: Node) -> None:
    """A layer that holds Python's bytecode."""
    assert root.metadata is not None
    layers = root.metadata["config"]["layers"]
    layers.append(
        {
            "class_name": "Lambda",
            "config": {
                "name": "evil",
                "function": {"class_name": "__lambda__", "config": {"code": "4wAA"}},
            },
        }
    )
    root.children["layer-9"] = Node(identifier="_tf_keras_layer", metadata={"name": "evil"})


def many_names() -> bytes:
    """An index of long keys that share their beginnings: 60 KB each, if written out."""
    keys = [b"k" * 60_000 + b"%05d" % count for count in range(5000)]
    return table({b"": number(1, 1), **dict.fromkeys(keys, b"")}, per_block=6000)


def pipe_for(name: str) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        model = saved()(folder)
        (model / name).unlink()
        os.mkfifo(model / name)
        return model

    return build


HUGE = entry(1, (1 << 41,), 0, 0, 1 << 42, masked_crc(b""))
FOREVER = b"\xff" * 11
NOT_THERE = "is no name of a file in the folder"

# Refused with exit code 4.
UNSUPPORTED = {"bytecode"}
ATTACKS: Mapping[str, tuple[Callable[[Path], Path], str]] = {
    "a pipe for a shard": (pipe_for("variables/variables.data-00000-of-00001"), "a pipe (FIFO)"),
    "a pipe for metadata": (pipe_for("saved_model.pb"), "a pipe (FIFO)"),
    "an endless number": (
        saved_with("saved_model.pb", FOREVER),
        "saved_model.pb: a number that does not end",
    ),
    "a message of 2 GiB": (
        saved_with("saved_model.pb", b"\x12" + varint(1 << 31)),
        "longer than the file",
    ),
    "nested messages": (
        saved_with("saved_model.pb", message(2, message(7, b"\x0a\x7f"))),
        "longer than the file",
    ),
    "many empty objects": (
        saved_with("saved_model.pb", message(2, message(7, b"\x0a\0" * 250_001))),
        "more than 250000 objects",
    ),
    "a deep chain of objects": (saved(extra_below), "the weight hidden/w has no place"),
    "bytecode": (saved(lambda_layer), "Lambda layer holds Python code"),
    "an index that is none": (
        saved_with("variables/variables.index", bytes(999)),
        "it does not end as an index",
    ),
    "keys of 60 KB": (with_index(many_names()), "too many keys"),
    "no shards": (with_index(table({b"": number(1, 0)})), "0 shards where 1 to 1000 are allowed"),
    "a billion shards": (with_index(table({b"": number(1, 10**9)})), "1000000000 shards"),
    "missing shards": (with_index(table({b"": number(1, 1000)})), "cannot be opened"),
    "a huge tensor": (
        checkpoint(changes={"layer-0/embeddings/.ATTRIBUTES/VARIABLE_VALUE": HUGE}),
        f"{1 << 42} bytes for a tensor of shape",
    ),
    "a huge text": (
        checkpoint(changes={"_CHECKPOINTABLE_OBJECT_GRAPH": entry(7, (), 0, 0, 1 << 40, b"abcd")}),
        "no text of a size that is allowed",
    ),
    "note: not text": (noted("\x00" * 999), "names no model_checkpoint_path"),
    "tfjs: a URL": (paths("https://example.org/w.bin"), NOT_THERE),
    "tfjs: a drive": (paths("C:\\w.bin"), NOT_THERE),
    "tfjs: NUL": (paths("w\0.bin"), NOT_THERE),
    "tfjs: a huge weight": (tfjs(huge_tfjs), "bytes in files of"),
}


@pytest.mark.parametrize(("name", "command"), by_commands(ATTACKS))
def test_a_hostile_model_is_refused(
    name: str, command: str, runners: Mapping[str, Runner], tmp_path: Path
) -> None:
    build, words = ATTACKS[name]
    runner, file = runners[command], build(tmp_path)
    code, more = 4 if name in UNSUPPORTED else 3, (file.parent,)
    refused(runner, command, file, words, tmp_path, code=code, reads=more)


@pytest.mark.parametrize("build", [saved(), saved(deep)], ids=["plain", "deep"])
def test_honest_models_are_read_and_nothing_else(
    build: Callable[[Path], Path], converting: Runner, tmp_path: Path
) -> None:
    """The measure above is not blind: the same files convert when nothing is wrong."""
    model = build(tmp_path)
    (model / "assets").mkdir()
    (model / "assets" / "secret.pkl").write_bytes(b"\x80\4.")
    report = converting.k2t(
        "convert",
        model,
        tmp_path / "out.pt",
        reads=(model / "saved_model.pb", model / "keras_metadata.pb", model / "variables"),
        writes=(tmp_path / "out.pt", *tmp_path.glob(".k2t*")),
        folder=tmp_path,
    )
    crimes = [crime for crime in report.crimes if "assets" in crime or "secret" in crime]
    assert (report.code, crimes) == (0, []), report.err


def many_layers_to_one_object(root: Node) -> None:
    """Every layer leads to the same 20,000 objects: 60,000,000 steps, if each walks them all."""
    first = Node(children={f"c{count}": Node() for count in range(20_000)})
    first.children["w"] = Node(value=np.zeros(3, "f4"), full_name="hidden/w")
    assert root.metadata is not None
    layers = root.metadata["config"]["layers"]
    last = len(layers)
    for count in range(3_000):
        name = f"d{count}"
        layers.append({"class_name": "Dropout", "config": {"name": name, "rate": 0.5}})
        node = Node(identifier="_tf_keras_layer", metadata={"name": name})
        node.children["n"] = first
        root.children[f"layer-{last + count}"] = node


@pytest.mark.thorough
def test_objects_are_walked_once(converting: Runner, tmp_path: Path) -> None:
    root = tree()
    many_layers_to_one_object(root)
    model = write_saved_model(tmp_path / "model", root)
    report = converting.k2t(
        "convert", model, tmp_path / "out.pt", reads=(model,), writes=(tmp_path,), folder=tmp_path
    )
    one_line_each(report, 3, model)
    assert "the weight hidden/w has no place in the configuration" in report.err
    assert report.crimes == []
