"""Many files in one command: what is found, how outputs are named, the summary, the exit code."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from typing import Any

import pytest
from commands import (
    ARCHITECTURE,
    MASKED,
    OLD,
    STACK_H5,
    STACK_KERAS,
    WEIGHTS,
    contents,
    k2t,
)
from out_files import changing
from plugin_files import forgetting_plugins
from warm_process import HEED_SIGNALS, run_command

from keras2torch_birnn.cli import batch, convert_command
from keras2torch_birnn.cli.batch import Options
from keras2torch_birnn.errors import UsageError


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder with three models, one of them in a folder of its own, and other files."""
    folder = tmp_path / "models"
    (folder / "deep").mkdir(parents=True)
    shutil.copyfile(MASKED, folder / "a.h5")
    shutil.copyfile(STACK_KERAS, folder / "b.keras")
    shutil.copyfile(OLD, folder / "deep" / "c.hdf5")
    (folder / "notes.txt").write_text("no model")
    return folder


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork processes, where there are forks, from one that has torch: most need no more."""
    if "forkserver" in get_all_start_methods():
        context = get_context("forkserver")
        context.set_forkserver_preload(["torch"])
        monkeypatch.setattr(batch, "get_context", lambda _: context)


def names_of(tasks: list[batch.Task], out: Path) -> list[tuple[str, str]]:
    return [(one.model.name, str(one.out.relative_to(out))) for one in tasks]


def pair(*names: object, out: Path, with_config: bool = False) -> list[tuple[str, str]]:
    tasks = convert_command.pair_with_outputs([str(n) for n in names], out, with_config=with_config)
    return names_of(tasks, out)


def test_a_folder_is_converted_as_it_is_laid_out(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = k2t("convert", models, "--out-dir", out, "--verify")
    assert run.code == 0, run.err
    assert sorted(contents(out)) == ["a.pt", "b.pt", "deep/c.pt"]
    lines = run.out.splitlines()
    assert lines[0] == f"{out}/a.pt: 4 layers, 4,445 parameters, verify: OK"
    assert lines[-1] == "3 converted"
    assert k2t("verify", models / "a.h5", out / "a.pt").code == 0


@pytest.mark.thorough
def test_processes_give_what_one_process_gives(models: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert k2t("convert", models, "--out-dir", one).code == 0
    idle = tmp_path / "idle.py"
    idle.write_text("x = 1\n")
    # Never more processes than files, however many are asked for.
    given = ("--out-dir", two, "--jobs", 2**64, "--plugin", idle)
    with forgetting_plugins():
        done = k2t("convert", models, *given)
    notes = done.lines("note")
    assert (done.code, len(done.err.splitlines())) == (0, len(notes))
    assert notes[-1] == f"plugin {idle} registers nothing; see docs/plugins.md"
    assert done.out.splitlines()[-1] == "3 converted"
    assert contents(one) == contents(two)


def test_what_is_newer_than_its_model_is_skipped(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert k2t("convert", models, "--out-dir", out).code == 0
    before = contents(out)
    os.utime(out / "a.pt", ns=(0, 0))  # as if it were older than its model
    (out / "deep" / "c.pt").unlink()
    run = k2t("convert", models, "--out-dir", out)
    assert run.code == 0, run.err
    assert run.out.splitlines()[1:] == [
        f"{out}/b.pt: skipped, it is newer than its model",
        f"{out}/deep/c.pt: 3 layers, 1,242 parameters",
        "2 converted, 1 skipped",
    ]
    assert contents(out) == before
    assert "3 converted" in k2t("convert", models, "--out-dir", out, "--force").out


def test_a_file_of_another_program_is_not_replaced(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.pt").write_text("not ours")
    run = k2t("convert", models / "a.h5", "--out-dir", out, "--force")
    assert run.code == 5
    assert "k2t did not write it" in run.err
    assert contents(out) == {"a.pt": b"not ours"}


def test_a_refused_file_is_counted_or_ends_the_work(models: Path, tmp_path: Path) -> None:
    (models / "aa.h5").write_bytes(b"damaged")
    shutil.copyfile(WEIGHTS, models / "bb.h5")
    run = k2t("convert", models, "--out-dir", tmp_path / "first", "--fail-fast")
    assert run.code == 3
    assert run.out.splitlines()[-1] == "1 converted, 1 refused"
    assert run.lines("error")[0].startswith(f"{models}/aa.h5: ")
    assert "3 not tried; to go on, run k2t" in run.lines("note")[-1]
    run = k2t("convert", models, "--out-dir", tmp_path / "out")
    assert run.code == 4  # the worst of 3 and 4
    assert run.out.splitlines()[-1] == "3 converted, 2 refused"
    assert not any("not tried" in note for note in run.lines("note"))
    run = k2t("convert", models / "none", "--out-dir", tmp_path / "out")
    assert (run.code, "No such file" in run.err) == (3, True)


def test_a_note_of_several_files_is_printed_once(tmp_path: Path) -> None:
    for name in ("a.h5", "b.h5", "c.h5"):
        shutil.copyfile(MASKED, tmp_path / name)
    run = k2t("convert", tmp_path, "--out-dir", tmp_path / "out")
    note = "written by tf.keras 2.15.0: Bidirectional gives zeros at masked steps"
    assert run.lines("note") == [f"3 files: {note}"]
    again = k2t("convert", tmp_path / "a.h5", "--out-dir", tmp_path / "out", "--force")
    assert again.lines("note") == [f"{tmp_path / 'a.h5'}: {note}"]


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_an_interrupted_batch_sums_up_and_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plugin ends the command by Ctrl-C where it is loaded for the second file."""
    for name in ("a.h5", "b.h5"):
        shutil.copyfile(MASKED, tmp_path / name)
    plugin = tmp_path / "plugin.py"
    plugin.write_text(
        "import os, signal\nif os.path.exists('out/a.pt'): os.kill(os.getpid(), signal.SIGINT)\n"
    )
    arguments = ("convert", "a.h5", "b.h5", "--out-dir", "out", "--plugin", "plugin.py")
    monkeypatch.chdir(tmp_path)
    run = run_command(*arguments, "--force", before=HEED_SIGNALS)
    assert run.code == -signal.SIGINT
    assert run.out.splitlines()[-1] == "1 converted"
    assert run.lines("note")[-1] == f"1 not tried; to go on, run k2t {' '.join(arguments)}"
    plugin.write_text("")
    with forgetting_plugins():
        assert k2t(*arguments).out.endswith("1 skipped, 1 converted\n")


