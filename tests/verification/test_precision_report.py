"""``k2t verify --precision``: figures of what a reduced precision costs, beside the verdict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import k2t
from kernel_layers import native
from out_files import write_out
from specs import FIXTURES

import keras2torch_birnn as birnn
from keras2torch_birnn.layers.one_call import OneCall
from keras2torch_birnn.running import copy_in_float64, run
from keras2torch_birnn.verification import precision
from keras2torch_birnn.verification.precision import measure_precision

pytestmark = [native, pytest.mark.usefixtures("native_where_it_pays")]

STACK = "tf.keras-2.15.0/mask_stack_bi_dense.h5"
CLASSIFIER = "keras-3.15.1/arch_toxic.keras"


def converted(name: str, folder: Path) -> Path:
    return write_out(FIXTURES / name, folder)


def ids(rows: int, steps: int) -> tuple[Any, ...]:
    rng = np.random.default_rng(2)
    return (rng.integers(1, 7, (rows, steps)).astype("i4"),)


def test_the_figures_are_those_of_the_model_without_observers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OneCall, "run", lambda *_: None)  # which observers prevent
    out = converted(STACK, tmp_path)
    given = ids(13, 7)
    report = measure_precision(out, "int8", inputs=given)
    model: Any = birnn.load(out).eval()
    tensors = tuple(map(torch.from_numpy, given))
    exact = run(copy_in_float64(model), tensors)[0]
    single = run(model, tensors)[0]
    birnn.set_precision(model, "int8")
    reduced = run(model, tensors)[0]
    assert not torch.equal(single, reduced)
    (output,) = report.outputs
    assert output.largest == float(exact.abs().max())
    assert output.float32 == float((single - exact).abs().max()) < 1e-5
    assert output.reduced == float((reduced - exact).abs().max()) > 1e-3
    error = (reduced - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert output.relative == pytest.approx(float(error), rel=1e-6)
    assert [one.name for one in report.layers] == ["bidirectional", "bidirectional_1"]
    assert all(one.float32 < 1e-5 < one.reduced < 0.1 for one in report.layers)


def test_consecutive_layers_compute_in_the_precision_of_each(tmp_path: Path) -> None:
    model: Any = birnn.load(converted(STACK, tmp_path)).eval()
    x = torch.from_numpy(ids(5, 7)[0])
    found = {}
    with torch.inference_mode():
        for which in ("neither", "first", "second"):
            birnn.set_precision(model, "float32")
            if which != "neither":
                part = model.bidirectional if which == "first" else model.bidirectional_1
                birnn.set_precision(part, "int8")
            found[which] = model(x)
            hook = model.bidirectional.register_forward_hook(lambda *_: None)
            np.testing.assert_allclose(model(x), found[which], rtol=0, atol=1e-6)
            hook.remove()
    assert not torch.allclose(found["first"], found["neither"], atol=1e-4)
    assert not torch.allclose(found["second"], found["neither"], atol=1e-4)


def test_decisions_of_a_classifier_are_counted(tmp_path: Path) -> None:
    model: Any = birnn.load(out := converted(CLASSIFIER, tmp_path)).eval()
    before = measure_precision(out, "bfloat16")
    (decisions,) = before.decisions
    assert decisions.activation in ("sigmoid", "softmax")
    assert decisions.count > 0
    assert decisions.float32 == 0
    # A bias that makes every sigmoid 1/2: the sign of the smallest error decides.
    dense = [m for m in model.modules() if isinstance(m, torch.nn.Linear)][-1]
    with torch.no_grad():
        dense.weight *= 1e-9
        dense.bias.zero_()
    birnn.save(model, changed := tmp_path / "changed.pt")
    (decisions,) = measure_precision(changed, "bfloat16").decisions
    assert 0 < decisions.reduced <= decisions.count


def test_precision_is_no_part_of_a_file(tmp_path: Path) -> None:
    model: Any = birnn.convert(FIXTURES / STACK).eval()
    birnn.set_precision(model, "int8")
    birnn.save(model, tmp_path / "int8.pt")
    loaded: Any = birnn.load(tmp_path / "int8.pt").eval()
    birnn.set_precision(model, "float32")
    x = torch.from_numpy(ids(3, 7)[0])
    with torch.inference_mode():
        assert torch.equal(loaded(x), model(x))


def test_the_command_prints_a_table_and_the_verdict(tmp_path: Path) -> None:
    out = converted(STACK, tmp_path)
    found = k2t("verify", out, "--precision", "bfloat16")
    assert found.code == 0
    assert "against float64, on" in found.out
    assert "bidirectional_1" in found.out
    assert "bfloat16 was computed by" in found.out
    assert found.out.rstrip().endswith("OK")
    found = k2t("verify", out, "--precision", "int8", "--json")
    data = json.loads(found.out)
    assert data["ok"]
    assert data["precision"]["precision"] == "int8"
    assert [one["name"] for one in data["precision"]["layers"]] == [
        "bidirectional",
        "bidirectional_1",
    ]


def test_an_export_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(b"\x08\x09")
    with pytest.raises(birnn.UsageError, match=r"model\.onnx.*an export computes float32"):
        measure_precision(file, "int8")


@pytest.mark.parametrize("suffix", ["onnx", "py", "pt2"])
def test_a_model_in_reduced_precision_is_not_exported(tmp_path: Path, suffix: str) -> None:
    model: Any = birnn.convert(FIXTURES / STACK).eval()
    birnn.set_precision(model.bidirectional_1, "int8")
    found = "an export computes float32, and the precision of bidirectional_1 is int8; use k2t"
    with pytest.raises(birnn.UsageError, match=found):
        birnn.export(model, tmp_path / f"model.{suffix}")
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_recurrent_layers_is_refused(tmp_path: Path) -> None:
    out = converted("keras-3.0.5/heads_attention_mask.keras", tmp_path)
    with pytest.raises(birnn.UsageError, match=r"out\.pt: precision int8: the model has no LSTM"):
        measure_precision(out, "int8")


def test_a_model_that_cannot_be_computed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("odd sizes\nmore")

    out = converted(STACK, tmp_path)
    monkeypatch.setattr(precision, "run", fail)
    found = r"cannot be computed on the inputs given \(RuntimeError: odd sizes\)"
    with pytest.raises(birnn.UsageError, match=found):
        measure_precision(out, "int8", inputs=ids(2, 7))
