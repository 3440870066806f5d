"""``verify``: says ok where the model is right, and where it first goes wrong where it is not."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import k2t as run
from kernel_layers import native
from out_files import changing, write_out
from specs import ENTRIES, FIXTURES, GENERATIONS, KERAS2, KERAS3, TF_KERAS, chain, dense, fixture

import keras2torch_birnn as k2t
from keras2torch_birnn.comparison.outputs import compare, outputs
from keras2torch_birnn.comparison.report import Comparison
from keras2torch_birnn.comparison.tolerance import Tolerance, resolve_tolerance
from keras2torch_birnn.golden import checksum, origin
from keras2torch_birnn.layers.recording import Program
from keras2torch_birnn.readers.config.generations import generation_of
from keras2torch_birnn.reference.rounding import difference
from keras2torch_birnn.spec import ModelSpec
from keras2torch_birnn.verification import close, expand_devices, live_keras, verify
from keras2torch_birnn.verification.keras_child import plain
from keras2torch_birnn.verification.live_keras import NoAnswer, ask_keras, keras_for
from keras2torch_birnn.verification.report_page import make_page

STACK = "tf.keras-2.15.0/mask_stack_bi_dense.h5"
POOLED = "keras-3.15.1/mask_average_pool.keras"
WEIGHTS = "keras-2.2.4/weights_mask_weights.h5"
STATEFUL = "tf.keras-2.15.0/stateful_bi_lstm.keras"
NESTED = "keras-3.15.1/nested_twice.keras"
SOME = (STACK, POOLED, "keras-2.2.4/cudnngru_bi.h5", STATEFUL, NESTED, "keras-2.3.1/shapes.h5")


def unfrozen(report: k2t.ParityReport) -> list[str]:
    """Name what the model itself was compared with."""
    return [c.against for c in report.comparisons if not c.against.endswith(", frozen")]


@native
@pytest.mark.usefixtures("native_where_it_pays")
def test_the_frozen_form_is_judged_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, out = FIXTURES / "tf.keras-2.15.0/mask_stack_bi_dense.h5", tmp_path / "out.pt"
    k2t.save(k2t.convert(model), out)
    for report in (verify(model, out, against="reference"), verify(out)):
        assert report.ok
        assert [c.against.endswith(", frozen") for c in report.comparisons] == [False, True]
    real = Program.run
    monkeypatch.setattr(Program, "run", lambda *given: real(*given) + 0.01)
    for report in (verify(model, out, against="reference"), verify(out)):
        assert [c.ok for c in report.comparisons] == [True, False]
        assert not report.ok


def converted(file: str, folder: Path) -> Path:
    """OUT of a fixture."""
    config = ENTRIES[file]["config"]
    return write_out(FIXTURES / file, folder, config and FIXTURES / config)


def nudge(out: Path, name: str) -> None:
    """Change the last number of a tensor inside OUT."""
    with changing(out) as (content, _):
        content["state_dict"][name].view(-1)[-1] += 0.1


# ---- right models ------------------------------------------------------------------------------


@pytest.mark.parametrize("file", SOME)
def test_a_converted_file_agrees_with_the_reference(file: str, tmp_path: Path) -> None:
    report = verify(FIXTURES / file, converted(file, tmp_path), against="reference")
    assert (report.ok, report.judged, report.inputs) == (True, True, "normal numbers")
    assert report.first_divergence is None
    assert report.max_abs_error < 1e-5
    assert unfrozen(report) == ["reference"]
    assert all(layer.max_abs_error < 1e-9 for layer in report.layers)
    expected = [one.name for one in fixture(file).spec.graph.layers if one.graph is None]
    expected = [name for name in expected if fixture(file).spec.graph.layer(name).weights]
    paths = [layer.path for layer in report.layers]
    assert set(expected) <= set(paths)
    # Layers of nested models have their path.
    assert any(path.count("/") == 2 for path in paths) == (file == NESTED)


def test_weights_alone_are_verified_with_their_configuration(tmp_path: Path) -> None:
    config = FIXTURES / ENTRIES[WEIGHTS]["config"]
    out = converted(WEIGHTS, tmp_path)
    assert verify(FIXTURES / WEIGHTS, out, config=config, against="reference").ok


def test_every_device_that_there_is_can_be_asked_for(tmp_path: Path) -> None:
    report = verify(FIXTURES / STACK, converted(STACK, tmp_path), devices=["all"])
    devices = {c.device for c in report.comparisons}
    assert devices == ({"cpu", "cuda"} if torch.cuda.is_available() else {"cpu"})
    assert report.ok


def test_a_mean_of_nothing_is_nan_on_both_sides(tmp_path: Path) -> None:
    """A row with nothing valid is averaged: 0/0 in Keras, in the reference and in torch."""
    out = converted(POOLED, tmp_path)
    assert any(y.isnan().any() for y in origin(k2t.load(out)).golden.outputs)
    assert verify(FIXTURES / POOLED, out, against="reference").ok
    assert verify(out).ok


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1.0, np.nan], [1.0, np.nan], 0.0),
        ([1.0, np.nan], [1.0, 2.0], np.inf),
        ([1.0, 2.0], [1.0, np.nan], np.inf),
        ([np.inf], [np.inf], 0.0),
        ([np.inf], [-np.inf], np.inf),
        ([1.0, 2.0], [1.5, 2.0], 0.5),
        ([1.0], [1.0, 1.0], np.inf),
        ([], [], 0.0),
    ],
)
def test_nan_equals_nan_and_nothing_else(a: list[float], b: list[float], expected: float) -> None:
    assert difference(a, b) == expected
    assert close(a, b, 1e-5, 1e-4) is (expected == 0.0)


def test_verifying_leaves_a_stateful_model_fresh(tmp_path: Path) -> None:
    out = converted(STATEFUL, tmp_path)
    for _ in range(2):
        assert verify(FIXTURES / STATEFUL, out, against="reference").ok


# ---- wrong models ------------------------------------------------------------------------------

# Embedding, Bidirectional, Bidirectional, Dense
LAYERS = ["embedding", "bidirectional", "bidirectional_1", "dense"]


@pytest.mark.parametrize(
    ("weight", "wrong"),
    [
        ("embedding.weight", "embedding"),
        ("bidirectional.weight_hh_l0_reverse", "bidirectional"),
        ("bidirectional_1.bias_ih_l0", "bidirectional_1"),
        ("dense.bias", "dense"),
    ],
)
def test_the_report_names_the_first_layer_that_is_wrong(
    weight: str, wrong: str, tmp_path: Path
) -> None:
    out = converted(STACK, tmp_path)
    nudge(out, weight)
    report = verify(FIXTURES / STACK, out, against="reference")
    assert not report.ok
    assert report.first_divergence == wrong
    verdicts = {layer.path: layer.ok for layer in report.layers}
    assert list(verdicts) == LAYERS
    assert verdicts == {path: path != wrong for path in LAYERS}  # each on its own input
    assert report.max_abs_error > 1e-4
    assert not report.comparisons[0].ok


def test_the_worst_place_is_where_the_weight_was_changed(tmp_path: Path) -> None:
    out = converted(STACK, tmp_path)
    nudge(out, "dense.bias")  # the last unit, everywhere alike
    report = verify(FIXTURES / STACK, out, against="reference")
    (layer,) = (one for one in report.layers if one.path == "dense")
    assert layer.max_abs_error == pytest.approx(0.1, rel=1e-5)
    assert layer.worst_index[-1] == len(k2t.load(out).dense.bias) - 1


def test_a_wrong_layer_that_later_ones_hide_is_found(tmp_path: Path) -> None:
    """The outputs agree with nothing either, but the layers tell which one is wrong."""
    file = "keras-3.15.1/relu_layer_default.keras"
    out = converted(file, tmp_path)
    with changing(out) as (content, _):
        content["state_dict"]["dense.bias"] -= 100
        content["state_dict"]["dense_1.weight"].zero_()
    report = verify(FIXTURES / file, out, against="reference")
    assert report.first_divergence == "dense"
    assert not report.ok


def test_float32_rounding_is_forgiven_by_the_yardstick_only() -> None:
    """An error above the tolerance passes where plain float32 arithmetic is as far off."""
    wanted, got, place = [np.array([1.0])], [np.array([1.001])], ("cpu", "reference")
    own, given = resolve_tolerance(None, None), resolve_tolerance(1e-5, 1e-4)

    def compared(rounding: float, limit: Tolerance) -> Comparison:
        return compare(got, wanted, [rounding], limit, device=place[0], against=place[1])

    assert compared(0.0005, own).ok
    assert compared(0.0005, own).max_abs_error == pytest.approx(1e-3)
    assert not compared(0.0, own).ok
    assert not compared(0.0005, given).ok  # the user's tolerance is obeyed as it is


def test_a_comparison_that_rounding_drowns_is_not_judged() -> None:
    """Float32 rounding above 1e-3 of the output's size: neither equal nor not."""
    wanted, limit = [np.array([2.0])], resolve_tolerance(None, None)
    drowned, clear = (
        compare(wanted, wanted, [rounding], limit, device="cpu", against="reference")
        for rounding in (0.0021, 0.0019)
    )
    assert not drowned.judged
    assert not drowned.ok
    assert clear.judged
    assert clear.ok


