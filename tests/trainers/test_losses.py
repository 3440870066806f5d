"""The loss of a compiled model: formulas, masks, weights, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from specs import FIXTURES
from torch import Tensor

import keras2torch_birnn as k2t
from keras2torch_birnn.errors import ArgumentValueError, UnsupportedOptionError, UsageError
from keras2torch_birnn.readers.config.generations import generation_of
from keras2torch_birnn.spec import Call, Graph, LayerSpec, ModelSpec, TensorRef
from keras2torch_birnn.trainers.compiled import CompiledTraining, OptimizerConfig
from keras2torch_birnn.trainers.losses import KerasLoss, describe_loss, read_loss

MASKED = FIXTURES / "training" / "keras-3.15.1" / "tagger_masked_loss.before.keras"


def model(version: str, names: tuple[str, ...] = ("out",), activation: str = "linear") -> ModelSpec:
    """A model of Dense layers, each of which is an output."""
    source = LayerSpec("InputLayer", "source", {})
    heads = [LayerSpec("Dense", name, {"activation": activation}) for name in names]
    calls = (Call("source", 0, ()), *(Call(n, 0, (TensorRef("source"),)) for n in names))
    outputs = tuple(map(TensorRef, names)) if len(names) > 1 else TensorRef(names[0])
    graph = Graph((source, *heads), calls, TensorRef("source"), outputs)
    return ModelSpec(LayerSpec("Functional", "m", {}, graph=graph), generation_of(version))


def loss_of(
    loss: Any,
    version: str = "3.15.1",
    names: tuple[str, ...] = ("out",),
    weights: Any = None,
    activation: str = "linear",
) -> KerasLoss:
    spec = model(version, names, activation)
    optimizer = OptimizerConfig("SGD", {}, "keras3")
    compiled = CompiledTraining(optimizer, loss, weights, spec.generation)
    return read_loss(compiled, spec)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# ---- one number ---------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["2.2.4", "2.10.0", "3.15.1"])
def test_the_mean_is_over_valid_places_and_weights_multiply_before_it(version: str) -> None:
    """As today's Keras: total / valid * mask * weight, and the mean over all."""
    p, y, mask = draw(5, 7, 3), draw(5, 7, 3, seed=1), draw(5, 7, seed=2) > 0
    weight = draw(5, seed=3).abs() * torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0])
    each = (p - y).square().mean(dim=-1)
    loss = loss_of("mse", version)
    torch.testing.assert_close(loss(p, y, mask=mask), each[mask].mean())
    torch.testing.assert_close(loss(p, y, weight), (each * weight[:, None]).mean())
    wanted = (each * weight[:, None])[mask].sum() / mask.sum()
    torch.testing.assert_close(loss(p, y, weight, mask), wanted)
    assert loss(p, y, mask=torch.zeros(5, 7)) == 0


@pytest.mark.parametrize(
    ("version", "masked", "words"),
    [
        ("2.2.4", True, ["leaves them out"]),
        ("2.3.1", True, ["this Keras averages over all"]),
        ("2.10.0", True, ["this Keras averages over all"]),
        ("2.10.0", False, []),
        ("2.15.0", True, []),
        ("3.15.1", True, []),
    ],
)
def test_other_means_of_older_keras_have_a_note(
    version: str, masked: bool, words: list[str]
) -> None:
    spec = model(version)
    compiled = CompiledTraining(OptimizerConfig("SGD", {}, "keras3"), "mse", None, spec.generation)
    loss, notes = describe_loss(compiled, spec, masked=masked)
    assert loss is not None
    assert len(notes) == len(words)
    assert all(one in note for one, note in zip(words, notes, strict=True))


@pytest.mark.parametrize(("version", "more"), [("2.2.4", 0), ("2.15.0", 1e-7), ("3.15.1", 0)])
def test_binary_probabilities_are_clipped_as_by_the_generation(version: str, more: float) -> None:
    p, y = torch.full((1, 1), 1e-12, dtype=torch.float64), torch.ones(1, 1)
    wanted = -torch.tensor(1e-7 + more, dtype=torch.float64).log()
    torch.testing.assert_close(loss_of("binary_crossentropy", version)(p, y), wanted)
    if version != "2.2.4":
        exact = loss_of("binary_crossentropy", version, activation="sigmoid")(p, y)
        torch.testing.assert_close(exact, -p.log().squeeze())


