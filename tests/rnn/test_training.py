"""Training a converted model in torch: what stays, what is kept, what is said."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from same_models import assert_same_outputs, assert_same_weights
from specs import FIXTURES, bi, dense, fixture, layer, rnn, with_options
from torch import nn
from torch.func import functional_call
from torch.optim.swa_utils import update_bn

import keras2torch_birnn as k2t
from keras2torch_birnn.errors import InvalidModelFileError, UsageError
from keras2torch_birnn.layers.normalization import BatchNorm
from keras2torch_birnn.layers.running import flat
from keras2torch_birnn.readers.config.generations import generation_of
from keras2torch_birnn.schema.training_rules import describe_batch_rule, with_training_rules

FOLDER = FIXTURES / "training" / "keras-3.15.1"
LSTM_MODEL = FOLDER / "merges.before.keras"
STATEFUL = FOLDER / "stateful.before.keras"
NORMALIZED = FOLDER / "bn_3d.before.keras"
SUFFIXES = (".pt", ".safetensors")


def steps(rows: int = 5) -> torch.Tensor:
    return torch.randn(rows, 7, 3, generator=torch.Generator().manual_seed(rows))


# ---- torch's second bias ------------------------------------------------------------------------


def second_biases(model: nn.Module) -> dict[str, torch.Tensor]:
    parameters = dict(model.named_parameters())
    return {
        name: value
        for name, value in model.state_dict().items()
        if "bias_hh" in name and name not in parameters
    }


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_second_bias_is_zero_after_training_saving_and_loading(
    suffix: str, tmp_path: Path
) -> None:
    model = k2t.convert(LSTM_MODEL).train()
    model.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), 0.1, weight_decay=0.5)
    model(steps()).square().sum().backward()
    optimizer.step()
    k2t.save(model, tmp_path / f"out{suffix}")
    loaded = k2t.load(tmp_path / f"out{suffix}")
    for one in (model, deepcopy(model).double(), loaded):
        assert len(second_biases(one)) == 6  # a SimpleRNN and two LSTMs, of two halves each
        assert not any(value.any() for value in second_biases(one).values())
    assert_same_weights(loaded, model)
    assert_same_outputs(flat(loaded(steps())), flat(model.eval()(steps())))


def test_an_out_whose_second_bias_was_trained_keeps_its_numbers(tmp_path: Path) -> None:
    """Versions before let it be trained: it is loaded as it is, and never trained again."""
    path = tmp_path / "out.pt"
    k2t.save(k2t.convert(LSTM_MODEL), path)
    content = torch.load(path, weights_only=True)
    name = "bidirectional_2.bias_hh_l0"
    content["state_dict"][name] += 0.25
    moved = content["state_dict"]["bidirectional_2.bias_ih_l0"].clone()
    torch.save(content, path)
    model = k2t.load(path)
    with torch.no_grad():
        given = flat(model(steps()))
        model.get_parameter("bidirectional_2.bias_ih_l0").add_(0.25)
        model.get_buffer(name).zero_()
        torch.testing.assert_close(flat(model(steps())), given, atol=1e-6, rtol=1e-5)
    assert not torch.equal(moved, model.get_parameter("bidirectional_2.bias_ih_l0"))
    assert name not in dict(model.named_parameters())


def test_a_call_with_other_weights_takes_the_second_bias_too() -> None:
    model = k2t.convert(LSTM_MODEL)
    other = {name: value + 0.125 for name, value in model.state_dict().items()}
    with torch.no_grad():
        got = flat(functional_call(model, other, (steps(),)))
        model.load_state_dict(other, assign=True)
        torch.testing.assert_close(got, flat(model(steps())))
    assert second_biases(model).keys() and not hasattr(model, "bias_hh")


# ---- BatchNormalization -------------------------------------------------------------------------


def norm(**options: Any) -> BatchNorm:
    made = BatchNorm(3, axis=-1, eps=0.01, momentum=0.25)
    return made.to_empty(device="cpu").requires_grad_(True).train(**options)


def test_eval_mode_is_that_of_torch() -> None:
    ours = norm()
    ours.reset_parameters()
    twin = nn.BatchNorm1d(3, eps=0.01).eval()
    twin.load_state_dict(ours.state_dict())
    x = steps().movedim(-1, 1)
    ours(x)
    twin.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours.eval()(x), twin(x))


def test_half_precision_comes_out_as_it_goes_in() -> None:
    ours = norm()
    ours.reset_parameters()
    x = steps().movedim(-1, 1).bfloat16()
    assert ours(x).dtype is torch.bfloat16
    torch.testing.assert_close(ours(x).float(), ours(x.float()), atol=0.02, rtol=0.02)


def test_a_mask_that_fits_no_keras_is_refused_in_training() -> None:
    ours = norm()
    ours.reset_parameters()
    x, mask = torch.randn(2, 3, 5, 7), torch.ones(2, 5, dtype=torch.bool)
    with pytest.raises(UsageError, match="a mask of 2 axes for an input of 4, which no Keras"):
        ours(x, mask)
    assert ours.eval()(x, mask).shape == x.shape


def test_update_bn_of_torch_takes_the_average_of_all_batches() -> None:
    model = k2t.convert(NORMALIZED)
    seen: list[torch.Tensor] = []
    module: Any = model.get_submodule("batch_normalization")
    module.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    update_bn([steps(5), steps(3)], model)
    means = [x.mean(dim=(0, 2)) for x in seen]  # (B, C, T), as torch has it
    torch.testing.assert_close(module.running_mean, (means[0] + means[1]) / 2)


def test_a_normalized_model_is_compiled_as_a_whole_in_training() -> None:
    plain, other = (k2t.convert(FOLDER / "bn_one_row.before.keras").train() for _ in range(2))
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(2))
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), plain(x))
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value)


@pytest.mark.parametrize(
    ("file", "noted"),
    [
        ("tf.keras-2.15.0/arch_residual_batch_norm.h5", True),
        ("keras-2.2.4/batchnorm.h5", True),
        ("keras-3.15.1/batchnorm.keras", False),
        ("tf.keras-2.15.0/arch_joint.h5", False),
    ],
)
def test_other_rules_of_older_generations_are_noted(file: str, noted: bool) -> None:
    spec = fixture(file).spec
    assert bool(describe_batch_rule(spec.root, spec.generation)) is noted


# ---- saving -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "part", "words"),
    [
        ("dense", nn.Linear(5, 3), r"dense.weight: \[3, 5\], converted was \[2, 5\]"),
        ("dense", nn.Sequential(nn.Linear(5, 2)), "dense: Sequential, converted was Linear"),
        ("extra", nn.Linear(2, 2), "extra: Linear, converted was nothing"),
        ("dense.scale", nn.Buffer(torch.ones(2)), r"dense.scale: \[2\], converted was nothing"),
    ],
    ids=["another size", "another class", "one more", "one more weight"],
)
def test_a_model_with_other_modules_is_not_saved(
    place: str, part: Any, words: str, tmp_path: Path
) -> None:
    model = k2t.convert(LSTM_MODEL)
    owner, _, name = place.rpartition(".")
    setattr(model.get_submodule(owner), name, part)
    with pytest.raises(UsageError, match=f"{words}; save the state_dict"):
        k2t.save(model, tmp_path / "out.pt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_was_frozen_and_thawed_in_torch_stays_so(suffix: str, tmp_path: Path) -> None:
    file = FOLDER / "half_frozen.before.keras"
    model = k2t.convert(file)
    of_keras = {name: p.requires_grad for name, p in model.named_parameters()}
    assert set(of_keras.values()) == {True, False}
    out = tmp_path / f"out{suffix}"
    for flip in (lambda name, flag: flag, lambda name, flag: flag != name.startswith("dense")):
        wanted = {name: flip(name, flag) for name, flag in of_keras.items()}
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(wanted[name])
        k2t.save(model, out)
        loaded = k2t.load(out)
        assert {n: p.requires_grad for n, p in loaded.named_parameters()} == wanted
    k2t.save(loaded, out)
    assert {n: p.requires_grad for n, p in k2t.load(out).named_parameters()} == wanted


def test_an_untouched_model_has_no_such_key(tmp_path: Path) -> None:
    out = tmp_path / "out.pt"
    model = k2t.convert(LSTM_MODEL)
    k2t.save(model, out)
    assert set(torch.load(out, weights_only=True)) == {
        "format",
        "architecture",
        "facts",
        "state_dict",
        "golden",
    }


@pytest.mark.parametrize("wrong", [{"nothing": True}, 3])
def test_flags_of_no_parameter_are_refused(wrong: Any, tmp_path: Path) -> None:
    out = tmp_path / "out.pt"
    k2t.save(k2t.convert(LSTM_MODEL), out)
    torch.save(torch.load(out, weights_only=True) | {"requires_grad": wrong}, out)
    with pytest.raises(InvalidModelFileError, match="requires_grad"):
        k2t.load(out)


# ---- stateful -----------------------------------------------------------------------------------


def test_a_batch_of_another_size_says_how_to_start_anew() -> None:
    model = k2t.convert(STATEFUL)
    first = model(steps(5))
    with pytest.raises(UsageError, match=r"of 5 rows, this batch has 2; call k2t.reset_states"):
        model(steps(2))
    k2t.reset_states(model)
    assert model(steps(2)).shape == (2, 2)
    k2t.reset_states(model)
    torch.testing.assert_close(model(steps(5)), first)


def test_a_converted_model_is_in_eval_mode_and_the_docstrings_say_so() -> None:
    assert not k2t.convert(LSTM_MODEL).training
    for function in (k2t.convert, k2t.load):
        assert "Call ``.train()``" in str(function.__doc__)


# ---- flags of wrappers --------------------------------------------------------------------------

# Versions of Keras and tf.keras -> whether a wrapper trains what it wraps, if the flag of the first
# or of the second is False: counted in ``trainable_weights`` after ``load_model`` of each.
FLAGS = {
    "1.2.2": (True, False),
    "2.0.8": (True, False),
    "2.1.6": (False, True),
    "2.2.4": (False, True),
    "2.3.1": (False, True),
    "2.1.6-tf": (False, False),
    "2.2.4-tf": (False, False),
    "2.4.0": (False, False),  # tf.keras thaws a Bidirectional in ``load_model``; not here
    "2.15.0": (False, False),
    "3.15.1": (True, False),
}


@pytest.mark.parametrize("version", FLAGS)
@pytest.mark.parametrize("wrapper", ["Bidirectional", "TimeDistributed"])
def test_the_flags_of_a_wrapper_and_of_what_it_wraps(wrapper: str, version: str) -> None:
    of_wrapper, of_wrapped = FLAGS[version]
    generation = generation_of(version)
    inner = rnn("LSTM") if wrapper == "Bidirectional" else dense(3, 5)

    def trained(outside: bool, inside: bool) -> set[bool]:
        one = with_options(inner, trainable=inside)
        both = {"layer": one, "masking": "inner"}
        whole = bi(one, one) if wrapper == "Bidirectional" else layer(wrapper, "td", **both)
        found = with_training_rules(with_options(whole, trainable=outside), generation)
        return {part.config["trainable"] for part in found.parts.values()}

    assert trained(True, True) == {True}
    assert trained(False, False) == {False}
    assert trained(False, True) == {of_wrapper}
    assert trained(True, False) == {of_wrapped}
