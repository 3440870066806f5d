"""The tool that exports every fixture: it counts what is equal, refused and wrong."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import check_exports
import pytest
from torch import nn

from keras2torch_birnn.exporting.onnx_file import TARGET

needs_onnx = pytest.mark.skipif(bool(TARGET.why_cannot_write()), reason="onnx is not installed")


@needs_onnx
@pytest.mark.thorough
def test_equal_and_refused_exports_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert check_exports.main(["--only", r"2\.15\.0/mask_bi_none\.keras$"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert {(one[0], one[1], one[2]) for one in lines} == {
        (suffix, "1", "equal") for suffix in check_exports.SUFFIXES
    }
    assert (
        check_exports.main(["--only", r"2\.15\.0/stateful_bi_gru\.h5$", "--suffixes", ".onnx"]) == 0
    )
    assert "\trefused: " in capsys.readouterr().out


def test_a_wrong_export_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    export = check_exports.k2t.export

    def export_wrong(model: nn.Module, target: Path) -> None:
        wrong = deepcopy(model)
        dense = next(one for one in wrong.modules() if isinstance(one, nn.Linear))
        dense.bias.data += 1
        export(wrong, target)

    monkeypatch.setattr(check_exports.k2t, "export", export_wrong)
    only = r"2\.15\.0/mask_stack_bi_dense\.h5$"
    assert check_exports.main(["--only", only, "--suffixes", ".py"]) == 1
    assert "\tWRONG: " in capsys.readouterr().out
