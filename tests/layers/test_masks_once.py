"""The mask of a Masking is computed once, for the layer itself and for those behind it."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from seen_operators import SeenOperators
from spec_parity import model_of
from specs import B, F, T, bi, chain, functional, layer, rnn, values
from torch import Tensor, nn

from keras2torch_birnn.conversion import build_model
from keras2torch_birnn.layers.merging import concatenated_mask
from keras2torch_birnn.reference import compute
from keras2torch_birnn.spec import Call, ModelSpec, TensorRef


@pytest.fixture
def spec() -> ModelSpec:
    """Two Masking of other values, of which the second has the mask of its own input alone."""
    halves = [rnn("GRU", seed=seed, return_sequences=True) for seed in (0, 1)]
    first, second = layer("Masking", "one", mask_value=0.5), layer("Masking", "two", mask_value=0.0)
    return model_of(chain(first, second, bi(*halves, "sum"), shape=(None, None, F)))


@pytest.fixture
def x() -> Tensor:
    made = torch.from_numpy(values(B, T, F).astype("float32"))
    made[0, 3:], made[1, 2], made[1, 4, 1:] = 0.5, 0.0, 0.5
    return made


@pytest.mark.parametrize("how", [torch.inference_mode, torch.enable_grad])
def test_every_mask_is_computed_once(spec: ModelSpec, x: Tensor, how: Callable[[], Any]) -> None:
    model = build_model(spec)
    (wanted,) = compute(spec, [x.numpy()]).outputs
    for one in (model, deepcopy(model)):
        with how(), SeenOperators() as seen:
            found = one(x)
        torch.testing.assert_close(found.double(), torch.from_numpy(wanted), atol=1e-5, rtol=0)
        assert seen.names.count("ne") == 2  # with the value of a Masking


def test_two_maskings_of_one_input_have_their_mask_before_both(x: Tensor) -> None:
    halves = [rnn("GRU", seed=seed, return_sequences=True) for seed in (0, 1)]
    both = bi(*halves, "sum")
    start = layer("InputLayer", "start", shape=(None, None, F))
    one, two = (layer("Masking", name, mask_value=0.5) for name in ("one", "two"))
    ends = TensorRef("one"), TensorRef(both.name)
    calls = [Call(name, 0, (TensorRef("start"),)) for name in ("one", "two")]
    calls.append(Call(both.name, 0, (TensorRef("two"),)))
    spec = model_of(functional([start, one, two, both], calls, (TensorRef("start"),), ends))
    wanted = compute(spec, [x.numpy()]).outputs
    with torch.inference_mode(), SeenOperators() as seen:
        found = build_model(spec)(x)
    for got, exact in zip(found, wanted, strict=True):
        torch.testing.assert_close(got.double(), torch.from_numpy(exact), atol=1e-5, rtol=0)
    assert seen.names.count("ne") == 1


def test_what_takes_the_place_of_a_masking_is_called_as_before(spec: ModelSpec, x: Tensor) -> None:
    model: Any = build_model(spec)
    model.two = nn.Identity()
    assert model(x).shape == (B, T, rnn("GRU").config["units"])


@pytest.mark.parametrize("rule", ["all", "any"])
@pytest.mark.parametrize("axis", [-1, 2])
def test_a_concatenation_of_features_hands_a_mask_that_all_share_on(axis: int, rule: str) -> None:
    mask = torch.from_numpy(values(B, T)) > 0
    tensors = [torch.from_numpy(values(B, T, width)) for width in (3, 5)]
    assert concatenated_mask(tensors, [mask, mask], axis, rule) is mask
    torch.testing.assert_close(concatenated_mask(tensors, [mask, mask.clone()], axis, rule), mask)
    if rule == "all":
        assert concatenated_mask(tensors, [None, mask], axis, rule) is mask
    for others in ([mask, ~mask], [mask, None], [None, mask]):
        spread = [
            torch.ones_like(x, dtype=torch.bool) if m is None else m[..., None].expand_as(x)
            for x, m in zip(tensors, others, strict=True)
        ]
        joined = getattr(torch.cat(spread, dim=-1), rule)(dim=-1)
        torch.testing.assert_close(concatenated_mask(tensors, others, axis, rule), joined)
    steps = concatenated_mask([tensors[0]] * 2, [mask, mask], 1, rule)
    torch.testing.assert_close(steps, torch.cat([mask, mask], dim=1))
