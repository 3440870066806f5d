"""Interpolation between steps, one axis after the other: y = W x, with W (target, T).

Kernels and where they lie: TensorFlow 2.15 ``core/kernels/image/sampling_kernels.h``,
``resize_bicubic_op.cc``, ``resize_area_op.cc``, ``scale_and_translate_op.cc``; TensorFlow 1.15
``resize_bilinear_op.cc``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

_TABLE = 1024  # TensorFlow reads the bicubic kernel from a table of this length


def _linear(d: Tensor) -> Tensor:
    return (1 - d).clamp(min=0)


def _bicubic(d: Tensor) -> Tensor:
    d = (d * _TABLE).round() / _TABLE
    near = (1.5 * d - 2.5) * d * d + 1
    far = ((-0.5 * d + 2.5) * d - 4) * d + 2
    return torch.where(d <= 1, near, torch.where(d < 2, far, 0.0))


def _mitchell(d: Tensor) -> Tensor:
    near = (7 / 6 * d - 2) * d * d + 8 / 9
    far = ((-7 / 18 * d + 2) * d - 10 / 3) * d + 16 / 9
    return torch.where(d < 1, near, torch.where(d < 2, far, 0.0))


def _gaussian(d: Tensor) -> Tensor:
    return torch.where(d < 1.5, torch.exp(-2 * d * d), 0.0)


def _lanczos(radius: int) -> Callable[[Tensor], Tensor]:
    def kernel(d: Tensor) -> Tensor:
        y = torch.sinc(d) * torch.sinc(d / radius)
        return torch.where(d <= radius, y, 0.0)

    return kernel


KERNELS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "bilinear": _linear,
    "bicubic": _bicubic,
    "mitchellcubic": _mitchell,
    "gaussian": _gaussian,
    "lanczos3": _lanczos(3),
    "lanczos5": _lanczos(5),
}


def weights(
    like: Tensor, size: int, target: int, step: float, mode: str, *, corners: bool
) -> Tensor:
    """Compute the matrix (target, size); every row sums to 1 over the steps inside.

    ``step``: size / target. ``corners``: output i is at i step, else the centers of pixels are
    aligned. TensorFlow computes the positions in float32, with a rounded step.
    """
    if mode == "area":
        return _areas(like, size, target, step)
    middle = 0.0 if corners else 0.5
    rounded = torch.full((), step, dtype=torch.float32, device=like.device)
    at = (torch.arange(target, device=like.device) + middle) * rounded
    steps = torch.arange(size, device=like.device, dtype=torch.float64) + middle
    rows = KERNELS[mode]((steps - at[:, None].double()).abs())
    return (rows / rows.sum(dim=1, keepdim=True)).to(like.dtype)


def _areas(like: Tensor, size: int, target: int, step: float) -> Tensor:
    """Compute the share of every step under one of the output, in float32 (no row sums to 1)."""
    rounded = torch.full((), step, dtype=torch.float32, device=like.device)
    places = torch.arange(target + 1, device=like.device) * rounded
    start, end = places[:-1, None], places[1:, None]
    own = torch.arange(size + 1, device=like.device, dtype=torch.float32)  # one too many
    share = torch.minimum(own + 1, end) - torch.maximum(own, start)
    share = torch.where((own < start) & (own + 1 > end), rounded, share).clamp(min=0).double()
    rows = torch.cat([share[:, : size - 1], share[:, size - 1 :].sum(1, keepdim=True)], dim=1)
    return (rows / rounded.double()).to(like.dtype)


def resize(
    x: Tensor, axis: int, target: int, step: float, mode: str, *, corners: bool = False
) -> Tensor:
    """Make one axis ``target`` long; ``step``: its size over that."""
    matrix = weights(x, x.shape[axis], target, step, mode, corners=corners)
    return (x.movedim(axis, -1) @ matrix.T).movedim(-1, axis)


def resize_to_nearest(x: Tensor, axis: int, target: int) -> Tensor:
    """Make one axis ``target`` long, of the steps under the middles of the output's."""
    size = x.shape[axis]
    step = torch.full((), size / target, dtype=torch.float32, device=x.device)
    at = (torch.arange(target, device=x.device) + 0.5) * step
    return x.index_select(axis, at.long().clamp(max=size - 1))
