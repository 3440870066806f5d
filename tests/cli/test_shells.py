"""Completion in zsh and fish: what the script says, and what Tab offers in a shell."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
from pathlib import Path

import pytest
from commands import COMMAND, MASKED, environment, k2t_process, run_process

from keras2torch_birnn.cli import zsh_completion

ZSH, FISH = map(shutil.which, ("zsh", "fish"))
# Typer asks which shell is running; with this it takes the name that it is given.
_NAMED = "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION"
# How long a shell may be silent.
_SECONDS = 30


def test_the_script_offers_something_as_soon_as_it_is_loaded() -> None:
    run = k2t_process("--show-completion", "zsh", env=environment(**{_NAMED: "1"}))
    assert run.code == 0, run.err
    last = run.out.rstrip().splitlines()[-3:]
    assert last == ['if [[ "$funcstack[1]" = "_k2t" ]]; then', '  _k2t_completion "$@"', "fi"]


def test_a_typer_with_other_scripts_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for other in (None, object()):
        monkeypatch.setattr(zsh_completion.typer, "_completion_shared", other)
        zsh_completion.complete_at_first_tab()


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a user who installed the completion, and has our command first."""
    home, path = tmp_path_factory.mktemp("home"), f"{Path(COMMAND[0]).parent}:{os.environ['PATH']}"
    env = environment(HOME=str(home), ZDOTDIR=str(home), PATH=path, TERM="dumb", **{_NAMED: "1"})
    (home / ".zshrc").write_text("PROMPT='ready> '\n")
    for shell in filter(shutil.which, ("zsh", "fish")):
        installed = k2t_process("--install-completion", shell, env=env)
        assert installed.code == 0, installed.err
    return env


@pytest.mark.skipif(ZSH is None, reason="zsh is not installed")
@pytest.mark.parametrize(
    ("keys", "completed"),
    [
        ("con", "k2t convert "),
        ("convert --dtype float3", "--dtype float32 "),
        ("verify --device cu", "--device cuda "),
        ("bench --merge sum,a", "--merge sum,ave "),
        (f"inspect {MASKED} --from emb", "--from embedding "),
    ],
)
def test_the_first_tab_of_zsh_completes(keys: str, completed: str, env: dict[str, str]) -> None:
    assert completed in type_in_zsh(f"k2t {keys}\t", completed, env)


@pytest.mark.skipif(FISH is None, reason="fish is not installed")
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("convert --dtype ", ["float32", "float64"]),
        ("verify --device c", ["cpu", "cuda"]),
        ("bench --merge ", ["all", "ave", "concat", "mul", "sum"]),
        (f"inspect {MASKED} --from bi", ["bidirectional", "bidirectional_1"]),
        ("inspect mo", ["model.h5"]),
    ],
)
def test_fish_completes(line: str, offered: list[str], env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "model.h5").touch()
    done = run_process(FISH, "-c", f"complete -C 'k2t {line}'", env=env, cwd=tmp_path)
    assert done.out.splitlines() == offered, done.err


def type_in_zsh(keys: str, wanted: str, env: dict[str, str]) -> str:
    """Return what stands on the terminal after these keys, once it holds what is wanted."""
    import pty  # of POSIX

    ours, theirs = pty.openpty()
    shell = subprocess.Popen(
        [str(ZSH), "-i"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=env,
        start_new_session=True,
    )
    os.close(theirs)
    try:
        read_until(ours, "ready> ")
        os.write(ours, keys.encode())
        return read_until(ours, wanted)
    finally:
        shell.kill()
        shell.wait()
        os.close(ours)


def read_until(terminal: int, wanted: str) -> str:
    """Read from a terminal until it holds this text, or nothing comes any more."""
    text = ""
    while wanted not in text and select.select([terminal], [], [], _SECONDS)[0]:
        text += os.read(terminal, 4096).decode(errors="replace")
    return text
