"""Low-rank updates that Keras 3 writes beside the weights into ``.h5`` files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import FIXTURES, changed_h5, changed_layer
from commands import k2t as run
from hdf5_files import datasets
from specs import fixture

import keras2torch_birnn as k2t
from keras2torch_birnn.readers import read_with_problems

FILE = "keras-3.15.1/lora_beside.h5"
SOURCE = FIXTURES / FILE


def test_the_update_is_part_of_the_weight_and_a_note_names_each_layer() -> None:
    spec, problems = read_with_problems(SOURCE)
    assert problems == []
    names = ["embedding", "time_distributed/dense", "conv1d", "einsum_dense"]
    found = [note.partition(":")[0] for note in spec.notes if "LoRA was added" in note]
    assert found == names
    assert not any("lora" in part.semantics for part in spec.root.walk())
    assert not any(name.startswith("lora") for part in spec.root.walk() for name in part.weights)


@pytest.mark.parametrize("name", ["embedding/lora_embeddings", "dense/lora_kernel"])
def test_the_scale_is_alpha_over_rank_and_a_product(name: str, tmp_path: Path) -> None:
    """A file whose update is zero computes something else."""

    def clear(file: Any) -> None:
        for path, array in datasets(file).items():
            if path.endswith(f"{name}_b"):
                array[...] = 0

    case = fixture(FILE)
    model = k2t.convert(changed_h5(SOURCE, tmp_path / "zero.h5", clear))
    found = model(torch.from_numpy(case.inputs[0][0])).detach().numpy()
    assert np.abs(found - case.outputs[0][0]).max() > 1e-2


def test_without_an_alpha_it_is_the_rank(tmp_path: Path) -> None:
    plain = changed_layer(SOURCE, tmp_path / "plain.h5", "conv1d", lora_alpha=None)
    same = changed_layer(SOURCE, tmp_path / "same.h5", "conv1d", lora_alpha=2)
    one, other = (k2t.convert(file).state_dict() for file in (plain, same))
    whole = k2t.convert(SOURCE).state_dict()
    assert torch.equal(one["conv1d.weight"], other["conv1d.weight"])
    assert not torch.equal(one["conv1d.weight"], whole["conv1d.weight"])


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"lora_rank": None, "lora_alpha": None}, k2t.WeightMismatchError, "weights of LoRA: give"),
        ({"lora_rank": "2"}, k2t.UnsupportedOptionError, "lora_rank='2', lora_alpha=7 is not"),
        ({"lora_rank": 0}, k2t.UnsupportedOptionError, "lora_rank=0, lora_alpha=7 is not"),
        ({"lora_rank": True}, k2t.UnsupportedOptionError, "lora_rank=True"),
        ({"lora_alpha": [1]}, k2t.UnsupportedOptionError, r"lora_alpha=\[1\] is not supported"),
        ({"lora_alpha": 1e999}, k2t.K2TError, "inf|Infinity"),
        ({"lora_rank": 3}, k2t.WeightMismatchError, r"lora_kernel_a \(2, 5, 2\), the config"),
    ],
)
def test_an_update_that_does_not_fit_is_refused(
    options: Mapping[str, Any], error: type[k2t.K2TError], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        k2t.convert(changed_layer(SOURCE, tmp_path / "other.h5", "conv1d", **options))


def test_an_update_of_quantized_weights_is_refused(tmp_path: Path) -> None:
    def add(file: Any) -> None:
        group = file["model_weights/dense"]
        factors = {"lora_kernel_a": (14, 2), "lora_kernel_b": (2, 11)}
        for name, shape in factors.items():
            group[name] = np.ones(shape, np.float32)
        group.attrs["weight_names"] = [*group.attrs["weight_names"], *factors]

    source = FIXTURES / "keras-3.15.1" / "quantized.h5"
    with_arrays = changed_h5(source, tmp_path / "arrays.h5", add)
    file = changed_layer(with_arrays, tmp_path / "both.h5", "dense", lora_rank=2)
    with pytest.raises(k2t.UnsupportedOptionError, match="LoRA of quantized weights is not"):
        k2t.convert(file)


def test_a_changed_weight_with_an_update_is_not_written_back(tmp_path: Path) -> None:
    out, new = tmp_path / "out.pt", tmp_path / "new.h5"
    model = k2t.convert(SOURCE)
    k2t.save(model, out)
    assert run("write-back", out, SOURCE, new).code == 0  # nothing was changed
    assert new.read_bytes() == (SOURCE).read_bytes()
    with torch.no_grad():
        model.get_submodule("conv1d").weight.add_(0.5)
    k2t.save(model, out)
    with pytest.raises(k2t.K2TError, match="is computed from the weights of the file"):
        k2t.write_back(model, SOURCE, tmp_path / "other.h5")
