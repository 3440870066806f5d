"""``examples/finetune.py``: alone, under torchrun in two processes, and after an interruption."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import FIXTURES, STACK_H5, environment
from compiled_fixtures import ROWS as COMPILED_ROWS
from compiled_fixtures import recorded, unpack
from torch import Tensor

import keras2torch_birnn as k2t
from keras2torch_birnn.rnn.native.library import why_missing

EXAMPLES = Path(__file__).parents[2] / "examples"
COMPILED = FIXTURES / "keras-3.15.1" / "compiled.h5"
# Three steps an epoch, of four rows in each of two processes.
OPTIONS = ("--batch", "8", "--optimizer", "SGD", "--rate", "0.1", "--seed", "3")
ROWS = 24
RUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.fixture(scope="module")
def finetune() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        return importlib.import_module("finetune")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Random rows, and random outputs of the right shape."""
    model, drawn = k2t.convert(STACK_H5), torch.Generator().manual_seed(7)
    x = torch.randn(ROWS, 7, 3, generator=drawn)
    with torch.no_grad():
        shape = model(x).shape
    y = torch.rand(shape, generator=drawn)
    np.savez(tmp_path / "data.npz", x=x.numpy(), y=y.numpy())
    return tmp_path / "data.npz"


def differ(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.thorough
def test_two_processes_train_as_one_does_and_one_goes_on_from_two(
    finetune: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def train(out: str, epochs: int) -> Mapping[str, Tensor]:
        files = [str(path) for path in (STACK_H5, data, tmp_path / out)]
        finetune.main([*files, *OPTIONS, "--epochs", str(epochs)])
        return k2t.load(tmp_path / out).state_dict()

    command = [sys.executable, *RUN, str(EXAMPLES / "finetune.py"), str(STACK_H5), str(data)]
    done = subprocess.run(
        [*command, str(tmp_path / "two.pt"), *OPTIONS],
        capture_output=True,
        text=True,
        env=environment(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES=""),
    )
    assert done.returncode == 0, done.stderr
    engine = "fused" if why_missing() else "native"
    assert done.stdout.splitlines()[0] == f"2 processes, cpu, engines: {engine}"
    assert done.stdout.count("epoch 1: loss ") == 1
    two = k2t.load(tmp_path / "two.pt").state_dict()
    begin, one, whole = k2t.convert(STACK_H5).state_dict(), train("one.pt", 1), train("w.pt", 2)
    assert differ(begin, one) > 1e-2
    assert differ(two, one) < 1e-5
    # The interrupted training goes on as if it had not been interrupted.
    shutil.copy(tmp_path / "one.pt.state", tmp_path / "again.pt.state")
    assert differ(train("again.pt", 2), whole) == 0
    assert differ(whole, one) > 1e-2
    assert differ(train("two.pt", 2), whole) < 1e-5


def test_the_optimizer_of_the_file_goes_on_after_an_interruption(
    finetune: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with np.load(COMPILED.with_suffix(".npz")) as recorded:
        x, y = recorded["in_0"], recorded["out_0"]
    np.savez(tmp_path / "data.npz", x=x, y=y + 1)

    def train(out: str, epochs: int) -> Mapping[str, Tensor]:
        files = [str(path) for path in (COMPILED, tmp_path / "data.npz", tmp_path / out)]
        finetune.main([*files, "--optimizer", "keras", "--batch", "2", "--epochs", str(epochs)])
        return k2t.load(tmp_path / out).state_dict()

    begin, one, whole = k2t.convert(COMPILED).state_dict(), train("one.pt", 1), train("w.pt", 2)
    assert differ(begin, one) > 1e-6
    assert differ(whole, one) > 1e-6
    assert differ(train("one.pt", 2), whole) == 0


@pytest.mark.parametrize("case", ["regularizers", "constraints"])
def test_regularizers_and_constraints_of_the_layers_count(
    finetune: Any, case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    row = COMPILED_ROWS[f"keras-3.15.1/{case}.keras"]
    path, batch = unpack(row["file"], tmp_path), recorded(row)
    x, y = batch.inputs(0)[0], batch.targets(0)[0]
    np.savez(tmp_path / "data.npz", x=x.numpy(), y=y.numpy())
    files = [str(one) for one in (path, tmp_path / "data.npz", tmp_path / "out.pt")]
    finetune.main([*files, "--optimizer", "keras", "--batch", str(len(x))])
    found = k2t.load(tmp_path / "out.pt").state_dict()
    state = k2t.training(path)
    (torch.nn.functional.mse_loss(state.model(x), y) + state.penalty()).backward()
    state.optimizer.step()
    plain = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
    state.constrain_()
    assert differ(found, state.model.state_dict()) < 1e-6
    if case == "constraints":
        assert differ(found, plain) > 1e-2


def test_the_compiled_loss_counts_and_masks_with_it(
    finetune: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    row = COMPILED_ROWS["keras-3.15.1/adam_tagger.keras"]
    path, batch = unpack(row["file"], tmp_path), recorded(row)
    x, y = batch.inputs(0)[0], batch.targets(0)[0]
    np.savez(tmp_path / "data.npz", x=x.numpy(), y=y.numpy())
    files = [str(one) for one in (path, tmp_path / "data.npz", tmp_path / "out.pt")]
    finetune.main([*files, "--optimizer", "keras", "--batch", str(len(x))])
    found = k2t.load(tmp_path / "out.pt").state_dict()
    states = [k2t.training(path) for _ in range(2)]
    for state, mask in zip(states, (k2t.output_mask(states[0].model, x), None), strict=True):
        state.loss(state.model(x), y, mask=mask).backward()
        state.optimizer.step()
    masked, unmasked = (state.model.state_dict() for state in states)
    assert differ(found, masked) < 1e-6
    assert differ(found, unmasked) > 1e-4


def test_another_optimizer_on_the_same_out_is_refused(
    finetune: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    files = [str(path) for path in (STACK_H5, data, tmp_path / "out.pt")]
    finetune.main([*files, "--optimizer", "SGD"])
    with pytest.raises(SystemExit, match=r"out\.pt\.state was written with --optimizer SGD: go on"):
        finetune.main([*files, "--optimizer", "Adam", "--epochs", "2"])


def test_values_at_masked_steps_are_left_out(finetune: Any) -> None:
    drawn = torch.Generator().manual_seed(5)
    p = torch.rand(3, 5, 7, generator=drawn).softmax(-1)
    mask = torch.arange(5)[None] < torch.tensor([2, 5, 3])[:, None]
    targets = {
        "classes": torch.randint(0, 7, (3, 5), generator=drawn),
        "mse": torch.rand(p.shape, generator=drawn),
        "binary": torch.rand(p.shape, generator=drawn),
    }
    for name, y in targets.items():
        found = finetune.LOSSES[name](p, y, mask=mask)
        torch.testing.assert_close(found, finetune.LOSSES[name](p[mask], y[mask]))


@pytest.mark.parametrize("name", ["mse", "binary", "classes"])
def test_the_losses_are_those_of_keras(finetune: Any, name: str) -> None:
    drawn = np.random.default_rng(5)
    p = drawn.dirichlet(np.ones(7), (3, 5))
    y = drawn.integers(0, 7, (3, 5)) if name == "classes" else drawn.random(p.shape)
    wanted = {
        "mse": lambda: ((p - y) ** 2).mean(),
        "binary": lambda: -(y * np.log(p) + (1 - y) * np.log1p(-p)).mean(),
        "classes": lambda: -np.log(np.take_along_axis(p, y[..., None], -1)).mean(),
    }[name]()
    found = finetune.LOSSES[name](torch.from_numpy(p), torch.from_numpy(y))
    assert found.item() == pytest.approx(wanted, rel=1e-12)