def test_the_rounding_of_one_output_excuses_no_other() -> None:
    wanted = [np.array([1000.0]), np.array([1.0])]
    got = [np.array([1000.0]), np.array([1.5])]
    limit, roundings = resolve_tolerance(None, None), [0.5, 1e-6]
    assert not compare(got, wanted, roundings, limit, device="cpu", against="reference").ok


def test_the_tolerance_can_be_chosen(tmp_path: Path) -> None:
    out = converted(STACK, tmp_path)
    for strict in (
        verify(out, atol=0.0, rtol=0.0),
        verify(FIXTURES / STACK, out, atol=0.0, rtol=0.0, against="reference"),
    ):
        assert 0 < strict.max_abs_error < 1e-6
        assert not strict.ok
        assert all(c.yardstick_error > 0 for c in strict.comparisons)
    assert verify(out).ok
    nudge(out, "dense.bias")
    assert not verify(out).ok
    assert verify(out, atol=0.2).ok


# ---- golden vectors ----------------------------------------------------------------------------


@pytest.mark.parametrize("file", SOME)
def test_out_alone_is_checked_by_its_golden_vectors(file: str, tmp_path: Path) -> None:
    out = converted(file, tmp_path)
    for report in (verify(out), verify(FIXTURES / file, out, against="golden")):
        assert report.ok
        assert unfrozen(report) == ["golden"]
        assert report.layers == ()


