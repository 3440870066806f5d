"""Start the Triton kernels. B batch, T time, H units, D directions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from keras2torch_birnn.rnn.gpu.step_cell import Form, StepCell


class Tiling(NamedTuple):
    """Elements of a program's tile, its rows and units at most, and a kernel's own constants."""

    elements: int
    rows: int
    units: int
    options: Mapping[str, int] = MappingProxyType({})


TILINGS: Mapping[Form, Tiling] = {
    # Two elements for each thread of four warps. Units first: memory is read in whole lines.
    "steps": Tiling(256, 256, 128),
    # Few units, so that many programs share the weights; 18 KB of shared memory (float64: 36).
    "fused": Tiling(512, 16, 32, {"tile_depth": 32, "tile_width": 32, "num_stages": 3}),
    # A program reads all weights at every step, for as many rows as its registers hold; 17 KB of
    # shared memory (float64: 33).
    "persistent": Tiling(
        1024,
        8,
        256,
        {"tile_depth": 16, "tile_width": 256, "num_warps": 16, "num_stages": 1},
    ),
}


@dataclass(frozen=True)
class Launcher:
    """The kernels for one call: its cell and sizes. sizes: T, B, H. lengths: any tensor if none."""

    cell: StepCell
    grid: tuple[int, int, int]
    lengths: Tensor
    sizes: tuple[int, int, int]
    constants: Mapping[str, Any]

    @staticmethod
    def of(cell: StepCell, h: Tensor, time: int, lengths: Tensor | None) -> Launcher:
        """Return the launcher for states h (D, S, B, H)."""
        import triton.language as tl

        directions, _, batch, units = h.shape
        tile_rows, tile_units = find_tile(cell, batch, units)
        language: Any = tl
        constants = {
            "masked": lengths is not None,
            "compute": language.float64 if h.dtype is torch.float64 else language.float32,
            "tile_rows": tile_rows,
            "tile_units": tile_units,
        }
        grid = (-(-batch // tile_rows), -(-units // tile_units), directions)
        placeholder = h if lengths is None else lengths.contiguous()
        return Launcher(cell, grid, placeholder, (time, batch, units), constants)

    def launch(self, kernel: Any, tensors: Sequence[Tensor], *step: int, **constants: Any) -> None:
        """Start a kernel for one step or, without one, for all. constants: this kernel's own."""
        given = {**constants, **self.constants}
        kernel[self.grid](*tensors, self.lengths, *step, *self.sizes, **given)

    def gate_constants(self) -> dict[str, Any]:
        """Return the recurrent activation as constants of a kernel."""
        return dict(zip(("gate", "g1", "g2", "g3"), self.cell.recurrent_activation, strict=True))

    def cell_constants(self) -> dict[str, Any]:
        """Return the kind of cell and both activations as constants of a kernel."""
        activation = zip(("activation", "a1", "a2", "a3"), self.cell.activation, strict=True)
        return {"kind": self.cell.kind, **dict(activation), **self.gate_constants()}

    def product_constants(self) -> dict[str, Any]:
        """Return the constants of a kernel that multiplies."""
        return {"gates": self.cell.gates, **TILINGS[self.cell.form].options}


def find_tile(cell: StepCell, batch: int, units: int) -> tuple[int, int]:
    """Return the rows and units that one program of a kernel computes."""
    tiling, tile_units = TILINGS[cell.form], _power_of_two(units)
    if not cell.needs_whole_rows:
        tile_units = min(tile_units, tiling.units)
    rows = min(max(1, tiling.elements // tile_units), tiling.rows)
    return min(rows, _power_of_two(batch)), tile_units


def on_device(x: Tensor) -> AbstractContextManager[Any]:
    """Return the context in which Triton launches on the device of x."""
    cuda: Any = torch.cuda
    device: AbstractContextManager[Any] = cuda.device(x.device) if x.is_cuda else nullcontext()
    return device


def _power_of_two(size: int) -> int:
    """Return the least power of two that is not smaller."""
    return 1 << (size - 1).bit_length()
