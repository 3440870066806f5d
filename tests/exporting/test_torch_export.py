"""``.pt2``: archives that run without the package; what cannot be one is refused."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from exported import inputs_of, many_layers
from parsing_here import parsing_here
from specs import FIXTURES, KERAS3, F, H, bi, chain, dense, layer, read_entry, rnn
from torch import Tensor, nn
from torch_tools import assert_equal, fixture_subject, resized
from warm_process import exports_in_forks, run_script

import keras2torch_birnn as k2t
from keras2torch_birnn.conversion import build_model
from keras2torch_birnn.errors import (
    K2TError,
    UnsupportedLayerError,
    UnsupportedOptionError,
    UsageError,
)
from keras2torch_birnn.exporting import torch_export, torch_program
from keras2torch_birnn.layers.running import flat, run
from keras2torch_birnn.spec import ModelSpec

CHILD = Path(__file__).parents[1] / "support" / "pt2_child.py"
LSTM = "tf.keras-2.15.0/bi_lstm_concat_seq.h5"
MASKED_LOOP = "keras-2.2.4/mask_hard_sigmoid_gru.h5"
TWO_INPUTS = "tf.keras-2.15.0/arch_siamese.h5"


def find_compiler() -> str | None:
    """The C++ compiler that AOTInductor would call; None if there is none."""
    return shutil.which(os.environ.get("CXX", "g++"))


def run_without_package(
    archive: Path, batches: Sequence[tuple[Tensor, ...]], folder: Path
) -> list[tuple[Tensor, ...]]:
    """The outputs of an archive in a process that has nothing of the package."""
    named = {f"{b}_{i}": x.numpy() for b, batch in enumerate(batches) for i, x in enumerate(batch)}
    given, target = folder / "in.npz", folder / "out.npz"
    np.savez(given, **named)
    done = run_script(CHILD, archive, given, target, folder=folder)
    assert done.code == 0, done.err
    assert done.out.split() == []  # nothing of the package is loaded
    with np.load(target) as data:
        found = {name: torch.from_numpy(data[name]) for name in data.files}
    counts = [sum(name.startswith(f"{b}_") for name in found) for b in range(len(batches))]
    return [tuple(found[f"{b}_{i}"] for i in range(n)) for b, n in enumerate(counts)]


def as_declared(model: nn.Module, file: str, given: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Inputs in the dtypes that a fixture declares, which its archive takes."""
    return torch_program.as_declared(model, read_entry(file), [x.numpy() for x in given])