def test_golden_vectors_of_another_model_prove_nothing_of_this_one(tmp_path: Path) -> None:
    """Their file must have the layers and the weights of the model, and the part that is named."""
    out = converted(SOME[0], tmp_path)
    with pytest.raises(k2t.WeightMismatchError, match="made from another model"):
        verify(FIXTURES / SOME[1], out, against="golden")
    with pytest.raises(k2t.UsageError, match="no layer of the model"):
        verify(FIXTURES / SOME[0], out, against="golden", from_layer="nope")
    model = k2t.load(out)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    k2t.save(model, out, overwrite=True)
    with pytest.raises(k2t.WeightMismatchError, match="has other weights than the model: "):
        verify(FIXTURES / SOME[0], out, against="golden")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_the_golden_vectors_find_a_changed_weight(suffix: str, tmp_path: Path) -> None:
    model, out = k2t.convert(FIXTURES / STACK), tmp_path / f"out{suffix}"
    k2t.save(model, out)
    assert verify(out).ok
    right = origin(model)
    with torch.no_grad():
        model.bidirectional.weight_hh_l0[0, 0] += 0.1
    model.meta["keras2torch_birnn"] = type(right)(  # as if nobody had noticed the change
        right.spec, right.golden, checksum(model)
    )
    k2t.save(model, out)
    report = verify(out)
    assert not report.ok
    assert report.max_abs_error > 1e-4


