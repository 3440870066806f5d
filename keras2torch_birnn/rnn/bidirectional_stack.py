"""Layers of one cell, both directions, merged after every layer: the base of ``BiLSTM`` and others.

B batch, T time, H hidden_size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.types import Device

from keras2torch_birnn.errors import ArgumentTypeError, ArgumentValueError, printable
from keras2torch_birnn.rnn.cell_kind import CELL_KINDS, kind_name
from keras2torch_birnn.rnn.checks import (
    MergeChoice,
    check_dtypes,
    check_flags,
    check_function,
    check_rate,
    check_sizes,
    check_tensor,
    resolve_merge_modes,
)
from keras2torch_birnn.rnn.engines import Choice, EngineRequest, requested_engine
from keras2torch_birnn.rnn.engines.select import (
    explain_layer,
    run,
)
from keras2torch_birnn.rnn.layer import Cell, RnnCall, RnnLayer, State
from keras2torch_birnn.rnn.masks import run_masked
from keras2torch_birnn.rnn.modules import find_parameters, parameter_names
from keras2torch_birnn.rnn.native.codes import ReducedPrecision
from keras2torch_birnn.rnn.native.library import warn_once_if_missing

# merge_mode None in the last layer: (forward, backward)
Merged: TypeAlias = Any
Pairs: TypeAlias = tuple[Tensor, Tensor] | tuple[PackedSequence, PackedSequence]
Output: TypeAlias = Tensor | PackedSequence | Pairs
LastStates: TypeAlias = Tensor | tuple[Tensor, ...]
_DIRECTIONS = ("", "_reverse")


class BidirectionalStack(nn.Module):
    """Layers of one cell, both directions, merged after every layer. See the three subclasses."""

    cell_class: str
    # As nn.LSTM has them.
    bidirectional = True
    proj_size = 0
    precision: ReducedPrecision | None = None

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = True,
        *,
        merge_mode: MergeChoice | Sequence[MergeChoice] = "concat",
        activation: str = "tanh",
        recurrent_activation: str = "sigmoid",
        reset_after: bool = True,
        engine: EngineRequest | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Check the arguments, choose the cell and its kernels, and make random parameters.

        Raises:
            ArgumentTypeError, ArgumentValueError: an argument of a wrong type or value.
        """
        super().__init__()
        check_sizes(input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
        check_flags(
            bias=bias,
            batch_first=batch_first,
            bidirectional=bidirectional,
            reset_after=reset_after,
        )
        if not bidirectional:
            raise ArgumentValueError(
                "bidirectional=False: there is nothing to merge", "use torch's own"
            )
        check_rate(dropout)
        if requested_engine(engine) in ("auto", "native"):
            warn_once_if_missing()
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.dropout = bias, batch_first, float(dropout)
        self.merge_mode = resolve_merge_modes(merge_mode, num_layers)
        self.activation, self.recurrent_activation = activation, recurrent_activation
        self.reset_after, self.engine = reset_after, engine
        kind = kind_name(self.cell_class, reset_after=reset_after)
        for name in (activation, recurrent_activation):
            check_function(name)
        gate = "linear" if self.cell_class == "SimpleRNN" else recurrent_activation
        self._cell = Cell.of(kind, activation, gate)
        self._names = tuple(parameter_names(2, layer) for layer in range(num_layers))
        width = CELL_KINDS[kind].gates * hidden_size
        for layer in range(num_layers):
            shapes = {
                "weight_ih": (width, self.layer_input_size(layer)),
                "weight_hh": (width, hidden_size),
                "bias_ih": (width,),
                "bias_hh": (width,),
            }
            for suffix in _DIRECTIONS:
                for name, shape in shapes.items():
                    if bias or not name.startswith("bias"):
                        empty = torch.empty(shape, device=device, dtype=dtype)
                        self.register_parameter(f"{name}_l{layer}{suffix}", nn.Parameter(empty))
        self.reset_parameters()
        self.flatten_parameters()

    @property
    def mode(self) -> str:
        """The cell in torch's words: "LSTM", "GRU", "RNN_TANH", "RNN_RELU"."""
        simple = self.cell_class == "SimpleRNN"
        return f"RNN_{self.activation.upper()}" if simple else self.cell_class

    @property
    def all_weights(self) -> list[list[nn.Parameter]]:
        """The parameters of each layer and direction, in torch's order."""
        count = 4 if self.bias else 2
        found = [find_parameters(self, names) for names in self._names]
        weights: Any = [each[d : d + count] for each in found for d in (0, 4)]
        return cast(list[list[nn.Parameter]], weights)

    @property
    def _flat_weights(self) -> list[nn.Parameter]:
        """``all_weights`` in one list, as code that knows ``nn.LSTM`` reads it."""
        return list(chain.from_iterable(self.all_weights))

    def layer_input_size(self, layer: int) -> int:
        """Return the width of a layer's input: that of the input, or of the merged layer before."""
        if layer == 0:
            return self.input_size
        return self.hidden_size * (2 if self.merge_mode[layer - 1] == "concat" else 1)

    def reset_parameters(self) -> None:
        """Draw every parameter uniformly from +-1/sqrt(hidden_size), as torch's layers do."""
        bound = 1.0 / math.sqrt(self.hidden_size)
        for weight in self.parameters():
            nn.init.uniform_(weight, -bound, bound)

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | Sequence[Tensor] | None = None,
        *,
        mask: Tensor | None = None,
        lengths: Tensor | Sequence[int] | int | None = None,
    ) -> tuple[Output, LastStates]:
        """Run all layers.

        input: (T, B, input_size), with ``batch_first`` (B, T, input_size), without batch
        (T, input_size), or a PackedSequence. hx: states before the first step as torch's layers
        take them, (num_layers * 2, B, H) for h, and for an LSTM a pair of them. mask: bool, the
        first two dimensions of the input; false where a step does not count: it leaves the states
        alone, and the output there is zero. lengths: instead of a mask, the number of steps of each
        row that count, (B,); one number without batch.

        Returns the output of the last layer and the last states in the form of ``hx``. The output
        is (T, B, H), with "concat" (T, B, 2 H), with None a pair; packed if the input was.

        Raises:
            ArgumentTypeError: no tensor, or not the dtype of the weights. A UsageError and a
                TypeError.
            ArgumentValueError: sizes that do not fit, or two of a mask, lengths and a
                PackedSequence. A UsageError and a ValueError.
        """
        marks = {"a mask": mask is not None, "lengths": lengths is not None}
        marks["a PackedSequence"] = isinstance(input, PackedSequence)
        if len(two := [name for name, used in marks.items() if used]) > 1:
            raise ArgumentValueError(f"{' and '.join(two)}: one of them says what counts")
        if isinstance(input, PackedSequence):
            return self._run_packed(input, hx)
        check_tensor("input", input, self)
        batched = input.dim() == 3
        if input.dim() not in (2, 3):
            raise ArgumentValueError(
                f"an input of 2 or 3 dimensions is expected, found {input.dim()}"
            )
        counts = None
        if lengths is not None:
            counts = _count_steps(lengths, input, batch_first=self.batch_first)
        if mask is not None:
            _check_mask(mask, input)
        states = self._as_tuple(hx)
        if not batched:
            input = input[None]
            counts = None if counts is None else counts[None]
            mask = None if mask is None else mask[None]
            states = tuple(s[:, None] for s in states)
        elif not self.batch_first:
            input = input.transpose(0, 1)
            mask = None if mask is None else mask.transpose(0, 1)
        initial = self._split_states(states, input.shape[0])
        out, final = self._run_layers(input, counts, mask, initial)

        def as_input(y: Tensor) -> Tensor:
            return y[0] if not batched else y if self.batch_first else y.transpose(0, 1)

        if not batched:
            final = tuple(s[:, 0] for s in final)
        return _map_outputs(as_input, out), _as_hx(final)

    def mark_valid(self, lengths: Tensor | Sequence[int] | int, input: Tensor) -> Tensor:
        """Return the mask that stands for ``lengths`` of an input of 2 or 3 dimensions.

        Raises:
            ArgumentTypeError, ArgumentValueError: as ``forward``.
        """
        counts = _count_steps(lengths, input, batch_first=self.batch_first)
        steps_first = input.dim() == 3 and not self.batch_first
        steps = torch.arange(input.shape[0 if steps_first else -2], device=counts.device)
        mask = steps < counts[..., None]
        return (mask.t() if steps_first else mask).to(input.device)

    def explain(self, batch: int = 1, *, masked: bool = False) -> tuple[Choice, ...]:
        """Return the engine of each layer and the reason, for this batch size.

        With the module's current device, dtype, mode and engine, gradients or not.
        """
        return tuple(explain_layer(layer, batch, masked=masked) for layer in self.rnn_layers())

    def rnn_layers(self) -> tuple[RnnLayer, ...]:
        """Return the layers as the engines see them."""
        return tuple(
            RnnLayer(
                self._cell,
                find_parameters(self, names),
                training=self.training,
                engine=self.engine,
                precision=self.precision,
            )
            for names in self._names
        )

    def extra_repr(self) -> str:
        """Return the sizes, then what is not a default."""
        parts = [f"{self.input_size}, {self.hidden_size}"]
        modes = self.merge_mode[0] if len(set(self.merge_mode)) == 1 else list(self.merge_mode)
        defaults = {
            "num_layers": 1,
            "bias": True,
            "batch_first": False,
            "dropout": 0.0,
            "activation": "tanh",
            "recurrent_activation": "sigmoid",
            "reset_after": True,
        }
        parts += [
            f"{name}={getattr(self, name)!r}"
            for name, value in defaults.items()
            if getattr(self, name) != value
        ]
        parts.append(f"merge_mode={modes!r}")
        return ", ".join((*parts, *([f"precision={self.precision!r}"] if self.precision else [])))

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Move or cast, as ``nn.Module`` does, then flatten the weights, as ``nn.LSTM`` does."""
        module: Any = super()
        module._apply(fn, recurse)
        self.flatten_parameters()
        return self

    def flatten_parameters(self) -> None:
        """Make each layer's weights contiguous for cuDNN, else it copies them; on a GPU only.

        By ``flatten_parameters`` of torch's own layer, which is given these parameters.
        """
        if self._cell.kernel is None or not _on_gpu(self):
            return
        torch_layer: Any = getattr(nn, CELL_KINDS[self._cell.kind].torch_name)
        more = {"nonlinearity": self.activation} if self.cell_class == "SimpleRNN" else {}
        for layer, names in enumerate(self._names):
            holder = torch_layer(
                self.layer_input_size(layer),
                self.hidden_size,
                bias=self.bias,
                bidirectional=True,
                device="meta",
                **more,
            )
            own = [self._parameters.get(name) for name in names]
            given = {n: p for n, p in zip(self._names[0], own, strict=True) if p is not None}
            if len(given) < len(holder._flat_weights):
                continue  # a parametrization computes one
            for name, parameter in given.items():
                setattr(holder, name, parameter)
            holder.flatten_parameters()

    def _as_tuple(self, hx: Any) -> tuple[Tensor, ...]:
        """Return ``hx`` (None, a tensor, a tuple or a list of tensors) as a tuple."""
        if hx is None:
            return ()
        states = tuple(hx) if isinstance(hx, (tuple, list)) else (hx,)
        for state in states:
            check_tensor("hx", state, self)
        return states

    def _split_states(
        self, states: tuple[Tensor, ...], batch: int, order: Tensor | None = None
    ) -> tuple[tuple[State, ...], ...] | None:
        """Split torch's stacked states into those of each layer and direction, rows in an order."""
        if not states:
            return None
        wanted = (2 * self.num_layers, batch, self.hidden_size)
        count = CELL_KINDS[self._cell.kind].states
        if len(states) != count or any(s.shape != wanted for s in states):
            lengths = "; lengths of rows are lengths=" if states[0].dim() == 1 else ""
            raise ArgumentValueError(
                f"hx: {count} tensor(s) of {list(wanted)} expected, found "
                f"{[list(s.shape) for s in states]}{lengths}"
            )
        if order is not None:
            states = tuple(s[:, order] for s in states)
        return tuple(
            tuple(tuple(s[2 * layer + d] for s in states) for d in range(2))
            for layer in range(self.num_layers)
        )

    def _run_layers(
        self,
        x: Tensor,
        lengths: Tensor | None,
        mask: Tensor | None,
        initial: tuple[tuple[State, ...], ...] | None,
    ) -> tuple[Merged, tuple[Tensor, ...]]:
        """Run all layers on x (B, T, F), on the steps that ``lengths`` or ``mask`` make valid."""
        lengths = None if lengths is None else lengths.to(x.device)
        layers = self.rnn_layers()
        weight = layers[0].get_weight_ih()
        if initial or x.dtype is not weight.dtype:
            # The states of other layers are parts of the same tensors.
            check_dtypes(x, initial[0][:1] if initial else None, weight, "hx")
        finals: list[State] = []
        out: Merged = x
        for index, layer in enumerate(layers):
            mode = self.merge_mode[index]
            call = RnnCall(out, lengths, None if initial is None else initial[index], mode)
            if mask is None:
                outputs, states = run(layer, call)
            else:
                outputs, states = run_masked(partial(run, layer), call, mask, ("zeros", "zeros"))
            out = outputs if mode is None else outputs[0]
            if self.dropout and index < self.num_layers - 1:
                out = nn.functional.dropout(out, self.dropout, self.training)
            finals += states
        return out, tuple(torch.stack(parts) for parts in zip(*finals, strict=True))

    def _run_packed(self, packed: PackedSequence, hx: Any) -> tuple[Merged, LastStates]:
        """Pad, run and pack again, in the order of the packed rows; states are in the caller's."""
        sorted_rows = PackedSequence(packed.data, packed.batch_sizes)
        x, counts = pad_packed_sequence(sorted_rows, batch_first=True)
        order, back = packed.sorted_indices, packed.unsorted_indices
        initial = self._split_states(self._as_tuple(hx), x.shape[0], order)
        out, final = self._run_layers(x, counts, None, initial)

        def pack(y: Tensor) -> PackedSequence:
            fresh = pack_padded_sequence(y, counts, batch_first=True)
            return PackedSequence(fresh.data, packed.batch_sizes, order, back)

        final = final if back is None else tuple(s[:, back] for s in final)
        return _map_outputs(pack, out), _as_hx(final)


