"""Models saved, loaded, checked and exported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sampling import rest_thorough
from specs import FIXTURES, fixture

import keras2torch_birnn as k2t
from keras2torch_birnn.layers.building import build
from keras2torch_birnn.layers.running import flat

SEVERAL = (
    "tf.keras-2.15.0/einsum.h5",
    "keras-3.15.1/rescaling_array.keras",
    "keras-3.15.1/dropout_noise.h5",
)


@pytest.mark.parametrize("file", SEVERAL)
def test_a_model_comes_back_from_its_file(file: str, tmp_path: Path) -> None:
    model = k2t.convert(FIXTURES / file)
    for name in ("out.pt", "out.safetensors"):
        k2t.save(model, tmp_path / name)
        again = k2t.load(tmp_path / name)
        assert str(again.code) == str(model.code)
    assert k2t.verify(FIXTURES / file, tmp_path / "out.pt", devices=["cpu"], against="reference").ok


@pytest.mark.parametrize("file", rest_thorough(SEVERAL, SEVERAL[1:3]))
def test_a_model_exports_with_any_number_of_rows(file: str) -> None:
    case = fixture(file)
    model = build(case.spec)
    inputs = tuple(map(torch.from_numpy, case.inputs[0]))
    rows = torch.export.Dim("rows", min=2, max=64)
    free = tuple({0: rows} for _ in inputs)
    exported = torch.export.export(model, inputs, dynamic_shapes=free).module()
    twice = flat(exported(*(torch.cat([x, x]) for x in inputs)))
    for found, wanted in zip(twice, case.outputs[0], strict=True):
        expected = np.concatenate([wanted, wanted])
        np.testing.assert_allclose(found.detach().numpy(), expected, atol=1e-5, rtol=1e-4)
