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
from keras2torch_birnn.trainers.losses import KerasLoss, build_loss, describe_loss

MASKED = FIXTURES / "training" / "keras-3.15.1" / "tagger_masked_loss.before.keras"
VERSIONS = ("2.2.4", "2.3.1", "2.4.0", "2.10.0", "2.15.0", "3.5.0", "3.15.1")
SINGLE = 2e-7  # relative rounding errors of float32


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
    return build_loss(compiled, spec)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# ---- one number ---------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_the_mean_over_masked_steps_is_that_of_the_generation(version: str) -> None:
    p, y, mask = draw(5, 7, 3), draw(5, 7, 3, seed=1), draw(5, 7, seed=2) > 0
    each = (p - y).square().mean(dim=-1)
    over_all, over_valid = (each * mask).mean(), each[mask].mean()
    got = loss_of("mse", version)(p, y, mask=mask)
    wanted = over_all if version in ("2.3.1", "2.4.0", "2.10.0") else over_valid
    raised = {"2.4.0": SINGLE, "3.5.0": 1e-7}.get(version, 1e-14)
    torch.testing.assert_close(got, wanted, rtol=raised, atol=1e-14)
    if version == "3.5.0":  # the number of valid steps is raised by 1e-7
        assert got < wanted and wanted - got > 1e-10


@pytest.mark.parametrize("version", VERSIONS)
def test_sample_weights_multiply_before_the_mean_over_all(version: str) -> None:
    p, y = draw(5, 3), draw(5, 3, seed=1)
    weight = torch.tensor([0.0, 0.5, 2.0, 1.0, 0.0], dtype=torch.float64)
    each = (p - y).square().mean(dim=-1) * weight
    rows = 3 if version == "2.2.4" else 5  # up to Keras 2.2 without rows of weight 0
    rounded = SINGLE if version == "2.4.0" else 1e-14
    got = loss_of("mse", version)(p, y, weight)
    torch.testing.assert_close(got, each.sum() / rows, rtol=rounded, atol=0)


def test_weights_of_rows_and_steps() -> None:
    p, y, rows, steps = draw(5, 7, 3), draw(5, 7, 3, seed=1), draw(5, seed=2), draw(5, 7, seed=3)
    each = (p - y).square().mean(dim=-1)
    for version in ("2.2.4", "2.15.0"):
        loss = loss_of("mse", version)
        torch.testing.assert_close(loss(p, y, rows), (each * rows[:, None]).mean())
        torch.testing.assert_close(loss(p, y, steps), (each * steps).mean())
    torch.testing.assert_close(loss_of("mse")(p, y, steps), (each * steps).mean())
    with pytest.raises(ArgumentValueError, match=r"weights of shape \(5,\) do not fit the values"):
        loss_of("mse")(p, y, rows)


def test_class_weights_are_the_weights_of_the_targets_classes() -> None:
    p, numbers = draw(5, 3).softmax(dim=-1), torch.tensor([2, 0, 1, 2, 2])
    weight = torch.tensor([0.37, 1.0, 2.5], dtype=torch.float64)
    each = -p.log()[torch.arange(5), numbers] * weight[numbers]
    given = {0: 0.37, 2: 2.5}
    sparse = loss_of("sparse_categorical_crossentropy", activation="softmax")
    torch.testing.assert_close(sparse(p, numbers, class_weight=given), each.mean())
    one_hot = torch.nn.functional.one_hot(numbers, 3)
    dense = loss_of("categorical_crossentropy", activation="softmax")
    torch.testing.assert_close(dense(p, one_hot, class_weight=given), each.mean())
    both = loss_of("mse", names=("a", "b"))
    with pytest.raises(UsageError, match="class weights of a model with several outputs"):
        both([p, p], [p, p], class_weight=given)


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


@pytest.mark.parametrize("version", VERSIONS)
def test_binary_probabilities_are_clipped_as_by_the_generation(version: str) -> None:
    p, y = torch.full((1, 1), 1e-12, dtype=torch.float64), torch.ones(1, 1)
    more = 1e-7 if version in ("2.3.1", "2.4.0", "2.10.0", "2.15.0") else 0.0
    wanted = -torch.tensor(1e-7 + more, dtype=torch.float64).log()
    got = loss_of("binary_crossentropy", version)(p, y)
    rounded = SINGLE if version == "2.4.0" else 1e-9
    torch.testing.assert_close(got, wanted, rtol=rounded, atol=0)
    if version != "2.2.4":
        exact = loss_of("binary_crossentropy", version, activation="sigmoid")(p, y)
        torch.testing.assert_close(exact, -p.log().squeeze(), rtol=rounded, atol=0)


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


