"""The page of ``k2t verify --report`` in a real browser, where one is installed.

The pictures of the page are in the folder of the test, which is printed (``pytest -s``).
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import MASKED, k2t
from sampling import rest_thorough

from keras2torch_birnn.spec import Array

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next((found for name in _NAMES if (found := shutil.which(name))), None)
QUIET = """
    --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync
    --disable-background-networking --disable-component-update --hide-scrollbars
    --enable-logging=stderr
"""
LIGHT, DARK = "--blink-settings=preferredColorScheme=1", "--blink-settings=preferredColorScheme=0"

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a right model, with all that a page can have."""
    folder = tmp_path_factory.mktemp("browser")
    out, page = folder / "model.pt", folder / "report.html"
    assert k2t("convert", MASKED, out).code == 0
    assert k2t("verify", MASKED, out, "--report", page).code == 0
    print(f"\nthe report and its pictures: {folder}")
    return page


def browse(page: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Open the page in a browser that has no network but a server of this machine that is off."""
    profile = page.parent / "profile"
    proxy = "--proxy-server=127.0.0.1:9"
    command = [str(BROWSER), *QUIET.split(), proxy, f"--user-data-dir={profile}", *options]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, check=True)
    shutil.rmtree(profile, ignore_errors=True)
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done


def screenshot(page: Path, name: str, size: str, *options: str) -> Array:
    """Take a picture of the page; return its pixels (height, width, colours)."""
    image: Any = pytest.importorskip("matplotlib.image")
    picture = page.with_name(f"{name}.png")
    browse(page, f"--window-size={size}", f"--screenshot={picture}", *options)
    return np.asarray(image.imread(picture)[:, :, :3])


def light_of(picture: Array) -> float:
    """The brightness of the background, 0 to 1: that of the corner."""
    assert len(np.unique(picture[:, :, 0])) > 50, "the picture is blank"
    return float(picture[0, 0].mean())


def test_the_page_shows_the_verdict_and_loads_nothing(page: Path) -> None:
    shown = browse(page, "--dump-dom").stdout
    assert re.search(r'class="ok">EQUAL<', shown)
    assert "computes what mask_stack_bi_dense.h5 computes" in shown


def test_a_page_that_loads_something_is_stopped(page: Path) -> None:
    """Else the test above could not fail."""
    spoilt = page.with_name("spoilt.html")
    picture = '<img src="http://127.0.0.1:9/x.png">'
    spoilt.write_text(page.read_text("utf-8").replace("<main>", f"<main>{picture}"), "utf-8")
    with pytest.raises(AssertionError, match="CONSOLE"):
        browse(spoilt, "--dump-dom")


@pytest.mark.thorough
def test_the_page_is_light_and_dark(page: Path) -> None:
    assert light_of(screenshot(page, "light", "500,900", LIGHT)) > 0.98
    assert light_of(screenshot(page, "dark", "1200,900", DARK)) < 0.2


# Counts the tables that are wider than their place, where the reader finds the title.
COUNT = """<script>
document.title = [...document.querySelectorAll(".scroll")].filter(
  (table) => table.scrollWidth > table.clientWidth).length + " cut";
</script>"""


@pytest.mark.parametrize("width", rest_thorough([1000, 500], [500]))
def test_no_column_is_cut(page: Path, width: int) -> None:
    """Seen by a script, which the page itself allows none."""
    measured = page.with_name("measured.html")
    text = re.sub(r"<meta http-equiv[^>]*>", "", page.read_text("utf-8"))
    measured.write_text(text.replace("</body>", f"{COUNT}</body>"), "utf-8")
    shown = browse(measured, f"--window-size={width},900", "--dump-dom").stdout
    assert "<title>0 cut</title>" in shown


@pytest.mark.thorough
def test_the_page_can_be_printed(page: Path) -> None:
    printed = page.with_suffix(".pdf")
    browse(page, f"--print-to-pdf={printed}", "--no-pdf-header-footer", DARK)
    assert printed.read_bytes().startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", printed.read_bytes())) in range(1, 5)
