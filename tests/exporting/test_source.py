"""The export as plain PyTorch source: it computes and trains as the converted model does.

Every module runs in a process that cannot import this package.
"""

from __future__ import annotations

import ast
import re
import runpy
import sys
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import run_process
from exported import many_layers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from sampling import examples
from source_parity import prepare, run_child
from specs import KERAS3, bi, chain, dense, fixture, layer, rnn
from torch import nn

import keras2torch_birnn as k2t
from keras2torch_birnn.conversion import build_model
from keras2torch_birnn.errors import K2TError, OutputError, UnsupportedLayerError
from keras2torch_birnn.exporting.child_process import run_exported
from keras2torch_birnn.exporting.source import helpers
from keras2torch_birnn.exporting.source.layers import construct
from keras2torch_birnn.exporting.source.module_text import WIDTH, lay_out
from keras2torch_birnn.exporting.source.names import (
    attribute,
    class_name,
    local,
    local_beside,
    plain_text,
)
from keras2torch_birnn.exporting.source.write_source import SourceFiles, save_source, write_source
from keras2torch_birnn.golden import origin
from keras2torch_birnn.limits import MAX_PRINTED_NAME
from keras2torch_birnn.schema.shape_inference import infer_model
from keras2torch_birnn.spec import ModelSpec, with_dtype

ROOT = Path(__file__).parents[2]
# Every cell, merge mode, mask rule, form of states, and each page of layers at least once.
FILES = (
    "keras-2.2.4/stack_merges_1.h5",
    "keras-2.2.4/mask_stack_bi_dense.h5",
    "keras-2.2.4/mask_bi_none.h5",
    "keras-2.2.4/mask_unroll_bi_seq.h5",
    "keras-2.2.4/stacked_states.h5",
    "keras-2.3.1/mask_bi_lstm_seq.h5",
    "keras-3.15.1/arch_ner_char_lstm.h5",
    "keras-3.15.1/arch_siamese.h5",
    "keras-3.15.1/around_multi_hot.keras",
    "keras-3.15.1/around_transposed1.keras",
    "keras-3.15.1/around_transposed1_out.h5",
    "keras-3.15.1/batchnorm.keras",
    "keras-3.15.1/bi_gru_after_ave_seq.h5",
    "keras-3.15.1/bi_gru_before_sum_last.keras",
    "keras-3.15.1/bi_lstm_mul_seq.h5",
    "keras-3.15.1/bi_simplernn_none_seq.h5",
    "keras-3.15.1/cells_bi_halves.h5",
    "keras-3.15.1/graph_bi_initial.keras",
    "keras-3.15.1/graph_dicts.keras",
    "keras-3.15.1/graph_names.h5",
    "keras-3.15.1/graph_nested_sequential_mask.keras",
    "keras-3.15.1/heads_masks.keras",
    "keras-3.15.1/count_weights.keras",
    "keras-3.15.1/hard_sigmoid_bi_lstm.h5",
    "keras-3.15.1/mask_back_gru_last.h5",
    "keras-3.15.1/mask_unroll_bi_seq.h5",
    "keras-3.15.1/mask_zero_output.h5",
    "keras-3.15.1/masking_zero_bi_lstm_seq.h5",
    "keras-3.15.1/ops_masks.keras",
    "keras-3.15.1/rescaling_lists.keras",
    "keras-3.15.1/resizing_ratio.keras",
    "keras-3.15.1/stacked_bi.keras",
    "keras-3.15.1/state_bi_lstm_none_seq.keras",
    "keras-3.15.1/stateful_bi_lstm.keras",
    "tf.keras-2.15.0/arch_crnn_ocr.keras",
    "tf.keras-2.15.0/around_transposed2_dilated.keras",
    "tf.keras-2.15.0/around_transposed2_out.h5",
    "tf.keras-2.15.0/mask_stack_bi_dense.h5",
    "tf.keras-2.4.0/td_model_sequences.h5",
)