def test_ignored_classes_count_as_masked() -> None:
    p, y = draw(5, 3).softmax(dim=-1), torch.tensor([2, -1, 1, -1, 0])
    config = {"ignore_class": -1}
    found = {"class_name": "SparseCategoricalCrossentropy", "config": config}
    each = -p.log()[torch.arange(5), y.clamp_min(0)]
    got = loss_of(found, activation="softmax")(p, y)
    torch.testing.assert_close(got, each[y >= 0].mean())


def test_ignored_classes_are_left_out_of_a_mean_over_all_masked_steps() -> None:
    p, y = draw(2, 5, 3).softmax(dim=-1), torch.tensor([[2, -1, 1, -1, 0], [0, 1, 2, 0, -1]])
    mask = torch.tensor([[1, 1, 0, 0, 1], [1, 1, 1, 1, 1]]) > 0
    config = {"ignore_class": -1}
    found = {"class_name": "SparseCategoricalCrossentropy", "config": config}
    each = -p.log().gather(-1, y.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    total, kept = each[mask & (y >= 0)].sum(), (mask & (y >= 0)).sum()
    for version, number in (("2.10.0", (y >= 0).sum()), ("2.15.0", kept)):
        got = loss_of(found, version, activation="softmax")(p, y, mask=mask)
        torch.testing.assert_close(got, total / number)


@pytest.mark.parametrize(("version", "single"), [("2.8.0", True), ("2.9.0", False)])
def test_tensorflow_before_2_9_computes_losses_in_float32(version: str, single: bool) -> None:
    p, y = draw(5, 3).requires_grad_(), draw(5, 3, seed=1)
    loss = loss_of("mse", version)(p, y)
    assert loss.dtype == torch.float64 and (loss == loss.float()) == single
    loss.backward()
    fifth = float(torch.tensor(0.2)) if single else 0.2
    wanted = 2.0 / 3.0 * (p - y).detach() * fifth
    torch.testing.assert_close(p.grad, wanted, rtol=1e-14, atol=0)


def test_constants_are_rounded_to_float32_as_by_tensorflow() -> None:
    far = torch.full((1, 1), 5.0, dtype=torch.float64)
    zero = torch.zeros_like(far)
    assert loss_of("log_cosh")(zero, zero) == pytest.approx(-1.9046542e-9, rel=1e-6)
    found = {"class_name": "Huber", "config": {"delta": 0.71}}
    for version, delta in (("2.15.0", float(torch.tensor(0.71))), ("3.15.1", 0.71)):
        got = loss_of(found, version)(far, zero)
        assert got.item() == pytest.approx(delta * 5.0 - 0.5 * delta**2, rel=1e-15)


def test_a_delta_that_keras_did_not_write_has_a_note() -> None:
    optimizer = OptimizerConfig("SGD", {}, "keras3")
    bare, full = ({"class_name": "Huber", "config": c} for c in ({"name": "h"}, {"delta": 0.71}))
    for loss, noted in ((bare, True), (["mse", bare], True), ({"a": bare}, True), (full, False)):
        compiled = CompiledTraining(optimizer, loss, None, generation_of("3.15.1"))
        notes = describe_loss(compiled, model("3.15.1"))
        assert bool(notes) == noted and all("delta of Huber: it is 1.0" in n for n in notes)
    for text in ("huber", None):
        compiled = CompiledTraining(optimizer, text, None, generation_of("3.15.1"))
        assert describe_loss(compiled, model("3.15.1")) == ()


@pytest.mark.parametrize(
    ("version", "backend", "activation", "noted"),
    [
        ("3.15.1", "", "sigmoid", True),
        ("3.15.1", "", "linear", False),
        ("3.15.1", "torch", "sigmoid", False),
        ("2.15.0", "", "sigmoid", False),
    ],
)
def test_logits_behind_an_activation_have_a_note_where_the_backend_is_not_known(
    version: str, backend: str, activation: str, noted: bool
) -> None:
    optimizer = OptimizerConfig("SGD", {}, "keras3")
    found = {"class_name": "BinaryCrossentropy", "config": {"from_logits": True}}
    generation = generation_of(version)
    compiled = CompiledTraining(optimizer, found, None, generation, backend)
    notes = describe_loss(compiled, model(version, activation=activation))
    assert len(notes) == noted and all("does not say on which backend" in n for n in notes)


def test_hinges_take_zero_and_one_as_signs_but_in_old_keras() -> None:
    p, y = draw(5, 3), (draw(5, 3, seed=1) > 0).double()
    plain, signs = ((1 - y * p).clamp_min(0).mean(), (1 - (2 * y - 1) * p).clamp_min(0).mean())
    torch.testing.assert_close(loss_of("hinge", "2.2.4")(p, y), plain)
    torch.testing.assert_close(loss_of("hinge", "2.15.0")(p, y), signs)


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


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"nosuch": 0}, "targets: no output is called nosuch; missing are a, b; give one for each"),
        ({"a": 0}, "targets: missing are b; give one for each output: a, b"),
        ({"a": 0, "b": 0, "c": 0}, "targets: no output is called c; give one for each"),
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
    with pytest.raises(ArgumentValueError, match="targets: no output is called nosuch"):
        loss_of("mse")(p, {"nosuch": p})


