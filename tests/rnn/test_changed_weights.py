"""Changes of a model that is not frozen: the next call computes with them."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from chained_models import model_of, two
from kernel_layers import native
from specs import F, H, dense, layer, rnn
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.nn.utils import parametrize

import keras2torch_birnn as k2t
from keras2torch_birnn.rnn.native import op, packing
from keras2torch_birnn.schema.merge_modes import MERGE_MODES

pytestmark = [native, pytest.mark.usefixtures("native_where_it_pays")]

# The merge modes that keep the width of one direction, a layer with each.
NARROW = [mode for mode in MERGE_MODES if mode != "concat"]


def example() -> tuple[Any, Tensor]:
    torch.manual_seed(3)
    module = k2t.BiGRU(5, 5, len(NARROW), merge_mode=NARROW, batch_first=True)
    return module.eval(), torch.randn(2, 13, 5)


def flat(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else [t for part in result for t in flat(part)]


def assert_same_bits(got: Any, wanted: Any) -> None:
    assert all(map(torch.equal, flat(got), flat(wanted)))


def fresh_copy(module: Any) -> Any:
    fresh = k2t.BiGRU(5, 5, len(NARROW), merge_mode=list(module.merge_mode), batch_first=True)
    fresh.load_state_dict({k: v.clone().contiguous() for k, v in module.state_dict().items()})
    return fresh.eval()


def in_place(module: Any) -> None:
    module.weight_hh_l1.mul_(0.5)


def through_data(module: Any) -> None:
    module.bias_hh_l2_reverse.data[3] += 1


def new_data(module: Any) -> None:
    module.weight_ih_l0.data = module.weight_ih_l0.data * 0.5


def turned_data(module: Any) -> None:
    """Give its weight other strides, in the same memory and shape."""
    weight = module.weight_hh_l0
    module(torch.randn(2, 13, 5))
    weight.data = weight.data.view(5, 15).t()


def new_parameter(module: Any) -> None:
    module.weight_hh_l2_reverse = nn.Parameter(module.weight_hh_l2_reverse + 1)


def exchanged(module: Any) -> None:
    first, second = module.weight_hh_l0, module.weight_hh_l0_reverse
    module.weight_hh_l0, module.weight_hh_l0_reverse = second, first


def tied_and_untied(module: Any) -> None:
    module.weight_hh_l0_reverse = module.weight_hh_l0
    module(torch.randn(2, 13, 5))
    module.weight_hh_l0_reverse = nn.Parameter(module.weight_hh_l0 * 2)


def loaded(module: Any) -> None:
    module.load_state_dict({k: v * 0.5 for k, v in module.state_dict().items()})


def assigned(module: Any) -> None:
    module.load_state_dict({k: v * 0.5 for k, v in module.state_dict().items()}, assign=True)


def cast_and_cast_back(module: Any) -> None:
    module.double()
    module(torch.randn(2, 13, 5).double())
    module.weight_hh_l1.mul_(0.5)
    module.float()


CHANGES: tuple[Callable[[Any], None], ...] = (
    in_place,
    through_data,
    new_data,
    turned_data,
    new_parameter,
    exchanged,
    tied_and_untied,
    loaded,
    assigned,
    cast_and_cast_back,
)


@pytest.mark.parametrize("change", CHANGES)
def test_changed_weights_are_never_stale(change: Callable[[Any], None]) -> None:
    module, x = example()
    with torch.no_grad():
        before = module(x)
        change(module)
        after = module(x)
        assert_same_bits(after, fresh_copy(module)(x))
    assert not torch.equal(before[0], after[0])


def test_weights_that_change_while_they_are_packed_are_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module, x = example()
    real = packing.cached_pack

    def changing(*given: Any, **options: Any) -> Any:
        packed = real(*given, **options)
        module.weight_hh_l0.add_(0.001)  # as another thread would, before the kernel compares
        return packed

    with torch.no_grad():
        before = module(x)[0]
        module.weight_hh_l0.add_(0.001)
        monkeypatch.setattr(op, "cached_pack", changing)
        between = module(x)[0]
        monkeypatch.undo()
        after = module(x)[0]
        assert not torch.equal(before, after)
        torch.testing.assert_close(between, after, rtol=0, atol=0.01)
        assert torch.equal(after, fresh_copy(module)(x)[0])


class Twice(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * 2


@pytest.mark.parametrize("called", [True, False])
def test_computed_weights_are_computed_for_every_call(called: bool) -> None:
    module, x = example()
    with torch.no_grad():
        before = (module if called else deepcopy(module))(x)[0]
        parametrize.register_parametrization(module, "weight_hh_l1", Twice())
        after = module(x)[0]
        module.parametrizations.weight_hh_l1.original.mul_(0.5)
        again = module(x)[0]
    assert not torch.equal(before, after)
    torch.testing.assert_close(again, before)


def test_weights_of_a_functional_call_are_used() -> None:
    module, x = example()
    weights = {name: p.detach() * 0.5 for name, p in module.named_parameters()}
    with torch.no_grad():
        before = module(x)[0]
        got = functional_call(module, weights, (x,))
        assert torch.equal(module(x)[0], before)
        module.load_state_dict(weights)
        assert_same_bits(got, module(x))


def test_a_changed_merge_mode_is_that_of_the_next_call() -> None:
    module, x = example()
    with torch.no_grad():
        before = module(x)[0]
        module.merge_mode = tuple(NARROW[::-1])
        after = module(x)[0]
        assert torch.equal(after, fresh_copy(module)(x)[0])
    assert not torch.equal(before, after)


# ---- converted models ---------------------------------------------------------------------------


def deep_model() -> Any:
    given = {"return_sequences": True}
    return model_of(
        two("LSTM", F, "mul", **given),
        rnn("GRU before", 11, H, seed=3, **given),
        layer("GaussianNoise", stddev=0.5),
        two("GRU", 11, "ave", **given),
        dense(7, H),
    )


def test_the_graph_of_a_model_keeps_every_layer() -> None:
    model, x = deep_model(), torch.randn(3, 13, F)
    assert [node.op for node in model.graph.nodes].count("call_module") == 6
    with torch.no_grad():
        wanted = model(x)
        assert_same_bits(fx.Interpreter(model).run(x), wanted)
        assert_same_bits(deepcopy(model)(x), wanted)
        assert_same_bits(pickle.loads(pickle.dumps(model))(x), wanted)


def test_a_changed_graph_is_what_runs() -> None:
    model, x = deep_model(), torch.randn(3, 13, F)
    with torch.no_grad():
        before = model(x)
        (noise,) = (node for node in model.graph.nodes if node.target == "GaussianNoise")
        with model.graph.inserting_after(noise):
            doubled = model.graph.call_function(torch.mul, (noise, 2.0))
        noise.replace_all_uses_with(doubled)
        doubled.args = (noise, 2.0)
        model.recompile()
        after = model(x)
        assert not torch.equal(before, after)
        assert_same_bits(after, fx.Interpreter(model).run(x))


def test_another_module_with_the_same_parameters_is_what_runs() -> None:
    model = model_of(two("LSTM", F, "sum", return_sequences=True))
    other = model_of(two("LSTM", F, "mul", return_sequences=True)).get_submodule(f"bi_{F}_mul")
    own = model.get_submodule(f"bi_{F}_sum")
    for name, parameter in own.named_parameters():
        setattr(other, name, parameter)
    for name, buffer in own.named_buffers():
        setattr(other, name, buffer)
    x = torch.randn(3, 13, F)
    with torch.no_grad():
        before = model(x)
        setattr(model, f"bi_{F}_sum", other)
        after = model(x)
        assert torch.equal(after, other(x))
    assert not torch.equal(before, after)
