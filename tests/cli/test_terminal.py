"""The output of commands on a terminal of 80 and of 120 columns: names in it are never broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commands import FIXTURES, MASKED, OLD, STACK_KERAS, WEIGHTS, k2t

from keras2torch_birnn.cli import app
from keras2torch_birnn.cli import console as tables
from keras2torch_birnn.cli.commands import COMMANDS

NESTED = FIXTURES / "training/keras-3.15.1/frozen_nested.keras"
HELP = [(), *((name,) for name in COMMANDS), ("plugin",), ("plugin", "new")]


@pytest.fixture(params=[80, 120])
def width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The width of the terminal."""
    monkeypatch.setenv("COLUMNS", str(request.param))
    return int(request.param)


def assert_fits(text: str, width: int) -> None:
    assert text.strip()
    assert not [line for line in text.splitlines() if len(line) > width]


def run_both(*arguments: object) -> tuple[str, dict[str, Any]]:
    """Run a command for people and for programs; return the text and the data."""
    run = k2t(*arguments)
    assert run.code == 0, run.err
    return run.out, json.loads(k2t(*arguments, "--json").out)


@pytest.mark.parametrize("more", [(), ("-v",)])
@pytest.mark.parametrize("model", [MASKED, OLD, STACK_KERAS])
def test_inspect_fits_and_breaks_no_name(model: Path, more: tuple[str, ...], width: int) -> None:
    text, data = run_both("inspect", model, *more)
    table = text.partition("\n\n")[0]
    if not more:
        assert_fits(table, width)
    words = set(table.split())
    for row in data["layers"]:
        if more or not row["half_of"]:
            assert {row["path"].removeprefix(f"{row['half_of']}/"), row["class_name"]} <= words


@pytest.mark.parametrize("model", [MASKED, NESTED])
def test_the_map_of_weights_breaks_no_name(model: Path, width: int) -> None:
    text, data = run_both("map", model)
    keys = {str(row[key]) for row in data["weights"] for key in ("keras", "torch") if row[key]}
    assert keys <= set(text.split())
    assert "k2t.weights" not in text
    detailed = k2t("map", model, "-v").out.split()
    assert {row["key"] for row in data["weights"] if row["key"]} <= set(detailed)


def test_inspect_of_weights_lists_their_names(width: int) -> None:
    run = k2t("inspect", WEIGHTS)
    assert run.code == 4
    assert run.out.splitlines()[0].split() == ["weight", "shape", "dtype"]
    assert "bidirectional_1/forward_lstm_1/recurrent_kernel" in run.out.split()


def test_columns_are_aligned_and_empty_ones_left_out(
    capsys: pytest.CaptureFixture[str], width: int
) -> None:
    rows = [("層" * 5, "", "7"), ("a", "", "13")]
    tables.print_columns(("layer", "class", "n"), rows, numbers=(2,))
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"layer{' ' * 7}n", f"{'層' * 5}  7", f"a{' ' * 10}13"]


@pytest.mark.parametrize("command", HELP, ids=" ".join)
def test_help_fits(command: tuple[str, ...], width: int) -> None:
    text = k2t(*command, "--help").out
    assert_fits(text, width)
    assert text.startswith(f"Usage: {' '.join(('k2t', *command))} ")


def test_every_value_has_a_name_and_a_help() -> None:
    import typer

    root: Any = typer.main.get_command(app)
    commands = [*root.commands.values(), *root.commands["plugin"].commands.values()]
    for command in commands:
        for one in command.params:
            is_flag = getattr(one, "is_flag", False) or getattr(one, "secondary_opts", ())
            assert is_flag or one.metavar, (command.name, one.name)
            assert one.help, (command.name, one.name)
