"""Values that a shell completes, as bash asks for them."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import MASKED
from typer.testing import CliRunner

from keras2torch_birnn.cli import app


def complete(*words: str) -> list[str]:
    """Return what is offered for the last of these words."""
    line = " ".join(("k2t", *words))
    env = {"_K2T_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words))}
    return CliRunner().invoke(app, [], prog_name="k2t", env=env).stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("convert", "--dtype", ""), ["float32", "float64"]),
        (("convert", "--masked-steps", "z"), ["zeros"]),
        (("verify", "--device", "c"), ["cpu", "cuda"]),
        (("verify", "--against", ""), ["auto", "keras", "reference", "golden"]),
        (("bench", "--device", "a"), ["all"]),
        (("bench", "--rnn", ""), ["lstm", "gru", "rnn"]),
        (("bench", "--merge", ""), ["concat", "sum", "mul", "ave", "all"]),
        (("bench", "--merge", "sum,a"), ["sum,ave"]),
        (("bench", "--recurrent-activation", "s"), ["sigmoid"]),
        (("write-back", "--optimizer", ""), ["keep", "drop", "write"]),
        (("layers", "GR"), ["GRU"]),
        (("convert", "--plugin", "keras-con"), ["keras-contrib-crf"]),
    ],
)
def test_the_values_of_an_option_are_completed(words: tuple[str, ...], offered: list[str]) -> None:
    assert complete(*words) == offered


@pytest.mark.parametrize("command", [("inspect",), ("convert",), ("export",)])
def test_layers_of_the_model_on_the_line_are_completed(command: tuple[str]) -> None:
    assert complete(*command, str(MASKED), "--from", "bi") == ["bidirectional", "bidirectional_1"]
    assert complete(*command, str(MASKED), "--to", "d") == ["dense"]


def test_nothing_is_offered_for_a_model_that_cannot_be_read(tmp_path: Path) -> None:
    assert complete("inspect", str(tmp_path / "none.h5"), "--from", "") == []
    assert complete("inspect", "--from", "") == []


def test_files_of_python_are_offered_for_a_plugin(tmp_path: Path) -> None:
    (tmp_path / "mine.py").touch()
    (tmp_path / "mine.txt").touch()
    (tmp_path / "more").mkdir()
    assert complete("convert", "--plugin", f"{tmp_path}/m") == [
        f"{tmp_path}/mine.py",
        f"{tmp_path}/more/",
    ]
