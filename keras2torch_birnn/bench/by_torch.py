"""Contenders on torch: the converted model by any engine, and what one writes by hand."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from keras2torch_birnn.bench.case import (
    RATE,
    Case,
    Model,
    Prepared,
    Stack,
    input_of,
    layers_of,
    lengths_of,
    mask_of,
)
from keras2torch_birnn.freezing import freeze
from keras2torch_birnn.merge_modes import MERGE_MODES
from keras2torch_birnn.rnn.bidirectional import BiGRU, BiLSTM, BiRNN
from keras2torch_birnn.rnn.engine_settings import explain, set_engine
from keras2torch_birnn.rnn.engines import check_request
from keras2torch_birnn.rnn.parameters import torch_parameters
from keras2torch_birnn.spec import Array, LayerSpec

Runner = Callable[[], Any]
TORCH_CLASSES: Mapping[str, Any] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
_STACKS: Mapping[str, Any] = {"lstm": BiLSTM, "gru": BiGRU, "rnn": BiRNN}


def prepare(case: Case, how: str, device: str, inputs: list[Array]) -> Prepared:
    """Prepare a case for an engine, or "compile" (torch per layer, compiled).

    An engine's name that ends in "-frozen": the same frozen, where it does not train. In
    "-compile": the same compiled by torch.
    """
    set_threads()
    model: nn.Module
    call: Runner
    given: tuple[Any, ...] = ()
    how, _, form = how.partition("-")
    if isinstance(case, Model):
        model, given = _model(case, how, device, inputs)
        call = partial(model, *given)
    elif how in ("torch", "compile"):
        model, call = _by_hand(case, device, compiled=how == "compile")
    else:
        model, given = _converted(case, how, device)
        call = partial(model, *given)
    trains = isinstance(case, Stack) and case.training
    if form == "frozen" and not trains:
        call = partial(freeze(model), *given)  # as other runtimes make a session
    elif form == "compile":
        call = torch.compile(call)
    ready = _nothing if device == "cpu" else partial(torch.accelerator.synchronize, device)

    def run() -> Any:
        with torch.inference_mode():
            out = call()
        ready()
        return out

    kernel = f"torch {torch.__version__}"
    runs = f"{kernel}, {torch.cuda.get_device_name(device)}" if "cuda" in device else kernel
    way = "" if how == "loop" else _describe_way(model, case, device)
    if not trains:
        return Prepared(run, run, runs, way)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), RATE)

    def step() -> None:
        optimizer.zero_grad()
        call().square().mean().backward()
        optimizer.step()
        ready()

    def after_one_step() -> Any:
        torch.manual_seed(0)  # of the masks of dropout
        step()
        return run()

    return Prepared(step, after_one_step, runs, way)


def _describe_way(model: nn.Module, case: Case, device: str) -> str:
    """Say how the recurrent layers of a contender run, each way once."""
    if isinstance(case, Model):
        meta: Any = getattr(model, "meta", {})
        masked = "uses it" in meta.get("masks", {}).values()
    else:
        masked = case.masked
    of_torch = ("cuDNN" if "cuda" in device else "torch's kernel") + ", packed" * masked
    if any(isinstance(module, ByHand) for module in model.modules()):
        return of_torch
    with torch.set_grad_enabled(isinstance(case, Stack) and case.training):
        found = explain(model, case.batch, masked=masked)
    engines = dict.fromkeys(choice.engine for choices in found.values() for choice in choices)
    return "; ".join(of_torch if engine == "fused" else engine for engine in engines)


def set_threads() -> None:
    """Use as many threads as the process was told to."""
    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))


def trained_exactly(stack: Stack) -> Array:
    """Compute the stack's output after one step of training, in float64, equation by equation."""
    model, given = _converted(stack, "loop", "cpu", torch.float64)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    torch.manual_seed(0)
    model(*given).square().mean().backward()
    optimizer.step()
    found: Array = model(*given).detach().numpy()
    return found


def _nothing() -> None:
    pass


