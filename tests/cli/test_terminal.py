"""The output of every command fits the terminal: 80 columns, and 120; no name in it is broken."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import FIXTURES, MASKED, OLD, STACK_KERAS, WEIGHTS, k2t

from keras2torch_birnn.bench import measure
from keras2torch_birnn.bench.contenders import CONTENDERS
from keras2torch_birnn.cli import app, tables
from keras2torch_birnn.cli.commands import COMMANDS
from keras2torch_birnn.porting import comparing
from keras2torch_birnn.porting.report import PortFinding, PortReport

NESTED = FIXTURES / "training/keras-3.15.1/frozen_nested.keras"
HALVES = FIXTURES / "keras-3.15.1/cells_bi_halves.h5"
CUSTOM = FIXTURES / "plugins/keras-2.2.4/center.h5"
HELP = [(), *((name,) for name in COMMANDS), ("plugin",), ("plugin", "new")]

COMPARED = PortReport(
    False,
    (
        PortFinding(
            "bidirectional",
            "bias doubled",
            "the bias of the file is added twice, as bias_ih and bias_hh, in each of two halves",
            "its output differs first, row 0, step 3, unit 11, which is of the forward half",
            ("bidirectional.bias_ih_l0 + bias_hh_l0: other values than the file's (not loaded?)",),
        ),
        PortFinding("bidirectional_1", "merge mode", "merges the halves by ave, Keras by sum"),
    ),
    (),
    ("normal numbers",),
    0.25,
)


@pytest.fixture(params=[80, 120])
def width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The width of the terminal."""
    monkeypatch.setenv("COLUMNS", str(request.param))
    return int(request.param)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with models that a user may have, in which the commands run."""
    place = tmp_path_factory.mktemp("models")
    (place / "models").mkdir()
    shutil.copyfile(MASKED, place / "models" / "a.h5")
    shutil.copyfile(OLD, place / "models" / "b.h5")
    shutil.copyfile(STACK_KERAS, place / "models" / "c.keras")
    (place / "port.py").write_text("from torch.nn import Identity\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert k2t("convert", MASKED, "model.pt").code == 0
        yield place


def assert_fits(text: str, width: int) -> None:
    wide = [line for line in text.splitlines() if len(line) > width]
    assert text.strip()
    assert not wide, wide


def words_of(text: str) -> set[str]:
    return set(text.split())


def names_in(data: Any, key: str) -> set[str]:
    return {str(row[key]) for row in data if row[key]}


def run_both(*arguments: object, code: int = 0) -> tuple[str, dict[str, Any]]:
    """Run a command for people and for programs; return the text and the data."""
    run = k2t(*arguments)
    assert run.code == code, run.err
    return run.out, json.loads(k2t(*arguments, "--json").out)


# ---- tables --------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [(), ("-v",)])
@pytest.mark.parametrize("model", [MASKED, OLD, STACK_KERAS, NESTED])
def test_inspect_fits(model: Path, more: tuple[str, ...], width: int) -> None:
    text, data = run_both("inspect", model, *more)
    assert_fits(text, width)
    rows = data["layers"]
    shown = [row for row in rows if more or not row["half_of"]]
    ends = {row["path"].removeprefix(f"{row['half_of']}/") for row in shown}
    assert ends | names_in(shown, "class_name") <= words_of(text)
    assert {"layer", "class", "shape", "params", "engine"} <= words_of(text)
    assert "loop: nn.GRU resets after the product," in text or model != MASKED


def test_inspect_breaks_long_paths_after_a_slash(width: int) -> None:
    text, data = run_both("inspect", HALVES, "-v")
    assert_fits(text, width)
    assert names_in(data["layers"], "class_name") <= words_of(text)
    parts = {part for row in data["layers"] for part in row["path"].split("/")}
    assert parts <= set(re.split(r"[\s/]+", text))


def test_inspect_of_weights_fits(width: int) -> None:
    run = k2t("inspect", WEIGHTS)
    assert run.code == 4
    assert_fits(run.out, width)
    assert run.out.splitlines()[0].split() == ["weight", "shape", "dtype"]
    assert "bidirectional_1/forward_lstm_1/recurrent_kernel" in words_of(run.out)


@pytest.mark.parametrize("more", [(), ("GRU",)])
def test_layers_fit(more: tuple[str, ...], width: int) -> None:
    text, data = run_both("layers", *more)
    assert_fits(text, width)
    assert names_in(data["layers"], "class_name") <= set(re.split(r"[\s,]+", text))
    assert "also called" in text
    assert "time_major=True" in text


@pytest.mark.parametrize("model", [MASKED, NESTED])
def test_the_map_of_weights_fits(model: Path, width: int) -> None:
    text, data = run_both("map", model)
    assert_fits(text, width)
    assert names_in(data["weights"], "keras") <= words_of(text)
    assert names_in(data["weights"], "torch") <= words_of(text)
    assert {"Keras", "weight", "torch", "name", "shape", "done"} <= words_of(text)
    if width == 80:  # two lines for each weight, and two more for a long key
        assert len(text.splitlines()) <= 2 + 4 * len(data["weights"])


@pytest.mark.parametrize("more", [("--per-layer",), ("--atol", "0", "--rtol", "0")])
def test_verify_fits(more: tuple[str, ...], folder: Path, width: int) -> None:
    run = k2t("verify", MASKED, "model.pt", *more)
    assert run.code == int("--atol" in more)
    assert_fits(run.out, width)
    assert {"device", "against", "reference", "relative", "rounding"} <= words_of(run.out)
    assert "normal numbers" in run.out
    if "--atol" not in more:
        assert {"bidirectional", "bidirectional_1"} <= words_of(run.out)
    if "--per-layer" in more:
        named = [line.split()[0] for line in run.out.splitlines() if line[:1].strip()]
        assert named[1:5] == ["embedding", "bidirectional", "bidirectional_1", "dense"]


def test_verify_against_golden_fits(folder: Path, width: int) -> None:
    run = k2t("verify", "model.pt")
    assert_fits(run.out, width)
    assert "golden" in words_of(run.out)
    assert run.out.splitlines()[-1] == "OK"


def test_compare_fits(folder: Path, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing, "compare", lambda *_, **__: COMPARED)
    run = k2t("compare", MASKED, "port.py:Identity")
    assert run.code == 1, run.err
    assert_fits(run.out, width)
    lines = " ".join(run.out.split())
    assert all(f"{one.layer}: {one.words}" in lines for one in COMPARED.findings)


def test_bench_fits(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(case: Any, *, device: str, contenders: Any, **_: Any) -> measure.Row:
        timings = [
            measure.Timing(name, "ONNX Runtime 1.32.0", 3.1e-7, (1234.5, 1236.0, 1240.25))
            if at % 2
            else measure.Timing(name, "", 0.0, (), "keras, tensorflow not installed")
            for at, name in enumerate(contenders)
        ]
        return measure.Row(case, device, tuple(timings))

    monkeypatch.setattr(measure, "measure", measured)
    run = k2t("bench", "--rnn", "gru", "--merge", "concat,ave", "--masked", "--layers", 3)
    assert run.code == 0, run.err
    assert_fits(run.out, width)
    assert all(" ".join(run.out.split()).count(name) >= 2 for name in CONTENDERS)
    assert {"median", "fastest", "slowest", "error"} <= words_of(run.out)
    assert run.out.count("not measured, keras, tensorflow not installed: ") == 2


def test_convert_of_many_fits(folder: Path, width: int) -> None:
    run = k2t("convert", "models", "--out-dir", f"out{width}", "--verify")
    assert_fits(run.out, width)
    assert len(run.out.splitlines()) == 4


def test_other_commands_fit(folder: Path, width: int) -> None:
    for arguments in (
        ("export", "model.pt", f"m{width}.py"),
        ("write-back", "model.pt", MASKED, f"new{width}.h5"),
        ("plugin", "new", CUSTOM, "-q"),
        ("version", "-v"),
    ):
        run = k2t(*arguments)
        assert run.code == 0, run.err
        # (A name of a file is as long as it is.)
        lines = [line for line in run.out.splitlines() if not re.match(r"(# .*)?/", line)]
        assert_fits("\n".join(lines), 100 if arguments[0] == "plugin" else width)


# ---- help ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", HELP, ids=" ".join)
def test_help_fits_and_shows_no_types(command: tuple[str, ...], width: int) -> None:
    text = k2t(*command, "--help").out
    assert_fits(text, width)
    about = re.sub(r"Example: .*|\[ARGS\]\.\.\.\n", "", text)  # an example may redirect its output
    assert not re.search(r"[{}<>]|\[\[|\.\.\.$", about), text
    assert text.startswith(f"Usage: {' '.join(('k2t', *command))} ")


@pytest.mark.parametrize("command", HELP[1:], ids=" ".join)
def test_every_option_says_what_it_is_for(command: tuple[str, ...]) -> None:
    text = k2t(*command, "--help").out
    _, _, options = text.partition("Options:\n")
    rows = re.findall(r"^  (-\S.*?)(?:  +(.*)|)$\n?(?:^ {8,}(.*)$)?", options, re.MULTILINE)
    assert rows
    assert all(said or below for _, said, below in rows), rows
    assert not re.search(r"[a-z]\.\s+[a-z]", options), "a sentence begins with a capital letter"


def test_every_value_has_a_name() -> None:
    import typer

    root: Any = typer.main.get_command(app)
    commands = [*root.commands.values(), *root.commands["plugin"].commands.values()]
    for command in commands:
        for one in command.params:
            is_flag = getattr(one, "is_flag", False) or getattr(one, "secondary_opts", ())
            assert is_flag or one.metavar, (command.name, one.name)
            assert one.help, (command.name, one.name)


# ---- how cells are folded ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("tanh, sigmoid", 13, ["tanh, sigmoid"]),
        ("tanh, sigmoid", 12, ["tanh,", "sigmoid"]),
        ("outer/forward_layer", 14, ["outer/", "forward_layer"]),
        ("outer/forward_layer", 10, ["outer/", "forward_", "layer"]),
        ("(-,1000,256)", 9, ["(-,1000,", "256)"]),
        ("abcdefgh", 3, ["abc", "def", "gh"]),
        ("  abc def", 5, ["  abc", "  def"]),
        ("", 5, [""]),
    ],
)
def test_texts_are_folded_where_people_would(text: str, width: int, lines: list[str]) -> None:
    assert tables.fold(text, width) == lines


def test_letters_that_are_two_wide_count_twice(
    capsys: pytest.CaptureFixture[str], width: int
) -> None:
    tables.print_columns(("layer", "class"), [("層" * 5, "GRU"), ("a", "LSTM")], folds=(0,))
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"layer{' ' * 6}class", f"{'層' * 5} GRU", f"a{' ' * 10}LSTM"]
