"""Text of a file prints no line of its own and sends the terminal no command."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from commands import MASKED, k2t
from out_files import changing, write_out

from keras2torch_birnn.cli.console import (
    Output,
    print_columns,
    print_line,
    print_lines,
    print_message,
    print_stderr,
)

# An operating system command, a bell, a mark that turns the direction, ends of lines of all kinds.
EVIL = (
    "fine\nk2t: error: all is lost\r\x0bk2t: error: x"
    "\x1b]0;title\x07\x1b[2J\u202egnp\x85a\u2028b\x00"
)
ESCAPED = "fine\\nk2t: error: all is lost\\r"


def assert_harmless(text: str) -> None:
    assert "all is lost" in text
    for line in text.split("\n"):
        assert line.isprintable(), ascii(line)
        assert not line.startswith("k2t: error:")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OUT with such texts wherever OUT has text."""
    out = write_out(MASKED, tmp_path_factory.mktemp("hostile"))
    with changing(out) as (content, texts):
        texts["facts"]["notes"] = [EVIL]
        content["golden"]["made_by"] = EVIL
    return out


def commands(hostile: Path, folder: Path) -> tuple[tuple[object, ...], ...]:
    return (
        ("inspect", hostile),
        ("verify", hostile),
        ("verify", hostile, "--per-layer", "--report", folder / "page.html"),
        ("convert", MASKED, folder / "out.pt", "--force"),
        ("export", hostile, folder / "made.py", "--force"),
    )


@pytest.mark.parametrize("number", range(5))
def test_no_text_of_a_file_forges_a_line(hostile: Path, tmp_path: Path, number: int) -> None:
    run = k2t(*commands(hostile, tmp_path)[number])
    for line in (*run.out.splitlines(), *run.err.splitlines()):
        assert line.isprintable(), ascii(line)
    assert not [line for line in run.lines("error") if "lost" in line and "fine" not in line]
    for page in tmp_path.glob("*.html"):
        text = page.read_text("utf-8")
        assert "all is lost" in text or run.code
        assert not [c for c in text if not c.isprintable() and c != "\n"]
        assert "\nk2t: error" not in text


def test_every_way_to_print_escapes_controls(capsys: pytest.CaptureFixture[str]) -> None:
    print_line(EVIL)
    print_line(EVIL, "green")
    print_stderr(EVIL)
    print_message("note", EVIL)
    print_lines([EVIL])
    print_columns(("a", "b"), [(EVIL, "x")])
    Output().print_notes([EVIL])
    Output().print_result({}, [EVIL])
    Output(as_json=True).print_result({"x": EVIL})
    said = capsys.readouterr()
    assert_harmless(said.out)
    assert_harmless(said.err)
    assert said.err.count(f"k2t: note: {ESCAPED}") == 2


# ---- JSON ----------------------------------------------------------------------------------------


def refuse_constant(name: str) -> Any:
    raise AssertionError(name)


def strictly(text: str) -> Any:
    return json.loads(text, parse_constant=refuse_constant)


def test_json_has_texts_for_numbers_that_are_not_finite() -> None:
    data = {"a": math.nan, "b": [math.inf, (-math.inf, 1.5)], "c": {"d": {"e": math.inf}}, "f": 0}
    found = strictly(Output.format(data))
    assert (found["a"], found["b"]) == ("NaN", ["Infinity", ["-Infinity", 1.5]])
    assert (found["c"], found["f"]) == ({"d": {"e": "Infinity"}}, 0)
    assert math.isnan(float(found["a"]))
    assert float(found["b"][1][0]) == -math.inf


def test_the_verdict_on_outputs_that_are_nan_is_strict_json(tmp_path: Path) -> None:
    out = write_out(MASKED, tmp_path)
    with changing(out) as (content, _):
        content["state_dict"]["embedding.weight"].fill_(math.nan)
    for arguments in (("verify", out), ("verify", MASKED, out, "--per-layer")):
        run = k2t(*arguments, "--json")
        found = strictly(run.out)
        assert (run.code, found["ok"]) == (1, False)
        assert found["max_abs_error"] in ("NaN", "Infinity")


def test_the_page_says_how_such_numbers_are_written() -> None:
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text("utf-8")
    assert '`"NaN"`, `"Infinity"` and `"-Infinity"`' in page.partition("## JSON")[2]