def _model(
    case: Model, how: str, device: str, inputs: list[Array]
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    model = case.convert().to(device)
    set_engine(model, check_request(how))
    return model, tuple(torch.from_numpy(x).to(device) for x in inputs)


class _InTurn(nn.ModuleList):
    """Converted layers, each called with the output of the one before."""

    def forward(self, x: Tensor, mask: Tensor | None) -> Any:
        """Map (B, T, F) to (B, T, H)."""
        for layer in self:
            x = layer(x, mask=mask)
        return x


def _converted(
    stack: Stack, engine: str, device: str, dtype: torch.dtype = torch.float32
) -> tuple[nn.Module, tuple[Tensor, Tensor | None]]:
    from keras2torch_birnn.layers.registry import convert_layer

    model = _InTurn([convert_layer(layer) for layer in layers_of(stack)]).eval()
    model.to(device, dtype)
    set_engine(model, check_request(engine))
    return model, _make_inputs(stack, device, dtype)


def _make_inputs(
    stack: Stack, device: str, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor | None]:
    """Return input and mask of a stack."""
    x, mask = torch.from_numpy(input_of(stack)).to(device, dtype), mask_of(stack)
    return x, None if mask is None else torch.from_numpy(mask).to(device)


def _fill(module: nn.Module, arrays: dict[str, Array]) -> None:
    """Set a module's parameters by name, and all others to zero."""
    zeros = {name: torch.zeros_like(value) for name, value in module.state_dict().items()}
    given = {n: torch.from_numpy(np.ascontiguousarray(a)) for n, a in arrays.items()}
    module.load_state_dict(zeros | given)


class ByHand(nn.Module):
    """torch's own bidirectional layer, with the merge by hand."""

    def __init__(self, stack: Stack, layer: LayerSpec) -> None:
        super().__init__()
        state = _state(layer)
        features = state["weight_ih_l0"].shape[1]
        made = TORCH_CLASSES[stack.rnn]
        self.rnn = made(features, stack.units, batch_first=True, bidirectional=True)
        _fill(self.rnn, state)
        for name, weight in self.rnn.named_parameters():
            weight.requires_grad_(name in state)  # Keras has one bias and trains one
        self.merge = MERGE_MODES[stack.merge].on_tensors
        self.lengths = lengths_of(stack)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, F) to (B, T, H)."""
        if self.lengths is None:
            out = self.rnn(x)[0]
        else:
            counts = torch.from_numpy(self.lengths)
            packed = pack_padded_sequence(x, counts, batch_first=True, enforce_sorted=False)
            out, _ = pad_packed_sequence(
                self.rnn(packed)[0], batch_first=True, total_length=x.shape[1]
            )
        return self.merge(*out.chunk(2, dim=2))


def _state(layer: LayerSpec) -> dict[str, Array]:
    """Return a Bidirectional's weights by torch's names."""
    state = torch_parameters(layer.parts["forward_layer"])
    return state | torch_parameters(layer.parts["backward_layer"], "_reverse")


def module_of(
    stack: Stack, engine: str = "auto", classes: Mapping[str, Any] = _STACKS
) -> nn.Module:
    """Build one module of all layers, a ``BiLSTM`` and so on; or that of other classes."""
    options: dict[str, Any] = {"batch_first": True}
    if classes is _STACKS:
        options |= {"merge_mode": stack.merge, "engine": engine}
    else:
        options["bidirectional"] = True
    model: nn.Module = classes[stack.rnn](stack.features, stack.units, stack.layers, **options)
    given = {
        name.replace("_l0", f"_l{number}"): array
        for number, layer in enumerate(layers_of(stack))
        for name, array in _state(layer).items()
    }
    _fill(model, given)
    return model.eval()


def _by_hand(stack: Stack, device: str, *, compiled: bool) -> tuple[nn.Module, Runner]:
    model: Any = nn.Sequential(*(ByHand(stack, layer) for layer in layers_of(stack)))
    model = model.eval().to(device)
    x = torch.from_numpy(input_of(stack)).to(device)
    if compiled:
        model = torch.compile(model)
    return model, lambda: model(x)