def test_huber_and_the_divergence_are_those_of_keras() -> None:
    far, zero = torch.full((1, 1), 5.0, dtype=torch.float64), torch.zeros(1, 1).double()
    found = {"class_name": "Huber", "config": {"delta": 0.71}}
    assert loss_of(found)(far, zero).item() == pytest.approx(0.71 * 5.0 - 0.5 * 0.71**2, rel=1e-15)
    assert loss_of("huber")(zero + 0.5, zero).item() == pytest.approx(0.125)
    p, y = draw(5, 3).softmax(dim=-1), draw(5, 3, seed=1).softmax(dim=-1)
    wanted = (y * (y / p).log()).sum(dim=-1).mean()
    torch.testing.assert_close(loss_of("kld")(p, y), wanted)


def test_weights_of_rows_and_steps() -> None:
    p, y, rows, steps = draw(5, 7, 3), draw(5, 7, 3, seed=1), draw(5, seed=2), draw(5, 7, seed=3)
    each = (p - y).square().mean(dim=-1)
    loss = loss_of("mse")
    torch.testing.assert_close(loss(p, y, rows), (each * rows[:, None]).mean())
    torch.testing.assert_close(loss(p, y, steps), (each * steps).mean())
    with pytest.raises(ArgumentValueError, match=r"weights of shape \(6, 7\) do not fit \(5, 7\)"):
        loss(p, y, draw(6, 7))


@pytest.mark.parametrize(
    ("reduction", "wanted"),
    [("sum_over_batch_size", "mean"), ("auto", "mean"), ("sum", "sum")],
)
def test_a_reduction_of_the_file_is_taken(reduction: Any, wanted: str) -> None:
    p, y = draw(5, 3), draw(5, 3, seed=1)
    found = {"class_name": "MeanSquaredError", "config": {"reduction": reduction}}
    each = (p - y).square().mean(dim=-1)
    torch.testing.assert_close(loss_of(found)(p, y), getattr(each, wanted)())


# ---- clipping and logits ------------------------------------------------------------------------


def test_probabilities_are_clipped_where_keras_does_not_find_the_logits() -> None:
    p = torch.tensor([[1e-12, 1 - 1e-12]], dtype=torch.float64)
    y, number = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    for name, target in (("categorical", y), ("sparse_categorical", number)):
        found = f"{name}_crossentropy"
        exact = loss_of(found, activation="softmax")(p, target)
        torch.testing.assert_close(exact, -p.log()[0, 0])
        clipped = loss_of(found)(p, target)
        assert 16.1 < clipped < 16.2  # -log 1e-7
        assert 16.1 < loss_of(found, "2.2.4", activation="softmax")(p, target) < 16.2


def test_logits_need_no_probabilities() -> None:
    z, y = draw(5, 3), torch.tensor([2, 0, 1, 2, 2])
    found = {"class_name": "SparseCategoricalCrossentropy", "config": {"from_logits": True}}
    wanted = torch.nn.functional.cross_entropy(z, y)
    torch.testing.assert_close(loss_of(found)(z, y), wanted)
    torch.testing.assert_close(loss_of(found)(z, y[:, None]), wanted)


def test_a_rounded_sigmoid_has_a_finite_loss_and_gradient() -> None:
    p = torch.ones(3, 1, requires_grad=True)
    for target in (torch.ones(3), torch.zeros(3)):
        loss = loss_of("binary_crossentropy", activation="sigmoid")(p, target)
        loss.backward()
        assert loss.isfinite() and p.grad is not None and p.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_outputs_in_half_precision_have_a_loss_in_float32(dtype: torch.dtype) -> None:
    p, y = draw(101, 7).to(dtype).requires_grad_(), draw(101, 7, seed=1).float()
    found = loss_of("mse")(p, y)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx((p.float() - y).square().mean().item(), rel=1e-6)
    found.backward()
    assert p.grad is not None and p.grad.dtype == dtype


# ---- outputs ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("losses", "weights"),
    [
        (["mse", "mae"], [0.5, 2.0]),
        ({"b": "mae", "a": "mse"}, {"a": 0.5, "b": 2.0}),
        ([{"class_name": "function", "config": "mean_squared_error"}, "MAE"], [0.5, 2]),
    ],
)
def test_losses_and_their_weights_by_order_or_name(losses: Any, weights: Any) -> None:
    p, q, y, z = (draw(5, 3, seed=seed) for seed in range(4))
    loss = loss_of(losses, names=("a", "b"), weights=weights)
    wanted = 0.5 * (p - y).square().mean() + 2.0 * (q - z).abs().mean()
    torch.testing.assert_close(loss((p, q), [y, z]), wanted)
    torch.testing.assert_close(loss((p, q), {"b": z, "a": y}), wanted)
    with pytest.raises(ArgumentValueError, match=r"targets: 2 targets are expected \(a, b\), fou"):
        loss((p, q), y)