def name_of(file: str) -> str:
    return re.sub(r"\W", "_", file)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the modules of all files."""
    made = tmp_path_factory.mktemp("source")
    for file in FILES:
        case = fixture(file)
        prepare(case.spec, case.inputs[0], made, name_of(file))
    return made


@pytest.fixture(scope="module")
def found(folder: Path) -> Mapping[str, list[str]]:
    """Run every module; return the faults of each."""
    return run_child(folder)


@pytest.mark.parametrize("file", FILES)
def test_source_computes_and_trains_as_the_converted_model(
    file: str, found: Mapping[str, list[str]]
) -> None:
    assert found[name_of(file)] == []


def run_tool(*arguments: str, folder: Path) -> str:
    names = sorted(path.name for path in folder.glob("*.py"))
    done = run_process(sys.executable, "-m", *arguments, *names, cwd=folder)
    return "" if not done.code else done.out + done.err


def our_rules() -> list[str]:
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    selected = re.search(r"^select = \[(.*)\]$", text, re.MULTILINE)
    assert selected
    rules = ",".join(re.findall(r'"(\w+)"', selected[1]))
    return ["--line-length", "100", "--select", rules, "--ignore", "D105,D107"]


def defined(module: Path) -> set[str]:
    """The classes and functions that a module defines."""
    body = ast.parse(module.read_text("utf-8")).body
    return {node.name for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef)}


NAMES_OF_LAYERS = set().union(
    *(
        defined(page)
        for part in ("layers/*.py", "rnn/activations.py")
        for page in (ROOT / "keras2torch_birnn").glob(part)
    )
)


def test_generated_code_is_clean_by_ruff_and_formatted_at_two_widths(folder: Path) -> None:
    assert run_tool("ruff", "check", "--isolated", folder=folder) == ""
    assert run_tool("ruff", "check", "--isolated", *our_rules(), folder=folder) == ""
    check = ("ruff", "format", "--isolated", "--check", "--line-length")
    assert run_tool(*check, "100", folder=folder) == ""
    # What is copied from the layers of this package has its width.
    copied = {path.stem for path in folder.glob("*.py") if defined(path) & NAMES_OF_LAYERS}
    said = run_tool(*check, "88", folder=folder)
    wider = set(re.findall(r"--> (\w+)\.py", said))
    assert wider <= copied < {path.stem for path in folder.glob("*.py")}


@pytest.mark.thorough
def test_generated_code_is_typed(folder: Path) -> None:
    assert run_tool("mypy", "--strict", "--config-file=", folder=folder) == ""


def test_no_module_names_this_package_or_evaluates_text(folder: Path) -> None:
    for path in folder.glob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        modules = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        modules |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        assert not [name for name in modules if name and "keras2torch" in name]
        calls = [n.func for n in ast.walk(tree) if isinstance(n, ast.Call)]
        names = {one.id for one in calls if isinstance(one, ast.Name)}
        assert not names & {"exec", "eval", "compile", "__import__"}


# ---- readable ------------------------------------------------------------------------------------


def tagger(**names: str) -> ModelSpec:
    """A tagger: Embedding with mask, two Bidirectional LSTM, a Dense at every step."""
    table = np.random.default_rng(3).normal(size=(17, 3))
    embedding = layer("Embedding", "words", {"embeddings": table}, input_dim=17, output_dim=3)
    embedding = replace(embedding, config={**embedding.config, "mask_zero": True})
    first = bi(
        rnn("LSTM", 5, 3, seed=1, return_sequences=True),
        rnn("LSTM", 5, 3, seed=2, return_sequences=True),
        "sum",
    )
    second = bi(
        rnn("LSTM", 7, 5, seed=3, return_sequences=True),
        rnn("LSTM", 7, 5, seed=4, return_sequences=True),
    )
    tags = layer(
        "TimeDistributed", "tags", layer=dense(11, 14, activation="softmax"), masking="inner"
    )
    layers = [embedding, replace(first, name="bi_1"), replace(second, name="bi_2"), tags]
    renamed = [replace(one, name=names.get(one.name, one.name)) for one in layers]
    return ModelSpec(chain(*renamed, shape=(None, None)), KERAS3)


def tagger_of_a_file() -> ModelSpec:
    """The tagger with what the reader adds: float32, all shapes."""
    problems: list[K2TError] = []
    spec = tagger()
    root = with_dtype(replace(spec.root, name="tagger"), np.dtype(np.float32))
    inferred = infer_model(root, problems)
    assert not problems
    return replace(spec, root=inferred)


def write(spec: ModelSpec) -> SourceFiles:
    return write_source(build_model(spec))


def test_a_stacked_tagger_fits_on_a_screen() -> None:
    text = write(tagger()).text
    model = text[text.index("WEIGHTS = ") :]
    assert len(model.splitlines()) <= 40
    assert len(text.splitlines()) <= 100
    assert "x, _ = run_valid_steps(self.bi_2, x, mask)\n" in text
    assert "self.bi_1 = nn.LSTM(3, 5, batch_first=True, bidirectional=True)" in text


def test_the_tagger_of_the_documentation_is_what_is_written() -> None:
    page = (ROOT / "docs" / "deploy.md").read_text("utf-8")
    (shown,) = re.findall(r"^```py\n(class Tagger.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert shown in write(tagger_of_a_file()).text


@pytest.mark.parametrize(("outputs", "names"), [(1, []), (2, ["state"]), (3, ["state", "state_2"])])
def test_states_that_nobody_reads_get_no_name(outputs: int, names: list[str]) -> None:
    layers = {"a": rnn("LSTM", return_sequences=True, return_state=True)}
    text = write(many_layers(layers, {"a": outputs}, masked=False)).text
    assert re.findall(r"^ +(state\w*) = .*$", text, re.M) == names
    (shape,) = re.findall(r"^ +(\w+).* = .*# \(B, T, ", text, re.M)
    assert shape in ("x", "y")  # no comment calls the shape of the output that of a state


def test_a_model_without_masks_has_no_code_for_them() -> None:
    spec = ModelSpec(chain(rnn("GRU before", 5, 3), shape=(None, None, 3)), KERAS3)
    text = write(spec).text
    assert "run_valid_steps" not in text
    assert "class ResetBeforeGRU" in text
    assert "class LoopLSTM" not in text


def test_torch_quantizes_the_recurrent_layers(tmp_path: Path) -> None:
    module = load(write(tagger()), tmp_path).float()
    ids = torch.tensor([[3, 5, 0, 7], [0, 0, 2, 1]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        small = torch.ao.quantization.quantize_dynamic(module, {nn.LSTM, nn.Linear})
        away = (small(ids) - module(ids)).abs().max()
    kinds = [type(one) for one in small.modules()]
    assert kinds.count(torch.ao.nn.quantized.dynamic.LSTM) == 2
    assert kinds.count(torch.ao.nn.quantized.dynamic.Linear) == 1
    assert 0 < away < 0.1


def test_torch_quantizes_a_gru(tmp_path: Path) -> None:
    halves = (rnn("GRU", 5, 3, seed=seed) for seed in (1, 2))
    module = load(write(ModelSpec(chain(bi(*halves), shape=(None, None, 3)), KERAS3)), tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        small = torch.ao.quantization.quantize_dynamic(module.float(), {nn.GRU})
    assert torch.ao.nn.quantized.dynamic.GRU in map(type, small.modules())
    x = torch.randn(2, 7, 3)
    assert 0 < (small(x) - module(x)).abs().max() < 0.1


def test_a_module_goes_to_the_hub_and_back(tmp_path: Path) -> None:
    """A folder is pushed there, which holds the weights and nothing of this package."""
    pytest.importorskip("huggingface_hub")
    source = write(tagger_of_a_file())
    head, bases = "from huggingface_hub import PyTorchModelHubMixin\n", "(nn.Module):\n    "
    text = source.text.replace("import torch\n", "import torch\n" + head, 1)
    assert text.count(bases + '"""As') == 1
    text = text.replace(bases + '"""As', bases.replace(")", ", PyTorchModelHubMixin)") + '"""As')
    save_source(replace(source, text=text), tmp_path / "made.py")
    made = runpy.run_path(str(tmp_path / "made.py"))
    model = made["load"]()
    folder = tmp_path / "pushed"
    model.save_pretrained(folder)
    assert "model.safetensors" in {path.name for path in folder.iterdir()}
    assert not [one for one in folder.iterdir() if b"keras2torch" in one.read_bytes()]
    again = type(model).from_pretrained(folder)
    ids = torch.tensor([[3, 5, 0, 7], [0, 0, 2, 1]])
    assert torch.equal(again(ids), model(ids))


