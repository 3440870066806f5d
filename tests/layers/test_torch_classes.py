"""Modules of torch's classes compute what these define: tools may wrap, change or replace them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from specs import FIXTURES, KERAS3, chain, dense, fixture, layer, values
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel, update_bn

import keras2torch_birnn as k2t
from keras2torch_birnn.layers.building import build
from keras2torch_birnn.layers.running import flat
from keras2torch_birnn.spec import ModelSpec

_BATCH_NORM = nn.modules.batchnorm._BatchNorm
_DEFINED: dict[Any, Callable[[Any, Tensor], Tensor]] = {
    nn.Linear: lambda m, x: functional.linear(x, m.weight, m.bias),
    nn.Embedding: lambda m, x: functional.embedding(x, m.weight),
    nn.LayerNorm: lambda m, x: functional.layer_norm(
        x, m.normalized_shape, m.weight, m.bias, m.eps
    ),
    _BATCH_NORM: lambda m, x: functional.batch_norm(
        x, m.running_mean, m.running_var, m.weight, m.bias, False, 0.0, m.eps
    ),
}
# Called as Keras calls its layers; their weights are those of torch.
_RECURRENT = (nn.LSTM, nn.GRU, nn.RNN)
_WEIGHTED = (
    *_DEFINED,
    *_RECURRENT,
    nn.modules.conv._ConvNd,
    nn.GroupNorm,
    nn.EmbeddingBag,
    nn.Bilinear,
    nn.PReLU,
    nn.MultiheadAttention,
)

# Every layer whose module is of a class of torch, and others beside them.
_FILES = [
    *(
        f"keras-3.15.1/{name}"
        for name in (
            "arch_multi_head.h5",
            "arch_residual_batch_norm.h5",
            "arch_sound_events.keras",
            "arch_hierarchy.keras",
            "arch_deep_speech.keras",
            "batchnorm.keras",
            "einsum.keras",
        )
    ),
]


def in_steps() -> ModelSpec:
    """A Dense and an Embedding in TimeDistributed, with ids that are floats."""
    ids = layer("Embedding", "ids", {"embeddings": values(17, 5)}, input_dim=17, output_dim=5)
    ids = layer("TimeDistributed", "each", layer=ids, masking="inner")
    inner = layer(
        "TimeDistributed", "inner", layer=dense(11, 5, activation="softmax"), masking="inner"
    )
    twice = layer("TimeDistributed", "twice", layer=inner, masking="inner")
    return ModelSpec(chain(ids, twice, dense(3, 11, 1, activation="relu")), KERAS3)


def read(file: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Return a model in float64, and inputs."""
    if not file:
        return build(in_steps()).double(), (torch.arange(14.0, dtype=torch.float64).view(2, 1, 7),)
    given = fixture(file)
    inputs = [torch.from_numpy(x) for x in given.inputs[0]]
    return build(given.spec, dtype="float64"), tuple(
        x.double() if x.is_floating_point() else x for x in inputs
    )


