"""The commands as their users meet them: results, messages, exit codes, interruptions."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
from commands import (
    ARCHITECTURE,
    COMMAND,
    FIXTURES,
    MASKED,
    OLD,
    OLD_OUT,
    STACK_H5,
    STACK_KERAS,
    WEIGHTS,
    assert_refused,
    changed_config,
    changed_keras,
    contents,
    k2t,
    k2t_process,
    layer,
    run_process,
)
from out_files import changing
from plugin_files import forgetting_plugins
from sampling import in_turn, rest_thorough
from warm_process import HEED_SIGNALS, in_terminal, run_code, run_command

from keras2torch_birnn import __version__
from keras2torch_birnn.errors import UsageError
from keras2torch_birnn.torch_import import loading_torch

USERS = Path(__file__).parents[1] / "plugins" / "layers_of_users.py"
COMMANDS = ("convert", "verify", "inspect", "layers")
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="signals and terminals of POSIX")


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MASKED, converted once."""
    out = tmp_path_factory.mktemp("converted") / "model.pt"
    assert k2t("convert", MASKED, out).code == 0
    return out


def test_the_refusal_of_weights_alone_names_the_one_architecture_that_fits(tmp_path: Path) -> None:
    weights, out = tmp_path / "weights.h5", tmp_path / "out.pt"
    shutil.copyfile(WEIGHTS, weights)
    tmp_path.joinpath("other.json").write_text('{"class_name": "Sequential", "config": []}')
    run = k2t("convert", weights, out)
    assert_refused(run, 4, weights, "give the text of model.to_json() with --config")
    fits = tmp_path / "arch.json"
    shutil.copyfile(ARCHITECTURE, fits)
    for call in (("convert", weights, out), ("inspect", weights)):
        assert_refused(k2t(*call), 4, weights, f"{fits} fits: --config {fits}")
    run = k2t("convert", tmp_path, "--out-dir", tmp_path / "converted")
    assert (run.code, f"{fits} fits: --config {fits}" in run.err) == (4, True)
    shutil.copyfile(ARCHITECTURE, tmp_path / "also.json")
    assert "fits" not in k2t("convert", weights, out).err


# ---- happy paths -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "suffix"),
    in_turn((MASKED, OLD, STACK_H5, STACK_KERAS), (".pt", ".safetensors")),
    ids=lambda value: getattr(value, "name", value),
)
def test_convert_and_verify_on_a_fixture(model: Path, suffix: str, tmp_path: Path) -> None:
    out = tmp_path / f"model{suffix}"
    run = k2t("convert", model, out)
    assert (run.code, run.lines("error")) == (0, [])
    assert run.out.startswith(f"{out}: ")
    assert "written by " in run.lines("note")[0]
    assert list(contents(tmp_path)) == [out.name]

    proof = k2t("verify", model, out)
    assert (proof.code, proof.out.splitlines()[-1]) == (0, "OK")
    assert k2t("verify", out).code == 0


def test_inspect_says_how_each_layer_runs_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keras2torch_birnn.rnn.engines.REQUESTED", "torch")
    run = k2t("inspect", MASKED)
    table = {line.split()[0]: line for line in run.out.splitlines() if line}
    assert "nn.LSTM, bidirectional" in table["[1]"]
    assert "concat" in table["bidirectional"]
    assert "uses" in table["bidirectional"]
    assert "makes" in table["embedding"]
    assert "loop [2]" in table["bidirectional_1"]
    assert "reset_after" in table["[2]"]


def test_dtype_float64_is_what_is_written(tmp_path: Path) -> None:
    out = tmp_path / "model.pt"
    assert k2t("convert", OLD, out, "--dtype", "float64").code == 0
    state = torch.load(out, weights_only=True)["state_dict"]
    assert {t.dtype for t in state.values()} == {torch.float64}
    assert k2t("verify", OLD, out).code == 0