def test_torch_exports_a_module_without_masks(tmp_path: Path) -> None:
    halves = (rnn("LSTM", 5, 3, seed=seed, return_sequences=True) for seed in (1, 2))
    spec = ModelSpec(chain(bi(*halves, "mul"), shape=(None, 7, 3)), KERAS3)
    module = load(write(spec), tmp_path)
    x = torch.randn(2, 7, 3, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about nn.LSTM
        program = torch.export.export(module, (x,), strict=False)
    torch.testing.assert_close(program.module()(x), module(x))


def test_the_second_bias_of_torch_is_not_trained(tmp_path: Path) -> None:
    module = load(write(tagger()), tmp_path)
    frozen = {name for name, one in module.named_parameters() if not one.requires_grad}
    assert frozen == {f"bi_{i}.bias_hh_l0{end}" for i in (1, 2) for end in ("", "_reverse")}


def load(source: SourceFiles, folder: Path) -> nn.Module:
    """Run generated code here; only for a model of the tests."""
    save_source(source, folder / "made.py")
    model: nn.Module = runpy.run_path(str(folder / "made.py"))["load"]()
    return model


# ---- a wrong version fails -----------------------------------------------------------------------

_WRONG = {
    "gates of the LSTM": ("i, f, g, o = (", "f, i, g, o = ("),
    "gates of the GRU": ("w_r, w_z, w_n = w.chunk(3)", "w_z, w_r, w_n = w.chunk(3)"),
    "merge": ("x = ahead + back", "x = ahead - back"),
    "order of the steps": ("reversed(steps) if backward else steps", "steps"),
    "held state": (
        "new = tuple(torch.where(valid, one, old)",
        "new = tuple(torch.where(valid, one, one)",
    ),
    "masked outputs": (".masked_fill(~mask[..., None], 0.0)", ""),
    "last valid output": ("last.clamp(min=0)", "(last - 1).clamp(min=0)"),
    "places of the valid steps": ("order = (~mask).long()", "order = mask.long()"),
    "empty rows": ("select_rows((lengths > 0)[:, None], final, state)", "final"),
}


@pytest.fixture(scope="module")
def wrong(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, list[str]]:
    """Run every module that has a deliberate bug; return the faults of each."""
    made, texts = tmp_path_factory.mktemp("wrong"), {}
    for file in FILES:
        path = folder / f"{name_of(file)}.py"
        texts[path] = path.read_text("utf-8")
    for number, (right, bug) in enumerate(_WRONG.values()):
        holders = [path for path, text in texts.items() if right in text][:3]
        assert holders, right
        for path in holders:
            (made / f"bug_{number}_{path.stem}.py").write_text(
                texts[path].replace(right, bug), encoding="utf-8"
            )
            for suffix in (".npz", ".safetensors"):
                target = made / f"bug_{number}_{path.stem}{suffix}"
                target.symlink_to(path.with_suffix(suffix))
    return run_child(made)


@pytest.mark.parametrize("bug", _WRONG)
def test_a_wrong_module_is_noticed(bug: str, wrong: Mapping[str, list[str]]) -> None:
    number = list(_WRONG).index(bug)
    assert any(said for name, said in wrong.items() if name.startswith(f"bug_{number}_"))


@pytest.mark.parametrize("kind", [nn.LSTM, helpers.LoopLSTM, helpers.ResetBeforeGRU])
def test_nan_at_masked_steps_reaches_no_gradient(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    options = {"batch_first": True} if kind is nn.LSTM else {}
    rnn = kind(3, 5, bidirectional=True, **options)
    mask = torch.tensor([[False, True, True, False], [False] * 4])
    found = []
    for value in (0.0, float("nan")):
        x = torch.arange(24.0).reshape(2, 4, 3).cos().masked_fill(~mask[..., None], value)
        x.requires_grad_()
        run = rnn(x, mask=mask) if kind is not nn.LSTM else helpers.run_valid_steps(rnn, x, mask)
        found.append(torch.autograd.grad(run[0].sin().sum(), (x, *rnn.parameters())))
    for clean, spoiled in zip(*found, strict=True):
        assert torch.equal(clean, spoiled)
        assert clean.isfinite().all()


# ---- writing -------------------------------------------------------------------------------------


def test_the_source_is_checked_before_it_is_put_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_model(tagger())
    done = k2t.export(model, tmp_path / "tagger.py")
    assert done.checked is not None
    assert done.checked.ok
    assert load_file(tmp_path / "tagger.safetensors")["words.weight"].shape == (17, 3)
    k2t.export(model, tmp_path / "tagger.py")  # its own files are replaced

    def wrong(model: nn.Module, spec: ModelSpec) -> SourceFiles:
        source = write_source(model, spec)
        return replace(source, text=source.text.replace("ahead + back", "ahead * back"))

    monkeypatch.setattr("keras2torch_birnn.exporting.source.write_source.write_source", wrong)
    before = (tmp_path / "tagger.py").read_text("utf-8")
    with pytest.raises(K2TError, match="does not compute what the converted one does"):
        k2t.export(model, tmp_path / "tagger.py")
    assert (tmp_path / "tagger.py").read_text("utf-8") == before
    assert {path.name for path in tmp_path.iterdir()} == {"tagger.py", "tagger.safetensors"}


@pytest.mark.parametrize("foreign", ["tagger.py", "tagger.safetensors"])
def test_a_file_of_others_is_never_replaced(foreign: str, tmp_path: Path) -> None:
    path = tmp_path / foreign
    if foreign.endswith(".py"):
        path.write_text("print('mine')\n", encoding="utf-8")
    else:
        save_file({"mine": torch.zeros(3)}, path)
    kept = path.read_bytes()
    with pytest.raises(OutputError, match="k2t did not write it"):
        k2t.export(build_model(tagger()), tmp_path / "tagger.py")
    assert path.read_bytes() == kept
    assert [one.name for one in tmp_path.iterdir()] == [foreign]


def test_everything_without_a_source_form_is_named_at_once(tmp_path: Path) -> None:
    case = fixture("keras-3.15.1/conv_lstm_2d_states.h5")
    model = build_model(case.spec)
    with pytest.raises(UnsupportedLayerError, match="ConvLSTM2D has no form in plain") as caught:
        k2t.export(model, tmp_path / "model.py")
    assert caught.value.exit_code == 4
    assert caught.value.advice == "export another form, or keep the checkpoint"
    assert list(tmp_path.iterdir()) == []


def test_a_module_that_fails_says_why(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("def load():\n    raise ValueError('no weights')\n", "utf-8")
    assert run_exported(tmp_path / "bad.py", [()]) == ("ValueError: no weights",)


def test_the_module_runs_where_this_package_cannot_be_imported(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("import keras2torch_birnn\n", "utf-8")
    (reason,) = run_exported(tmp_path / "bad.py", [()])
    assert reason == "ModuleNotFoundError: keras2torch_birnn must not be needed"


def test_no_batch_begins_with_the_states_of_the_one_before(tmp_path: Path) -> None:
    model = build_model(fixture("keras-1.2.2/stateful_bi_lstm.h5").spec)
    k2t.export(model, tmp_path / "model.py")
    batch = [x.numpy() for x in origin(model).golden.inputs]
    first, second = run_exported(tmp_path / "model.py", [batch, batch])
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


# ---- names of a file are untrusted ---------------------------------------------------------------

HOSTILE = st.one_of(
    st.text(min_size=1, max_size=60),
    st.sampled_from(
        [
            '"""', "'''", "\\", "\n", "#", "# x\nimport os", '"""\nimport os\n"""', "class", "self",
            "load", "torch", "nn", "Tensor", "forward", "x", "mask", "print", "match", "é", "1a",
            "__init__", "training", "reset_states", "l", "O", "{x}", "{name}", "a" * 5000,
        ]
    ),
)  # fmt: skip


def outline(text: str) -> list[str]:
    """The statements of a module and its calls, without names."""
    return [type(node).__name__ for node in ast.walk(ast.parse(text))]


@settings(
    max_examples=examples(40),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
# (a longer version is refused when it is read)
@given(
    first=HOSTILE,
    second=HOSTILE,
    model=HOSTILE,
    version=HOSTILE.filter(lambda text: len(text) <= MAX_PRINTED_NAME),
)
def test_names_of_a_file_neither_break_nor_inject_code(
    first: str, second: str, model: str, version: str
) -> None:
    spec = tagger(words=first, tags=second)
    if first == second:
        return
    hostile = replace(
        spec,
        root=replace(spec.root, name=model),
        generation=replace(spec.generation, version=version),
    )
    try:
        text = write(hostile).text
    except K2TError:  # a name that collides with another layer's
        return
    compile(text, "made", "exec")
    assert text.isascii()
    assert outline(text) == outline(write(spec).text)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("bilstm_tagger", "BilstmTagger"),
        ("sequential_3", "Model"),
        ("3d", "Model"),
        ('"""', "Model"),
        ("ner-model", "NerModel"),
        ("mod\u00e8le", "Modele"),
    ],
)
def test_a_model_becomes_a_class(name: str, wanted: str) -> None:
    assert class_name(name) == wanted


def test_a_layer_of_a_nested_model_has_its_name_in_front() -> None:
    assert attribute("inner.dense") == "inner_dense"
    assert attribute("time_distributed.layer.dense") == "time_distributed_dense"
    assert attribute("layer") == "layer"


def test_a_local_name_and_the_call_that_gives_it_fit_on_a_line() -> None:
    name = "global_average_pooling_of_everything"[:35]
    assert local_beside("dense", "outer.dense") == "dense"
    assert local_beside(f"outer_{name}"[:40], f"outer.{name}") == name[:20]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("\u00c9tiquettes", "etiquettes"), ("o\u0308l/zahl", "ol_zahl"), ("\u8bcd", "value")],
)
def test_a_layer_becomes_an_attribute_in_ascii(name: str, wanted: str) -> None:
    assert local(name) == wanted


def test_text_of_a_file_cannot_end_a_docstring_or_a_comment() -> None:
    assert plain_text('a"""b\\c\nd') == "a_b_c_d"


# ---- parts ---------------------------------------------------------------------------------------


def test_a_long_statement_opens_its_call_and_no_subscript() -> None:
    names = ", ".join(f"argument_{i}" for i in range(9))
    lines = lay_out(f"x = function({names})[0]", 8, "(B, T)")
    assert lines[0] == "        x = function("
    assert lines[-1] == "        )[0]  # (B, T)"
    assert all(len(line) <= WIDTH for line in lines)


def test_a_module_that_does_not_keep_an_argument_cannot_be_written() -> None:
    class Forgetful(nn.Module):
        def __init__(self, size: int) -> None:
            super().__init__()

    with pytest.raises(LookupError, match="a Forgetful has no attribute size"):
        construct(Forgetful(3), [])
