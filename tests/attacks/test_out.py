"""A damaged or hostile OUT: the same care as for a model file. Nothing in it is run.

Also what is no file, or a pickle, in the place of OUT and of a model.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from commands import MASKED
from harness import Runner, refused
from out_files import change_text
from torch import nn

import keras2torch_birnn as birnn
from keras2torch_birnn.golden import attach_origin, origin

Content = dict[str, Any]
DAMAGED = "not a file that k2t wrote, or damaged"


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OUT of a small model, in both formats."""
    folder = tmp_path_factory.mktemp("honest")
    model = birnn.convert(MASKED)
    birnn.save(model, folder / "out.pt")
    birnn.save(model, folder / "out.safetensors")
    return folder


def not_verified(runner: Runner, out: Path, words: str, code: int = 3) -> None:
    """``k2t verify OUT`` says one line, does nothing else, and runs no ``Sings``."""
    refused(runner, "verify", out, words, out.parent, code=code)
    assert not (out.parent / "canary").exists()


def saved(folder: Path, content: Content) -> Path:
    torch.save(content, folder / "out.pt")
    return folder / "out.pt"


# ---- content ------------------------------------------------------------------------------------


def text_with(key: str, change: Callable[[Any], object]) -> Callable[[Content], object]:
    """Edit one of the texts as parsed JSON."""
    return lambda content: change_text(content, key, change)


def on_dense(change: Callable[[Any], object]) -> Callable[[Content], object]:
    """Change the entry of the Dense, the last layer."""
    return text_with("architecture", lambda model: change(model["config"]["layers"][-1]))


def kernel(**changes: Any) -> Callable[[Content], object]:
    """Change what the facts say of the Dense's kernel, in the last row."""
    return text_with("facts", lambda f: f["weights"][-1]["arrays"]["kernel"].update(changes))


def options(**changes: Any) -> Callable[[Content], object]:
    return on_dense(lambda dense: dense["config"].update(changes))


def content(**changes: Any) -> Callable[[Content], object]:
    return lambda given: given.update(changes)


def tensor(make: Callable[[torch.Tensor], Any]) -> Callable[[Content], object]:
    """Put something else in the place of the first tensor."""

    def edit(content: Content) -> None:
        name = next(iter(content["state_dict"]))
        content["state_dict"][name] = make(content["state_dict"][name])

    return edit


def golden(**changes: Any) -> Callable[[Content], object]:
    return lambda content: content["golden"].update(changes)


def nested(depth: int) -> str:
    return '{"class_name":' * depth + "1" + "}" * depth


class Sings:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("canary",)


