"""Pooling over one axis, two or three, in windows and at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from keras2torch_birnn.layers.convolution import is_padded, is_recorded, pad
from keras2torch_birnn.layers.functional import max_pool1d, same_padding
from keras2torch_birnn.layers.registry import (
    NONE,
    USES,
    Converter,
    Described,
    MaskFlow,
    Table,
    by_axes,
    of_options,
)
from keras2torch_birnn.schema.pages import for_ranks
from keras2torch_birnn.spec import LayerSpec

# By kind, for one axis, two and three.
_POOL: Mapping[str, Sequence[Callable[..., Tensor]]] = {
    "max": (max_pool1d, functional.max_pool2d, functional.max_pool3d),
    "average": (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d),
}


class Pooling(Described):
    """Maximum or mean of windows; padded steps count in neither."""

    def __init__(
        self,
        size: tuple[int, ...],
        stride: tuple[int, ...] | None,
        padding: str,
        *,
        kind: str,
        channels_last: bool,
    ) -> None:
        super().__init__()
        self.kind, self.size, self.stride = kind, size, stride or size
        self.padding, self.channels_last = padding, channels_last

    def forward(self, x: Tensor) -> Tensor:
        """Pool (B, T, C) -> (B, T', C), or with C before T if channels_first; two axes likewise."""
        x = x.movedim(-1, 1) if self.channels_last else x
        around = [(0, 0)] * len(self.size)
        if self.padding == "same":
            sizes = zip(x.shape[2:], self.size, self.stride, strict=True)
            around = [same_padding(*size) for size in sizes]
        if not is_recorded() and all(before == after for before, after in around):
            y = self._pool_evenly(x, [before for before, _ in around])
        else:
            y = self._pool(x, around)
        return y.movedim(1, -1) if self.channels_last else y

    def _pool_evenly(self, x: Tensor, padding: Sequence[int]) -> Tensor:
        """Pool (B, C, T) with symmetric padding, which torch does inside, without a copy."""
        size, stride = self.size, self.stride
        one_axis = len(size) == 1
        if one_axis:
            x, size, stride, padding = x.unsqueeze(2), (1, *size), (1, *stride), (0, *padding)
        pool = _POOL[self.kind][len(size) - 1]
        rest = {} if self.kind == "max" else {"count_include_pad": False}
        y = pool(x, size, stride, padding, **rest)
        return y.squeeze(2) if one_axis else y

    def _pool(self, x: Tensor, around: Sequence[tuple[int, int]]) -> Tensor:
        """Pool (B, C, T) padded by any numbers, also by such that a graph computes."""
        pool = _POOL[self.kind][len(self.size) - 1]
        if self.kind == "max":
            return pool(pad(x, around, value=-torch.inf), self.size, self.stride)
        y = pool(pad(x, around), self.size, self.stride)
        if is_padded(around):
            ones = pad(x.new_ones(1, 1, *x.shape[2:]), around)
            y = y / pool(ones, self.size, self.stride)
        return y


class GlobalPooling(Described):
    """Maximum or mean over all steps; the mean counts valid steps only, if there is a mask."""

    def __init__(self, keepdims: bool, *, kind: str, rank: int, channels_last: bool) -> None:
        super().__init__()
        self.kind, self.rank = kind, rank
        self.keepdims, self.channels_last = keepdims, channels_last
        first = 1 if channels_last else 2
        self.axes = tuple(range(first, first + rank))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pool (B, T, C) -> (B, C). A row without valid step is 0 / 0 = NaN, as in Keras."""
        if self.kind == "max":
            return x.amax(dim=self.axes, keepdim=self.keepdims)
        if mask is None:
            return x.mean(dim=self.axes, keepdim=self.keepdims)
        weight = mask.to(x.dtype).unsqueeze(3 - self.axes[0])  # one axis: a mask is (B, T)
        total = (x * weight).sum(dim=self.axes, keepdim=self.keepdims)
        return total / weight.sum(dim=self.axes, keepdim=self.keepdims)


def _uses_mask(layer: LayerSpec) -> MaskFlow:
    return USES if layer.semantics.get("use_mask") else NONE


def _pools(kind: str, of_all: MaskFlow | Callable[[LayerSpec], MaskFlow]) -> Iterator[Table]:
    """Yield the rows of a kind; ``of_all``: the mask flow of pooling over all steps."""
    word = kind.capitalize()
    windows = of_options(Pooling, "pool_size", "strides", "padding", kind=kind)
    yield by_axes(f"{word}Pooling{{}}D", Converter(windows, NONE))
    yield for_ranks(
        f"Global{word}Pooling{{}}D",
        lambda rank: Converter(of_options(GlobalPooling, "keepdims", kind=kind, rank=rank), of_all),
    )


CONVERTERS: Mapping[str, Converter] = {
    name: row
    for rows in (*_pools("max", NONE), *_pools("average", _uses_mask))
    for name, row in rows.items()
}