def _on_gpu(stack: nn.Module) -> bool:
    return any(parameter.is_cuda for parameter in stack.parameters())


def _check_mask(mask: Any, input: Tensor) -> None:
    check_tensor("mask", mask, torch.bool)
    if mask.shape != input.shape[:-1]:
        raise ArgumentValueError(
            f"mask: {list(input.shape[:-1])} is expected, found {list(mask.shape)}"
        )


def _count_steps(
    lengths: Tensor | Sequence[int] | int, input: Tensor, *, batch_first: bool
) -> Tensor:
    """Copy lengths as int64; on a GPU, or while torch compiles, no value is checked."""
    found = lengths if isinstance(lengths, Tensor) else _as_tensor(lengths)
    time, rows = (0, 1) if not batch_first or input.dim() == 2 else (1, 0)
    steps, wanted = input.shape[time], [] if input.dim() == 2 else [input.shape[rows]]
    integers = not (found.is_floating_point() or found.is_complex() or found.dtype is torch.bool)
    if list(found.shape) != wanted or not integers:
        kind = str(found.dtype).removeprefix("torch.")
        raise ArgumentValueError(
            f"lengths: integers of shape {wanted} are expected, found {kind} of {list(found.shape)}"
        )
    found = found.to(torch.int64)  # torch compares no unsigned ones
    known = found.device.type == "cpu" and not torch.compiler.is_compiling()
    if known and not bool(((found >= 0) & (found <= steps)).all()):
        raise ArgumentValueError(f"lengths: 0 to {steps} are expected, found {found.tolist()}")
    return found.clamp(0, steps)


def _as_tensor(lengths: object) -> Tensor:
    try:
        return torch.as_tensor(lengths)
    except (TypeError, ValueError, RuntimeError) as error:  # torch raises each of them
        raise ArgumentTypeError(
            f"lengths: a tensor or a list of integers is expected, found {type(lengths).__name__}",
            printable(error),
        ) from None


def _map_outputs(change: Any, out: Merged) -> Merged:
    return tuple(change(y) for y in out) if isinstance(out, tuple) else change(out)


def _as_hx(final: tuple[Tensor, ...]) -> LastStates:
    return final if len(final) == 2 else final[0]