def test_a_problem_names_place_class_and_remedy(tmp_path: Path) -> None:
    file = changed_config(STACK_KERAS, tmp_path / "m.keras", two_unknown_layers)
    for run in (k2t("convert", file, tmp_path / "m.pt", "--json"), k2t("inspect", file, "--json")):
        found = json.loads(run.out)
        assert (found["ok"], found["exit"], run.code) == (False, 4, 4)
        rows = {row["place"]: (row["code"], row["class"]) for row in found["problems"]}
        assert rows == {
            "dense": ("unsupported_layer", "MyAttention"),
            "bidirectional/forward_layer": ("unsupported_option", "LSTM"),
        }
        assert all(row["do"] for row in found["problems"])


def test_quiet_is_without_notes(tmp_path: Path) -> None:
    assert k2t("inspect", MASKED, "-q").err == ""
    assert k2t("convert", MASKED, tmp_path / "m.pt", "--quiet").err == ""
    assert k2t("inspect", MASKED).lines("note")


def test_short_options() -> None:
    assert k2t("-V").out == k2t("--version").out == f"k2t {__version__}\n"
    assert k2t("-h").out == k2t("--help").out
    assert "--install-completion" in k2t("--help").out
    assert k2t("verify", "-h").code == 0


@pytest.mark.parametrize(("width", "lines"), [(80, 7), (120, 5)])
def test_layers_take_a_line_each_where_there_is_room(
    width: int, lines: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert k2t("inspect", MASKED).out.splitlines().index("") == lines


def test_halves_are_rows_only_where_they_differ_or_on_request() -> None:
    assert "forward_" not in k2t("inspect", MASKED).out
    assert "\n  forward_" in k2t("inspect", MASKED, "--verbose").out
    different = FIXTURES / "keras-3.15.1" / "cells_bi_halves.h5"
    run = k2t("inspect", different)
    assert "\n  forward_" in run.out


def test_inspect_shows_what_acts_in_training_of_hidden_halves() -> None:
    out = k2t("inspect", FIXTURES / "training/keras-3.15.1/constrained.before.keras").out
    layers, trained = out.split("in training")
    assert "bidirectional/" not in layers
    rows = [line for line in trained.splitlines() if line.startswith("bidirectional/")]
    assert [row.split()[0].rpartition("/")[2] for row in rows] == [
        "forward_layer",
        "backward_layer",
    ]
    assert all("kernel: MaxNorm(max_value=0.7, axis=0)" in row for row in rows)


def test_inspect_reads_what_was_converted(converted: Path) -> None:
    model, out = k2t("inspect", MASKED), k2t("inspect", converted)
    assert (out.code, out.out) == (0, model.out)


def test_parameters_are_counted_as_keras_counts_them() -> None:
    rows = json.loads(k2t("inspect", MASKED, "--json").out)["layers"]
    counts = {row["path"]: row["parameters"] for row in rows}
    assert counts["embedding"] == 51
    assert counts["bidirectional"] == 1320
    assert counts["bidirectional_1"] == 2808
    assert counts["dense"] == 266


def test_one_class_of_layers_is_listed() -> None:
    run = k2t("layers", "CuDNNGRU")
    assert [line.split()[0] for line in run.out.splitlines()[:2]] == ["layers", "GRU"]
    assert "DMoji" not in run.out


# ---- help --------------------------------------------------------------------------------------


def test_help_names_every_command() -> None:
    run, bare = k2t("--help"), k2t()
    assert run.code == 0
    assert all(command in run.out for command in COMMANDS)
    assert (bare.code, "Usage" in bare.err + bare.out) == (2, True)


def test_version_names_the_instruction_sets_of_the_processor() -> None:
    (line,) = [row for row in k2t("version", "-v").out.splitlines() if row.startswith("kernels")]
    assert re.fullmatch(r"kernels float32 (.+), bfloat16 (.+), int8 (.+)", line)


# ---- exit codes --------------------------------------------------------------------------------


def test_verify_ends_with_1_for_another_models_weights(converted: Path, tmp_path: Path) -> None:
    wrong = shutil.copyfile(converted, tmp_path / "wrong.pt")
    with changing(wrong) as (content, _):
        weight = content["state_dict"]["bidirectional.weight_hh_l0"]
        weight.copy_(weight.flip(0))
    run = k2t("verify", MASKED, wrong)
    assert run.code == 1
    assert run.out.splitlines()[-1] == "NOT EQUAL"
    assert "first divergence: bidirectional" in run.out
    assert k2t("verify", wrong).code == 1


def two_unknown_layers(model: dict[str, Any]) -> None:
    layer(model, "dense")["class_name"] = "MyAttention"
    layer(model, "bidirectional")["config"]["layer"]["config"]["activation"] = "abacus"


@pytest.mark.parametrize("model", [STACK_H5, STACK_KERAS], ids=lambda p: p.suffix)
def test_all_that_is_unsupported_is_listed_at_once(model: Path, tmp_path: Path) -> None:
    file = changed_config(model, tmp_path / f"m{model.suffix}", two_unknown_layers)
    for call in (("convert", file, tmp_path / "out.pt"), ("inspect", file)):
        run = k2t(*call)
        assert_refused(run, 4, file, "MyAttention is not supported; `k2t layers` lists", lines=2)
        assert f"{file}: dense: " in run.err
        assert f"{file}: bidirectional/forward_layer: " in run.err
        assert ("Bidirectional" in run.out) == (call[0] == "inspect")
    assert list(contents(tmp_path)) == [file.name]


def test_a_bug_ends_with_70_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(*_: object, **__: object) -> None:
        raise IndexError("list index out of range\nand more")

    monkeypatch.setattr("keras2torch_birnn.conversion.convert_to_file", broken)
    run = k2t("convert", MASKED, tmp_path / "out.pt")
    assert run.code == 70
    assert run.err == (
        "k2t: error: a bug in k2t: IndexError: list index out of range; --debug shows where\n"
    )
    with pytest.raises(IndexError):
        k2t("convert", MASKED, tmp_path / "out.pt", "--debug")
    data = json.loads(k2t("convert", MASKED, tmp_path / "out.pt", "--json").out)
    assert (data["exit"], data["problems"][0]["code"]) == (70, "internal")


LINUX = pytest.mark.skipif(sys.platform != "linux", reason="other systems keep no RLIMIT_AS")


def take_memory() -> None:
    """Leave a process less than torch needs."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (512 << 20, 512 << 20))


@LINUX
@pytest.mark.parametrize(
    "command", rest_thorough(["convert", "verify", "inspect --plugin"], ["convert"])
)
def test_too_little_memory_for_torch_is_said_in_one_line(command: str, tmp_path: Path) -> None:
    out = {"convert": (tmp_path / "out.pt",), "verify": (STACK_H5,)}.get(command, ())
    command, _, option = command.partition(" ")
    plugin = (option, USERS) if option else ()
    run = k2t_process(command, MASKED, *out, *plugin, preexec_fn=take_memory)
    assert_refused(run, 2, "torch", "not enough memory to load it; raise its limit")
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ImportError("libtorch.so: failed to map segment from shared object"), 2, "not enough"),
        (RuntimeError("can't start new thread"), 2, "not enough memory; raise its limit"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, "not enough memory"),
        (MemoryError(), 3, "does not fit into memory"),
        (OSError(5, "Input/output error"), 5, "refuses to go on (Input/output error); check the"),
        (SystemError("error return without exception set"), 70, "a bug in k2t"),
        (ImportError("No module named 'torch.missing'"), 70, "a bug in k2t"),
    ],
)
def test_missing_memory_is_no_bug(
    error: Exception, code: int, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("keras2torch_birnn.conversion.convert_to_file", failing)
    run = k2t("convert", MASKED, tmp_path / "out.pt")
    assert (run.code, len(run.err.splitlines())) == (code, 1)
    assert words in run.err
    with pytest.raises(type(error)):
        k2t("convert", MASKED, tmp_path / "out.pt", "--debug")


@pytest.mark.parametrize("error", [MemoryError(), SystemError("NULL"), OSError("bad_alloc")])
def test_every_way_in_which_torch_lacks_memory_is_a_usage_error(error: Exception) -> None:
    with pytest.raises(UsageError, match="torch: not enough memory"), loading_torch():
        raise error


def test_other_failures_of_importing_torch_stay_what_they_are() -> None:
    with pytest.raises(ImportError, match="undefined symbol"), loading_torch():
        raise ImportError("libtorch.so: undefined symbol: x")


def test_a_failing_import_of_torch_is_told_where_the_model_is_converted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The thread that imports it has the error, and the command waits for that thread."""
    monkeypatch.setitem(sys.modules, "keras2torch_birnn.golden", None)
    monkeypatch.delattr("keras2torch_birnn.golden", raising=False)
    run = k2t("convert", MASKED, tmp_path / "out.pt")
    assert run.code == 70
    assert "import of keras2torch_birnn.golden halted" in run.err


@pytest.mark.parametrize("module", ["keras2torch_birnn", "keras2torch_birnn.cli"])
def test_python_m_runs_the_commands(module: str, tmp_path: Path) -> None:
    run = run_process(sys.executable, "-m", module, "inspect", tmp_path / "none.h5")
    assert run.code == 3
    assert run.err.startswith("k2t: error: ")


def test_a_traceback_with_debug(tmp_path: Path) -> None:
    assert "Traceback" in run_command("inspect", tmp_path / "none.h5", "--debug").err


# ---- streams -----------------------------------------------------------------------------------


def test_no_escape_codes_in_a_pipe(tmp_path: Path) -> None:
    calls = (
        ("--help",),
        ("convert", "--help"),
        ("inspect", str(MASKED)),
        ("inspect", str(tmp_path / "none.h5")),
        ("bogus",),
    )
    run = run_code(
        "from contextlib import suppress\nfrom keras2torch_birnn.cli import app\n"
        f"for call in {calls!r}:\n    with suppress(SystemExit):\n        app(call)",
        FORCE_COLOR="1",
    )
    assert "Usage: " in run.out and "bidirectional_1" in run.out
    assert "No such file" in run.err and "No such command" in run.err
    assert "\x1b" not in run.out + run.err


@POSIX
def test_no_color_is_obeyed_on_a_terminal() -> None:
    script = f"from keras2torch_birnn.cli import app; app(['inspect', {str(MASKED)!r}])"
    colours = r"\x1b\[[0-9;]*m"
    assert not re.search(colours, in_terminal(script, NO_COLOR="1", TERM="xterm"))


@POSIX
def test_a_reader_that_goes_away_is_no_error() -> None:
    script = 'set -o pipefail; "$0" layers | head -1'
    run = run_process("bash", "-c", script, *COMMAND)
    assert run.code in (0, 141)
    assert run.out.startswith("layer")
    assert "Exception ignored" not in run.err
    assert "error" not in run.err


@POSIX
@pytest.mark.every(3)
@pytest.mark.parametrize(("number", "name"), [(0, "stdin"), (1, "stdout"), (2, "stderr")])
def test_a_closed_standard_stream_changes_nothing(number: int, name: str, tmp_path: Path) -> None:
    """As Python begins without it; the number goes to the next file that is opened."""
    out = tmp_path / "out.pt"
    closed = f"import os, sys\nos.close({number})\nsys.{name} = sys.__{name}__ = None"
    done = run_command("convert", MASKED, out, before=closed)
    assert (done.code, "error" in done.err) == (0, False)
    assert k2t("verify", out).code == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_stdout_ends_with_5() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, "layers"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 5
    assert done.stderr.startswith("k2t: error: standard output: cannot be written")
    assert len(done.stderr.splitlines()) == 1


# ---- interruptions -----------------------------------------------------------------------------

AT_START = "import os, signal; os.kill(os.getpid(), signal.{name})"
WHILE_WRITING = """
import os, signal, torch
def save(content, file):
    file.write(b"half of it")
    file.flush()
    os.kill(os.getpid(), signal.{name})
torch.save = save
"""


def restore_signals() -> None:
    """Undo what a shell does to background jobs: they and their children ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@POSIX
@pytest.mark.every(3)
@pytest.mark.parametrize(
    ("name", "moment", "out"),
    [
        ("SIGINT", AT_START, "new.pt"),
        ("SIGTERM", AT_START, "old.pt"),
        ("SIGINT", WHILE_WRITING, "old.pt"),
        ("SIGTERM", WHILE_WRITING, "new.pt"),
    ],
    ids=["at the start", "ended at the start", "while writing", "ended while writing"],
)
def test_an_interruption_leaves_everything_as_it_was(
    name: str, moment: str, out: str, tmp_path: Path
) -> None:
    plugin, folder = tmp_path / "plugin.py", tmp_path / "results"
    plugin.write_text(moment.format(name=name))
    folder.mkdir()
    (folder / "old.pt").write_bytes(OLD_OUT)
    number = getattr(signal, name)
    arguments = ("convert", MASKED, folder / out, "--plugin", plugin, "--force")
    run = run_command(*arguments, before=HEED_SIGNALS)
    assert (run.code, run.out, run.err) == (-number, "", "")
    assert contents(folder) == {"old.pt": OLD_OUT}


@POSIX
def test_a_shell_sees_130_after_ctrl_c(tmp_path: Path) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text(AT_START.format(name="SIGINT"))
    script = '"$0" inspect "$1" --plugin "$2"; echo "ended with $?"'
    command = ("bash", "-c", script, *COMMAND, MASKED, plugin)
    run = run_process(*command, preexec_fn=restore_signals)
    assert "ended with 130" in run.out
    assert "Traceback" not in run.err


# ---- plugins -----------------------------------------------------------------------------------

PLUGIN = """
import torch
import keras2torch_birnn as k2t

@k2t.converts("MyDense", weights=("kernel", "bias"))
def my_dense(layer):
    kernel, bias = layer.weights.values()
    module = torch.nn.Linear(*kernel.shape)
    module.weight.data = torch.from_numpy(kernel.T.copy())
    module.bias.data = torch.from_numpy(bias.copy())
    return module
"""


def own_dense(model: dict[str, Any]) -> None:
    entry = layer(model, "dense_1")
    entry["class_name"] = "MyDense"
    if "module" in entry:
        entry["module"], entry["registered_name"] = "my_package", "my_package>MyDense"


def own_group(_: object, weights: h5py.File) -> None:
    """Name the weights as Keras would: by the class of their layer."""
    weights.move("layers/dense_1", "layers/my_dense")


@pytest.mark.parametrize("model", [STACK_H5, STACK_KERAS], ids=lambda p: p.suffix)
def test_a_plugin_converts_the_users_own_layer(model: Path, tmp_path: Path) -> None:
    file = changed_config(model, tmp_path / f"own{model.suffix}", own_dense)
    if model == STACK_KERAS:
        changed_keras(file, file, own_group)
    plugin, out, plain = tmp_path / "plugin.py", tmp_path / "own.pt", tmp_path / "plain.pt"
    plugin.write_text(PLUGIN)
    refused = k2t("convert", file, out)
    assert_refused(refused, 4, file, "layer class MyDense is not supported")
    assert "k2t plugin new MODEL" in refused.err

    with forgetting_plugins():
        assert k2t("convert", file, out, "--plugin", plugin).code == 0
    assert k2t("convert", model, plain).code == 0
    own, known = (torch.load(p, weights_only=True)["state_dict"] for p in (out, plain))
    assert own.keys() == known.keys()
    assert all(torch.equal(own[name], known[name]) for name in own)

    with forgetting_plugins():
        shown = k2t("inspect", file, "--plugin", plugin)
    assert (shown.code, "MyDense" in shown.out) == (0, True)
    with forgetting_plugins():
        proof = k2t("verify", file, out, "--plugin", plugin)
    assert proof.code == 0
    assert proof.out.splitlines()[-1].startswith("OK"), proof.err + proof.out
    with forgetting_plugins():
        assert k2t("verify", out, "--plugin", plugin).code == 0