def test_a_folder_that_cannot_be_read_is_named_and_costs_nothing_else(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The administrator, who may read everything, sees it like others: by simulation."""
    scan, status, closed = os.scandir, Path.is_file, str(models / "deep")

    def scandir(path: Any = ".") -> Any:
        if os.fspath(path) == closed:
            raise PermissionError(13, "Permission denied", closed)
        return scan(path)

    def is_file(path: Path, **options: Any) -> bool:
        if str(path.parent) == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return status(path, **options)

    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr(Path, "is_file", is_file)
    for model in (models, models / "deep"):
        run = k2t("convert", model, "--out-dir", tmp_path / "out")
        assert run.code == 3
        assert run.lines("error") == [f"{closed}: cannot be opened (Permission denied)"]
    assert {one.name for one in (tmp_path / "out").iterdir()} >= {"a.pt", "b.pt"}


def test_json_lines_have_an_object_for_each_file(models: Path, tmp_path: Path) -> None:
    (models / "aa.h5").write_bytes(b"damaged")
    run = k2t("convert", models, "--out-dir", tmp_path / "out", "--json")
    rows: list[dict[str, Any]] = [json.loads(line) for line in run.out.splitlines()]
    assert [Path(row["file"]).name for row in rows] == ["a.h5", "aa.h5", "b.keras", "c.hdf5"]
    assert [row["ok"] for row in rows] == [True, False, True, True]
    assert {row["schema"] for row in rows} == {1}
    assert rows[0]["parameters"] == 4445
    assert len(rows[0]["sha256"]) == 64
    assert rows[1]["exit"] == run.code == 3
    (problem,) = rows[1]["problems"]
    assert problem["code"] == "invalid_file"
    assert run.err.splitlines()[-1] == "3 converted, 1 refused"


def test_a_model_that_is_not_equal_is_the_exit_code(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keras2torch_birnn.cli.batch.verify_file", lambda *_: {"ok": False})
    run = k2t("convert", models / "a.h5", tmp_path / "a.pt", "--verify")
    assert (run.code, run.out.strip().endswith("verify: NOT EQUAL")) == (1, True)
    run = k2t("convert", models / "a.h5", "--out-dir", tmp_path / "out", "--verify")
    assert run.code == 1


def test_names_of_outputs_never_meet(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copyfile(STACK_H5, models / "b.h5")
    assert pair(models, out=out) == [
        ("a.h5", "a.pt"),
        ("b.h5", "b.h5.pt"),
        ("b.keras", "b.keras.pt"),
        ("c.hdf5", "deep/c.pt"),
    ]
    other = tmp_path / "other"
    other.mkdir()
    shutil.copyfile(OLD, other / "a.h5")
    with pytest.raises(UsageError, match=r"would both become .*a\.h5\.pt; name the folder"):
        pair(models / "a.h5", other / "a.h5", out=out)


def test_folders_that_are_models_are_no_folders_of_models(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for folder, mark in (
        ("saved.v1", "saved_model.pb"),
        ("js", "model.json"),
        ("ck", "checkpoint"),
    ):
        (tmp_path / "in" / folder).mkdir(parents=True)
        (tmp_path / "in" / folder / mark).write_text("{}")
    assert pair(tmp_path / "in", out=out) == [("saved.v1", "saved.v1.pt"), ("model.json", "js.pt")]
    assert pair(tmp_path / "in", out=out, with_config=True) == [
        ("ck", "ck.pt"),
        ("saved.v1", "saved.v1.pt"),
        ("model.json", "js.pt"),
    ]
    assert pair(tmp_path / "in" / "js" / "model.json", out=out) == [("model.json", "js.pt")]


def test_patterns_that_no_shell_expanded_are_expanded(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert pair(models / "*.h5", out=out) == [("a.h5", "a.pt")]
    monkeypatch.chdir(models)
    assert pair("**/*.hdf5", out=out) == [("c.hdf5", "c.pt")]
    with pytest.raises(UsageError, match="matches no file; check the pattern"):
        pair("*.keras2", out=out)


def test_an_architecture_is_for_the_files_that_lack_one(models: Path, tmp_path: Path) -> None:
    shutil.copyfile(WEIGHTS, models / "weights.h5")
    out = tmp_path / "out"
    run = k2t("convert", models, "--config", ARCHITECTURE, "--out-dir", out)
    assert (run.code, run.out.splitlines()[-1]) == (0, "4 converted")
    assert k2t("verify", models / "b.keras", out / "b.pt").code == 0
    again = k2t("convert", WEIGHTS, "--config", ARCHITECTURE, "--out-dir", out, "--verify")
    assert again.code == 0, again.err


@pytest.mark.thorough
@pytest.mark.usefixtures("forks")
def test_a_process_that_dies_costs_its_file_alone(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others have processes of their own."""
    monkeypatch.setattr(batch, "convert_task", dying_at_b)
    tasks = convert_command.pair_with_outputs([str(models)], tmp_path / "out", with_config=False)
    found = list(batch._run(tasks, Options(), jobs=2))
    assert [one.state for one in found] == ["tried", "refused", "tried"]
    (line,) = found[1].errors
    assert "b.keras: its process ended without a result, as the system ends one if memory" in line
    assert found[1].exit_code == 70


def dying_at_b(task: batch.Task, _: Options) -> batch.Outcome:
    """Stand for a conversion: end the process at one of the files."""
    if task.model.name == "b.keras":
        os._exit(1)
    return batch.Outcome(task, "tried", {"exit": 0}, ())


def test_what_is_skipped_is_verified_if_that_is_asked(models: Path, tmp_path: Path) -> None:
    """A second run must not turn NOT EQUAL into success."""
    out = tmp_path / "out"
    assert k2t("convert", models / "a.h5", "--out-dir", out).code == 0
    with changing(out / "a.pt") as (content, _):
        content["state_dict"]["dense.bias"] += 1
    run = k2t("convert", models / "a.h5", "--out-dir", out, "--verify")
    assert run.code == 1
    assert run.out.splitlines()[0].endswith("newer than its model, verify: NOT EQUAL")
    assert k2t("convert", models / "a.h5", "--out-dir", out).code == 0
    run = k2t("convert", models / "a.h5", "--out-dir", out, "--verify", "--force")
    assert (run.code, "1 converted" in run.out) == (0, True)
    run = k2t("convert", models / "a.h5", "--out-dir", out, "--verify", "--json")
    row = json.loads(run.out)
    assert (row["state"], row["ok"], row["verified"]["ok"]) == ("skipped", True, True)


# ---- names of outputs ----------------------------------------------------------------------------


def test_a_file_that_is_named_twice_is_one(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(models)
    out = tmp_path / "out"
    assert pair("a.h5", models / "a.h5", "./a.h5", out=out) == [("a.h5", "a.pt")]


def test_the_folder_one_is_in_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "saved.v1"
    (folder / "variables").mkdir(parents=True)
    (folder / "saved_model.pb").touch()
    for place, name in ((folder, "."), (folder / "variables", "..")):
        monkeypatch.chdir(place)
        (task,) = convert_command.pair_with_outputs([name], tmp_path / "out", with_config=False)
        assert task.out == tmp_path / "out" / "saved.v1.pt"


def test_a_name_that_is_too_long_costs_its_file_alone(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in (f"{'n' * 250}.h5", f"{'n' * 249}.keras", f"{'n' * 249}.h5", "short.h5"):
        shutil.copyfile(STACK_KERAS if name.endswith("s") else MASKED, folder / name)
    run = k2t("convert", folder, "--out-dir", tmp_path / "out", "--json")
    rows = [json.loads(line) for line in run.out.splitlines()]
    assert [row["state"] for row in rows] == ["converted", "refused", "converted", "converted"]
    (problem,) = rows[1]["problems"]
    assert (problem["code"], run.code) == ("output", 5)
    assert problem["message"] == "cannot be written (File name too long)"