CODE = "__import__('os').mkdir('canary') or x"
CONTENT: dict[str, tuple[Callable[[Content], object], str]] = {
    "newer format": (
        content(format="keras2torch_birnn/3"),
        "format keras2torch_birnn/3, this k2t reads keras2torch_birnn/2; upgrade",
    ),
    "older format": (
        content(format="keras2torch_birnn/1"),
        "format keras2torch_birnn/1, this k2t reads keras2torch_birnn/2; convert it again",
    ),
    "other format": (content(format="x" * 10_000_000), "format: not a file that k2t"),
    "no format": (lambda c: c.pop("format"), "format: not a file that k2t wrote"),
    "no architecture": (lambda c: c.pop("architecture"), "architecture: not a file that k2t wrote"),
    "no facts": (lambda c: c.pop("facts"), "facts: not a file that k2t wrote"),
    "no golden": (lambda c: c.pop("golden"), "golden: not a file that k2t wrote"),
    "text of depth 100,000": (content(architecture=nested(100_000)), "architecture: nested deeper"),
    "text of 3,000,000 values": (
        content(architecture=f"[{'0,' * 3_000_000}0]"),
        "architecture: more than 2000000 values",
    ),
    "facts of 3,000,000 values": (
        content(facts=f"[{'0,' * 3_000_000}0]"),
        "facts: more than 2000000 values",
    ),
    "text with a key twice": (
        content(architecture='{"config": 1, "config": 2}'),
        "architecture: the key 'config' occurs twice",
    ),
    "text that is a list": (content(architecture="[]"), "architecture: a JSON list where an"),
    "facts that are a list": (content(facts="[]"), "facts: a JSON list where an object"),
    "another model": (
        content(architecture='{"class_name": "Sequential", "config": {"layers": []}}'),
        "model_config: a model without layers",
    ),
    "weights of terabytes": (kernel(shape=[1 << 20, 1 << 20]), "values declared"),
    "weights of more than all memory": (kernel(shape=[1 << 62, 1 << 62]), "not as k2t writes it"),
    "weights of negative size": (kernel(shape=[-1, 3]), "not as k2t writes it"),
    "weights of objects": (kernel(dtype="O"), "not as k2t writes it"),
    "weights of gigabytes each": (kernel(dtype="V2000000000"), "not as k2t writes it"),
    "a name with an escape": (
        text_with("facts", lambda f: f["weights"][-1]["arrays"].update({"\x1b[2J": 7})),
        "\\x1b[2J is not as k2t writes it",
    ),
    "unknown activation": (options(activation="__import__"), "option activation='__import__'"),
    "units of terabytes": (options(units=1 << 30), "an output of 1073741824 numbers"),
    "option that is text": (options(units="\x1b[2J" * 99), "option units="),
    "option too many": (options(**{"a\nb": 1}), "option a\\x0ab=1 is unknown"),
    "no options": (on_dense(lambda dense: dense.update(config={})), "units"),
    "code as a name": (options(name=CODE), "weight kernel is not that of the layer"),
    "code as a class": (on_dense(lambda dense: dense.update(class_name=CODE)), "is not supported"),
    "a layer of Python": (
        on_dense(lambda dense: dense.update(class_name="Lambda", config={"function": CODE})),
        "Lambda",
    ),
    "two layers with one name": (options(name="embedding"), "2 layers are called embedding"),
    "root that is a layer": (
        text_with("architecture", lambda model: model.update(class_name="Dense")),
        "the model is of class Dense",
    ),
    "missing tensor": (lambda c: c["state_dict"].popitem(), "do not fit its architecture: without"),
    "extra tensor": (
        lambda c: c["state_dict"].update({"a\nb": torch.zeros(1)}),
        "do not fit its architecture: with a\\x0ab",
    ),
    "tensor of another shape": (tensor(lambda t: t[:-1].clone()), "do not fit its architecture"),
    "no tensors": (content(state_dict={}), "4445 values declared, 0 stored"),
    "golden of another rank": (
        golden(inputs=[torch.zeros(2, 3, 4, 5)]),
        "golden: not a file that k2t wrote, or damaged (an input of 4 dimensions",
    ),
    "golden of two inputs": (
        golden(inputs=[torch.zeros(2, 3), torch.zeros(2, 3)]),
        "golden: not a file that k2t wrote, or damaged (2 inputs, the model takes 1)",
    ),
    "golden ids out of range": (
        golden(inputs=[torch.full((5, 7), 10**9, dtype=torch.int32)]),
        "golden: the model cannot be computed on its golden inputs",
    ),
    "golden without inputs": (golden(inputs=[]), "golden: not a file that k2t wrote"),
    "golden that is text": (golden(inputs="abc"), "golden: not a file that k2t wrote"),
    "rounding that is text": (golden(rounding="x"), "golden: not a file that k2t wrote"),
}


# What no k2t supports: refused as such.
UNSUPPORTED = {
    *("unknown activation", "option that is text", "option too many", "code as a class"),
    *("a layer of Python", "root that is a layer"),
}


# In the place of the first tensor.
TENSORS: dict[str, tuple[Callable[[torch.Tensor], Any], str]] = {
    "terabytes out of one number": (
        lambda t: torch.zeros(1).expand(1 << 20, 1 << 20),
        "is not a dense tensor",
    ),
    "overlapping": (
        lambda t: torch.zeros(9).as_strided((5, 5), (1, 1)),
        "is not a dense tensor",
    ),
    "transposed": (lambda t: t.T, "is not a dense tensor"),
    "sparse": (lambda t: t.to_sparse(), "names torch._utils _rebuild_sparse_tensor"),
    "meta": (lambda t: t.to("meta"), "names torch._utils _rebuild_meta_tensor_no_storage"),
    "parameter": (lambda t: nn.Parameter(t.float()), "names torch._utils _rebuild_parameter"),
    "complex": (lambda t: t.float() + 1j, "names torch ComplexFloatStorage"),
    "that needs gradients": (lambda t: t.float().clone().requires_grad_(), "is not a dense tensor"),
    "subclass": (lambda t: torch.nn.Buffer(t), "names torch._tensor _rebuild_from_type_v2"),
    "device": (lambda t: torch.device("cuda"), "names torch device"),
    "dtype": (lambda t: torch.float32, "names torch float32"),
    "bytes": (lambda t: b"x" * 99, "names _codecs encode"),
    "bytearray": (lambda t: bytearray(99), "names __builtin__ bytearray"),
    "set": (lambda t: {1, 2}, "names __builtin__ set"),
    "code": (lambda t: Sings(), "names posix mkdir"),
    "module": (lambda t: nn.Linear(2, 3), "names torch.nn.modules.linear Linear"),
    "number": (lambda t: 7, "state_dict: not a file that k2t wrote"),
    "huge number": (lambda t: 1 << 4000, "its data.pkl has the opcode LONG4"),
}


CHANGES = CONTENT | {name: (tensor(make), words) for name, (make, words) in TENSORS.items()}


