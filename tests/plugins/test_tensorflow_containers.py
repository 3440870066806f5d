"""Layers of a plugin in models that are in TensorFlow's own containers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from plugin_files import USERS
from tensorflow_fixtures import files, recorded, unpack

import keras2torch_birnn
from keras2torch_birnn.conversion import flat


@pytest.mark.parametrize("file", [f for f in files("plugin") if "layers_of_users" in f])
def test_layers_of_users_are_converted(file: str, tmp_path: Path) -> None:
    found, case = unpack(file, tmp_path), recorded(file)
    model = keras2torch_birnn.convert(found.model, config=found.config, plugins=[USERS])
    for inputs, wanted in zip(case.inputs, case.outputs, strict=True):
        got = flat(model(*map(torch.from_numpy, inputs)))
        for a, b in zip(got, wanted, strict=True):
            np.testing.assert_allclose(a.detach().numpy(), b, atol=1e-5, rtol=1e-4)
