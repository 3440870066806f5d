"""``examples/finetune.py``: alone, under torchrun in two processes, and after an interruption."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import FIXTURES, STACK_H5, environment, run_process
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


@pytest.fixture
def finetune(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The example, where there is no GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("finetune")


@pytest.fixture
def train(finetune: Any, tmp_path: Path) -> Callable[..., Mapping[str, Tensor]]:
    """Train a model on ``data.npz`` of the folder; returns the weights in OUT."""

    def run(model: Path, out: str, *options: object) -> Mapping[str, Tensor]:
        files = (model, tmp_path / "data.npz", tmp_path / out)
        finetune.main([str(one) for one in (*files, *options)])
        return k2t.load(tmp_path / out).state_dict()

    return run


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
    train: Any, data: Path, tmp_path: Path
) -> None:
    train = partial(train, STACK_H5)
    files = (EXAMPLES / "finetune.py", STACK_H5, data, tmp_path / "two.pt")
    given = environment(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
    done = run_process(sys.executable, *RUN, *files, *OPTIONS, env=given)
    assert done.code == 0, done.err
    engine = "fused" if why_missing() else "native"
    assert done.out.splitlines()[0] == f"2 processes, cpu, engines: {engine}"
    assert done.out.count("epoch 1: loss ") == 1
    two = k2t.load(tmp_path / "two.pt").state_dict()
    begin, one = k2t.convert(STACK_H5).state_dict(), train("one.pt", *OPTIONS, "--epochs", 1)
    whole = train("w.pt", *OPTIONS, "--epochs", 2)
    assert differ(begin, one) > 1e-2
    assert differ(two, one) < 1e-5
    # The interrupted training goes on as if it had not been interrupted.
    shutil.copy(tmp_path / "one.pt.state", tmp_path / "again.pt.state")
    assert differ(train("again.pt", *OPTIONS, "--epochs", 2), whole) == 0
    assert differ(whole, one) > 1e-2
    assert differ(train("two.pt", *OPTIONS, "--epochs", 2), whole) < 1e-5


def test_the_optimizer_of_the_file_goes_on_after_an_interruption(
    train: Any, tmp_path: Path
) -> None:
    with np.load(COMPILED.with_suffix(".npz")) as recorded:
        x, y = recorded["in_0"], recorded["out_0"]
    np.savez(tmp_path / "data.npz", x=x, y=y + 1)
    options = ("--optimizer", "keras", "--batch", 2, "--epochs")
    one, whole = train(COMPILED, "one.pt", *options, 1), train(COMPILED, "w.pt", *options, 2)
    assert differ(k2t.convert(COMPILED).state_dict(), one) > 1e-6
    assert differ(whole, one) > 1e-6
    assert differ(train(COMPILED, "one.pt", *options, 2), whole) == 0


def first_batch(case: str, folder: Path) -> tuple[Path, Tensor, Tensor]:
    """Return a compiled file with its first batch, which is in ``data.npz``, too."""
    row = COMPILED_ROWS[f"keras-3.15.1/{case}.keras"]
    batch = recorded(row)
    x, y = batch.inputs(0)[0], batch.targets(0)[0]
    np.savez(folder / "data.npz", x=x.numpy(), y=y.numpy())
    return unpack(row["file"], folder), x, y


@pytest.mark.parametrize("case", ["regularizers", "constraints"])
def test_regularizers_and_constraints_of_the_layers_count(
    train: Any, case: str, tmp_path: Path
) -> None:
    path, x, y = first_batch(case, tmp_path)
    found = train(path, "out.pt", "--optimizer", "keras", "--batch", len(x))
    state = k2t.training(path)
    (torch.nn.functional.mse_loss(state.model(x), y) + state.penalty()).backward()
    state.optimizer.step()
    plain = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
    state.constrain_()
    assert differ(found, state.model.state_dict()) < 1e-6
    if case == "constraints":
        assert differ(found, plain) > 1e-2


def test_the_compiled_loss_counts_and_masks_with_it(train: Any, tmp_path: Path) -> None:
    path, x, y = first_batch("adam_tagger", tmp_path)
    found = train(path, "out.pt", "--optimizer", "keras", "--batch", len(x))
    states = [k2t.training(path) for _ in range(2)]
    for state, mask in zip(states, (k2t.output_mask(states[0].model, x), None), strict=True):
        state.loss(state.model(x), y, mask=mask).backward()
        state.optimizer.step()
    masked, unmasked = (state.model.state_dict() for state in states)
    assert differ(found, masked) < 1e-6
    assert differ(found, unmasked) > 1e-4


def test_another_optimizer_on_the_same_out_is_refused(train: Any, data: Path) -> None:
    train(STACK_H5, "out.pt", "--optimizer", "SGD")
    with pytest.raises(SystemExit, match=r"out\.pt\.state was written with --optimizer SGD: go on"):
        train(STACK_H5, "out.pt", "--optimizer", "Adam", "--epochs", 2)


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