def test_a_trained_model_makes_its_own_golden_vectors(tmp_path: Path) -> None:
    model, out = k2t.convert(FIXTURES / STACK), tmp_path / "out.pt"
    inputs = [torch.from_numpy(x) for x in fixture(STACK).inputs[0]]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(*inputs).square().mean().backward()
    optimizer.step()
    k2t.save(model, out)
    report = verify(out)
    assert report.ok
    assert unfrozen(report) == ["golden by the model itself"]
    assert not verify(FIXTURES / STACK, out, against="reference").ok
    # and an unchanged model that went through OUT keeps the reference's
    k2t.save(k2t.load(converted(STACK, tmp_path)), out)
    assert origin(k2t.load(out)).golden.made_by == "reference"


# ---- refusals ----------------------------------------------------------------------------------


def test_out_of_another_model_is_refused(tmp_path: Path) -> None:
    out = converted(STACK, tmp_path)
    with pytest.raises(k2t.WeightMismatchError, match=r"out\.pt: was made from another model"):
        verify(FIXTURES / POOLED, out)


def test_an_unknown_yardstick_is_refused(tmp_path: Path) -> None:
    unknown: Any = "magic"
    with pytest.raises(k2t.UsageError, match="against 'magic': one of auto, keras, reference"):
        verify(tmp_path / "out.pt", against=unknown)


def test_a_gpu_that_is_not_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out = converted(STACK, tmp_path)
    with pytest.raises(k2t.UsageError, match="device cuda: this machine has no CUDA device"):
        verify(FIXTURES / STACK, out, devices=["cuda"])
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert expand_devices(["all"]) == ("cpu",)