@pytest.mark.every(3)
@pytest.mark.parametrize("name", CHANGES)
def test_hostile_content_is_refused(
    name: str, honest: Path, converting: Runner, tmp_path: Path
) -> None:
    change, words = CHANGES[name]
    content = torch.load(honest / "out.pt", weights_only=True)
    change(content)
    code = 4 if name in UNSUPPORTED else 3
    not_verified(converting, saved(tmp_path, content), words, code)


# ---- the zip ------------------------------------------------------------------------------------


def rezipped(out: Path, change: Callable[[dict[str, bytes]], object], method: int) -> bytes:
    with zipfile.ZipFile(out) as old:
        members = {entry.filename: old.read(entry) for entry in old.infolist()}
    change(members)
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", method) as new:
        for name, data in members.items():
            new.writestr(name, data)
    return memory.getvalue()


def program(text: bytes) -> Callable[[dict[str, bytes]], object]:
    """Another program in the place of data.pkl."""

    def change(members: dict[str, bytes]) -> None:
        members[next(name for name in members if name.endswith("data.pkl"))] = text

    return change


def last_tensor(change: Callable[[bytes], bytes]) -> Callable[[dict[str, bytes]], object]:
    def edit(members: dict[str, bytes]) -> None:
        name = next(name for name in members if "/data/" in name)
        members[name] = change(members[name])

    return edit


COMPRESSED = {"compressed", "a bomb"}
ZIPS: dict[str, tuple[Callable[[dict[str, bytes]], object], str]] = {
    "compressed": (lambda m: None, "not a file that k2t wrote, or damaged (c"),
    "a bomb": (program(bytes(1 << 28)), "(compressed)"),
    "a program that runs": (program(pickle.dumps(Sings(), 2)), "its data.pkl names posix mkdir"),
    "a program of protocol 0": (
        program(b"cos\nsystem\n(S'touch canary'\ntR."),
        "its data.pkl names os system",
    ),
    "a program by STACK_GLOBAL": (
        program(pickle.dumps(Sings(), 4)),
        "its data.pkl has the opcode ",
    ),
    "a program that asks for much memory": (
        program(b"\x80\x02Nr\xff\xff\xff\x7f."),
        "not a file that k2t wrote",
    ),
    "a program that ends early": (program(b"\x80\x02"), "data.pkl is damaged"),
    "an empty program": (program(b""), "data.pkl is damaged"),
    "a program that takes from nothing": (program(b"\x80\x02R."), "not a file that k2t wrote"),
    "a huge text announced": (program(b"\x80\x02X\xff\xff\xff\x7fx."), "data.pkl is damaged"),
    "a tensor with fewer bytes": (last_tensor(lambda data: data[:-1]), "record size ("),
    "a tensor with more bytes": (last_tensor(lambda data: data + b"x"), "record size ("),
    "a TorchScript archive": (
        lambda m: m.update({"out/constants.pkl": b"\x80\x02]."}),
        "not a file that k2t wrote",
    ),
    "a member elsewhere": (lambda m: m.update({"../../canary": b"x"}), "of another archive"),
}


@pytest.mark.every(3)
@pytest.mark.parametrize("name", ZIPS)
def test_a_hostile_zip_is_refused(
    name: str, honest: Path, converting: Runner, tmp_path: Path
) -> None:
    change, words = ZIPS[name]
    method = zipfile.ZIP_DEFLATED if name in COMPRESSED else zipfile.ZIP_STORED
    out = tmp_path / "out.pt"
    out.write_bytes(rezipped(honest / "out.pt", change, method))
    not_verified(converting, out, words)


def test_a_changed_bit_is_noticed(honest: Path, converting: Runner, tmp_path: Path) -> None:
    data = bytearray((honest / "out.pt").read_bytes())
    weights = torch.load(honest / "out.pt", weights_only=True)["state_dict"]
    at = data.index(max(weights.values(), key=torch.numel).numpy().tobytes()[:64])
    data[at + 2] ^= 1
    (tmp_path / "out.pt").write_bytes(data)
    not_verified(converting, tmp_path / "out.pt", "Bad CRC-32")


# ---- safetensors --------------------------------------------------------------------------------


def header(**changes: Any) -> Callable[[bytes], bytes]:
    """The file with an entry of its header replaced."""

    def change(data: bytes) -> bytes:
        (length,) = struct.unpack("<Q", data[:8])
        head = json.loads(data[8 : 8 + length])
        name = next(key for key in head if key.endswith("kernel") or "weight" in key)
        head[name].update(changes)
        text = json.dumps(head).encode()
        return struct.pack("<Q", len(text)) + text + data[8 + length :]

    return change


