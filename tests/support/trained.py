"""Models whose weights were all changed, as after a training, and the files that they go into."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

import keras2torch_birnn as k2t
from keras2torch_birnn.layers.preprocessing import Normalization

_STATISTICS = ("running_mean", "running_var", "mean", "variance")


def train(model: nn.Module, *, like: torch.dtype | None = None) -> nn.Module:
    """Change every weight and statistic at random, the same every time.

    ``like``: to values that this dtype has, too.
    """
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for module in model.modules():
            for tensor in _weights(module):
                drawn = torch.rand(tensor.shape, generator=generator, dtype=torch.float64) + 0.1
                tensor.add_((drawn / 16).to(tensor.dtype))
                if like is not None:
                    tensor.copy_(tensor.to(like))
    return model


def _weights(module: nn.Module) -> list[Tensor]:
    found = dict(module.named_parameters(recurse=False))
    if isinstance(module, nn.BatchNorm1d | Normalization):
        found |= {n: b for n, b in module.named_buffers(recurse=False) if n in _STATISTICS}
    return list(found.values())


def config_of(file: Path) -> Path | None:
    """Return the architecture beside a fixture that holds weights alone."""
    for ending in (".weights.h5", "_weights.h5"):
        if file.name.endswith(ending):
            found = file.with_name(f"{file.name.removesuffix(ending)}.json")
            return found if found.exists() else None
    return None


def differing(model: nn.Module, path: Path, *, config: Path | None = None) -> list[str]:
    """Return the tensors that a converted file does not have bit by bit as the model has them."""
    again = k2t.convert(path, config=config).state_dict()
    state = model.state_dict()
    assert list(again) == list(state)
    return [
        name
        for name, tensor in state.items()
        if tensor.is_floating_point() and tensor.numpy().tobytes() != again[name].numpy().tobytes()
    ]


def write_trained(source: Path, out: Path) -> nn.Module:
    """Convert a file, train the model and write it to ``out``, which must read back as trained."""
    model = train(k2t.convert(source))
    k2t.write_back(model, source, out)
    assert differing(model, out) == []
    return model
