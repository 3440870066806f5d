"""Architectures that name code, lie about numbers, loop, explode, or are no JSON at all.

In turn as ``.h5`` and as ``.keras``: the same rules hold for both.
"""

from __future__ import annotations

import base64
import json
import marshal
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from builders import CONTAINERS, Model, in_one_container, with_dense
from commands import STACK_KERAS, changed_text
from harness import Runner, refused
from sampling import examples, in_turn

from keras2torch_birnn.errors import K2TError
from keras2torch_birnn.readers.config.architecture import parse_architecture
from keras2torch_birnn.readers.config.generations import generation_of
from keras2torch_birnn.readers.config.parsing import Parsing
from keras2torch_birnn.schema.shape_inference import infer_model

CANARY = "k2t_canary"


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A module that leaves a file behind when it is imported or called: on the path of Python."""
    sang = tmp_path / "sang"
    text = f"open({str(sang)!r}, 'w')\ndef sing(*_, **__): open({str(sang)!r}, 'w')\nSong = sing\n"
    (tmp_path / f"{CANARY}.py").write_text(text)
    return sang


# ---- code ---------------------------------------------------------------------------------------


def packed_code() -> str:
    code = compile(f"lambda x: __import__('{CANARY}').sing()", "<lambda>", "eval")
    return base64.b64encode(marshal.dumps(code)).decode()


class Sings:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"import {CANARY}",)


def entry(class_name: str, module: str | None = "keras.layers", /, **config: Any) -> Any:
    """Give ``dense`` another class and config."""

    def change(given: Model) -> None:
        given["class_name"] = class_name
        given["config"] = {"name": "dense", "trainable": True, "dtype": "float32", **config}
        if module is None:
            given.pop("module", None)
        else:
            given["module"] = module

    return change


def option(name: str, value: Any) -> Any:
    return lambda given: given["config"].__setitem__(name, value)


FUNCTION = {"module": CANARY, "class_name": "function", "config": "sing", "registered_name": "sing"}
OBJECT = {"module": CANARY, "class_name": "Song", "config": {}, "registered_name": "Song"}
LAMBDA = {"class_name": "__lambda__", "config": {"code": packed_code(), "defaults": None}}

CODE: dict[str, tuple[Any, str]] = {
    "Lambda of bytecode": (
        entry("Lambda", function=LAMBDA, arguments={}),
        "Lambda layer holds Python code, which k2t never runs",
    ),
    "Lambda of old Keras": (
        entry("Lambda", None, function=[packed_code(), None, None], function_type="lambda"),
        "Lambda layer holds Python code",
    ),
    "Lambda of a function's name": (
        entry("Lambda", None, function="sing", module=CANARY, function_type="function"),
        "Lambda layer holds Python code",
    ),
    "TorchModuleWrapper": (
        entry("TorchModuleWrapper", module=base64.b64encode(pickle.dumps(Sings())).decode()),
        "TorchModuleWrapper layer holds a pickle, which k2t never opens",
    ),
    "TFSMLayer": (entry("TFSMLayer", filepath="/etc"), "loads a TensorFlow SavedModel"),
    "StringLookup of a file": (entry("StringLookup", vocabulary="/etc/passwd"), "looks up text"),
    "StringLookup of an address": (
        entry("StringLookup", vocabulary="http://127.0.0.1:9/x"),
        "looks up text",
    ),
    "IntegerLookup of a file": (
        entry("IntegerLookup", vocabulary="/etc/passwd"),
        "looks numbers up",
    ),
    "class of a module": (entry("Song", CANARY), "layer class Song is not supported"),
    "TextVectorization of a file": (
        entry("TextVectorization", vocabulary="/etc/passwd"),
        "turns text into ids",
    ),
    "known class of a module": (entry("Dense", CANARY, units=11), "Dense is not supported"),
    "os.system": (entry("system", "os", command="touch sang"), "class system is not supported"),
    "subprocess": (entry("Popen", "subprocess", args=["touch"]), "Popen is not supported"),
    "builtins": (entry("eval", "builtins", source="1"), "class eval is not supported"),
    "enabling what is unsafe": (
        entry("function", "keras.config", config="enable_unsafe_deserialization"),
        "layer class function is not supported",
    ),
    "get_file": (
        entry("function", "keras.utils", config="get_file", origin="http://127.0.0.1:9/"),
        "layer class function is not supported",
    ),
    "class with a path": (entry("../../../etc/passwd"), "is not supported"),
    "class with dots": (entry(f"{CANARY}.Song"), f"class {CANARY}.Song is not supported"),
    "dunder class": (entry("__class__", "builtins"), "class __class__ is not supported"),
    "activation of a module": (option("activation", FUNCTION), "option activation="),
    "activation that is code": (option("activation", LAMBDA), "option activation="),
    "activation with dots": (
        option("activation", f"{CANARY}.sing"),
        "option activation='k2t_canary.sing' is not supported",
    ),
    "dtype of a module": (option("dtype", OBJECT), ""),
    "option that is an object": (option("units", OBJECT), "option units="),
    "unknown option": (option("on_load", FUNCTION), "option on_load="),
}
# Refused with exit code 3: no layer at all.
INVALID: dict[str, tuple[Any, str]] = {
    "a model as a layer": (entry("Model"), "not as Keras writes it (TypeError at"),
    "class name that is a list": (lambda e: e.update(class_name=["Dense"]), "no layer's config"),
    "config that is text": (lambda e: e.update(config="Dense"), "a layer without config"),
    "name that is a number": (
        lambda e: (e.update(name=7), e["config"].update(name=7)),
        "name is not a text",
    ),
}


@pytest.mark.parametrize(("name", "way"), in_one_container([*CODE, *INVALID]), ids=str)
def test_nothing_is_run_that_a_file_names(
    name: str, way: tuple[str, str], runners: Mapping[str, Runner], canary: Path, tmp_path: Path
) -> None:
    code, (change, words) = (4, CODE[name]) if name in CODE else (3, INVALID[name])
    suffix, command = way
    file = with_dense(suffix, change)(tmp_path)
    runner = runners[command]
    refused(runner, command, file, words, tmp_path, code=code)
    assert not canary.exists()


# What has no effect on the numbers is not looked at, whatever it says.
IGNORED: dict[str, Any] = {
    "initializer": option("kernel_initializer", FUNCTION),
    "regularizer": option("kernel_regularizer", OBJECT),
    "constraint": option("kernel_constraint", {"class_name": "Lambda", "config": packed_code()}),
    "registered name": lambda given: given.update(registered_name=f"{CANARY}>Song"),
    "build config": lambda given: given.update(build_config=OBJECT),
    "compile config": lambda given: given.update(compile_config=FUNCTION),
}


@pytest.mark.parametrize(("name", "suffix"), in_turn(IGNORED, CONTAINERS))
def test_what_has_no_effect_is_not_run_either(
    name: str, suffix: str, converting: Runner, canary: Path, tmp_path: Path
) -> None:
    file, out = with_dense(suffix, IGNORED[name])(tmp_path), tmp_path / "out.pt"
    report = converting.k2t("convert", file, out, reads=(file,), writes=(tmp_path,))
    assert (report.code, report.crimes) == (0, []), report.err
    assert not canary.exists()


# ---- text that is no architecture ---------------------------------------------------------------


def keys(count: int, last: str = "") -> str:
    pairs = ",".join(f'"k{i}":0' for i in range(count))
    return f'{{"class_name":"Sequential","config":{{{pairs}{last}}}}}'


def in_layer(text: str) -> Callable[[str], str]:
    """Replace the units of a layer in the text; smaller numbers: ``readers/test_bad_input.py``."""
    return lambda config: config.replace('"units": 5,', f'"units": {text},', 1)


# Refused with exit code 4.
UNSUPPORTED = {"units of a million decimals"}
TEXTS: dict[str, tuple[Callable[[str], str], str]] = {
    "nothing": (lambda _: "", "not JSON"),
    "half": (lambda text: text[: len(text) // 2], "not JSON"),
    "a list": (lambda _: "[]", "a JSON list where an object is expected"),
    "a number": (lambda _: "7", "a JSON int where an object is expected"),
    "two of them": (lambda text: text + text, "not JSON (Extra data"),
    "depth 300": (lambda _: '{"a":' * 300 + "1" + "}" * 300, "nested deeper than 200 levels"),
    "depth 1,000,000": (lambda _: "[" * 1_000_000, "nested deeper than 200 levels"),
    "2,000,001 values": (lambda _: f"[{'0,' * 2_000_000}0]", "more than 2000000 values"),
    "the same key twice": (
        lambda text: text.replace('"config":', '"config": {}, "config":', 1),
        "the key 'config' occurs twice",
    ),
    "200,000 keys, one of them twice": (
        lambda _: keys(200_000, ',"k199999":1'),
        "the key 'k199999' occurs twice",
    ),
    "200,000 keys": (
        lambda _: keys(200_000),
        "not as Keras writes it (TypeError at",
    ),
    "half a character": (lambda text: text.replace('"dense"', '"\\ud800"'), "half a character"),
    "units of 10,000,000 digits": (in_layer("9" * 10_000_000), "an integer of 10000000 digits"),
    "units of a million decimals": (in_layer("1." + "3" * 1_000_000), "option units=1.333"),
}


def with_text(suffix: str, change: Callable[[str], str]) -> Callable[[Path], Path]:
    return lambda folder: changed_text(CONTAINERS[suffix], folder / f"model{suffix}", change)


@pytest.mark.parametrize(("name", "way"), in_one_container(TEXTS), ids=str)
def test_text_that_is_no_architecture_is_refused(
    name: str, way: tuple[str, str], runners: Mapping[str, Runner], tmp_path: Path
) -> None:
    (change, words), (suffix, command) = TEXTS[name], way
    code = 4 if name in UNSUPPORTED else 3
    file = with_text(suffix, change)(tmp_path)
    runner = runners[command]
    refused(runner, command, file, words, tmp_path, code=code)


# ---- wrong types everywhere ---------------------------------------------------------------------

GARBAGE: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**31, 1.5, float("nan"), "", "x", [], [None], [[]], {}),
    {"class_name": "__tuple__", "items": None},
    {"class_name": "__numpy__", "config": {"value": []}},
)


def places(value: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to everything in a parsed architecture."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, child in inner if isinstance(value, dict | list) else ():
        found.append((*way, key))
        if isinstance(child, dict | list):
            found += places(child, (*way, key))
    return found


def put(value: Any, way: tuple[Any, ...], new: Any) -> None:
    for key in way[:-1]:
        value = value[key]
    value[way[-1]] = new


def test_garbage_in_any_place_is_refused_or_has_no_effect() -> None:
    """Every value of an architecture in turn becomes something else: our own error, or a model."""
    with zipfile.ZipFile(STACK_KERAS) as file:
        text = file.read("config.json").decode()
    refusals = 0
    for number, way in enumerate(places(json.loads(text))):
        for kind in range(examples(5)):
            garbage = GARBAGE[(number + kind) % len(GARBAGE)]
            model = json.loads(text)
            put(model, way, garbage)
            parsing = Parsing(generation_of("3.15.1"))
            try:
                root = parse_architecture(model, parsing)
                if not parsing.problems:
                    infer_model(root, parsing.problems)
                refusals += bool(parsing.problems)
            except K2TError:
                refusals += 1
    assert refusals > examples(330)
