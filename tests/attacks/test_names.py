"""Names of layers become Python, tables and messages: none of them can say more than a name.

torch.fx writes the model's code as text and runs it, so a name that is not an identifier would be
a program.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import CONTAINERS, Model
from commands import changed_config, k2t
from harness import Runner
from same_models import assert_same_outputs, assert_same_weights
from sampling import in_turn

import keras2torch_birnn as birnn
from keras2torch_birnn.golden import origin
from keras2torch_birnn.layers.running import run

NAMES = (
    # code
    "a'); __import__('os').mkdir('canary') #",
    'b"\n    import os; os.mkdir("canary")\n',
    "c):\n        pass\n\ndef forward(self",
    "\\",
    "{0.__class__}%s%n$(mkdir canary)`mkdir canary`",
    # names of Python, torch and torch.fx
    *("class", "None", "self", "Self", "__class__", "__init__", "forward", "training"),
    *("state_dict", "_parameters", "T_destination", "graph", "code", "recompile", "to_folder"),
    *("add_submodule", "delete_all_unused_submodules", "torch", "inf", "nan", "device"),
    *("getattr", "print", "getitem"),
    # paths
    *("a.b.c", ".", "..", "../../etc/passwd", "C:\\windows", " ", "7"),
    # names that are or look alike
    *("Dense", "dense", "DENSE", "dense_", "dense!", "d\u0435nse"),
    "\uff49\uff4d\uff50\uff4f\uff52\uff54",
    # controls, lines and what is not ASCII
    *("\u202egnp.exe", "\u200b", "\x1b[2J\x1b[31m", "\x00", "\x07\r\n\t"),
    "k2t: error: all is lost\nk2t: error: more",
    *("line\u2028separator", "\U0001f600", "x" * 5_000),
)
PLAIN_CODE = (
    *(ast.Module, ast.FunctionDef, ast.arguments, ast.arg, ast.Assign, ast.Return, ast.Expr),
    *(ast.Name, ast.Attribute, ast.Call, ast.keyword, ast.Constant, ast.Load, ast.Store),
    *(ast.Tuple, ast.List, ast.Dict, ast.Subscript, ast.Import, ast.alias),
)


def renamed(suffix: str, names: tuple[str, ...], folder: Path) -> Path:
    """The model whose layers have these names, as many as it has."""

    def change(model: Model) -> None:
        for entry, name in zip(model["config"]["layers"], names, strict=False):
            entry["config"]["name"] = name
            if "name" in entry:
                entry["name"] = name

    source = CONTAINERS[suffix]
    return changed_config(source, folder / f"model{suffix}", change)


def groups(size: int) -> list[tuple[str, ...]]:
    return [NAMES[at : at + size] for at in range(0, len(NAMES), size)]


def harmless(text: str) -> bool:
    return all(" " <= c <= "~" or c == "\n" for c in text)


@pytest.mark.parametrize(("names", "suffix"), in_turn(groups(7), CONTAINERS))
def test_names_of_layers_are_only_names(
    names: tuple[str, ...], suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file, out = renamed(suffix, names, tmp_path), tmp_path / "out.pt"
    model, honest = birnn.convert(file), birnn.convert(CONTAINERS[suffix])
    code: Any = model.code
    tree = ast.parse(code)
    assert {type(node) for node in ast.walk(tree)} <= set(PLAIN_CODE), code
    assert [type(node) for node in tree.body if not isinstance(node, ast.Import)] == [
        ast.FunctionDef
    ]
    assert harmless(repr(model))
    assert all(part.isidentifier() for key in model.state_dict() for part in key.split("."))
    inputs = origin(honest).golden.inputs
    assert_same_outputs(run(model, inputs), run(honest, inputs))
    for target in (out, tmp_path / "out.safetensors"):
        birnn.save(model, target)
        again = birnn.load(target)
        assert_same_weights(again, model)
        assert_same_outputs(run(again, inputs), run(honest, inputs))
    torch.export.export(model, inputs) if names is NAMES[:7] else None
    for arguments in (
        ("inspect", file, "--json"),
        ("verify", file, out, "--against", "reference", "--per-layer"),
    ):
        said = k2t(*arguments)
        assert said.code == 0, said.err
        assert harmless(said.out + said.err), said.out
        assert max(map(len, (said.out + said.err).splitlines())) < 2_000 or "--json" in arguments
        assert json.loads(said.out) if "--json" in arguments else True
        assert not said.lines("error")
    assert not (tmp_path / "canary").exists()


def test_a_name_of_ten_megabytes_is_cut(converting: Runner, tmp_path: Path) -> None:
    file = renamed(".keras", ("\x1b" * 10_000_000,), tmp_path)
    report = converting.k2t("inspect", file, reads=(file,), folder=tmp_path)
    assert report.code in (0, 3)
    assert harmless(report.out + report.err)
    assert max(map(len, (report.out + report.err).splitlines())) < 2_000
    assert report.crimes == []
