"""Wrong calls that the parser of arguments finds: as JSON on stdout, too, with ``--json``."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from commands import MASKED, k2t


@pytest.mark.parametrize(
    ("arguments", "place", "message", "command"),
    [
        (("convert",), "MODEL OUT", "Missing argument", "k2t convert"),
        (("convert", "m.h5", "m.pt", "--jbs", "2"), "--jbs", "No such option", "k2t convert"),
        (("convert", "m.h5", "m.pt", "-j", "x"), "--jobs", "Invalid value", "k2t convert"),
        (("convrt", "m.h5"), "", "No such command 'convrt'", "k2t"),
        (("plugin", "new"), "MODEL", "Missing argument", "k2t plugin new"),
        (("plugin", "nw"), "", "No such command 'nw'", "k2t plugin"),
        (("inspect", "a", "b"), "", "unexpected extra argument", "k2t inspect"),
        (("bench", "--layers", "0"), "--layers", "Invalid value", "k2t bench"),
    ],
)
def test_a_wrong_call_is_json(
    arguments: tuple[str, ...], place: str, message: str, command: str
) -> None:
    run = k2t(*arguments, "--json")
    data = json.loads(run.out)
    (problem,) = data.pop("problems")
    assert (run.code, data) == (2, {"schema": 1, "ok": False, "exit": 2})
    assert message in problem.pop("message")
    assert problem == {
        "file": "",
        "place": place,
        "code": "usage",
        "class": "",
        "do": f"{command} --help lists what is expected",
    }
    assert "Usage: k2t" in run.err


def test_an_option_before_the_command_is_told_where_it_belongs() -> None:
    run = k2t("--json")
    (problem,) = json.loads(run.out)["problems"]
    assert problem["message"] == "No such option: --json"
    assert problem["do"] == "it follows a command: k2t COMMAND --json"
    assert "No such option: --nowhere" in k2t("--nowhere").err


def test_a_wrong_call_without_json_leaves_stdout_empty() -> None:
    assert k2t("convert").out == ""
    assert k2t("convert", MASKED, "--", "--json", "m.pt").code == 2


@pytest.mark.parametrize(
    "arguments", [("inspect",), ("map",), ("verify", MASKED), ("inspect", MASKED, "--config")]
)
def test_a_file_without_the_right_to_read_it_is_no_wrong_call(
    arguments: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Typer would end with 2 before the file is opened, which ends with 3 everywhere."""
    file = tmp_path / "secret.h5"
    file.write_bytes(b"nothing of Keras")

    def access(path: str | os.PathLike[str], *_: object) -> bool:
        return os.fspath(path) != str(file)

    monkeypatch.setattr(os, "access", access)
    assert k2t(*arguments, file).code == 3
