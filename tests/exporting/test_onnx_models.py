"""Whole models in ONNX: fixtures of real Keras, names, axes, metadata, and deliberate mistakes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from exported import LOOPS, assert_same, inputs_of, many_layers, run_replaced, spec_of, write_onnx
from mutations.patches import Patch, both, edit, put, wrap
from specs import ENTRIES, FIXTURES, KERAS3, F, H, bi, chain, fixture, layer, rnn
from warm_process import exports_in_forks

import keras2torch_birnn as k2t
from keras2torch_birnn import limits
from keras2torch_birnn.conversion import build_model
from keras2torch_birnn.errors import (
    K2TError,
    OutputError,
    UnsupportedLayerError,
    UnsupportedOptionError,
    UsageError,
)
from keras2torch_birnn.exporting import (
    child_process,
    exporter,
    onnx_file,
    onnx_graph,
    onnx_recurrent,
    runtime_child,
)
from keras2torch_birnn.exporting.exporter import Exported
from keras2torch_birnn.golden import origin
from keras2torch_birnn.rnn.activations import FUNCTIONS
from keras2torch_birnn.spec import Array, ModelSpec, with_dtype

# One of each: containers and generations, masks, several inputs, nested and shared models, cells,
# windows of a free axis.
SAMPLE = (
    "keras-2.2.4/around_separable1.h5",
    "keras-1.2.2/mask_stack_last.h5",
    "tf.keras-2.15.0/graph_nested_twice.keras",
    "tf.keras-2.15.0/arch_hierarchy.keras",
    "tf.keras-2.15.0/cells_bi.h5",
    "keras-3.15.1/graph_seq2seq_bi.keras",
)


# (the short run exports a masked stack by the command, and states and masks of single layers)
@pytest.mark.thorough
@pytest.mark.parametrize("file", SAMPLE)
def test_a_model_of_real_keras_is_what_keras_computed(file: str, tmp_path: Path) -> None:
    config = ENTRIES[file]["config"]
    model = k2t.convert(FIXTURES / file, config=config and FIXTURES / config)
    out = tmp_path / "model.onnx"
    write_onnx(model, out)
    session = onnx_file.RUNTIMES["ONNX Runtime"].open(out)
    ((inputs, wanted),) = fixture(file).calls()
    for got, right in zip(session(inputs), wanted, strict=True):
        np.testing.assert_allclose(got, right, atol=1e-5, rtol=1e-4)
    assert not LOOPS & {node.op_type for node in onnx.load(out).graph.node}


def halves(cell: str = "LSTM") -> Any:
    return [rnn(cell, seed=s, return_sequences=True) for s in (0, 1)]


@pytest.fixture(scope="module")
def small() -> Any:
    """Two outputs, a mask, free batch and time."""
    layers = {
        "first": rnn("SimpleRNN", return_sequences=True),
        "second": bi(*halves("GRU"), None),
    }
    return build_model(many_layers(layers, {"first": 1, "second": 2}, masked=True))


@pytest.fixture(scope="module")
def tiny() -> Any:
    """A model that takes torch's exporter the least time."""
    return build_model(many_layers({"it": rnn("GRU")}, {"it": 1}, masked=False))