@pytest.mark.parametrize("name", ["bce", "BCE"])
def test_bce_is_the_binary_crossentropy(name: str) -> None:
    p, y = draw(5, 3).sigmoid(), (draw(5, 3, seed=1) > 0).double()
    torch.testing.assert_close(loss_of(name)(p, y), loss_of("binary_crossentropy")(p, y))


def test_an_output_without_loss_counts_nothing() -> None:
    p, q = draw(5, 3), draw(5, 3, seed=1)
    loss = loss_of({"b": "mse"}, names=("a", "b"))
    torch.testing.assert_close(loss((p, q), (q, p)), (p - q).square().mean())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"nosuch": 0}, "targets of nosuch; give one for each output: a, b"),
        ({"a": 0}, "targets of a; give one for each output: a, b"),
    ],
)
def test_other_names_than_those_of_the_outputs_are_refused(
    given: dict[str, int], words: str
) -> None:
    p, named = draw(5, 3), {name: draw(5, 3) for name in given}
    loss = loss_of("mse", names=("a", "b"))
    with pytest.raises(ArgumentValueError, match=words):
        loss((p, p), named)
    with pytest.raises(ArgumentValueError, match=words.replace("targets", "sample_weight")):
        loss((p, p), (p, p), named)


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        ("my_loss", "the loss my_loss is not supported; compute it in torch"),
        *((name, f"the loss {name} is not") for name in ("hinge", "poisson", "log_cosh", "dice")),
        ({"class_name": "CTC", "config": {}}, "the loss CTC is not supported"),
        ({"class_name": "Huber", "config": {}, "module": "mine"}, "mine>Huber is not supported"),
        ({"class_name": "Huber", "config": {"delta": "x"}}, "options of huber: a number"),
        ({"class_name": "Huber", "config": {"more": 1}}, "option more of huber"),
        ({"class_name": "Huber", "config": {"reduction": "none"}}, "options of huber: one of"),
        ({"class_name": "Huber", "config": {"dtype": "float16"}}, "option dtype of huber"),
        (
            {"class_name": "SparseCategoricalCrossentropy", "config": {"ignore_class": -1}},
            "option ignore_class of sparse_categorical_crossentropy",
        ),
        (
            {"class_name": "BinaryCrossentropy", "config": {"axis": 1}},
            "option axis of binary_crossentropy",
        ),
        ({"class_name": "function", "config": {"a": 1}}, "is not supported"),
        ({"other": "mse"}, "loss of other, which is no output of the model"),
        (["mse", "mse"], "2 loss for 1 outputs"),
        (None, "compiled without a loss"),
    ],
)
def test_other_losses_have_a_note_and_are_none(loss: Any, words: str) -> None:
    with pytest.raises(UnsupportedOptionError, match=words):
        loss_of(loss)
    spec = model("3.15.1")
    compiled = CompiledTraining(OptimizerConfig("SGD", {}, "keras3"), loss, None, spec.generation)
    none, (note,) = describe_loss(compiled, spec, masked=False)
    assert none is None and note.startswith("state.loss is None: ")


def test_logits_of_a_softmax_are_refused() -> None:
    found = {"class_name": "CategoricalCrossentropy", "config": {"from_logits": True}}
    with pytest.raises(UnsupportedOptionError, match="of an output that is a softmax"):
        loss_of(found, activation="softmax")


# ---- masks of outputs ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "weights", ["x", [None, "x"], {"b": [1]}, [[2.0], 1.0], {"a": {"class_name": "x"}}, True]
)
def test_a_weight_of_a_loss_that_is_no_number_is_refused(weights: Any) -> None:
    with pytest.raises(UnsupportedOptionError, match=r"loss_weights=.*a number is expected"):
        loss_of("mse", names=("a", "b"), weights=weights)


def test_the_mask_of_the_output_is_the_one_that_keras_sees() -> None:
    net = k2t.convert(MASKED).train()
    ids = torch.tensor([[3, 0, 5, 0, 0, 1, 2], [1, 2, 3, 4, 5, 6, 7]])
    mask = k2t.output_mask(net, ids)
    assert isinstance(mask, Tensor) and torch.equal(mask, ids != 0)
    assert all(module.training for module in net.modules())
    plain = k2t.convert(FIXTURES / "training" / "keras-3.15.1" / "two_outputs.before.keras")
    assert k2t.output_mask(plain, torch.zeros(2, 7, 3)) == (None, None)
    with pytest.raises(UsageError, match="output_mask of a module that was not made by k2t"):
        k2t.output_mask(torch.nn.Linear(2, 2), ids)
