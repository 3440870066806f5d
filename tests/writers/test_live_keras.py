"""Keras itself loads what was written back, and predicts what torch computes."""

from __future__ import annotations

from pathlib import Path

import live
import pytest
from specs import FIXTURES
from trained import train

import keras2torch_birnn as k2t

CASES = {
    "keras": (
        "keras-3.15.1/mask_stack_plain.keras",
        "keras-3.15.1/mask_bi_gru_before_seq.h5",
        "keras-3.15.1/backward_units.keras",
        "keras-3.15.1/batchnorm.keras",
    ),
    "tf_keras": (
        "tf_keras-2.21.0/arch_sentiment.keras",
        "tf_keras-2.21.0/td_two_inputs.h5",
        "keras-2.3.1/plain_stack.h5",
    ),
}


@pytest.mark.live_keras
@pytest.mark.parametrize("package", CASES)
def test_keras_predicts_the_same(package: str, tmp_path: Path) -> None:
    if live.label(package) is None:
        pytest.skip(f"{package} is not installed")
    for name in CASES[package]:
        source, out = FIXTURES / name, tmp_path / "out.pt"
        new = tmp_path / name.replace("/", "_")
        model = train(k2t.convert(source))
        k2t.write_back(model, source, new)
        k2t.save(model, out, overwrite=True)
        assert k2t.verify(new, out, against="keras").ok, name
