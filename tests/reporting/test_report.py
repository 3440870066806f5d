"""The page of ``k2t verify --report``: verdict, bars, pictures; nothing from the net, no code."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import FIXTURES, MASKED, STACK_KERAS, changed_config, k2t
from compiled_fixtures import ROWS, unpack_checkpoint
from out_files import changing

from keras2torch_birnn.comparison.report import Comparison, LayerParity, report_of
from keras2torch_birnn.merge_modes import merge_outputs
from keras2torch_birnn.reporting import heatmap
from keras2torch_birnn.reporting.page import _ranges, make_page
from keras2torch_birnn.rnn.call import RnnCall, RnnResult
from keras2torch_birnn.rnn.modules import GRU, LSTM
from keras2torch_birnn.spec import Array

# A GRU whose halves are multiplied, with all steps; a masked LSTM with its last step alone.
MULTIPLIED = FIXTURES / "tf.keras-2.15.0" / "bi_gru_after_mul_seq.h5"
LAST = FIXTURES / "tf.keras-2.15.0" / "mask_bi_lstm_last.keras"


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "model.pt"
    assert k2t("convert", MASKED, out).code == 0
    return out


def pictures(page: str) -> dict[str, Array]:
    """The pixels of each picture, by its caption."""
    found = {}
    for caption, data in re.findall(
        r'<figcaption>([^<]+)</figcaption>.*?src="data:image/png;base64,([^"]+)"', page
    ):
        raw = base64.b64decode(data)
        width, height = (int.from_bytes(raw[at : at + 4], "big") for at in (16, 20))
        at = raw.index(b"IDAT")
        size = int.from_bytes(raw[at - 4 : at], "big")
        rows = np.frombuffer(zlib.decompress(raw[at + 4 : at + 4 + size]), np.uint8)
        found[caption] = rows.reshape(height, width + 1)[:, 1:]
    return found


@pytest.fixture(scope="module")
def text(converted: Path) -> str:
    """The page of a right model."""
    page = converted.with_name("report.html")
    assert k2t("verify", MASKED, converted, "--report", page).code == 0
    return page.read_text("utf-8")


def test_a_right_model_has_a_page_without_an_error(text: str) -> None:
    assert "model.pt computes what mask_stack_bi_dense.h5 computes" in text
    assert 'class="verdict ok"' in text
    assert 'class="bar wrong"' not in text
    assert re.search(r"<dd>4 of 4</dd>", text)
    assert "transposed, gates zrh -&gt; rzn" in text
    assert len(re.findall(r"sha256 [0-9a-f]{64}", text)) == 2
    assert not re.search(r'(src|href)="(?!data:image/png)', text)
    assert "<script" not in text
    assert len(text) < 80_000
    for pixels in pictures(text).values():
        assert pixels.max() <= 126  # rounding errors alone


@pytest.mark.parametrize(
    ("layer", "ending", "wrong", "right"),
    [
        ("bidirectional", "_reverse", "backward half", "forward half"),
        ("bidirectional_1", "", "forward half", "backward half"),
    ],
)
def test_a_wrong_half_is_red_and_the_other_is_blue(
    layer: str, ending: str, wrong: str, right: str, converted: Path, tmp_path: Path
) -> None:
    out, page = shutil.copyfile(converted, tmp_path / "wrong.pt"), tmp_path / "report.html"
    with changing(out) as (content, _):
        weight = content["state_dict"][f"{layer}.weight_hh_l0{ending}"]
        weight.copy_(weight.flip(0))
    assert k2t("verify", MASKED, out, "--report", page).code == 1
    text = page.read_text("utf-8")
    assert 'class="verdict wrong"' in text
    assert f"The first wrong layer is {layer}: {wrong}, " in text
    drawn = pictures(text.partition(f"<h3>{layer}</h3>")[2].partition("<h3>")[0])
    assert (drawn[f"{wrong}, each step alone"] >= 127).mean() > 0.5
    assert drawn[f"{right}, each step alone"].max() <= 126
    assert text.count('class="bar wrong"') == 1


def test_a_reversed_direction_is_a_band_that_is_its_own_mirror_image(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each half is drawn alone, of merged outputs too."""
    run = GRU.run_sequence

    def reversed_run(layer: Any, call: RnnCall) -> RnnResult:
        (forward, backward), states = run(layer, call._replace(merge=None))
        return merge_outputs((forward, backward.flip(1)), call.merge), states

    out, page = tmp_path / "model.pt", tmp_path / "report.html"
    assert k2t("convert", MULTIPLIED, out).code == 0
    monkeypatch.setattr(GRU, "run_sequence", reversed_run)
    assert k2t("verify", MULTIPLIED, out, "--report", page).code == 1
    drawn = pictures(page.read_text("utf-8"))
    band = drawn["backward half, in sequence"]
    assert np.abs(band.astype(int) - band[:, ::-1]).max() <= 1
    assert (band > 126).mean() > 0.6
    assert len(band[0]) % 2
    assert band[:, len(band[0]) // 2].max() <= 126  # the middle step stays where it is
    for name in ("forward half, in sequence", "backward half, each step alone"):
        assert drawn[name].max() <= 126


def test_a_mask_that_is_ignored_is_red_from_the_first_masked_step_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out, page = tmp_path / "model.pt", tmp_path / "report.html"
    assert k2t("convert", LAST, out).code == 0
    forward = LSTM.forward
    monkeypatch.setattr(LSTM, "forward", lambda layer, x, mask=None: forward(layer, x))
    assert k2t("verify", LAST, out, "--report", page).code == 1
    text = page.read_text("utf-8")
    drawn = pictures(text)
    name = "forward half, in sequence"
    masked = re.search(rf"{name}</figcaption>.*?steps of row \d+, masked: ([\d, -]+)<", text)
    assert masked is not None
    ends = [int(step) for step in re.findall(r"\d+", masked[1])]
    red = (drawn[name] > 126).any(axis=0)
    assert not red[: ends[0]].any()
    assert red[ends[0] :].all()
    assert drawn["forward half, each step alone"].max() <= 126


def test_out_alone_has_a_page(converted: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    assert k2t("verify", converted, "--report", page).code == 0
    text = page.read_text("utf-8")
    assert "computes the numbers that were stored in it" in text
    assert "From Keras to torch" not in text


def test_a_checkpoint_has_a_page_with_the_hash_of_its_index(tmp_path: Path) -> None:
    model, config = unpack_checkpoint(ROWS["tf.keras-2.15.0/saved_adam.checkpoint"], tmp_path)
    out, page = tmp_path / "out.pt", tmp_path / "page.html"
    assert k2t("convert", model, out, "--config", config).code == 0
    parity = ("verify", model, out, "--config", config, "--against", "reference")
    assert k2t(*parity, "--report", page).code == 0
    index = model.with_name(f"{model.name}.index")
    found = hashlib.sha256(index.read_bytes()).hexdigest()
    assert f"sha256 {found} ({index.name})" in page.read_text("utf-8")


def test_json_has_no_pictures(converted: Path) -> None:
    run = k2t("verify", MASKED, converted, "--json")
    assert all("maps" not in layer for layer in json.loads(run.out)["layers"])


def test_a_page_of_our_own_is_replaced(converted: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    for _ in range(2):
        assert k2t("verify", converted, "--report", page).code == 0


def test_names_of_a_file_are_text_and_nothing_else(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"

    def rename(model: dict[str, Any]) -> None:
        text = json.dumps(model).replace('"dense"', json.dumps(evil))
        model.update(json.loads(text))

    file = changed_config(STACK_KERAS, tmp_path / "m.keras", rename)
    layer = LayerParity(evil, 1.0, 1.0, (0,), False, f"step {evil}")
    one = Comparison("cpu", evil, 1.0, 1.0, 0.0, False, inputs=evil)
    page = make_page(report_of([one], [layer], [evil]), model=file, out=None, weights=())
    assert "<script" not in page
    assert "&lt;script" in page


@pytest.mark.parametrize(
    ("comparison", "words"),
    [
        (Comparison("cpu", "reference", 9.0, 1.0, 0.0, False), "does not compute what"),
        (
            Comparison("cpu", "reference", 9.0, 1.0, 9.0, False, judged=False),
            "No input was found on which rounding errors are small enough",
        ),
    ],
)
def test_the_verdict_is_one_sentence(comparison: Comparison, words: str, tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_bytes(b"x")
    report = report_of([comparison], [], [])
    page = make_page(report, model=tmp_path / "m.pt", out=None, weights=())
    assert words in page


def test_a_large_map_is_made_small_and_keeps_its_largest_error() -> None:
    errors = np.full((2000, 300), 1e-16)
    errors[1234, 210] = 0.5
    errors[:7] = np.nan
    errors[50] = 0.0
    pixels = heatmap._indices(errors)
    assert pixels.shape == (heatmap.HEIGHT, heatmap.WIDTH)
    assert (pixels > 126).sum() == 1
    assert pixels[0, 200] < 20


def test_masked_steps_have_a_colour_of_their_own_but_for_errors_that_count() -> None:
    errors = np.array([[0.0, 1e-15], [0.0, 1e-15], [0.0, 1e-3]])
    pixels = heatmap._indices(errors, masked=(1, 2))
    assert (pixels == heatmap._MASKED).tolist() == [[False, True, True], [False, True, False]]
    assert pixels[1, 2] > heatmap._MASKED
    assert heatmap.palette()[heatmap._MASKED] == heatmap.MASKED
    many = np.zeros((heatmap.WIDTH * 3, 2))
    joined = heatmap._indices(many, masked=range(heatmap.WIDTH, len(many)))
    assert not (joined[:, : heatmap.WIDTH // 3] == heatmap._MASKED).any()
    assert (joined[:, heatmap.WIDTH // 3 :] == heatmap._MASKED).all()


def test_the_legend_shows_the_colour_of_masked_steps(text: str) -> None:
    assert f"border-left: 1rem solid rgb{heatmap.MASKED}" in text
    assert "masked steps, which do not count" in text


def test_no_column_is_cut_on_a_narrow_screen(text: str) -> None:
    """Names wrap below the width of the page, and a table scrolls where that is not enough."""
    assert text.count("<table") == len(re.findall(r'<div class="scroll">\s*<table', text)) > 0
    narrow = text.partition("@media (max-width: 68rem) {")[2].partition("@media")[0]
    assert ".code { white-space: normal; overflow-wrap: anywhere;" in narrow
    assert "table th, table th.number { white-space: normal; }" in narrow


def test_steps_that_are_not_judged_are_grey() -> None:
    errors = np.array([[np.nan, 1e-16], [1e-3, 0.0]])
    assert heatmap._indices(errors).tolist() == [[255, 127 + 76], [15, 0]]
    assert len(heatmap.palette()) == 256
    assert heatmap.position(0.0) == 0
    assert heatmap.position(np.inf) == 100


@pytest.mark.parametrize(
    ("steps", "text"),
    [
        ([3], "3"),
        ([0, 1, 2, 7, 9, 10], "0-2, 7, 9-10"),
        (range(0, 40, 3), "0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 33, ..."),
    ],
)
def test_masked_steps_are_named_in_ranges(steps: list[int], text: str) -> None:
    assert _ranges(steps) == text
