"""``KerasOptimizer`` as an optimizer of torch: state, schedulers, closures, scalers, clipping."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import nn

import keras2torch_birnn as k2t
from keras2torch_birnn.readers.config.generations import generation_of
from keras2torch_birnn.trainers.compiled import Family, OptimizerConfig, parse_compiled
from keras2torch_birnn.trainers.rules import parse_rule
from keras2torch_birnn.trainers.settings import parse_settings

SCHEDULE = {
    "class_name": "ExponentialDecay",
    "config": {"initial_learning_rate": 0.5, "decay_steps": 3, "decay_rate": 0.5},
}


def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(5, 3).double()


def make(
    module: nn.Module, name: str = "Adam", family: Family = "keras3", **options: Any
) -> k2t.KerasOptimizer:
    config = OptimizerConfig(name, {"learning_rate": 0.1, **options}, family)
    rule = parse_rule(config)
    return k2t.KerasOptimizer(module.parameters(), rule, parse_settings(config, rule.known()))


def train(module: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(7, 5, generator=generator, dtype=torch.float64)
        optimizer.zero_grad()
        module(x).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize(
    "name", ["SGD", "Adam", "RMSprop", "Nadam", "Ftrl", "Lion", "Lamb", "Muon", "Adafactor"]
)
def test_a_saved_state_goes_on_as_if_it_had_not_stopped(name: str) -> None:
    first = layer()
    optimizer = make(first, name, **({"momentum": 0.9} if name in ("SGD", "RMSprop") else {}))
    train(first, optimizer, 3)
    file = io.BytesIO()
    torch.save([first.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    second = layer()
    second.load_state_dict(weights)
    again = make(second, name, **({"momentum": 0.9} if name in ("SGD", "RMSprop") else {}))
    again.load_state_dict(state)
    assert again.iterations == 3
    for module, used in ((first, optimizer), (second, again)):
        train(module, used, 4, seed=2)
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.bias, second.bias)


@pytest.mark.parametrize("name", ["Muon", "Adafactor"])
def test_parameters_that_are_added_later_are_variables_of_their_own(name: str) -> None:
    together, apart = layer(), layer()
    optimizers = [make(together, name), make(apart, name)]
    optimizers[1] = k2t.KerasOptimizer([apart.weight], optimizers[0].rule, optimizers[0].settings)
    optimizers[1].add_param_group({"params": [apart.bias]})
    for module, optimizer in zip((together, apart), optimizers, strict=True):
        train(module, optimizer, 3)
    assert torch.equal(together.weight, apart.weight)
    assert torch.equal(together.bias, apart.bias)


@pytest.mark.parametrize("name", ["Adam", "Muon", "Adafactor"])
def test_a_copy_trains_alone(name: str) -> None:
    module = layer()
    optimizer = make(module, name)
    train(module, optimizer, 2)
    other, copied = copy.deepcopy((module, optimizer))
    train(other, copied, 1)
    assert (optimizer.iterations, copied.iterations) == (2, 3)
    assert not torch.equal(module.weight, other.weight)


def test_the_closure_is_called_with_gradients_and_its_loss_returned() -> None:
    module = layer()
    optimizer = make(module, "SGD")
    before = module.weight.detach().clone()

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = module(torch.ones(2, 5, dtype=torch.float64)).sum()
        loss.backward()
        return loss

    loss = optimizer.step(closure)
    after = module(torch.ones(2, 5).double()).sum()
    torch.testing.assert_close(loss, after + 0.2 * (5 + 1) * 2 * 3)
    torch.testing.assert_close(module.weight, before - 0.2)


@pytest.mark.parametrize("family", ["keras3", "tf.keras"])
def test_the_average_of_a_weight_without_gradients_is_that_weight(family: Family) -> None:
    module = layer()
    module.bias.requires_grad_(False)
    before = module.bias.detach().clone()
    optimizer = make(module, family=family, use_ema=True, ema_momentum=0.75)
    train(module, optimizer, 2)
    module.bias.requires_grad_(True)  # it begins late: its average has followed it so far
    torch.testing.assert_close(optimizer.slots_of(module.bias)["average"], before)
    train(module, optimizer, 1)
    late = module.bias.detach().clone()
    optimizer.use_averages_()
    torch.testing.assert_close(module.bias.detach(), 0.75 * before + 0.25 * late)


def test_a_scheduler_of_torch_sets_the_rate() -> None:
    module = layer()
    optimizer = make(module, "SGD")
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    for rate in (0.1, 0.05, 0.025):
        assert optimizer.learning_rate == rate
        train(module, optimizer, 1)
        scheduler.step()


def test_a_schedule_of_keras_is_scaled_by_the_rate_of_the_group() -> None:
    module = layer()
    optimizer = make(module, "SGD", learning_rate=SCHEDULE)
    assert optimizer.param_groups[0]["lr"] == optimizer.learning_rate == 0.5
    train(module, optimizer, 3)
    assert optimizer.learning_rate == 0.25
    optimizer.param_groups[0]["lr"] = 0.125
    assert optimizer.learning_rate == 0.0625


@pytest.mark.parametrize(
    ("name", "config", "nominal"),
    [
        ("CosineDecay", {"decay_steps": 5, "warmup_target": 0.5, "warmup_steps": 4}, 0.5),
        ("PolynomialDecay", {"decay_steps": 4, "end_learning_rate": 0.25}, 0.25),
        ("PiecewiseConstantDecay", {"boundaries": [1], "values": [0.0, 0.75]}, 0.75),
        ("ExponentialDecay", {"decay_steps": 3, "decay_rate": 0.5}, 1.0),
    ],
)
def test_a_schedule_that_starts_at_zero_is_scaled_too(
    name: str, config: dict[str, Any], nominal: float
) -> None:
    start = {} if "values" in config else {"initial_learning_rate": 0.0}
    schedule = {"class_name": name, "config": {**start, **config}}
    plain, scaled = (make(layer(), "SGD", learning_rate=schedule) for _ in range(2))
    assert plain.param_groups[0]["lr"] == nominal
    scheduler = torch.optim.lr_scheduler.ConstantLR(scaled, factor=0.5, total_iters=9)
    for _ in range(7):
        assert scaled.learning_rate == 0.5 * plain.learning_rate
        for optimizer in (plain, scaled):
            optimizer.step()
        scheduler.step()


def test_a_rate_of_zero_can_be_set_to_another() -> None:
    module = layer()
    optimizer = make(module, "SGD", learning_rate=0.0)
    optimizer.param_groups[0]["lr"] = 0.25
    assert optimizer.learning_rate == 0.25


def test_a_gradient_scaler_skips_steps_that_overflow() -> None:
    module = layer().float()
    optimizer, scaler = make(module), torch.amp.GradScaler("cpu", init_scale=4.0)
    for factor, count in ((1.0, 1), (float("inf"), 1), (1.0, 2)):
        optimizer.zero_grad()
        scaler.scale(module(torch.ones(2, 5)).sum() * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        assert optimizer.iterations == count


def test_an_optimizer_inside_of_a_scaled_one_leaves_steps_that_overflow_out() -> None:
    inner = {"class_name": "Adam", "config": {"learning_rate": 0.1}}
    found = {"class_name": "LossScaleOptimizer", "config": {"inner_optimizer": inner}}
    config = parse_compiled({"optimizer": found}, generation_of("3.15.1")).optimizer
    module, rule = layer(), parse_rule(config)
    optimizer = k2t.KerasOptimizer(module.parameters(), rule, parse_settings(config, rule.known()))
    for factor, count in ((1.0, 1), (float("inf"), 1), (float("nan"), 1), (1.0, 2)):
        optimizer.zero_grad()
        (module(torch.ones(2, 5).double()).sum() * factor).backward()
        optimizer.step()
        assert optimizer.iterations == count
    assert module.weight.isfinite().all()


def test_gradients_of_several_batches_add_up() -> None:
    one, two = layer(), layer()
    x = torch.arange(20, dtype=torch.float64).reshape(4, 5)
    for module, parts in ((one, [x]), (two, [x[:2], x[2:]])):
        optimizer = make(module)
        for part in parts:
            (module(part).square().sum() / 4).backward()
        optimizer.step()
    torch.testing.assert_close(one.weight, two.weight)


def test_new_parameters_begin_with_the_slots_of_keras() -> None:
    module, head = layer(), nn.Linear(3, 2).double()
    optimizer = make(module, "Adagrad", "legacy", initial_accumulator_value=0.25)
    train(module, optimizer, 2)
    optimizer.add_param_group({"params": head.parameters(), "lr": 0.7})
    head.weight.grad = torch.zeros_like(head.weight)
    optimizer.step()
    assert optimizer.state[head.weight]["accumulator"].eq(0.25).all()
    assert optimizer.iterations == 3
    assert not optimizer.state[head.bias]  # it has no gradient


def test_averages_take_the_place_of_the_weights() -> None:
    module = layer()
    optimizer = make(module, "SGD", use_ema=True, ema_momentum=0.75)
    seen = []
    for _ in range(2):
        train(module, optimizer, 1)
        seen.append(module.weight.detach().clone())
    optimizer.use_averages_()
    torch.testing.assert_close(module.weight, 0.75 * seen[0] + 0.25 * seen[1])
    with pytest.raises(k2t.UsageError, match="keeps no moving averages; compile with use_ema"):
        make(layer()).use_averages_()


def test_sparse_gradients_are_refused() -> None:
    words = nn.Embedding(7, 3, sparse=True)
    optimizer = make(words)
    words(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(k2t.UsageError, match="a sparse gradient; use embeddings with sparse=False"):
        optimizer.step()


def test_parameters_of_one_variable_are_clipped_together() -> None:
    params = [
        nn.Parameter(torch.zeros(2)),
        nn.Parameter(torch.zeros(2)),
        nn.Parameter(torch.ones(1)),
    ]
    config = OptimizerConfig("SGD", {"learning_rate": 1.0, "clipnorm": 1.0}, "keras3")
    rule = parse_rule(config)
    optimizer = k2t.KerasOptimizer(params, rule, parse_settings(config, rule.known()), [0, 0, 1])
    for param, grad in zip(params, ([3.0, 0.0], [0.0, 4.0], [0.5]), strict=True):
        param.grad = torch.tensor(grad)
    optimizer.step()
    torch.testing.assert_close(params[0].data, torch.tensor([-0.6, 0.0]))
    torch.testing.assert_close(params[1].data, torch.tensor([0.0, -0.8]))
    torch.testing.assert_close(params[2].data, torch.tensor([0.5]))


@pytest.mark.parametrize("family", ["keras2", "keras3"])
def test_all_gradients_are_clipped_by_their_common_norm(family: Family) -> None:
    params = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    option = "clipnorm" if family == "keras2" else "global_clipnorm"
    config = OptimizerConfig("SGD", {"learning_rate": 1.0, option: 1.0}, family)
    rule = parse_rule(config)
    optimizer = k2t.KerasOptimizer(params, rule, parse_settings(config, rule.known()))
    for param, grad in zip(params, (3.0, 4.0), strict=True):
        param.grad = torch.tensor([grad])
    optimizer.step()
    torch.testing.assert_close(torch.cat([one.data for one in params]), torch.tensor([-0.6, -0.8]))
