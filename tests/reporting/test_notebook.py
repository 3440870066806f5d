"""Reports as a notebook shows them: ``_repr_html_`` of what verify, compare and inspect return."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import pytest
from fixture_files import FIXTURES

import keras2torch_birnn as k2t
from keras2torch_birnn.comparison.report import Comparison, LayerParity, ParityReport
from keras2torch_birnn.inspection import Inspection, LayerRow
from keras2torch_birnn.porting.report import PortFinding, PortReport, PortTensor

HOSTILE = "<script>alert(1)</script>\x1b]0;\x07"
COMPARISON = Comparison("cpu", "reference", 2e-7, 3e-7, 4e-7, ok=True, inputs="normal numbers")
LAYER = LayerParity(HOSTILE, 0.25, 0.5, (3, 1), ok=False, where=f"first at {HOSTILE}")
VERIFIED = ParityReport(False, 0.25, 0.5, (replace(COMPARISON, ok=False),), (LAYER,), HOSTILE)
FINDING = PortFinding(HOSTILE, "merge mode", "the halves are added", "first at step 2")
COMPARED = PortReport(
    False, (FINDING,), (PortTensor(HOSTILE, HOSTILE, "rows 3"),), ("normal",), 0.25
)
ROW = LayerRow(HOSTILE, HOSTILE, (None, 7), "sum", HOSTILE, "", "native", "", 31)


def parse(report: Any) -> tuple[set[str], list[str]]:
    """Return the tags and the texts that a notebook shows; every tag that opens must be closed."""
    root = ElementTree.fromstring(f"<page>{report._repr_html_()}</page>")
    return {one.tag for one in root.iter()}, [*root.itertext()]


@pytest.mark.parametrize(
    ("report", "verdict", "said"),
    [
        (VERIFIED, "NOT EQUAL", "The largest error of an output is 2.5e-01."),
        (COMPARED, "DIFFERENT", "1 place on normal"),
        (Inspection((ROW,), (), (k2t.K2TError(HOSTILE),)), "REFUSED", "alert"),
        (Inspection((ROW,), (), (), 1, 1031), "SUPPORTED", "1 layers, 1,031 parameters"),
        (Inspection((ROW,), (), (), 1, None), "SUPPORTED", "an unknown number of parameters"),
        (replace(VERIFIED, ok=True, layers=()), "EQUAL", "The largest error"),
        (replace(VERIFIED, judged=False, first_divergence=None), "NOT JUDGED", "No output could"),
        (PortReport(True, (), (), ("normal",), 1e-7), "EQUAL", "on normal (max abs error 1.0e-07)"),
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
    file = FIXTURES / "tf.keras-2.15.0/mask_stack_bi_dense.h5"
    _, texts = parse(k2t.inspect(file))
    assert {"SUPPORTED", "bidirectional_1", "(None, None, 19)", "native"} <= set(texts)
    model = k2t.convert(file)
    assert "EQUAL" in parse(k2t.compare(file, model))[1]
