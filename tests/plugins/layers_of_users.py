"""A user's plugin for the layers of ``fixtures/layers_of_users.py``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

import keras2torch_birnn as k2t

Array = npt.NDArray[Any]


class CenterSteps(nn.Module):
    def __init__(self, layer: k2t.LayerSpec) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(layer.weights["scale"] * layer.config["power"]))
        self.shift = nn.Parameter(torch.tensor(layer.weights["shift"]))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is None:
            mean = x.mean(dim=1, keepdim=True)
        else:
            kept = mask.unsqueeze(-1).to(x.dtype)
            mean = (x * kept).sum(dim=1, keepdim=True) / (kept.sum(dim=1, keepdim=True) + 1)
        return (x - mean) * self.scale + self.shift


@k2t.converts("CenterSteps", mask="uses and passes", weights=("scale", "shift"))
def center_steps(layer: k2t.LayerSpec) -> nn.Module:
    return CenterSteps(layer)


@k2t.equation("CenterSteps")
def center_steps_equation(
    layer: k2t.LayerSpec, x: Array, mask: Array | None
) -> tuple[Array, Array | None]:
    out = np.empty_like(x)
    for row in range(len(x)):
        valid = np.ones(x.shape[1], bool) if mask is None else mask[row].astype(bool)
        count = valid.sum() + (mask is not None)
        out[row] = x[row] - x[row, valid].sum(axis=0) / count
    return out * layer.weights["scale"] * layer.config["power"] + layer.weights["shift"], mask


class GatedSteps(nn.Module):
    def __init__(self, layer: k2t.LayerSpec) -> None:
        super().__init__()
        level, kernel, bias = (layer.weights[n] for n in ("level", "gate/kernel", "gate/bias"))
        self.level = nn.Parameter(torch.tensor(level))
        self.gate = nn.Linear(*kernel.shape)
        self.gate.load_state_dict({"weight": torch.tensor(kernel.T), "bias": torch.tensor(bias)})

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.tanh(self.gate(x)) * self.level


@k2t.converts("GatedSteps", mask="drops", weights=("level", "gate/kernel", "gate/bias"))
def gated_steps(layer: k2t.LayerSpec) -> nn.Module:
    return GatedSteps(layer)


class SumAndDifference(nn.Module):
    def __init__(self, weight: Array) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, tensors: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        a, b = tensors
        return a * self.weight + b, a - b


@k2t.converts("SumAndDifference", mask="drops", weights=("weight",), outputs=2)
def sum_and_difference(layer: k2t.LayerSpec) -> nn.Module:
    return SumAndDifference(layer.weights["weight"])


def unlike(x: Tensor, mask: Tensor | None, value: float) -> Tensor:
    return (x != value).any(dim=-1)


def skip_mask(layer: k2t.LayerSpec) -> k2t.MaskFlow:
    return k2t.MaskFlow(after=unlike, makes=True, constants={"value": layer.config["value"]})


@k2t.converts("SkipSteps", mask=skip_mask, options={"value": 0.0})
def skip_steps(layer: k2t.LayerSpec) -> nn.Module:
    return nn.Identity()


@k2t.supplies("kept")
def kept(x: Tensor, mask: Tensor | None = None) -> Tensor:
    return x if mask is None else x * mask.unsqueeze(-1) + 0.25


@k2t.supplies("stretch")
def stretch(x: Tensor, by: float = 1.0, plus: float = 0.0) -> Tensor:
    return x * by + plus


@k2t.supplies("last")
def last(x: Tensor) -> Tensor:
    return x[:, -1]


@k2t.equation("last")
def last_equation(layer: k2t.LayerSpec, x: Array, mask: Array | None) -> tuple[Array, None]:
    return x[:, x.shape[1] - 1], None


class PairCell(nn.Module):
    def __init__(self, cell: k2t.LayerSpec) -> None:
        super().__init__()
        for name, array in cell.weights.items():
            self.register_parameter(name, nn.Parameter(torch.tensor(array)))

    def forward(self, x: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        h, m = states
        h = torch.tanh(x @ self.kernel + h @ self.recurrent + m @ self.feedback)
        m = m * 0.5 + torch.tanh(h @ self.store)
        return m @ self.show + self.bias, (h, m)


@k2t.converts(
    "PairCell",
    state_size=("units", "memory"),
    output_size="width",
    weights=("kernel", "recurrent", "feedback", "store", "show", "bias"),
    options={"units": 5, "memory": 7, "width": 11},
    initial_state="zeros",
)
def pair_cell(cell: k2t.LayerSpec) -> nn.Module:
    return PairCell(cell)


@k2t.equation("PairCell")
def pair_cell_equation(
    cell: k2t.LayerSpec, x: Array, states: tuple[Array, ...]
) -> tuple[Array, tuple[Array, ...]]:
    w = cell.weights
    h = np.tanh(
        np.concatenate([x, *states], axis=1)
        @ np.concatenate([w["kernel"], w["recurrent"], w["feedback"]])
    )
    m = states[1] / 2 + np.tanh(h @ w["store"])
    return m @ w["show"] + w["bias"], (h, m)


class LeakyCell(nn.Module):
    def __init__(self, cell: k2t.LayerSpec) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.tensor(cell.weights["kernel"]))
        self.recurrent = nn.Parameter(torch.tensor(cell.weights["recurrent"]))
        self.keep = cell.config["keep"]

    def forward(self, x: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        new = torch.tanh(x @ self.kernel + states[0] @ self.recurrent + 0.5)
        h = torch.lerp(new, states[0], self.keep)
        return h * 2 - 0.75, (h,)


@k2t.converts(
    "LeakyCell", state_size=lambda cell: cell.config["units"], weights=("kernel", "recurrent")
)
def leaky_cell(cell: k2t.LayerSpec) -> nn.Module:
    return LeakyCell(cell)


class StartCell(nn.Module):
    def __init__(self, cell: k2t.LayerSpec) -> None:
        super().__init__()
        for name in ("kernel", "recurrent", "store", "recall"):
            self.register_parameter(name, nn.Parameter(torch.tensor(cell.weights[name])))
        start = cell.weights.get("start")
        first = torch.full((cell.config["units"],), -0.5) if start is None else torch.tensor(start)
        self.start = nn.Parameter(first, requires_grad=start is not None)
        self.memory, self.level = cell.config["memory"], cell.config["level"]

    def get_initial_state(self, rows: int) -> tuple[Tensor, ...]:
        return self.start.expand(rows, -1), torch.full((rows, self.memory), self.level)

    def forward(self, x: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        h, m = states
        m = m * 0.5 + torch.tanh(h @ self.store)
        h = torch.tanh(x @ self.kernel + h @ self.recurrent + m @ self.recall)
        return h, (h, m)


def start_weights(config: Mapping[str, Any], shape: Any) -> dict[str, None]:
    start = ("start",) if config["learned"] else ()
    return dict.fromkeys(("kernel", "recurrent", "store", "recall", *start))


@k2t.converts(
    "StartCell", state_size=("units", "memory"), initial_state="own", weights=start_weights
)
def start_cell(cell: k2t.LayerSpec) -> nn.Module:
    return StartCell(cell)


def start_states(cell: k2t.LayerSpec, rows: int) -> list[Array]:
    config = cell.config
    first = cell.weights["start"] if config["learned"] else np.full(config["units"], -0.5)
    return [np.tile(first, (rows, 1)), np.ones((rows, config["memory"])) * config["level"]]


@k2t.equation("StartCell", initial_state=start_states)
def start_cell_equation(
    cell: k2t.LayerSpec, x: Array, states: tuple[Array, ...]
) -> tuple[Array, tuple[Array, ...]]:
    w = cell.weights
    m = states[1] / 2 + np.tanh(np.einsum("bu,um->bm", states[0], w["store"]))
    both = np.concatenate([w["kernel"], w["recurrent"], w["recall"]])
    h = np.tanh(np.concatenate([x, states[0], m], axis=1) @ both)
    return h, (h, m)


class GatedCell(nn.Module):
    def __init__(self, cell: k2t.LayerSpec) -> None:
        super().__init__()
        kernel, recurrent, bias = (
            torch.tensor(cell.weights[f"inner/{n}"]) for n in ("kernel", "recurrent_kernel", "bias")
        )
        self.inner = nn.LSTMCell(kernel.shape[0], recurrent.shape[0])
        self.inner.load_state_dict(
            {
                "weight_ih": kernel.T,
                "weight_hh": recurrent.T,
                "bias_ih": bias,
                "bias_hh": torch.zeros_like(bias),
            }
        )
        gate = torch.tensor(cell.weights["gate/kernel"])
        self.gate = nn.Linear(*gate.shape)
        self.gate.load_state_dict(
            {"weight": gate.T, "bias": torch.tensor(cell.weights["gate/bias"])}
        )
        self.level = nn.Parameter(torch.tensor(cell.weights["level"]))

    def forward(self, x: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        h, c = self.inner(x, states)
        return torch.tanh(self.gate(h)) * self.level, (h, c)


@k2t.converts(
    "GatedCell",
    state_size=["units", "units"],
    output_size="width",
    weights=(
        "level",
        "inner/kernel",
        "inner/recurrent_kernel",
        "inner/bias",
        "gate/kernel",
        "gate/bias",
    ),
)
def gated_cell(cell: k2t.LayerSpec) -> nn.Module:
    return GatedCell(cell)


class NestedSteps(nn.Module):
    def __init__(self, layer: k2t.LayerSpec) -> None:
        super().__init__()
        weights = {name: torch.tensor(array) for name, array in layer.weights.items()}
        self.level = nn.Parameter(weights["level"])
        self.mix = nn.Linear(*weights["mix/kernel"].shape)
        self.mix.load_state_dict({"weight": weights["mix/kernel"].T, "bias": weights["mix/bias"]})
        units = len(self.level)
        self.read = nn.LSTM(units, units, batch_first=True, bidirectional=True)
        state = {}
        for half, suffix in (("forward_layer", ""), ("backward_layer", "_reverse")):
            start = f"read/{half}/cell"
            state[f"weight_ih_l0{suffix}"] = weights[f"{start}/kernel"].T
            state[f"weight_hh_l0{suffix}"] = weights[f"{start}/recurrent_kernel"].T
            state[f"bias_ih_l0{suffix}"] = weights[f"{start}/bias"]
            state[f"bias_hh_l0{suffix}"] = torch.zeros_like(weights[f"{start}/bias"])
        self.read.load_state_dict(state)

    def forward(self, x: Tensor) -> Tensor:
        forward, backward = self.read(torch.tanh(self.mix(x)))[0].chunk(2, dim=-1)
        return (forward + backward) * self.level


NESTED = (
    "level",
    "mix/kernel",
    "mix/bias",
    *(
        f"read/{half}/cell/{name}"
        for half in ("forward_layer", "backward_layer")
        for name in ("kernel", "recurrent_kernel", "bias")
    ),
)


@k2t.converts("NestedSteps", mask="drops", weights=NESTED)
def nested_steps(layer: k2t.LayerSpec) -> nn.Module:
    return NestedSteps(layer)
