"""Names of files in all scripts: printed as they are, controls escaped, whatever the encoding."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from commands import MASKED, k2t
from warm_process import run_code

from keras2torch_birnn.errors import UsageError, escape_controls

NAME = "modèle 模型 😀"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copyfile(MASKED, tmp_path / f"{NAME}.h5"))


def test_results_and_errors_name_files_as_they_are(model: Path, tmp_path: Path) -> None:
    out = tmp_path / f"{NAME}.pt"
    assert k2t("convert", model, out).out.startswith(f"{out}: ")
    assert k2t("convert", model, out).lines("error")[0].startswith(f"{out}: exists already")
    assert k2t("convert", model, out, "--json").out.isascii()
    data = json.loads(k2t("inspect", tmp_path / f"{NAME}.keras", "--json").out)
    assert data["problems"][0]["file"] == str(tmp_path / f"{NAME}.keras")
    many = k2t("convert", model, "--out-dir", tmp_path / "ü", "--json")
    assert json.loads(many.out)["out"] == str(tmp_path / "ü" / f"{NAME}.pt")


@pytest.mark.thorough
def test_a_stream_without_such_letters_gets_escapes(model: Path, tmp_path: Path) -> None:
    arguments = ["convert", str(model), str(tmp_path / "ü.pt")]
    done = run_code(f"""
import sys
sys.stdout.reconfigure(encoding="ascii")
from keras2torch_birnn.cli import app
app({arguments!r})
""")
    assert (done.code, "Traceback" in done.err) == (0, False)
    assert "\\xfc.pt: " in done.out


@pytest.mark.parametrize("control", ["\x1b[31m", "\n", "\u202e", "\u2028", "\udcff", "\x9b", "\0"])
def test_nothing_in_a_name_moves_the_cursor(control: str) -> None:
    shown = escape_controls(f"a{control}ü")
    assert shown.isprintable()
    assert shown.startswith("a\\")
    assert shown.endswith("ü")
    assert str(UsageError(f"b{control}", file=f"a{control}")).isprintable()


def test_a_long_text_is_cut() -> None:
    assert escape_controls("ü" * 30, 10) == "üüüüüüü..."
    assert escape_controls("ü" * 10, 10) == "ü" * 10