SAFETENSORS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "half of it": (lambda d: d[: len(d) // 2], DAMAGED),
    "header only": (lambda d: d[:8], DAMAGED),
    "header of exabytes": (lambda d: struct.pack("<Q", 1 << 60) + d[8:], DAMAGED),
    "header of 200 MB": (lambda d: struct.pack("<Q", 200 << 20) + d[8:], DAMAGED),
    "bytes outside": (header(data_offsets=[0, 1 << 40]), DAMAGED),
    "shape of terabytes": (header(shape=[1 << 30, 1 << 30]), "not a file that k2t wrote"),
    "unknown kind": (header(dtype="F128"), DAMAGED),
    "more after it": (lambda d: d + b"x", DAMAGED),
}


@pytest.mark.every(3)
@pytest.mark.parametrize("name", SAFETENSORS)
def test_hostile_safetensors_are_refused(
    name: str, honest: Path, converting: Runner, tmp_path: Path
) -> None:
    change, words = SAFETENSORS[name]
    out = tmp_path / "out.safetensors"
    out.write_bytes(change((honest / "out.safetensors").read_bytes()))
    not_verified(converting, out, words)


@pytest.mark.parametrize("kind", [torch.complex64, torch.float8_e4m3fn], ids=str)
def test_other_numbers_in_safetensors_are_refused(
    kind: torch.dtype, honest: Path, converting: Runner, tmp_path: Path
) -> None:
    out = tmp_path / "out.safetensors"
    with safetensors.safe_open(honest / "out.safetensors", framework="pt") as file:
        texts, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
    name = next(name for name in tensors if "weight" in name)
    tensors[name] = tensors[name].to(kind)
    try:
        safetensors.torch.save_file(tensors, out, metadata=texts)
    except KeyError:
        pytest.skip(f"this safetensors writes no {kind}")
    not_verified(converting, out, "is not a dense tensor")


# ---- in the place of a file ---------------------------------------------------------------------


PLACES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a pipe": (os.mkfifo, "a pipe (FIFO); the input must be a file"),
    "/dev/zero": (lambda p: p.symlink_to("/dev/zero"), "a device; the input must be a file"),
    "a folder": (Path.mkdir, "a folder; "),
    "nothing": (lambda p: None, "cannot be opened (No such file or directory)"),
    "a link to itself": (lambda p: p.symlink_to(p), "cannot be opened (Too many levels"),
    "an empty file": (Path.touch, DAMAGED),
    "a Keras model": (lambda p: shutil.copyfile(MASKED, p), "and not one that k2t converted"),
    "random bytes": (lambda p: p.write_bytes(np.random.default_rng(2).bytes(9999)), DAMAGED),
}


@pytest.mark.parametrize("name", PLACES)
def test_what_stands_in_its_place_is_refused(name: str, converting: Runner, tmp_path: Path) -> None:
    make, words = PLACES[name]
    make(tmp_path / "out.pt")
    not_verified(converting, tmp_path / "out.pt", words)


NO_MODELS: dict[str, tuple[Callable[[Path], object], str]] = {
    **{name: PLACES[name] for name in ("a pipe", "/dev/zero")},
    "a pickle": (lambda p: p.write_bytes(pickle.dumps(Sings())), "a pickle, which can run code"),
    "a PyTorch file": (lambda p: torch.save(Sings(), p), "a PyTorch file"),
    "an old PyTorch file": (
        lambda p: torch.save(Sings(), p, _use_new_zipfile_serialization=False),
        "a PyTorch file",
    ),
}


@pytest.mark.parametrize("name", NO_MODELS)
def test_what_stands_in_the_place_of_a_model_is_refused(
    name: str, converting: Runner, tmp_path: Path
) -> None:
    """Refuse what no file is (other files: ``readers/test_dead_ends.py``)."""
    make, words = NO_MODELS[name]
    make(tmp_path / "model.h5")
    refused(converting, "convert", tmp_path / "model.h5", words, tmp_path)
    assert not (tmp_path / "canary").exists()


def test_an_old_pytorch_file_is_never_unpickled(converting: Runner, tmp_path: Path) -> None:
    out = tmp_path / "out.pt"
    torch.save({"a": Sings()}, out, _use_new_zipfile_serialization=False)
    not_verified(converting, out, DAMAGED)


def test_one_tensor_in_two_outputs_is_written_twice(tmp_path: Path) -> None:
    """Outputs that share memory are files of their own: safetensors refuses anything else."""
    model = birnn.convert(MASKED)
    facts = origin(model)
    golden = facts.golden
    twice = replace(golden, outputs=golden.outputs * 2, roundings=golden.roundings * 2)
    attach_origin(model, replace(facts, golden=twice))
    for name in ("out.pt", "out.safetensors"):
        birnn.save(model, tmp_path / name)
        assert len(origin(birnn.load(tmp_path / name)).golden.outputs) == 2
