"""Results as a notebook shows them, and as the page of ``k2t verify --report``."""

from __future__ import annotations

import base64
import json
import re
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from commands import FIXTURES, MASKED, STACK_KERAS, changed_config, k2t
from compiled_fixtures import ROWS, unpack_checkpoint
from out_files import changing

import keras2torch_birnn
from keras2torch_birnn.comparison.report import Comparison, LayerParity, ParityReport, report_of
from keras2torch_birnn.inspection import Inspection, LayerRow
from keras2torch_birnn.porting.report import PortFinding, PortReport, PortTensor
from keras2torch_birnn.rnn.layer import RnnCall, RnnResult
from keras2torch_birnn.rnn.modules import GRU, LSTM
from keras2torch_birnn.schema.merge_modes import merge_outputs
from keras2torch_birnn.spec import Array
from keras2torch_birnn.verification.report_page import colour, encode_png, make_page

# A GRU whose halves are multiplied, with all steps; a masked LSTM with its last step alone.
MULTIPLIED = FIXTURES / "tf.keras-2.15.0" / "bi_gru_after_mul_seq.h5"
LAST = FIXTURES / "tf.keras-2.15.0" / "mask_bi_lstm_last.keras"

HOSTILE = "<script>alert(1)</script>\x1b]0;\x07"
COMPARISON = Comparison("cpu", "reference", 2e-7, 3e-7, 4e-7, ok=True, inputs="normal numbers")
LAYER = LayerParity(HOSTILE, 0.25, 0.5, (3, 1), ok=False, where=f"first at {HOSTILE}")
VERIFIED = ParityReport(False, 0.25, 0.5, (replace(COMPARISON, ok=False),), (LAYER,), HOSTILE)
UNJUDGED = replace(VERIFIED, judged=False, first_divergence=None, layers=())
COMPARED = PortReport(
    False,
    (PortFinding(HOSTILE, "merge mode", "the halves are added", "first at step 2"),),
    (PortTensor(HOSTILE, HOSTILE, "rows 3"),),
    ("normal",),
    0.25,
)
ROW = LayerRow(HOSTILE, HOSTILE, (None, 7), "sum", HOSTILE, "", "native", "", 31)


# ---- notebooks -----------------------------------------------------------------------------------


def parse(report: Any) -> tuple[set[str], list[str]]:
    """Return the tags and the texts that a notebook shows; every tag that opens must be closed."""
    root = ElementTree.fromstring(f"<page>{report._repr_html_()}</page>")
    return {one.tag for one in root.iter()}, [*root.itertext()]


@pytest.mark.parametrize(
    ("report", "verdict", "said"),
    [
        (VERIFIED, "NOT EQUAL", "First divergence: <script>"),
        (replace(VERIFIED, layers=()), "NOT EQUAL", "The largest error of an output is 2.5e-01."),
        (replace(VERIFIED, ok=True, layers=()), "EQUAL", "The largest error"),
        (replace(VERIFIED, ok=True, layers=(), without_keras="x"), "EQUAL", "Not compared with"),
        (UNJUDGED, "NOT JUDGED", "no input was found on which"),
        (COMPARED, "DIFFERENT", "1 place on normal"),
        (PortReport(True, (), (), ("normal",), 1e-7), "EQUAL", "on normal (max abs error 1.0e-07)"),
        (Inspection((ROW,), (), (keras2torch_birnn.K2TError(HOSTILE),)), "REFUSED", "alert"),
        (Inspection((ROW,), (), (), 1, 1031), "SUPPORTED", "1 layer, 1,031 parameters"),
    ],
)
def test_a_report_is_a_verdict_and_tables_without_a_script(
    report: Any, verdict: str, said: str
) -> None:
    tags, texts = parse(report)
    assert "script" not in tags
    assert verdict in texts
    assert any(said in text for text in texts)
    assert not any(sign in text for text in texts for sign in "\x1b\x07")


def test_what_the_functions_return_shows_itself() -> None:
    _, texts = parse(keras2torch_birnn.inspect(MASKED))
    assert {"SUPPORTED", "bidirectional_1", "(-,-,19)", "sum"} <= set(texts)


# ---- the page ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "model.pt"
    assert k2t("convert", MASKED, out).code == 0
    return out


def pictures(page: str) -> Mapping[str, Array]:
    """Return whether each pixel is an error, more red than blue, by the caption."""
    found = {}
    for caption, data in re.findall(
        r'<figcaption>([^<]+):[^<]+</figcaption>.*?src="data:image/png;base64,([^"]+)"', page
    ):
        raw = base64.b64decode(data)
        width, height = (int.from_bytes(raw[at : at + 4], "big") for at in (16, 20))
        at = raw.index(b"IDAT")
        size = int.from_bytes(raw[at - 4 : at], "big")
        rows = np.frombuffer(zlib.decompress(raw[at + 4 : at + 4 + size]), np.uint8)
        pixels = rows.reshape(height, 1 + 3 * width)[:, 1:].reshape(height, width, 3).astype(int)
        found[caption] = pixels[..., 0] > pixels[..., 2]
    return found