@pytest.fixture(scope="module")
def two_inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive of a model of two inputs."""
    archive = tmp_path_factory.mktemp("archive") / "model.pt2"
    with parsing_here(), exports_in_forks():
        k2t.export(k2t.convert(FIXTURES / TWO_INPUTS), archive, any_length=True)
    return archive


@pytest.mark.thorough
def test_a_model_of_two_inputs_runs_without_the_package(two_inputs: Path, tmp_path: Path) -> None:
    assert_runs_at_any_size(k2t.convert(FIXTURES / TWO_INPUTS), two_inputs, TWO_INPUTS, tmp_path)


@pytest.mark.thorough
def test_a_loop_under_a_mask_runs_without_the_package(tmp_path: Path) -> None:
    model: Any = k2t.convert(FIXTURES / MASKED_LOOP)
    archive = tmp_path / "model.pt2"
    k2t.export(model, archive, any_length=True)
    assert_runs_at_any_size(model, archive, MASKED_LOOP, tmp_path)


def assert_runs_at_any_size(model: Any, archive: Path, file: str, tmp_path: Path) -> None:
    one = fixture_subject(file)
    sizes = ((5, 7), (1, 7), (4, 12), (2, 1))
    drawn = [one.inputs, *(resized(one, size) for size in sizes)]
    batches = [as_declared(model, file, given) for given in drawn]
    for found, given in zip(run_without_package(archive, batches, tmp_path), batches, strict=True):
        assert_equal(found, run(model, given))


@pytest.mark.thorough
def test_inputs_have_the_names_and_lengths_of_their_own(two_inputs: Path) -> None:
    model: Any = k2t.convert(FIXTURES / TWO_INPUTS)
    program = torch.export.load(two_inputs)
    assert program.graph_signature.user_inputs == ("left", "right")
    drawn = resized(fixture_subject(TWO_INPUTS), (5, 11))
    left, right = as_declared(model, TWO_INPUTS, drawn)
    with torch.no_grad():
        found = program.module()(left, right[:, :4])
        torch.testing.assert_close(found, model(left, right[:, :4]), atol=1e-5, rtol=1e-4)


@pytest.mark.thorough
def test_a_size_that_the_model_needs_stays_fixed(tmp_path: Path) -> None:
    root = chain(layer("Flatten"), dense(11, 7 * F), shape=(None, 7, F))
    k2t.export(build_model(ModelSpec(root, KERAS3)), tmp_path / "model.pt2", any_length=True)
    program = torch.export.load(tmp_path / "model.pt2")
    (name,) = program.graph_signature.user_inputs
    (shape,) = (n.meta["val"].shape for n in program.graph.nodes if n.name == name)
    assert isinstance(shape[0], torch.SymInt)
    assert type(shape[1]) is int


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")  # torch calls what it has deprecated itself
@pytest.mark.skipif(find_compiler() is None, reason="AOTInductor needs a C++ compiler")
def test_aotinductor_compiles_a_model_for_any_size(tmp_path: Path) -> None:
    """A GRU of all steps, and a loop; ``check_exports.py`` compiles other models, with masks."""
    gru = [rnn("GRU", seed=s, return_sequences=True) for s in (0, 1)]
    loop = rnn("LSTM", seed=2, recurrent_activation="hard_sigmoid_0.2")
    layers = {"gru": bi(*gru, "sum"), "loop": loop}
    spec = many_layers(layers, dict.fromkeys(layers, 1), masked=False)
    model: Any = build_model(spec)
    k2t.export(model, tmp_path / "model.pt2")
    inductor: Any = torch._inductor
    program = torch.export.load(tmp_path / "model.pt2")
    options: dict[str, Any] = {"inplace_buffers": False}
    # Headers compiled ahead take longer, and 290 MB; what calls the kernels need not be fast.
    quick = {
        "precompile_headers": False,
        "compile_wrapper_opt_level": "O0",
        "enable_line_tables": False,
    }
    for name, value in quick.items():
        if hasattr(inductor.config.aot_inductor, name):
            options[f"aot_inductor.{name}"] = value
    package = inductor.aoti_compile_and_package(
        program, package_path=str(tmp_path / "c.pt2"), inductor_configs=options
    )
    compiled = inductor.aoti_load_package(package)
    for size in ((5, 7), (1, 7), (4, 12), (2, 1)):
        inputs = tuple(map(torch.from_numpy, inputs_of(spec, *size)))
        assert_equal(flat(compiled(*inputs)), run(model, inputs))


def test_every_size_of_an_input_without_a_declared_shape_is_open() -> None:
    ends = [SimpleNamespace(config={"shape": shape}) for shape in (None, (None, 7))]
    spec: Any = SimpleNamespace(input_layers=lambda: ends)
    inputs = (torch.ones(2, 3), torch.ones(2, 7))
    assert torch_program.open_axes(spec, inputs) == ((0, 1), (0,))


# ---- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_a_module_that_was_not_converted_is_refused(suffix: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"not made by k2t\.convert"):
        k2t.export(nn.Linear(2, 3), tmp_path / f"model{suffix}")


def test_all_stateful_layers_are_refused(tmp_path: Path) -> None:
    model = k2t.convert(FIXTURES / "tf.keras-2.15.0/cells_stateful.h5")
    with pytest.raises(UnsupportedOptionError, match="stateful=True cannot be exported") as caught:
        k2t.export(model, tmp_path / "model.pt2", any_length=True)
    assert {problem.place for problem in caught.value.problems} == {"rnn", "rnn_1"}


def loop_model() -> Any:
    halves = (rnn("GRU before", H, F, 1), rnn("GRU before", H, F, 2))
    root = chain(bi(*halves, merge_mode="sum"), shape=(None, None, F))
    return build_model(ModelSpec(root, KERAS3))


@pytest.mark.thorough
def test_a_torch_that_would_fix_the_time_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one without a scan, whose name is not public."""
    from keras2torch_birnn.rnn.engines import exported

    monkeypatch.setattr(exported, "SCAN", None)
    monkeypatch.setattr(torch_export, "_STEPS", 5)  # of a loop that torch unrolls
    with pytest.raises(UnsupportedLayerError, match=r"torch\.export refuses it \("):
        k2t.export(loop_model(), tmp_path / "model.pt2", any_length=True)
    assert not (tmp_path / "model.pt2").exists()