def test_all_devices_are_the_cpu_and_the_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("mps"))
    monkeypatch.setattr("keras2torch_birnn.verification.resolve_device", torch.device)
    assert expand_devices(["all", "cpu"]) == ("cpu", "mps")
    assert expand_devices(["cpu", "cpu"]) == expand_devices([]) == ("cpu",)


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("abacus", "device 'abacus' is unknown; use cpu or cuda"),
        ("cpu:1:2", "device 'cpu:1:2' is unknown"),
        ("meta", "device meta: it holds no numbers to compare; use --device cpu"),
        ("xpu", r"device xpu: torch cannot use it here \(.+\); use --device cpu"),
        ("mps:7", r"device mps:7: torch cannot use it here \(.+\)"),
        ("vulkan", r"device vulkan: torch cannot use it here \(.+\)"),
    ],
)
def test_a_device_that_cannot_be_used_is_refused(device: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(k2t.UsageError, match=message):
        verify(converted(STACK, tmp_path), devices=[device])


@pytest.mark.parametrize(
    ("name", "failure", "message"),
    [
        ("to", TypeError("no float64\nthere"), "not take the model \\(TypeError: no float64\\)"),
        ("to", torch.OutOfMemoryError("full"), r"not take the model \(OutOfMemoryError: full\)"),
        ("forward", torch.OutOfMemoryError("full"), "it has too little memory"),
        (
            "forward",
            RuntimeError("DefaultCPUAllocator: can't allocate memory"),
            "too little memory",
        ),
    ],
)
def test_a_device_that_cannot_hold_a_model_is_no_difference(
    name: str, failure: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise failure

    model = torch.nn.Linear(3, 5)
    monkeypatch.setattr(model, name, fail)
    with pytest.raises(k2t.UsageError, match=f"device cpu: .*{message}"):
        outputs(model, [np.zeros((2, 3), np.float32)], "cpu", strict=True)


def test_what_is_no_name_of_a_device_is_refused(tmp_path: Path) -> None:
    out = converted(STACK, tmp_path)
    wrong: Any
    for wrong in (None, "3"):  # a number is a device of an accelerator that torch was built for
        with pytest.raises(k2t.UsageError, match=f"device '{wrong}' is unknown; use cpu or cuda"):
            k2t.load(out, wrong)


# ---- the live Keras ----------------------------------------------------------------------------


def need(package: str) -> None:
    """Skip a test where this Keras is not installed."""
    if None in map(importlib.util.find_spec, (package, "tensorflow")):
        pytest.skip(f"{package} is not installed")


@pytest.fixture
def without_keras(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        live_keras,
        "find_spec",
        lambda name: None if name in ("keras", "tf_keras", "tensorflow") else found(name),
    )


@pytest.mark.usefixtures("without_keras")
@pytest.mark.parametrize(("file", "package"), [(STACK, "tf_keras"), (POOLED, "keras")])
def test_asking_for_a_keras_that_is_not_installed_is_refused(
    file: str, package: str, tmp_path: Path
) -> None:
    wanted = rf"cannot compare with Keras: {package} is not installed \(pip install 'keras2torch"
    with pytest.raises(k2t.UsageError, match=wanted):
        verify(FIXTURES / file, converted(file, tmp_path), against="keras")


@pytest.mark.usefixtures("without_keras")
def test_without_keras_the_reference_judges_and_a_note_says_so(tmp_path: Path) -> None:
    report = verify(FIXTURES / STACK, converted(STACK, tmp_path))
    assert report.ok
    assert unfrozen(report) == ["reference"]
    assert len(report.notes) == 1
    assert "the NumPy reference only: tf_keras is not installed" in report.notes[0]


def test_an_old_file_is_never_shown_to_keras_3() -> None:
    """Keras 3 would silently compute another hard_sigmoid."""
    wanted = {KERAS2: "tf_keras", TF_KERAS: "tf_keras", KERAS3: "keras"}
    root = chain(dense(5, 3))
    for generation in GENERATIONS:
        assert keras_for(ModelSpec(root, generation)) == wanted[generation]
    for version in {entry["keras_version"] for entry in ENTRIES.values()}:
        package = keras_for(ModelSpec(root, generation_of(version)))
        assert package == ("keras" if version.startswith("3") else "tf_keras"), version


def test_masks_of_multi_backend_keras_have_no_living_judge(tmp_path: Path) -> None:
    file = "keras-2.2.4/mask_stack_bi_dense.h5"
    answer = ask_keras(FIXTURES / file, None, fixture(file).spec, fixture(file).inputs[0])
    assert isinstance(answer, NoAnswer)
    assert "treats masked steps unlike the multi-backend Keras" in answer.reason
    assert not (answer.foreign or answer.unknown)
    with pytest.raises(k2t.UsageError, match="cannot compare with Keras: tf_keras treats masked"):
        verify(FIXTURES / file, converted(file, tmp_path), against="keras")


OWN_TRAINING = "custom/keras-3.15.1/own_training.keras"
OWN_FUNCTION = "custom/tf.keras-2.10.0/own_function.h5"


def test_a_file_that_names_a_users_function_is_not_compared_with_keras_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = write_out(FIXTURES / OWN_TRAINING, tmp_path)
    monkeypatch.setattr(live_keras, "find_spec", lambda _: True)  # "installed"
    done = run("verify", FIXTURES / OWN_TRAINING, out)
    assert done.code == 0
    assert done.out.splitlines()[-1] == "OK by the reference alone, NOT COMPARED with Keras"
    assert "the file names the function glorot_uniform, which is not Keras' own" in done.err


@pytest.mark.parametrize(
    "message",
    [
        "ValueError: Unknown activation function: 'hard_swish'. Please ensure this object is",
        "TypeError: Could not locate function 'hard_swish'. Make sure custom classes are",
        "TypeError: Could not locate class 'Dense'. Make sure custom classes are decorated",
        "ValueError: Unknown layer: 'Dense'. Please ensure you are using a scope",
    ],
)
def test_nothing_is_judged_where_live_keras_finds_no_class_or_function(
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = write_out(FIXTURES / OWN_FUNCTION, tmp_path)
    failed = subprocess.CompletedProcess([], 1, "", f"Traceback\n{message}\n")
    monkeypatch.setattr(live_keras, "find_spec", lambda _: True)
    monkeypatch.setattr(live_keras.subprocess, "run", lambda *_, **__: failed)
    report = verify(FIXTURES / OWN_FUNCTION, out)
    assert not report.ok
    assert not report.judged
    assert message.split("'")[1] in report.without_keras
    page = make_page(report, model=out, out=out, weights=None)
    assert "No output could be judged: tf_keras fails" in page
    assert verify(FIXTURES / OWN_FUNCTION, out, against="reference").ok


LIVE = [
    ("keras", "keras-3.15.1/hard_sigmoid_bi_lstm.h5"),
    ("keras", "keras-3.15.1/mask_average_pool.keras"),
    ("keras", "keras-3.15.1/merge_masks_add.keras"),
    ("keras", "keras-3.15.1/weights_mask.weights.h5"),
    ("tf_keras", "tf.keras-2.15.0/hard_sigmoid_bi_gru_before.h5"),
    ("tf_keras", "tf.keras-2.15.0/mask_stack_plain.keras"),
    ("tf_keras", "keras-2.2.4/cudnnlstm_bi.h5"),
    ("tf_keras", "tf_keras-2.21.0/dtypes_of_layers.keras"),
    ("tf_keras", "tf_keras-2.21.0/dtypes_whole.h5"),
]
HALF = "keras-3.15.1/dtypes_mixed_bfloat16.keras"


@pytest.mark.live_keras
@pytest.mark.parametrize(("package", "file"), LIVE, ids=[file for _, file in LIVE])
def test_the_live_keras_agrees(package: str, file: str, tmp_path: Path) -> None:
    need(package)
    config = ENTRIES[file]["config"]
    config = None if config is None else FIXTURES / config
    report = verify(FIXTURES / file, converted(file, tmp_path), config=config, against="keras")
    assert report.ok
    (comparison,) = report.comparisons
    assert comparison.against.split()[0] == package
    assert report.max_abs_error < 1e-5


@pytest.mark.live_keras
def test_the_live_keras_in_half_precision_is_a_judge_of_its_own_precision(tmp_path: Path) -> None:
    need("keras")
    report = verify(FIXTURES / HALF, converted(HALF, tmp_path), against="keras")
    assert report.ok
    assert 1e-3 < report.max_abs_error < 6e-2


@pytest.mark.parametrize("kind", ["float32", "float64", "int32", "bool"])
def test_what_keras_gives_is_written_as_it_is_but_halves(kind: str) -> None:
    assert plain(np.ones(3, kind)).dtype == kind
    assert plain(np.float16([0.5, 1.5])).dtype == np.float32


@pytest.mark.live_keras
def test_the_live_keras_finds_a_changed_weight(tmp_path: Path) -> None:
    package, file = LIVE[0]
    need(package)
    out = converted(file, tmp_path)
    nudge(out, "bidirectional.bias_ih_l0")
    report = verify(FIXTURES / file, out, against="keras")
    assert not report.ok
    assert report.max_abs_error > 1e-4


@pytest.mark.gpu
@pytest.mark.parametrize("file", SOME)
def test_a_gpu_is_verified_without_tf32_and_with_its_default(file: str, tmp_path: Path) -> None:
    out = converted(file, tmp_path)
    report = verify(FIXTURES / file, out, devices=["all"], against="reference")
    assert report.ok
    assert [(c.device, c.counts) for c in report.comparisons] == [
        ("cpu", True),
        ("cuda", True),
        ("cuda", False),
    ]
