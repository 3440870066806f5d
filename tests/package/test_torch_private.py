"""Torch's private names: without them models are slower, never broken or wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from commands import FIXTURES

from keras2torch_birnn.torch_private import PRIVATE, find

CHILD = Path(__file__).parents[1] / "support" / "private_names_child.py"
MODEL = FIXTURES / "tf.keras-2.15.0" / "mask_stack_bi_dense.h5"


@pytest.mark.parametrize("name", PRIVATE)
def test_this_torch_has_the_name(name: str) -> None:
    assert find(name) is not None


@pytest.mark.parametrize(
    "names",
    [PRIVATE, *(pytest.param([name], marks=pytest.mark.thorough, id=name) for name in PRIVATE)],
    ids=lambda names: "all",
)
def test_without_private_names_the_numbers_are_the_same(names: list[str]) -> None:
    command = [sys.executable, str(CHILD), str(MODEL), str(MODEL.with_suffix(".npz")), *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "equal\n"), done.stderr
