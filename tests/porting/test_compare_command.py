"""``k2t compare``: exit codes, JSON, weights, maps, and everything that is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import k2t
from hand_ports import STACK, Sentiment, Stack

import keras2torch_birnn as package
from keras2torch_birnn.porting.user_file import load_port

FILE = """
import torch
from hand_ports import Stack, StackApart

def wrong():
    return Stack("merge ave")

def fails():
    raise RuntimeError("no such thing")

class Unlike(torch.nn.Module):
    def forward(self, x, gamma):
        return x

class Narrow(torch.nn.Linear):
    def __init__(self):
        super().__init__(5, 5)

class Short(Stack):
    def forward(self, x):
        return super().forward(x)[:, :3]

number = 7

def function(x):
    return x

def make_function():
    return function
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("port") / "my_model.py"
    path.write_text(FILE, encoding="utf-8")
    return path


def test_a_right_port_ends_with_0(file: Path) -> None:
    run = k2t("compare", STACK, f"{file}:Stack")
    assert run.code == 0, run.out + run.err
    assert run.out.startswith("equal (max abs error ")


def test_a_wrong_port_ends_with_1_and_says_what_and_where(file: Path) -> None:
    run = k2t("compare", STACK, f"{file}:wrong")
    assert run.code == 1
    first, where, verdict = run.out.splitlines()
    assert first == "bidirectional_2: the halves are merged by ave, Keras has sum"
    assert where == "    its output differs first, row 0, unit 0"
    assert verdict == "DIFFERENT: 1 place"


def test_json_has_everything(file: Path) -> None:
    run = k2t("compare", STACK, f"{file}:wrong", "--json")
    data = json.loads(run.out)
    assert run.code == 1
    assert (data["schema"], data["ok"]) == (1, False)
    assert data["findings"][0]["kind"] == "merge mode"
    assert data["findings"][0]["layer"] == "bidirectional_2"
    by_name = {one["name"]: one for one in data["tensors"]}
    assert by_name["lstm.weight_hh_l0_reverse"] == {
        "name": "lstm.weight_hh_l0_reverse",
        "layer": "bidirectional/backward_layer",
        "difference": "",
    }


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_are_loaded_from_a_file(suffix: str, file: Path, tmp_path: Path) -> None:
    state = Stack("bias doubled").state_dict()
    path = tmp_path / f"sd{suffix}"
    if suffix == ".pt":
        torch.save({"state_dict": state}, path)
    else:
        from safetensors.torch import save_file

        save_file(state, path)
    run = k2t("compare", STACK, f"{file}:Stack", "--weights", path)
    assert run.code == 1
    assert "    lstm.bias_ih_l0 + bias_hh_l0: doubled\n" in run.out


def test_inputs_of_ones_own_are_taken(file: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.npz"
    np.savez(data, np.ones((2, 7, 3), np.float32))
    run = k2t("compare", STACK, f"{file}:Stack", "--inputs", data)
    assert (run.code, run.out.partition(" (")[0]) == (0, "equal on the inputs given")


def test_a_map_says_which_module_is_which_layer(file: Path, tmp_path: Path) -> None:
    names = tmp_path / "map.json"
    names.write_text(json.dumps({"mid": "dense"}))
    assert k2t("compare", STACK, f"{file}:Stack", "--map", names).code == 0
    report = package.compare(STACK, Stack("mid not loaded"), map={"mid": "dense"})
    (finding,) = report.findings
    assert finding.tensors == (
        "mid.weight: other values than the file's (not loaded?)",
        "mid.bias: other values than the file's (not loaded?)",
    )


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ({"middle": "dense"}, "map: no module middle with weights; there are lstm, rnn, mid"),
        ({"mid": "dens"}, "map: no Keras layer dens with weights; there are bidirectional/"),
        ({"lstm": "dense"}, "map: lstm has 2 directions, dense has 1; name one direction"),
    ],
)
def test_a_map_with_unknown_names_is_refused(names: dict[str, str], words: str) -> None:
    with pytest.raises(package.UsageError, match=words):
        package.compare(STACK, Stack(), map=names)


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("", 2, "FILE.py:NAME is expected; name the class after a colon"),
        (":Nothing", 2, "defines no Nothing; check the name"),
        (":number", 2, "number gives int, a torch.nn.Module is expected"),
        (
            ":function",
            2,
            "function is or gives a plain function, a torch.nn.Module is expected",
        ),
        (
            ":make_function",
            2,
            "class Port(torch.nn.Module): / def forward(self, *inputs): /",
        ),
        (":fails", 2, "fails() fails: RuntimeError: no such thing (my_model.py:9)"),
        (":Unlike", 2, "the port's forward asks for gamma, which Keras' model does not have"),
        (":Narrow", 2, "the port fails on inputs of shapes (3, 7, 3): RuntimeError: "),
    ],
)
def test_what_cannot_be_called_is_refused(name: str, code: int, words: str, file: Path) -> None:
    run = k2t("compare", STACK, f"{file}{name}")
    assert run.code == code, run.out
    (line,) = run.lines("error")
    assert words in line


def test_another_file_is_refused(tmp_path: Path) -> None:
    run = k2t("compare", STACK, tmp_path / "none.py:Net")
    assert run.code == 3
    assert "none.py is not a file; name a Python file" in run.err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "there is no such file; write a state_dict"),
        (b"text", "cannot be read as tensors"),
        ([1, 2], "holds no state_dict; write it with torch.save"),
        ({1: torch.zeros(2)}, "holds no state_dict; write it with torch.save"),
        ({"x": torch.ones(2)}, "does not fit the port: Missing key"),
    ],
)
def test_weights_that_are_none_are_refused(
    content: object, words: str, file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "sd.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(package.InvalidModelFileError, match=words):
        load_port(f"{file}:Stack", path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be opened"),
        ("[]", "an object is expected"),
        ('{"a": 1}', "a text is expected"),
    ],
)
def test_a_map_that_is_none_is_refused(
    text: str | None, words: str, file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "map.json"
    if text is not None:
        path.write_text(text)
    run = k2t("compare", STACK, f"{file}:Stack", "--map", path)
    assert run.code == 3
    assert words in run.err


def test_a_class_is_no_port() -> None:
    with pytest.raises(package.UsageError, match="the port is of type type"):
        package.compare(STACK, Stack)


def test_outputs_of_another_shape_are_told(file: Path) -> None:
    run = k2t("compare", STACK, f"{file}:Short")
    assert run.code == 1
    words = "what is returned is not the model's output (shapes (3, 3), Keras has (3, 17))"
    assert words in " ".join(run.out.split())


class NoFront(Sentiment):
    """A port that raises where padding is in front."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        if (ids[:, 0] == 0).any():
            raise ValueError("padding in front")
        return super().forward(ids)


def test_a_port_that_fails_on_padding_is_told() -> None:
    report = package.compare(NoFront.source, NoFront())
    (finding,) = report.findings
    assert (finding.kind, finding.rows) == ("fails", "rows padded in front")
    assert finding.words == "it fails: ValueError: padding in front"