@pytest.mark.parametrize("name", ["bce", "BCE"])
def test_bce_is_the_binary_crossentropy(name: str) -> None:
    p, y = draw(5, 3).sigmoid(), (draw(5, 3, seed=1) > 0).double()
    torch.testing.assert_close(loss_of(name)(p, y), loss_of("binary_crossentropy")(p, y))


@pytest.mark.parametrize(
    "dtype", ["float32", {"class_name": "DTypePolicy", "config": {"name": "float32"}}]
)
def test_a_loss_is_computed_in_its_own_dtype(dtype: Any) -> None:
    p, y = draw(5, 3), draw(5, 3, seed=1)
    found = {"class_name": "MeanSquaredError", "config": {"dtype": dtype}}
    wanted = (p.float() - y.float()).square().mean(dim=-1).mean()
    got = loss_of(found)(p, y)
    assert got.dtype is torch.float64
    assert got.item() == wanted.item() != loss_of("mse")(p, y).item()


def test_an_output_without_loss_counts_nothing() -> None:
    p, q = draw(5, 3), draw(5, 3, seed=1)
    loss = loss_of({"b": "mse"}, names=("a", "b"))
    torch.testing.assert_close(loss((p, q), (q, p)), (p - q).square().mean())


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (
            "my_loss",
            "loss of out: my_loss is none of Keras' own losses; compute this loss in torch",
        ),
        ({"class_name": "CTC", "config": {}}, "CTC is not supported"),
        ({"class_name": "Huber", "config": {}, "module": "mine"}, "mine>Huber is none of Keras'"),
        ({"class_name": "Huber", "config": {"delta": "x"}}, "options of huber: a number"),
        ({"class_name": "Huber", "config": {"more": 1}}, "option more of huber"),
        ({"class_name": "Huber", "config": {"reduction": "none"}}, "options of huber: one of"),
        ({"class_name": "Huber", "config": {"reduction": None}}, "options of huber: one of"),
        ({"class_name": "Huber", "config": {"dtype": "float16"}}, "of huber: one of None, 'float3"),
        ({"class_name": "Huber", "config": {"dtype": 3}}, "options of huber: one of None, 'float"),
        ({"other": "mse"}, "loss of other, which is no output of the model"),
        (["mse", "mse"], "2 loss for 1 outputs"),
        (None, "compiled without a loss"),
    ],
)
def test_what_is_not_of_keras_is_refused_by_name(loss: Any, words: str) -> None:
    with pytest.raises(UnsupportedOptionError, match=words):
        loss_of(loss)


# ---- masks of outputs ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "weights", ["x", [None, "x"], {"b": [1]}, [[2.0], 1.0], {"a": {"class_name": "x"}}, True]
)
def test_a_weight_of_a_loss_that_is_no_number_is_refused(weights: Any) -> None:
    with pytest.raises(UnsupportedOptionError, match=r"loss_weights=.*a number is expected"):
        loss_of("mse", names=("a", "b"), weights=weights)


@pytest.mark.parametrize("config", [{"a": 1}, ["mse"], 7, None])
def test_a_function_whose_name_is_no_text_is_refused(config: Any) -> None:
    with pytest.raises(UnsupportedOptionError, match="is none of Keras' own losses"):
        loss_of({"class_name": "function", "config": config, "registered_name": "function"})


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