def test_a_model_that_torch_cannot_export_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def fail(*_: Any, **__: Any) -> None:
        tried.append("export")
        raise ValueError("no such node")

    monkeypatch.setattr(torch.export, "export", fail)
    with pytest.raises(UnsupportedLayerError, match=r"refuses it \(ValueError: no such node\)"):
        k2t.export(k2t.convert(FIXTURES / LSTM), tmp_path / "model.pt2", any_length=True)
    assert len(tried) == 2  # a size of 1 like all others, and not


@pytest.mark.thorough
def test_a_size_that_torch_fixed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = torch.export.export

    def fix(model: Any, inputs: Any, **_: Any) -> Any:
        return export(model, inputs)

    monkeypatch.setattr(torch.export, "export", fix)
    with pytest.raises(UsageError, match=r"fixes axis 0 of .* at 3"):
        k2t.export(k2t.convert(FIXTURES / LSTM), tmp_path / "model.pt2", any_length=True)


@pytest.mark.thorough
def test_a_size_that_the_program_fixes_behind_an_open_axis_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two poolings leave one of the seven steps of the example."""
    monkeypatch.setattr(torch_export, "_STEPS", 7)
    monkeypatch.setattr(torch_program, "_OPTION", "no such option")
    model: Any = k2t.convert(FIXTURES / "tf.keras-2.15.0/pool_default.h5")
    with pytest.raises(UnsupportedLayerError, match=r"not take inputs .*(Guard failed|index out)"):
        k2t.export(model, tmp_path / "model.pt2", any_length=True)
    assert not list(tmp_path.iterdir())


def test_a_size_that_the_model_itself_does_not_take_is_refused() -> None:
    class FourRows(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[3]

    with pytest.raises(UnsupportedLayerError, match=r"model itself .* inputs \(3, 2\), .*index 3"):
        torch_export._check_sizes(FourRows(), FourRows(), [(torch.ones(3, 2),)])


@torch.library.custom_op("k2t_test::twice", mutates_args=())
def twice(x: Tensor) -> Tensor:
    return x * 2


@twice.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def test_an_operator_that_torch_lacks_is_refused(tmp_path: Path) -> None:
    class Other(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return twice(x)

    program = torch.export.export(Other(), (torch.ones(2),))
    with pytest.raises(UnsupportedLayerError, match=r"torch lacks: k2t_test\.twice\.default"):
        torch_export._check_operators(program)


def test_wrong_numbers_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = k2t.convert(FIXTURES / LSTM)
    load = torch.export.load

    def load_wrong(*given: Any) -> Any:
        program = load(*given)
        with torch.no_grad():
            next(iter(program.state_dict.values())).add_(0.1)
        return program

    monkeypatch.setattr(torch.export, "load", load_wrong)
    with pytest.raises(K2TError, match=r"inputs \(1, 5, \d+\) the archive is off by"):
        k2t.export(model, tmp_path / "model.pt2", any_length=True)