def compute(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return flat(model(*inputs))


def assert_same(got: Any, wanted: Any, **tolerance: float) -> None:
    """Compare outputs; rows without any valid step can be NaN."""
    torch.testing.assert_close(got, wanted, equal_nan=True, **tolerance)


def of_torch(model: nn.Module, *classes: Any) -> Iterator[tuple[str, Any]]:
    yield from [(n, m) for n, m in model.named_modules() if isinstance(m, classes)]


@pytest.mark.parametrize("file", ["", *_FILES])
def test_a_module_of_a_class_of_torch_computes_just_that(file: str) -> None:
    model, inputs = read(file)
    checked = []

    def check(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        (define,) = (one for kind, one in _DEFINED.items() if isinstance(module, kind))
        assert_same(output, define(module, given[0]))
        checked.append(module)

    for name, module in of_torch(model, *_WEIGHTED):
        if not isinstance(module, _RECURRENT):
            assert isinstance(module, tuple(_DEFINED)), name
            module.register_forward_hook(check)
    compute(model, inputs)
    assert checked


class LowRank(nn.Module):
    """A layer and a low-rank term beside it, as LoRA adds it."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        rows, columns = base.weight.shape
        self.base = base
        self.a = torch.randn(2, columns, generator=generator, dtype=torch.float64)
        self.b = torch.randn(rows, 2, generator=generator, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer of x, and add the term."""
        if isinstance(self.base, nn.Linear):
            return self.base(x) + functional.linear(functional.linear(x, self.a), self.b)
        return self.base(x) + functional.embedding(x, self.b) @ self.a

    def merge(self) -> nn.Module:
        """Put the term into the weight."""
        with torch.no_grad():
            self.base.weight += self.b @ self.a
        return self.base


@pytest.mark.parametrize("file", ["", *_FILES[:-2]])
def test_a_term_beside_a_layer_is_the_same_as_one_in_its_weight(file: str) -> None:
    model, inputs = read(file)
    before = compute(model, inputs)
    merged = copy.deepcopy(model)
    found = list(of_torch(model, nn.Linear, nn.Embedding))
    for name, module in found:
        model.set_submodule(name, LowRank(module))
        LowRank(merged.get_submodule(name)).merge()
    wanted = compute(merged, inputs)
    assert found and not torch.allclose(wanted[0], before[0])
    assert_same(compute(model, inputs), wanted)
    # ... and what was computed without the terms before is forgotten.
    for name, _ in found:
        wrapped: Any = model.get_submodule(name)
        model.set_submodule(name, wrapped.merge())
    assert_same(compute(model, inputs), wanted)


def weight_of(module: nn.Module) -> str:
    return "weight_ih_l0" if isinstance(module, _RECURRENT) else "weight"


@pytest.mark.parametrize("file", _FILES[:-2])
def test_pruned_and_normalized_weights_are_what_a_layer_computes_with(file: str) -> None:
    model, inputs = read(file)
    pruned, normalized = copy.deepcopy(model), copy.deepcopy(model)
    doubled: Any = copy.deepcopy(model)
    for name, module in of_torch(model, *_WEIGHTED):
        weight = weight_of(module)
        if getattr(module, weight) is None:
            continue
        prune.random_unstructured(pruned.get_submodule(name), weight, amount=0.5)
        changed: Any = normalized.get_submodule(name)
        parametrizations.weight_norm(changed, weight, dim=None)
        with torch.no_grad():
            changed.parametrizations[weight].original0 *= 2  # the norm of the whole weight
            getattr(doubled.get_submodule(name), weight).mul_(2)
            getattr(module, weight).copy_(getattr(pruned.get_submodule(name), weight))
    for tooled, plain in ((pruned, model), (normalized, doubled)):
        assert_same(compute(tooled, inputs), compute(plain, inputs))


@pytest.mark.parametrize("file", _FILES[:-2])
def test_averaged_weights_are_what_a_layer_computes_with(file: str) -> None:
    """Stochastic weight averaging: the mean of these weights and of doubled ones."""
    model, inputs = read(file)
    averaged = AveragedModel(model)
    more: Any = copy.deepcopy(model)
    for factor in (2.0, 1.5):
        with torch.no_grad():
            for one, parameter in zip(model.parameters(), more.parameters(), strict=True):
                parameter.copy_(one * factor)
        if factor == 2.0:
            averaged.update_parameters(model)
            averaged.update_parameters(more)
    assert_same(compute(averaged, inputs), compute(more, inputs))


@pytest.mark.parametrize(
    ("name", "ids"), [("adam_tagger", True), ("adam_plain", False)], ids=["masked", "plain"]
)
def test_a_recurrent_layer_of_torch_in_the_place_of_ours_is_a_type_error(
    name: str, ids: bool
) -> None:
    """Torch's call takes no mask and returns states: no tool may get other numbers by it."""
    model = k2t.convert(FIXTURES / "compiled" / "keras-3.15.1" / f"{name}.keras")
    ((path, own),) = of_torch(model, *_RECURRENT)
    kind = nn.LSTM if isinstance(own, nn.LSTM) else nn.GRU
    other = kind(own.input_size, own.hidden_size, batch_first=True, bidirectional=True).double()
    other.load_state_dict(own.state_dict())
    model.set_submodule(path, other)
    x = torch.randint(0, 5, (2, 5)) if ids else torch.rand(2, 5, 2, dtype=torch.float64)
    with pytest.raises(TypeError):
        model(x)


# ---- BatchNormalization -------------------------------------------------------------------------

_NORMALIZED = ("bn_2d", "bn_3d", "bn_4d", "bn_first_axis", "bn_frozen")


def normalized(name: str) -> tuple[nn.Module, list[Tensor]]:
    """Return a model with BatchNormalization, and batches."""
    folder = FIXTURES / "training" / "keras-3.15.1"
    with np.load(folder / f"{name}.npz") as data:
        batches = [torch.from_numpy(data[f"x0_{i}"]) for i in range(4)]
    return k2t.convert(folder / f"{name}.before.keras"), batches


@pytest.mark.parametrize("name", _NORMALIZED)
def test_sync_batch_norm_in_the_place_of_ours_computes_the_same_in_evaluation(name: str) -> None:
    model, batches = normalized(name)
    wanted = compute(model, batches[:1])
    other = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    assert any(isinstance(m, nn.SyncBatchNorm) for m in other.modules())
    torch.testing.assert_close(compute(other.eval(), batches[:1]), wanted)


@pytest.mark.parametrize("name", _NORMALIZED[:-1])
def test_averaged_weights_get_the_statistics_of_their_own_outputs(name: str) -> None:
    """Stochastic weight averaging, with torch's ``update_bn``: the plain mean of all batches."""
    model, batches = normalized(name)
    averaged = AveragedModel(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.25)
    averaged.update_parameters(model)
    seen: dict[str, list[Tensor]] = {}
    for key, module in of_torch(averaged.module, _BATCH_NORM):
        seen[key] = []
        module.register_forward_pre_hook(lambda m, x, kept=seen[key]: kept.append(x[0].detach()))
    update_bn(batches, averaged)
    for key, inputs in seen.items():
        moments = [torch.var_mean(x.transpose(0, 1).flatten(1), 1, correction=0) for x in inputs]
        found: Any = averaged.module.get_submodule(key)
        for got, parts in zip(
            (found.running_var, found.running_mean), zip(*moments, strict=True), strict=True
        ):
            torch.testing.assert_close(got, torch.stack(parts).mean(0), rtol=1e-4, atol=1e-5)
