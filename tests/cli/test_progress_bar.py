"""The bar of long work: its phases, percent and bytes, and where it is not shown."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import MASKED, STACK_H5, k2t
from rich.progress import Progress
from warm_process import in_terminal

from keras2torch_birnn.cli.progress_bar import Bar
from keras2torch_birnn.progress import advance, begin, reporting_to

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="terminals of POSIX")

# The bar appears at once instead of after a second, and shows every change instead of ten a second.
AT_ONCE = """
from functools import partialmethod
from rich.progress import Progress
from keras2torch_birnn.cli import app, progress_bar
Progress.update = partialmethod(Progress.update, refresh=True)
class AtOnce:
    def __init__(self, seconds, show):
        self.start, self.cancel, self.join = show, int, int
progress_bar.Timer = AtOnce
"""


def run(*calls: tuple[object, ...], **variables: str) -> str:
    """Return the output of commands on a terminal."""
    texts = [[*map(str, call)] for call in calls]
    code = f"""{AT_ONCE}
for call in {texts!r}:
    try:
        app(call)
    except SystemExit as end:
        assert not end.code
"""
    return in_terminal(code, **{"TERM": "xterm", "COLUMNS": "80", **variables})


def shown(*calls: tuple[object, ...]) -> str:
    """Leave out colours and movements of the cursor."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", run(*calls))


def lines_of(text: str, words: str) -> list[str]:
    return [line for line in re.split(r"[\r\n]+", text) if words in line]


def test_a_bar_shows_percent_and_bytes_and_goes_away() -> None:
    code = f"""{AT_ONCE}
from keras2torch_birnn.cli.progress_bar import Bar
from keras2torch_birnn.progress import advance, begin
with progress_bar.show_progress("converting a.h5"):
    begin("writing", 3_000_000)
    advance(1_500_000)
    advance(390_000)
print("done")
"""
    text = in_terminal(code, TERM="xterm", COLUMNS="80")
    last = lines_of(text, "converting a.h5")[-1]
    assert "writing" in last
    assert "63 %" in last
    assert "1.9 MB of 3.0 MB" in last
    assert text.rstrip().endswith("\x1b[2Kdone")  # after the line was erased
    for plain in ({"TERM": "dumb"}, {"TERM": ""}, {"TERM": "xterm-color", "JPY_PARENT_PID": "7"}):
        assert "converting" not in in_terminal(code, **plain)


def test_every_phase_has_a_clock_of_its_own() -> None:
    """The clock of a row that was full stands still, whatever follows in the same row."""
    bar = Bar("converting a.h5")
    bar._appear()
    assert bar._progress is not None
    bar.begin("reading", 2, "files")
    bar.advance(2)
    (reading,) = bar._progress.tasks
    assert reading.finished
    bar.begin("writing", 3, "files")
    (writing,) = bar._progress.tasks
    assert (writing.finished, writing.total, writing.completed) == (False, 3, 0)
    assert reading.start_time is not None
    assert writing.start_time is not None
    assert writing.start_time >= reading.start_time
    bar._progress.stop()


def test_no_row_of_a_bar_is_ever_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be drawn as soon as it is there."""
    added, add_task = list[str](), Progress.add_task

    def note(progress: Progress, *arguments: Any, **fields: Any) -> Any:
        added.append(fields["what"])
        return add_task(progress, *arguments, **fields)

    monkeypatch.setattr(Progress, "add_task", note)
    bar = Bar("converting a.h5")
    bar._appear()
    bar.begin("reading", 2, "files")
    assert bar._progress is not None
    bar._progress.stop()
    assert added == ["converting a.h5", "converting a.h5: reading"]


def test_convert_and_verify_report_all_phases(tmp_path: Path) -> None:
    out = tmp_path / "model.pt"
    text = shown(("convert", MASKED, out), ("verify", MASKED, out))
    assert f"converting {MASKED.name}" in text
    assert lines_of(text, "reading weights")[-1].count("100 %") == 1
    assert lines_of(text, "writing")
    assert f"{out}: " in text.replace("\r\n", "")
    assert "comparing" in text


def test_many_files_are_counted_and_their_lines_stay(tmp_path: Path) -> None:
    text = shown(("convert", STACK_H5, MASKED, "--out-dir", tmp_path))
    assert lines_of(text, "2 of 2 files")
    assert len(lines_of(text.replace("\r\n", ""), "2 converted")) == 1


def test_no_color_leaves_the_bar_without_colours(tmp_path: Path) -> None:
    text = run(("convert", MASKED, tmp_path / "m.pt"), NO_COLOR="1")
    assert "converting" in text
    assert not re.search(r"\x1b\[[0-9;]*m", text)


def test_there_is_no_bar_where_none_is_wanted(tmp_path: Path) -> None:
    convert = ("convert", MASKED, tmp_path / "m.pt")
    text = shown((*convert, "--json"), (*convert, "--quiet", "--force"))
    text += shown(("convert", STACK_H5, MASKED, "--out-dir", tmp_path / "out", "-q"))
    assert "converting" not in text and "of 2 files" not in text


def test_there_is_no_bar_in_a_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keras2torch_birnn.cli.progress_bar.PATIENCE", 0.0)
    assert "converting" not in k2t("convert", MASKED, tmp_path / "m.pt").err


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
