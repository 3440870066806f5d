"""Dropout: noise shapes and whole channels."""

from __future__ import annotations

import pytest
import torch
from specs import layer

from keras2torch_birnn.layers.registry import convert_layer


@pytest.mark.parametrize("rank", [2, 3])
def test_spatial_dropout_drops_whole_channels_in_training(rank: int) -> None:
    x = torch.ones(2, *(3, 5, 7)[:rank], 64)
    between = tuple(range(1, rank + 1))
    for form, axes in (
        ("channels_last", between),
        ("channels_first", tuple(axis + 1 for axis in between)),
    ):
        module = convert_layer(layer(f"SpatialDropout{rank}D", rate=0.5, data_format=form)).train()
        torch.manual_seed(0)
        y = module(x if form == "channels_last" else x.movedim(-1, 1))
        assert set(y.unique().tolist()) == {0.0, 2.0}
        assert torch.equal(y.amin(dim=axes), y.amax(dim=axes))


def test_alpha_dropout_of_a_shape_drops_whole_steps_in_training() -> None:
    module = convert_layer(layer("AlphaDropout", rate=0.3, noise_shape=(None, 64, 1)))
    x = torch.randn(32, 64, 7)
    assert torch.equal(module.eval()(x), x)
    torch.manual_seed(0)
    y = module.train()(x)
    dropped = (y - y[..., :1]).abs().amax(dim=-1) < 1e-6
    assert 0.2 < dropped.float().mean().item() < 0.4
    assert y.mean().abs() < 0.1
    assert (y.std() - 1).abs() < 0.1
    assert "noise_shape=(None, 64, 1)" in repr(module)


def test_dropout_is_shown_with_its_shape() -> None:
    module = convert_layer(layer("Dropout", rate=0.3, noise_shape=(None, 1, 3))).train()
    y = module(torch.ones(5, 7, 3))
    assert torch.equal(y, y[:, :1].expand_as(y))
