"""Keras itself loads what was written back, and predicts what torch computes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import keras_predicts
import live
import pytest
from written_models import write_case

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
        write_case(name, tmp_path / name.replace("/", "_"))
    done = subprocess.run(
        [sys.executable, keras_predicts.__file__, package, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "TF_USE_LEGACY_KERAS": "0"},
    )
    lines = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
    assert len(lines) == len(CASES[package])
    assert all(float(line[1]) <= 1 for line in lines), done.stdout
