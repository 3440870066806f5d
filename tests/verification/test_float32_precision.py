"""TF32 and full precision: set for a while, in all of torch's settings, and restored."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import torch
from fixture_files import FIXTURES
from out_files import write_out

import keras2torch_birnn as k2t
from keras2torch_birnn.comparison.outputs import float32_precision

NEW: dict[str, str] = {
    "cuda.matmul.fp32_precision": "tf32",
    "cudnn.conv.fp32_precision": "ieee",
    "cudnn.fp32_precision": "ieee",
    "cudnn.rnn.fp32_precision": "ieee",
    "fp32_precision": "tf32",
    "mkldnn.matmul.fp32_precision": "bf16",
}
ALL = sorted({*NEW, "mkldnn.conv.fp32_precision", "mkldnn.rnn.fp32_precision"})
# Values from the start that follow no other.
OWN = {"cudnn.conv.fp32_precision", "cudnn.rnn.fp32_precision"}
MODEL = FIXTURES / "keras-2.2.4/mask_bi_none.h5"


def read() -> list[Any]:
    return [attrgetter(path)(torch.backends) for path in ALL]


def write(path: str, value: str) -> None:
    owner, _, name = path.rpartition(".")
    setattr(attrgetter(owner)(torch.backends) if owner else torch.backends, name, value)


def set_as_at_the_start() -> None:
    for path in ALL:
        write(path, "tf32" if path in OWN else "none")


@pytest.fixture
def untouched() -> Iterator[list[Any]]:
    """Torch's settings as a new process has them, whatever an earlier test left."""
    set_as_at_the_start()
    before = read()
    yield before
    set_as_at_the_start()
    assert read() == before


def test_settings_of_the_older_interface_are_restored_as_well(untouched: list[Any]) -> None:
    torch.set_float32_matmul_precision("highest")  # now set itself, no longer what is above it
    before = read()
    assert before != untouched
    with float32_precision("tf32"):
        pass
    assert read() == before


@pytest.mark.parametrize("path", NEW)
def test_verify_runs_with_any_newer_setting_and_restores_it(
    path: str, untouched: list[Any], tmp_path: Path
) -> None:
    out = write_out(MODEL, tmp_path)
    write(path, NEW[path])
    before = read()
    assert before != untouched
    assert k2t.verify(MODEL, out, against="reference").ok
    assert read() == before


def test_settings_inside_are_full_precision_or_tf32(untouched: list[Any]) -> None:
    write("fp32_precision", "tf32")
    with float32_precision("ieee"):
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"
        assert torch.backends.cudnn.rnn.fp32_precision == "ieee"
        assert torch.backends.cudnn.conv.fp32_precision == "ieee"
        assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
    with float32_precision("tf32"):
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"


def test_what_follows_the_setting_above_it_does_so_afterwards(untouched: list[Any]) -> None:
    write("fp32_precision", "tf32")
    with float32_precision("ieee"):
        pass
    write("fp32_precision", "none")
    assert read() == untouched


def test_settings_are_restored_after_an_error(untouched: list[Any]) -> None:
    with pytest.raises(ZeroDivisionError), float32_precision("tf32"):
        raise ZeroDivisionError
    assert read() == untouched
