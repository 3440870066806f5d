"""The commands of ``docs/alternatives.md`` give the figures of its table, where installed."""

from __future__ import annotations

import os
import re
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from commands import MASKED, Run, environment, run_process

PAGE = (Path(__file__).parents[2] / "docs" / "alternatives.md").read_text("utf-8")
# Way -> its commands; its result on the first model of the table.
COMMANDS = dict(re.findall(r"^\*\*(.+?)\*\*\n\n```sh\n(.*?)^```", PAGE, re.M | re.S))
RESULTS = {
    way.strip(): result.strip(" *")
    for way, _, result, *_ in re.findall(r"^\|(.+?)\|(.+?)\|(.+?)\|(.*)\|$", PAGE, re.M)
}


def needed(commands: str) -> set[str]:
    """The packages that the commands import."""
    lines = re.findall(r"(?:^|\")import ([\w, ]+)", commands, re.M)
    return {name.split()[0] for line in lines for name in line.split(",")}


def run(commands: str) -> Run:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return run_process("bash", "-e", "-c", commands, env=environment(PATH=path))


def test_every_way_has_its_commands() -> None:
    assert COMMANDS.keys() == RESULTS.keys() & COMMANDS.keys() and len(COMMANDS) == 6


@pytest.mark.thorough
@pytest.mark.parametrize("way", COMMANDS)
def test_the_commands_of_a_way_give_its_figure(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(MASKED, "model.h5")
    shutil.copyfile(MASKED.with_suffix(".npz"), "recorded.npz")
    before = COMMANDS[way.partition(",")[0]] if way.endswith("onnx2torch") else ""
    missing = sorted(name for name in needed(before + COMMANDS[way]) if find_spec(name) is None)
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    if before:
        assert run(before).code == 0
    done = run(COMMANDS[way])
    if refused := re.search(r": (?:`(\w+)`|\w+)", RESULTS[way]):
        assert done.code != 0
        assert (refused[1] or "") in done.err
        return
    assert done.code == 0, done.err
    found, wanted = float(done.out.split()[-1]), float(RESULTS[way])
    assert wanted / 5 < found < wanted * 5
