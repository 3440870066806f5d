"""The bar of long work: its phases and percent, and where it is not shown."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from commands import MASKED, STACK_H5, k2t
from warm_process import in_terminal

from keras2torch_birnn.progress import advance, begin, reporting_to

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="terminals of POSIX")

# Every change is drawn, instead of ten a second.
AT_ONCE = """
from functools import partialmethod
from rich.progress import Progress
from keras2torch_birnn.cli import app
Progress.update = partialmethod(Progress.update, refresh=True)
Progress.advance = lambda self, task, amount: self.update(task, advance=amount)
"""


def shown(*calls: tuple[object, ...], **variables: str) -> str:
    """Return the output of commands on a terminal, without movements of the cursor."""
    texts = [[*map(str, call)] for call in calls]
    code = f"""{AT_ONCE}
for call in {texts!r}:
    try:
        app(call)
    except SystemExit as end:
        assert not end.code
"""
    text = in_terminal(code, **{"TERM": "xterm", "COLUMNS": "80", **variables})
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_convert_and_verify_report_their_phases(tmp_path: Path) -> None:
    out = tmp_path / "model.pt"
    text = shown(("convert", MASKED, out), ("verify", MASKED, out))
    assert f"converting {MASKED.name}: writing" in text
    assert "100%" in text
    assert f"{out}: " in text.replace("\r\n", "")
    assert "comparing" in text


def test_lines_of_many_files_stay(tmp_path: Path) -> None:
    text = shown(("convert", STACK_H5, MASKED, "--out-dir", tmp_path))
    assert len(re.findall("2 converted", text)) == 1
    assert text.count(f"{MASKED.stem}.pt: ") == 1


def test_there_is_no_bar_where_none_is_wanted(tmp_path: Path) -> None:
    convert = ("convert", MASKED, tmp_path / "m.pt")
    text = shown((*convert, "--json"), (*convert, "--quiet", "--force"))
    text += shown((*convert, "--force"), TERM="dumb")
    assert "converting" not in text
    assert "converting" not in k2t(*convert, "--force").err  # in a pipe


def test_every_byte_is_reported_once(tmp_path: Path) -> None:
    phases: list[list[int]] = []

    class Sums:
        def begin(self, phase: str, total: int | None, unit: str) -> None:
            phases.append([total or 0, 0])

        def advance(self, amount: int) -> None:
            phases[-1][1] += amount

    with reporting_to(Sums()):
        import keras2torch_birnn as k2t_

        k2t_.convert(MASKED)
        assert k2t("convert", MASKED, tmp_path / "m.pt").code == 0
    begin("nobody listens")
    advance(1)
    known = [(total, done) for total, done in phases if total]
    assert len(known) == 2
    assert all(total == done for total, done in known)
