"""``--json`` of every command, good and bad: what docs/cli.md says, and nothing else."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import FIXTURES, MASKED, WEIGHTS, k2t

from keras2torch_birnn.cli.bench import measure
from keras2torch_birnn.cli.commands import COMMANDS

CUSTOM = FIXTURES / "plugins/keras-2.2.4/center.h5"
ALWAYS = {"schema", "ok", "exit"}
SECTION = (Path(__file__).parents[2] / "docs/cli.md").read_text("utf-8").partition("## JSON")[2]


def documented(start: str) -> set[str]:
    """Return the keys in the row of a table of the page; without what follows "with"."""
    (row,) = (line for line in SECTION.splitlines() if line.startswith(f"| {start} |"))
    keys = row.split(" | ", 1)[1].partition("; with")[0]
    return set(re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", keys)))


COMMAND_KEYS = {
    name: documented(f"`{name}`") for name in (*COMMANDS, "plugin new") if name != "convert"
} | {"convert": documented("`convert`"), "error": documented("an error of any command")}
LIST_KEYS = {
    "problems": documented("`problems`"),
    **{
        f"{command}: {name}": documented(f"`{name}` of `{command}`")
        for command, name in (
            ("verify", "comparisons"),
            ("verify", "layers"),
            ("inspect", "layers"),
            ("compare", "findings"),
            ("compare", "tensors"),
            ("map", "weights"),
            ("layers", "layers"),
            ("bench", "rows"),
            ("doctor", "engines"),
        )
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a model, what it becomes, and a port without the bias of the last layer."""
    place = tmp_path_factory.mktemp("json")
    shutil.copyfile(MASKED, place / "model.h5")
    (place / "bad.h5").write_bytes(b"\x89HDF damaged")
    (place / "port.py").write_text(
        "from torch import nn\nimport keras2torch_birnn as k2t\n\n\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.model = k2t.convert('model.h5')\n"
        "    def forward(self, ids):\n        return self.model(ids) - self.model.dense.bias\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("COLUMNS", "80")
        patch.setattr(measure, "measure", measured)
        assert k2t("convert", "model.h5", "model.pt").code == 0
        yield place


def measured(case: Any, *_: Any, **__: Any) -> measure.Row:
    return measure.Row(case, (measure.Timing("k2t", "torch", 1e-7, (1.0, 2.0)),))


GOOD: dict[str, tuple[tuple[object, ...], int]] = {
    "convert": (("model.h5", "new.pt"), 0),
    "verify": (("model.h5", "model.pt"), 0),
    "inspect": (("model.h5",), 0),
    "export": (("model.pt", "model.py"), 0),
    "write-back": (("model.pt", "model.h5", "new.h5"), 0),
    "compare": (("model.h5", "port.py:Net"), 1),
    "map": (("model.h5",), 0),
    "layers": (("GRU",), 0),
    "bench": (("--rnn", "gru"), 0),
    "doctor": ((), 0),
    "version": ((), 0),
    "plugin new": ((CUSTOM,), 0),
}
# A problem of the input or output, and the code that it has.
BAD: dict[str, tuple[tuple[object, ...], int, str]] = {
    "convert": ((WEIGHTS, "x.pt"), 4, "weights_only"),
    "verify": (("model.h5", "none.pt"), 3, "invalid_file"),
    "inspect": (("bad.h5",), 3, "invalid_file"),
    "export": (("model.pt", "model.txt"), 5, "output"),
    "write-back": (("model.pt", "model.h5", "model.h5"), 5, "output"),
    "compare": (("model.h5", "port.py:Nothing"), 2, "usage"),
    "map": (("bad.h5",), 3, "invalid_file"),
    "layers": (("Lambda2",), 2, "usage"),
    "bench": (("--rnn", "cnn"), 2, "usage"),
    "plugin new": (("bad.h5",), 3, "invalid_file"),
}


def check(text: str, code: int, keys: set[str], command: str) -> dict[str, Any]:
    """Check one object against the documented keys; return it."""
    data: dict[str, Any] = json.loads(text)
    assert set(data) == ALWAYS | keys
    assert (data["schema"], data["exit"], data["ok"]) == (1, code, code == 0)
    for name, value in data.items():
        known = LIST_KEYS.get(name) or LIST_KEYS.get(f"{command}: {name}")
        if isinstance(value, list) and value and isinstance(value[0], dict):
            assert known is not None, f"{command}: {name} is not documented"
        for row in value if known and isinstance(value, list) else ():
            assert set(row) == known
    return data


def test_every_command_is_here() -> None:
    assert set(GOOD) == {*COMMANDS, "plugin new"}
    assert set(BAD) == set(GOOD) - {"doctor", "version"}


@pytest.mark.parametrize("command", GOOD)
def test_a_result_has_the_documented_keys(command: str, folder: Path) -> None:
    arguments, code = GOOD[command]
    run = k2t(*command.split(), *arguments, "--json")
    assert run.code == code, run.err
    check(run.out, code, COMMAND_KEYS[command], command)


@pytest.mark.parametrize("command", BAD)
def test_an_error_has_the_documented_keys(command: str, folder: Path) -> None:
    arguments, code, kind = BAD[command]
    run = k2t(*command.split(), *arguments, "--json")
    assert run.code == code, run.err
    data = check(run.out, code, COMMAND_KEYS["error"], command)
    assert len(run.out.splitlines()) == 1
    assert [one["code"] for one in data["problems"]] == [kind]
    assert all(one["message"] and one["message"] in run.err for one in data["problems"])


@pytest.mark.parametrize("command", GOOD)
def test_a_wrong_call_has_the_documented_keys(command: str) -> None:
    run = k2t(*command.split(), "--nonsense", "--json")
    data = check(run.out, 2, COMMAND_KEYS["error"], command)
    assert [(one["code"], one["place"]) for one in data["problems"]] == [("usage", "--nonsense")]


def test_many_files_have_a_line_each(folder: Path) -> None:
    run = k2t("convert", "model.h5", "bad.h5", "--out-dir", "o", "--json")
    good, bad = run.out.splitlines()
    always = {"file", "sha256", "out", "state"}
    check(good, 0, COMMAND_KEYS["convert"] | always, "convert")
    check(bad, 3, COMMAND_KEYS["error"] | always, "convert")
    again = k2t("convert", "model.h5", "--out-dir", "o", "--json")
    assert check(again.out, 0, always, "convert")["state"] == "skipped"


def test_what_is_asked_in_addition_is_documented(folder: Path) -> None:
    run = k2t("convert", "model.h5", "checked.pt", "--verify", "--json")
    data = check(run.out, 0, COMMAND_KEYS["convert"] | {"verified"}, "convert")
    assert set(data["verified"]) == COMMAND_KEYS["verify"] | {"ok"}
    assert "with `--verify`: `verified`" in SECTION


def test_inspect_of_an_unsupported_layer_has_both(folder: Path) -> None:
    run = k2t("inspect", CUSTOM, "--json")
    data = check(run.out, 4, COMMAND_KEYS["inspect"], "inspect")
    assert len(data["problems"]) == 1
    assert len(data["layers"]) > 1
