"""``CRF`` of tensorflow-addons: the best path of tags (Viterbi), and its inputs.

    p_t = x_t . kernel + bias                       potentials; p = x with ``use_kernel=False``
    p_first += left_boundary, p_last += right_boundary        with ``use_boundary``
    v_0 = p_0,  v_t(j) = p_t(j) + max_i (v_{t-1}(i) + chain_kernel(i, j)),  b_t(j) the first such i
    y_last = the first j with the largest v_last(j),  y_{t-1} = b_t(y_t)

The length n of a row is the sum of its mask, counted from the left; after n steps the tags are 0.
With a mask the boundaries are added at each beginning and end of a masked-in run. (Run eagerly,
tensorflow-addons refuses a row that does not begin with a valid step; inside a function, as in
``predict``, it computes this.) A row of length 0 has the tag of the largest v_0 at step 0, then
zeros.

Outputs: tags (B, T) int32, potentials (B, T, units), n (B,) int64, chain_kernel (units, units). The
mask is passed on with the tags.

Source: tensorflow-addons 0.23 ``layers/crf.py`` and ``text/crf.py``, read for their equations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import keras2torch_birnn as k2t
from keras2torch_birnn.schema.options import flag, size
from keras2torch_birnn.spec import Array

NAME = "Addons>CRF"


class CRF(nn.Module):
    """(B, T, F) -> tags, potentials, lengths, chain_kernel."""

    chain_kernel: nn.Parameter
    left_boundary: nn.Parameter
    right_boundary: nn.Parameter

    def __init__(self, layer: k2t.LayerSpec) -> None:
        super().__init__()
        weights, units = layer.weights, layer.config["units"]
        chain = weights["chain_kernel"]
        for name in ("chain_kernel", "left_boundary", "right_boundary"):
            value = weights.get(name, np.zeros(units, chain.dtype))  # absent: adds nothing
            self.register_parameter(name, nn.Parameter(torch.tensor(value)))
        self.dense: nn.Module = nn.Identity()
        if layer.config["use_kernel"]:
            kernel, bias = weights["_dense_layer/kernel"], weights["_dense_layer/bias"]
            self.dense = nn.Linear(kernel.shape[0], kernel.shape[1])
            self.dense.weight = nn.Parameter(torch.tensor(kernel.T))
            self.dense.bias = nn.Parameter(torch.tensor(bias))

    def forward(
        self, x: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Compute the layer; ``mask``: (B, T), valid steps first."""
        kept = x.new_ones(x.shape[:2]) if mask is None else mask.to(x.dtype)
        begins = kept > functional.pad(kept, (1, 0))[:, :-1]
        ends = kept > functional.pad(kept, (0, 1))[:, 1:]
        potentials = self.dense(x)
        potentials = potentials + begins.unsqueeze(-1) * self.left_boundary
        potentials = potentials + ends.unsqueeze(-1) * self.right_boundary
        lengths = kept.sum(dim=1).long()
        return self._tags(potentials, lengths), potentials, lengths, self.chain_kernel * 1

    def _tags(self, potentials: Tensor, lengths: Tensor) -> Tensor:
        value, pointers = potentials[:, 0], []
        for t in range(1, potentials.shape[1]):
            total = value.unsqueeze(-1) + self.chain_kernel  # (B, i, j)
            valid = (t < lengths).unsqueeze(-1)
            value = torch.where(valid, potentials[:, t] + total.amax(dim=1), value)
            pointers.append(total.argmax(dim=1))
        last = value.argmax(dim=1, keepdim=True)
        tag, path = last, []
        for t in range(potentials.shape[1] - 1, -1, -1):
            # Steps after the row's end have the tag 0.
            inside = (t < lengths.clamp(min=1)).unsqueeze(-1)
            path.append(torch.where(inside, tag, 0))
            if t:
                step = (t < lengths).unsqueeze(-1)
                tag = torch.where(step, pointers[t - 1].gather(1, tag), tag)
        return torch.cat(path[::-1], dim=1).int()


def _weights(config: Mapping[str, Any], shape: Any) -> dict[str, tuple[int | None, ...]]:
    units = config["units"]
    weights: dict[str, tuple[int | None, ...]] = {"chain_kernel": (units, units)}
    if config["use_boundary"]:
        weights |= {"left_boundary": (units,), "right_boundary": (units,)}
    if config["use_kernel"]:
        size_ = shape[-1] if shape else None
        weights |= {"_dense_layer/kernel": (size_, units), "_dense_layer/bias": (units,)}
    return weights


def _output(config: Mapping[str, Any], shape: Any) -> Any:
    units = config["units"]
    return (shape[:2], (*shape[:2], units), shape[:1], (units, units))


@k2t.converts(
    NAME,
    mask="uses and passes",
    weights=_weights,
    options={"units": size(), "use_boundary": flag(True), "use_kernel": flag(True)},
    outputs=4,
    output=_output,
)
def crf(layer: k2t.LayerSpec) -> nn.Module:
    """Build the layer."""
    return CRF(layer)


@k2t.equation(NAME)
def equation(
    layer: k2t.LayerSpec, x: Array, mask: Array | None
) -> tuple[tuple[Array, Array, Array, Array], Array | None]:
    """Compute the layer row by row: textbook Viterbi on the first n steps."""
    weights, config = layer.weights, layer.config
    kept = np.ones(x.shape[:2], bool) if mask is None else mask.astype(bool)
    potentials = x
    if config["use_kernel"]:
        potentials = x @ weights["_dense_layer/kernel"] + weights["_dense_layer/bias"]
    potentials = potentials.copy()
    tags = np.zeros(x.shape[:2], np.int32)
    for row, valid in enumerate(kept):
        for t in np.flatnonzero(valid) if config["use_boundary"] else ():
            if t == 0 or not valid[t - 1]:
                potentials[row, t] += weights["left_boundary"]
            if t == len(valid) - 1 or not valid[t + 1]:
                potentials[row, t] += weights["right_boundary"]
        path = _best_path(potentials[row, : max(valid.sum(), 1)], weights["chain_kernel"])
        tags[row, : len(path)] = path
    return (tags, potentials, kept.sum(axis=1), weights["chain_kernel"]), mask


def _best_path(potentials: Array, chain: Array) -> list[int]:
    value, pointers = potentials[0], []
    for potential in potentials[1:]:
        total = value[:, None] + chain
        value = potential + total.max(axis=0)
        pointers.append(total.argmax(axis=0))
    path = [int(value.argmax())]
    for pointer in pointers[::-1]:
        path.insert(0, int(pointer[path[0]]))
    return path