@pytest.fixture(scope="module")
def done(small: Any, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """``small``, exported once."""
    with exports_in_forks():
        return k2t.export(small, tmp_path_factory.mktemp("small") / "m.onnx")


def shapes(values: Any) -> list[tuple[str, list[str | int]]]:
    return [
        (v.name, [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]) for v in values
    ]


def test_names_axes_and_origin_are_in_the_file(done: Exported) -> None:
    (file,) = done.files
    assert file.name == "m.onnx"
    assert done.checked is not None
    assert done.checked.ok
    assert done.to_dict()["checked_in"] == "ONNX Runtime"
    model = onnx.load(file)
    onnx.checker.check_model(model)
    assert shapes(model.graph.input) == [("x", ["batch", "time", 2]), ("m", ["batch", "time"])]
    assert shapes(model.graph.output) == [
        ("first", ["batch", "time", H]),
        ("second", ["batch", "time", H]),
        ("second_1", ["batch", "time", H]),
    ]
    assert [(o.domain, o.version) for o in model.opset_import] == [("", onnx_graph.OPSET)]
    facts = {p.key: p.value for p in model.metadata_props}
    assert facts["keras2torch_birnn"] == k2t.__version__
    assert facts["keras"] == "2.15.0"


def test_weights_that_were_trained_since_are_checked_and_stay_as_they_are(tmp_path: Path) -> None:
    model = build_model(many_layers({"a": rnn("GRU")}, {"a": 1}, masked=False))
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modules = {name: type(module) for name, module in model.named_modules()}
    done = k2t.export(model, tmp_path / "m.onnx")
    assert done.checked is not None
    assert done.checked.ok
    assert {name: type(module) for name, module in model.named_modules()} == modules
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_fixed_time_axis_stays_fixed_unless_it_is_freed(tmp_path: Path) -> None:
    layers = {"first": rnn("GRU", return_sequences=True)}
    model = build_model(many_layers(layers, {"first": 1}, masked=False, steps=13))
    k2t.export(model, tmp_path / "fixed.onnx")
    k2t.export(model, tmp_path / "free.onnx", any_length=True)
    fixed, free = (onnx.load(tmp_path / f"{name}.onnx").graph for name in ("fixed", "free"))
    assert shapes(fixed.input) == [("x", ["batch", 13, 2])]
    assert shapes(free.input) == [("x", ["batch", "time", 2])]
    spec = many_layers(layers, {"first": 1}, masked=False)
    assert_same(
        model, tmp_path / "free.onnx", (inputs_of(spec, *size) for size in ((2, 5), (1, 1)))
    )


@pytest.mark.parametrize("window", [11, 31])
def test_steps_that_are_one_behind_a_window_while_recording_are_not_fixed(
    window: int, tmp_path: Path
) -> None:
    """A window of 11 leaves one step of 11, which torch's exporter takes for one of all lengths."""
    rng = np.random.default_rng(5)
    weights = {"kernel": rng.normal(size=(window, F, 5)), "bias": rng.normal(size=5)}
    options = {"filters": 5, "kernel_size": (window,), "strides": (2,), "padding": "valid"}
    statistics = ("gamma", "beta", "moving_mean", "moving_variance")
    normal = layer("BatchNormalization", "bn", {name: rng.random(5) for name in statistics})
    gru = rnn("GRU", features=5, return_sequences=True)
    conv = layer("Conv1D", "conv", weights, **options)
    root = chain(conv, normal, bi(gru, gru), shape=(None, None, F))
    model = build_model(ModelSpec(with_dtype(root, np.dtype(np.float32)), KERAS3))
    k2t.export(model, tmp_path / "m.onnx")
    batches = (
        (rng.normal(size=(*size, F)).astype("f"),) for size in ((2, window), (3, 37), (1, 40))
    )
    assert_same(model, tmp_path / "m.onnx", batches)


@pytest.mark.thorough
def test_windows_pad_as_many_steps_as_each_length_needs(tmp_path: Path) -> None:
    window = {"pool_size": (2,), "strides": (2,), "padding": "same"}
    layers = [layer("MaxPooling1D", name, **window) for name in "ab"]
    root = chain(*layers, rnn("GRU", return_sequences=True), shape=(None, None, F))
    model = build_model(ModelSpec(with_dtype(root, np.dtype(np.float32)), KERAS3))
    k2t.export(model, tmp_path / "m.onnx")
    sizes = ((2, 1), (2, 2), (1, 5), (3, 8))
    rng = np.random.default_rng(5)
    batches = ((rng.normal(size=(*size, F)).astype("f"),) for size in sizes)
    assert_same(model, tmp_path / "m.onnx", batches)


@pytest.mark.thorough
def test_activations_of_large_numbers_do_not_overflow(tmp_path: Path) -> None:
    """Torch's exporter writes softplus as the logarithm of e^x + 1: infinite from 89 on."""
    layers = {
        name: layer("Activation", activation=name)
        for name in FUNCTIONS
        if name != "exponential"  # infinite, in torch as well
    }
    model = build_model(many_layers(layers, dict.fromkeys(layers, 1), masked=False))
    write_onnx(model, tmp_path / "m.onnx")
    x = np.linspace(-900, 900, 2 * 7 * F, dtype=np.float32).reshape(2, 7, F)
    with torch.no_grad():
        assert all(y.isfinite().all() for y in model(torch.from_numpy(x)))
    assert_same(model, tmp_path / "m.onnx", iter([(x,), (x / 50,)]))


# ---- mistakes on purpose ------------------------------------------------------------------------


CELLS_OF_ONNX = onnx_recurrent.ONNX_CELLS
MISTAKES: Mapping[str, Patch] = {
    "gates of an LSTM": wrap(CELLS_OF_ONNX, "LSTM", lambda one: one._replace(order=(0, 3, 2, 1))),
    "gates of a GRU": wrap(CELLS_OF_ONNX, "GRU", lambda one: one._replace(order=(0, 1, 2))),
    "reset before the product": wrap(
        CELLS_OF_ONNX, "GRU", lambda one: one._replace(options={"linear_before_reset": 0})
    ),
    "directions": edit(
        "exporting.onnx_recurrent:OnnxRecurrent._keep",
        ", tensor)",
        ", tensor if suffix else tensor.flip(0))",
    ),
    "a product as a sum": wrap(
        onnx_recurrent,
        "merge_outputs",
        lambda right: lambda outputs, mode: right(outputs, "sum" if mode == "mul" else mode),
    ),
    "a sum as a mean": wrap(
        onnx_recurrent.MERGE_MODES, "sum", lambda one: one._replace(reduction="mean")
    ),
    "no biases": edit(
        "exporting.onnx_recurrent:_to_onnx_layout",
        "torch.cat([sort_gates(bias)",
        "0 * torch.cat([sort_gates(bias)",
    ),
}


@pytest.fixture(scope="module")
def every_cell() -> Any:
    """Layers side by side, which together show each of these mistakes."""
    pairs = [("LSTM", "concat"), ("GRU", "sum"), ("SimpleRNN", "mul")]
    layers = {cell: bi(*halves(cell), mode) for cell, mode in pairs}
    return build_model(many_layers(layers, dict.fromkeys(layers, 1), masked=False))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_golden_vectors_tell_a_mistake(
    mistake: str, every_cell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden = origin(every_cell).golden

    def computes_them() -> bool:
        outputs, _ = run_replaced(every_cell, golden.inputs)
        return exporter._compare([y.numpy() for y in outputs], golden).ok

    assert computes_them()
    MISTAKES[mistake](monkeypatch)
    assert not computes_them()


def test_the_check_finds_a_mistake(
    tiny: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    MISTAKES["gates of a GRU"](monkeypatch)
    with pytest.raises(K2TError, match="does not compute what the converted one does in ONNX Run"):
        k2t.export(tiny, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_a_right_file_is_written_even_if_the_model_itself_rounds_too_much(
    tiny: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = exporter._run_golden
    monkeypatch.setattr(exporter, "_run_golden", lambda *given: replace(own(*given), ok=False))
    done = k2t.export(tiny, tmp_path / "m.py")
    assert done.checked is not None
    assert done.checked.ok


# ---- files ---------------------------------------------------------------------------------------


def test_only_a_file_of_our_own_is_replaced_and_without_a_runtime_nothing_checked(
    tiny: Any, done: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_file, "is_installed", lambda name: False)
    out, foreign = tmp_path / "m.onnx", tmp_path / "foreign.onnx"
    before = done.files[0].read_bytes()
    out.write_bytes(before)
    with pytest.raises(OutputError, match="exists already; use --force to replace it"):
        k2t.export(tiny, out, overwrite=False)
    assert out.read_bytes() == before
    unchecked = k2t.export(tiny, out)
    assert unchecked.checked is None
    assert unchecked.notes == ("nothing was checked: onnxruntime is not installed",)
    assert out.read_bytes() != before
    other = onnx.load(out)
    other.producer_name = "pytorch"
    foreign.write_bytes(other.SerializeToString())
    with pytest.raises(OutputError, match="exists already, and k2t did not write it"):
        k2t.export(tiny, foreign)
    assert foreign.read_bytes() == other.SerializeToString()


@pytest.mark.parametrize("content", [b"\x08\x0a\x12", b"\xff" * 40, b"\x12\x03abc", b"\x10\x01"])
def test_other_bytes_are_no_file_of_ours(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    file.write_bytes(content)
    assert not onnx_file.is_ours(file)


def test_a_file_that_does_not_run_is_an_error_of_ours(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "run_exported", lambda *_: ["it did not finish in 600 s"])
    with pytest.raises(K2TError, match=r"does not run in torch \(it did not finish"):
        k2t.export(tiny, tmp_path / "m.py")
    assert not list(tmp_path.iterdir())


def fail(*_: Any, **__: Any) -> None:
    raise RuntimeError("no\nsuch thing")


NOTHING = put(torch.export, "export", lambda *_, **__: None)


@pytest.mark.parametrize(
    ("patch", "error", "words"),
    [
        (
            put(onnx_file, "find_spec", lambda name: None),
            UsageError,
            r"onnx is not installed; pip install 'keras2torch_birnn",
        ),
        (
            put(onnx_file, "MAX_ONNX_BYTES", 100),
            UnsupportedOptionError,
            "bytes, one ONNX file holds at most 100",
        ),
        (
            put(torch.export, "export", fail),
            UnsupportedLayerError,
            r"does not take this model \(RuntimeError: no\); export it as \.pt2",
        ),
        (
            both(NOTHING, put(torch.onnx, "export", lambda *_, **__: None)),
            UnsupportedLayerError,
            "torch's exporter returned no model",
        ),
    ],
    ids=["no exporter", "too many weights", "torch fails", "torch gives nothing"],
)
def test_what_cannot_become_onnx_is_refused(
    patch: Patch,
    error: type[K2TError],
    words: str,
    small: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    patch(monkeypatch)
    with pytest.raises(error, match=words):
        k2t.export(small, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_a_module_in_two_places_is_refused() -> None:
    model = build_model(many_layers({"it": rnn("GRU")}, {"it": 1}, masked=False))
    model.add_module("again", model.get_submodule("it"))
    with pytest.raises(UnsupportedLayerError, match="again: a recurrent module in two places"):
        onnx_recurrent.replace_recurrent(model)


# ---- the process that runs a file ---------------------------------------------------------------


def constant(file: Path, count: int) -> Path:
    """A file that makes many bytes from none."""
    size = onnx.helper.make_tensor("n", onnx.TensorProto.INT64, [1], [count])
    nodes = [
        onnx.helper.make_node("Constant", [], ["n"], value=size),
        onnx.helper.make_node("ConstantOfShape", ["n"], ["y"]),
    ]
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None])
    graph = onnx.helper.make_graph(nodes, "g", [], [y])
    opset = onnx.helper.make_opsetid("", 18)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9), file)
    return file


@pytest.mark.own_processes
def test_a_file_gets_no_more_memory_than_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_process.limits, "MAX_EXPORTED_MEMORY", 1 << 30)
    (little,) = child_process.run_exported(constant(tmp_path / "m.onnx", 5), [()])
    assert not isinstance(little, str)
    assert little[0].shape == (5,)
    (reason,) = child_process.run_exported(constant(tmp_path / "m.onnx", 1 << 29), [()])
    assert isinstance(reason, str)
    # The runtime says so where it runs the node, or, if it folds constants first, at the start.
    assert "while running ConstantOfShape" in reason or "std::bad_alloc" in reason


@pytest.mark.own_processes
def test_a_file_that_never_ends_is_stopped(done: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_process.limits, "MAX_EXPORTED_SECONDS", 0)
    (reason,) = child_process.run_exported(done.files[0], [()])
    assert reason == "it did not finish in 0 s"


def test_one_batch_that_does_not_fit_spoils_no_other(small: Any, done: Exported) -> None:
    good: list[Array] = [x.numpy() for x in origin(small).golden.inputs]
    bad = [good[0][..., :1], good[1]]
    first, second = child_process.run_exported(done.files[0], [bad, good])
    assert isinstance(first, str)
    assert "InvalidArgument" in first
    assert not isinstance(second, str)
    assert [y.shape for y in second] == [tuple(y.shape) for y in origin(small).golden.outputs]


@pytest.mark.own_processes
@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "it crashed (signal 11)"),
        ("raise SystemExit(3)", "it ended with code 3"),
        ("import sys; sys.exit('no\\x07 such thing')", "no\\x07 such thing"),
        ("", "it wrote no outputs"),
        (
            "import json, sys; open(json.loads(sys.argv[1])['outputs'], 'w').write('PK')",
            "its outputs cannot be read",
        ),
    ],
)
def test_every_end_of_the_child_is_a_reason(
    script: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = tmp_path / "child.py"
    child.write_text(script)
    monkeypatch.setattr(child_process, "_CHILD", child)
    assert child_process.run_exported(child, [(), ()]) == (reason, reason)


def test_the_memory_of_the_child_counts_the_files_beside_the_named_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = tmp_path / "child.py"
    child.write_text("import json, sys; sys.exit(str(json.loads(sys.argv[1])['memory']))")
    monkeypatch.setattr(child_process, "_CHILD", child)
    (tmp_path / "m.py").write_bytes(bytes(7))
    (tmp_path / "m.safetensors").write_bytes(bytes(1009))
    (reason,) = child_process.run_exported(tmp_path / "m.py", [()])
    assert reason == str(limits.MAX_EXPORTED_MEMORY + 8 * 1016)


def test_the_error_of_a_child_is_one_line() -> None:
    assert runtime_child.shown(ValueError("a\n  b")) == "ValueError: a b"


def test_openvino_computes_the_same_in_float32(small: Any, done: Exported) -> None:
    pytest.importorskip("openvino")
    session, other = (
        onnx_file.RUNTIMES[name].open(done.files[0]) for name in ("OpenVINO", "ONNX Runtime")
    )
    batches: Iterator[Any] = (inputs_of(spec_of(small), *size) for size in ((5, 7), (1, 3)))
    for inputs in batches:
        for a, b in zip(session(inputs), other(inputs), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.thorough
def test_an_axis_of_one_value_stays_fixed(tmp_path: Path) -> None:
    model = k2t.convert(FIXTURES / "tf.keras-2.15.0/around_one_hot.h5")
    k2t.export(model, tmp_path / "free.onnx", any_length=True)
    graph = onnx.load(tmp_path / "free.onnx").graph
    assert shapes(graph.input) == [("category_encoding_input", ["batch", 1])]


def test_an_invalid_graph_is_refused_without_a_runtime(small: Any, tmp_path: Path) -> None:
    """Torch's exporter makes such a graph of ``ops_tf_values.h5`` of tf.keras 2.4.0."""
    value = onnx.helper.make_tensor_value_info
    nodes = [onnx.helper.make_node("Neg", [a], [b]) for a, b in ("by", "xb")]
    ends = ([value(name, onnx.TensorProto.FLOAT, [3])] for name in "xy")
    opset = onnx.helper.make_opsetid("", 18)
    made = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "g", *ends), opset_imports=[opset], ir_version=9
    )
    with pytest.raises(K2TError, match=r"ValidationError: Nodes in a graph must be topologically"):
        onnx_graph.save_graph(onnx_ir.from_proto(made), spec_of(small), tmp_path / "m.onnx")