def test_a_right_model_has_a_page_with_all_tables_and_no_picture(converted: Path) -> None:
    page = converted.with_name("report.html")
    for _ in range(2):  # a page of our own is replaced
        assert k2t("verify", MASKED, converted, "--report", page).code == 0
    text = page.read_text("utf-8")
    assert "model.pt computes what mask_stack_bi_dense.h5 computes. The largest error" in text
    assert "transposed, gates zrh -&gt; rzn" in text
    assert len(re.findall(r"sha256 [0-9a-f]{64}", text)) == 2
    for word in ("<script", "<img", "src=", "href=", "WRONG"):
        assert word not in text
    for terminal in ("normal numbers", "bidirectional_1", "rounding"):
        assert terminal in text


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
    assert f"First divergence: {layer}: {wrong}, " in text
    drawn = pictures(text)
    assert {name.partition(",")[0] for name in drawn} == {layer}
    assert drawn[f"{layer}, {wrong}, each step alone"].mean() > 0.5
    assert not drawn[f"{layer}, {right}, each step alone"].any()


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
    drawn = {key.partition(", ")[2]: value for key, value in pictures(page.read_text()).items()}
    band = drawn["backward half, in sequence"]
    assert (band == band[:, ::-1]).all()
    assert band.mean() > 0.6
    assert not drawn["forward half, in sequence"].any()
    assert not drawn["backward half, each step alone"].any()


def test_a_mask_that_is_ignored_is_red_from_the_first_masked_step_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out, page = tmp_path / "model.pt", tmp_path / "report.html"
    assert k2t("convert", LAST, out).code == 0
    forward = LSTM.forward
    monkeypatch.setattr(LSTM, "forward", lambda layer, x, mask=None: forward(layer, x))
    assert k2t("verify", LAST, out, "--report", page).code == 1
    drawn = {key.partition(", ")[2]: value for key, value in pictures(page.read_text()).items()}
    red = drawn["forward half, in sequence"].any(axis=0)
    first = int(red.argmax())
    assert first > 0
    assert red[first:].all()
    assert not drawn["forward half, each step alone"].any()


def test_out_alone_has_a_page(converted: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    assert k2t("verify", converted, "--report", page).code == 0
    text = page.read_text("utf-8")
    assert "model.pt computes what it stores." in text
    assert "From Keras to torch" not in text


def test_a_checkpoint_has_a_page_with_the_hash_of_its_index(tmp_path: Path) -> None:
    model, config = unpack_checkpoint(ROWS["tf.keras-2.15.0/saved_adam.checkpoint"], tmp_path)
    out, page = tmp_path / "out.pt", tmp_path / "page.html"
    assert k2t("convert", model, out, "--config", config).code == 0
    parity = ("verify", model, out, "--config", config, "--against", "reference")
    assert k2t(*parity, "--report", page).code == 0
    assert re.search(rf"sha256 [0-9a-f]{{64}} \({model.name}\.index\)", page.read_text("utf-8"))


def test_names_of_a_file_are_text_and_nothing_else(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"

    def rename(model: dict[str, Any]) -> None:
        text = json.dumps(model).replace('"dense"', json.dumps(evil))
        model.update(json.loads(text))

    file = changed_config(STACK_KERAS, tmp_path / "m.keras", rename)
    layer = LayerParity(evil, 1.0, 1.0, (0,), False, f"step {evil}")
    one = Comparison("cpu", evil, 1.0, 1.0, 0.0, False, inputs=evil)
    page = make_page(report_of([one], [layer], [evil]), model=file, out=None, weights=None)
    assert "<script" not in page
    assert "&lt;script" in page


def test_json_has_no_pictures(converted: Path) -> None:
    run = k2t("verify", MASKED, converted, "--json")
    assert all("maps" not in layer for layer in json.loads(run.out)["layers"])


# ---- pictures ------------------------------------------------------------------------------------


def test_a_large_map_is_made_small_and_keeps_its_largest_error() -> None:
    errors = np.full((2000, 300), 1e-16)
    errors[1234, 210] = 0.5
    errors[:7] = np.nan
    pixels = colour(errors).astype(int)
    assert pixels.shape == (96, 240, 3)
    assert (pixels[..., 0] > pixels[..., 2]).sum() == 1
    assert encode_png(colour(errors)).startswith(b"\x89PNG")


def test_masked_and_unjudged_steps_have_colours_of_their_own() -> None:
    errors = np.array([[0.0, 1e-15], [0.0, 1e-15], [np.nan, 1e-3]])
    pixels = colour(errors, masked=(1, 2))
    violet, grey = [150, 110, 190], [128, 128, 128]
    assert pixels[0, 1].tolist() == pixels[1, 1].tolist() == violet
    assert pixels[0, 2].tolist() == grey
    assert pixels[1, 2].tolist() not in (violet, grey)  # an error that counts
    assert pixels[0, 0].tolist() not in (violet, grey)
