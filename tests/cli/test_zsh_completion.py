"""Completion in zsh: what the script says, and what the first Tab does in a shell."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
from pathlib import Path

import pytest
from commands import COMMAND, environment, k2t_process

from keras2torch_birnn.cli import zsh_completion

ZSH = shutil.which("zsh")
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


@pytest.mark.skipif(ZSH is None, reason="zsh is not installed")
def test_the_first_tab_of_a_shell_completes(tmp_path: Path) -> None:
    folder = str(Path(COMMAND[0]).parent)
    env = environment(
        HOME=str(tmp_path),
        ZDOTDIR=str(tmp_path),
        PATH=f"{folder}:{os.environ['PATH']}",
        TERM="dumb",
    )
    (tmp_path / ".zshrc").write_text("PROMPT='ready> '\n")
    installed = k2t_process("--install-completion", "zsh", env={**env, _NAMED: "1"})
    assert installed.code == 0, installed.err
    assert "k2t convert " in type_in_zsh("k2t con\t", "convert ", env)


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
