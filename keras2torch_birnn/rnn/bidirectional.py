"""``BiLSTM``, ``BiGRU`` and ``BiRNN``: stacks of bidirectional layers with Keras' merge modes.

Torch's arguments, parameter names and states, and after every layer the merge that Keras has
(``keras.layers.Bidirectional``). No Keras file is needed. B batch, T time, H hidden_size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from keras2torch_birnn.activations import FUNCTIONS
from keras2torch_birnn.errors import UsageError
from keras2torch_birnn.rnn.asked import Asked, Result, State
from keras2torch_birnn.rnn.choice import VARIABLE, Choice, Wish, wish
from keras2torch_birnn.rnn.engines import KERNELS, Recurrence, decide, is_exporting, run, run_masked
from keras2torch_birnn.rnn.folded import cannot_fold, run_folded
from keras2torch_birnn.rnn.loop import WEIGHT_NAMES, Cell, Weights
from keras2torch_birnn.rnn.merge import MERGE
from keras2torch_birnn.rnn.native.library import missing, native_numbers, say_once_if_missing
from keras2torch_birnn.schema import CELL_GATES

MergeMode: TypeAlias = str | None
# merge_mode None in the last layer: (forward, backward)
Merged: TypeAlias = Any
_DIRECTIONS = ("", "_reverse")
_TORCH_LAYERS = {"LSTM": nn.LSTM, "GRU": nn.GRU, "SimpleRNN": nn.RNN}


class BidirectionalStack(nn.Module):
    """Layers of one cell, both directions, merged after every layer. See the three subclasses."""

    cell_class: str

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = True,
        proj_size: int = 0,
        *,
        merge_mode: MergeMode | Sequence[MergeMode] = "concat",
        activation: str = "tanh",
        recurrent_activation: str = "sigmoid",
        reset_after: bool = True,
        engine: Wish | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, size in {
            "input_size": input_size,
            "hidden_size": hidden_size,
            "num_layers": num_layers,
        }.items():
            if type(size) is not int or size < 1:
                raise UsageError(f"{name}={size!r}: a whole number of at least 1 is expected")
        if proj_size:
            raise UsageError(
                f"proj_size={proj_size}: Keras has no projections and no merge is defined for them",
                "use nn.LSTM",
            )
        if not bidirectional:
            raise UsageError("bidirectional=False: there is nothing to merge", "use torch's own")
        if not 0.0 <= dropout <= 1.0:
            raise UsageError(f"dropout={dropout!r}: a rate between 0 and 1 is expected")
        if wish(engine) in ("auto", "native"):
            say_once_if_missing()
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.dropout = bias, batch_first, dropout
        self.merge_mode = _merge_modes(merge_mode, num_layers)
        self.activation, self.recurrent_activation = activation, recurrent_activation
        self.reset_after, self.engine = reset_after, engine
        self._kind = (
            "GRU before" if self.cell_class == "GRU" and not reset_after else (self.cell_class)
        )
        gate = "linear" if self.cell_class == "SimpleRNN" else recurrent_activation
        self._cell = Cell(self._kind, _function(activation), _function(gate))
        standard = gate == ("linear" if self.cell_class == "SimpleRNN" else "sigmoid")
        self._kernel = KERNELS.get((self._kind, activation)) if standard else None
        self._native = None if missing() else native_numbers(self._kind, activation, gate)
        width = CELL_GATES[self.cell_class] * hidden_size
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
        self._flatten()

    def layer_input_size(self, layer: int) -> int:
        """Width of what a layer reads: the input's, or what the layer before it merged to."""
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
        hx: Tensor | tuple[Tensor, Tensor] | None = None,
        *,
        mask: Tensor | None = None,
    ) -> tuple[Merged, Any]:
        """Run all layers.

        input: (T, B, input_size), with ``batch_first`` (B, T, input_size), without batch
        (T, input_size), or a PackedSequence. hx: states before the first step as torch's layers
        take them, (num_layers * 2, B, H) for h, and for an LSTM a pair of them. mask: bool, the
        first two dimensions of the input; false where a step does not count: it leaves the states
        alone, and the output there is zero.

        Returns the output of the last layer and the last states in the form of ``hx``. The output
        is (T, B, H), with "concat" (T, B, 2 H), with None a pair; packed if the input was.

        Raises:
            UsageError: a mask together with a PackedSequence, or of another shape than the input.
            ValueError: sizes that do not fit.
        """
        if isinstance(input, PackedSequence):
            if mask is not None:
                raise UsageError("a mask and a PackedSequence: one of them says what counts")
            return self._packed(input, hx)
        batched = input.dim() == 3
        if input.dim() not in (2, 3):
            raise ValueError(f"an input of 2 or 3 dimensions is expected, found {input.dim()}")
        if mask is not None and mask.shape != input.shape[:-1]:
            raise UsageError(
                f"mask: {list(input.shape[:-1])} is expected, found {list(mask.shape)}"
            )
        states = _states(hx)
        if not batched:
            input = input[None]
            mask = None if mask is None else mask[None]
            states = tuple(s[:, None] for s in states)
        elif not self.batch_first:
            input = input.transpose(0, 1)
            mask = None if mask is None else mask.transpose(0, 1)
        out, final = self._layers(input, None, mask, self._start(states, input.shape[0]))

        def turned(y: Tensor) -> Tensor:
            return y[0] if not batched else y if self.batch_first else y.transpose(0, 1)

        if not batched:
            final = tuple(s[:, 0] for s in final)
        return _each(turned, out), _as_hx(final)

    def explain(self, batch: int = 1, *, masked: bool = False) -> tuple[Choice, ...]:
        """Which engine runs each layer, and why, for a batch of this size as things stand now."""
        layers = self.recurrences()
        if folded := self._folded(layers, layers[0].weights[0].ih):
            return (folded,) * self.num_layers
        return tuple(decide(layer, example(layer, batch, masked=masked)) for layer in layers)

    def recurrences(self) -> tuple[Recurrence, ...]:
        """The layers as the engines see them."""
        return tuple(
            Recurrence(
                self._cell,
                tuple(self._weights(layer, suffix) for suffix in _DIRECTIONS),
                self._kernel,
                self._native,
                training=self.training,
                engine=self.engine,
            )
            for layer in range(self.num_layers)
        )

    def extra_repr(self) -> str:
        """Sizes, then what is not a default."""
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
        return ", ".join((*parts, f"merge_mode={modes!r}"))

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Move or cast, as ``nn.Module`` does, then as ``nn.LSTM`` does: see ``_flatten``."""
        module: Any = super()
        module._apply(fn, recurse)
        self._flatten()
        return self

    def _flatten(self) -> None:
        """On a GPU, lay the weights of one call of cuDNN side by side; else it copies them there.

        ``flatten_parameters`` of torch's own layer does it, of one that holds these parameters.
        """
        if self._kernel is None or not _on_gpu(self):
            return
        made: Any = _TORCH_LAYERS[self.cell_class]
        more = {"nonlinearity": self.activation} if self.cell_class == "SimpleRNN" else {}
        every = range(self.num_layers)
        for layers in (every,) if self._concatenates() else [range(k, k + 1) for k in every]:
            holder = made(
                self.layer_input_size(layers[0]),
                self.hidden_size,
                len(layers),
                bias=self.bias,
                bidirectional=True,
                device="meta",
                **more,
            )
            own = {
                f"{name}_l{number}{suffix}": self._parameters.get(f"{name}_l{layer}{suffix}")
                for number, layer in enumerate(layers)
                for suffix in _DIRECTIONS
                for name in WEIGHT_NAMES[: 4 if self.bias else 2]
            }
            if any(parameter is None for parameter in own.values()):
                continue  # a parametrization computes it
            for name, parameter in own.items():
                setattr(holder, name, parameter)
            holder.flatten_parameters()

    def _concatenates(self) -> bool:
        """Whether there are layers that read both directions side by side, as torch's own do."""
        return set(self.merge_mode[:-1]) == {"concat"}

    def _weights(self, layer: int, suffix: str) -> Weights:
        names = [f"{name}_l{layer}{suffix}" for name in WEIGHT_NAMES]
        found: list[Any] = [getattr(self, name, None) for name in names]
        return Weights(*found)

    def _start(
        self, states: tuple[Tensor, ...], batch: int
    ) -> tuple[tuple[State, ...], ...] | None:
        """Torch's stacked states -> per layer, per direction."""
        if not states:
            return None
        wanted = (2 * self.num_layers, batch, self.hidden_size)
        count = 2 if self.cell_class == "LSTM" else 1
        if len(states) != count or any(s.shape != wanted for s in states):
            raise ValueError(
                f"hx: {count} tensor(s) of {list(wanted)} expected, found "
                f"{[list(s.shape) for s in states]}"
            )
        return tuple(
            tuple(tuple(s[2 * layer + d] for s in states) for d in range(2))
            for layer in range(self.num_layers)
        )

    def _layers(
        self,
        x: Tensor,
        lengths: Tensor | None,
        mask: Tensor | None,
        start: tuple[tuple[State, ...], ...] | None,
    ) -> tuple[Merged, tuple[Tensor, ...]]:
        """x: (B, T, F), the first ``lengths`` steps of each row or those in ``mask`` count."""
        layers = self.recurrences()
        if self._folded(layers, x):
            begin = None if start is None else tuple(s for layer in start for s in layer)
            asked = Asked(x, lengths, begin, self.merge_mode[-1])
            outputs, states = _on_mask(partial(run_folded, layers, self.merge_mode), asked, mask)
            return outputs if asked.merge is None else outputs[0], _stacked(states)
        finals: list[State] = []
        out: Merged = x
        for index, layer in enumerate(layers):
            begin = None if start is None else start[index]
            mode = self.merge_mode[index]
            asked = Asked(out, lengths, begin, mode)
            outputs, states = _on_mask(partial(run, layer), asked, mask)
            out = outputs if mode is None else outputs[0]
            if self.dropout and index < self.num_layers - 1:
                out = nn.functional.dropout(out, self.dropout, self.training)
            finals += states
        return out, _stacked(finals)

    def _folded(self, layers: Sequence[Recurrence], like: Tensor) -> Choice | None:
        """The choice of one call for all layers; None if they run one by one.

        ``like``: a tensor on the device.

        Raises:
            UsageError: it was chosen and cannot be.
        """
        engine = wish(self.engine)
        if engine == "folded":
            if lacking := cannot_fold(layers, self.merge_mode, self.dropout):
                raise UsageError(f"{VARIABLE}=folded: {lacking}", "use auto")
            return Choice("folded", "chosen")
        # As nn.LSTM runs its layers. Merges that take wider weights were never measured there.
        if not like.is_cuda or engine not in ("auto", "torch") or is_exporting():
            return None
        if not self._concatenates() or cannot_fold(layers, self.merge_mode, self.dropout):
            return None
        return Choice("folded", "torch's own kernel, all layers in one call")

    def _packed(self, packed: PackedSequence, hx: Any) -> tuple[Merged, Any]:
        """Padded, run, packed again; states are in the order of the caller's rows."""
        x, counts = pad_packed_sequence(packed, batch_first=True)
        states = _states(hx)
        out, final = self._layers(x, counts.to(x.device), None, self._start(states, x.shape[0]))

        def again(y: Tensor) -> PackedSequence:
            if packed.sorted_indices is None:
                return pack_padded_sequence(y, counts, batch_first=True)
            order = packed.sorted_indices
            fresh = pack_padded_sequence(y[order], counts[order.cpu()], batch_first=True)
            return PackedSequence(
                fresh.data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices
            )

        return _each(again, out), _as_hx(final)


class BiLSTM(BidirectionalStack):
    """A stack of bidirectional LSTM layers with a merge after every layer.

    ``nn.LSTM``'s arguments and parameter names. ``merge_mode``: "concat", "sum", "mul", "ave", for
    all layers or one for each; None (a pair comes out) for the last. ``activation`` and
    ``recurrent_activation``: Keras' names, with ``hard_sigmoid`` spelled out as
    "hard_sigmoid_0.2" (Keras 1 and 2) or "hard_sigmoid_1/6" (Keras 3, torch). ``engine``: "auto",
    "torch", "fused", "folded", "loop", "graph" or "native" (see the README); None for what
    K2T_ENGINE says.

    Raises:
        UsageError: an argument has no meaning here; the message says which and what is allowed.
    """

    cell_class = "LSTM"


class BiGRU(BidirectionalStack):
    """A stack of bidirectional GRU layers with a merge after every layer; see ``BiLSTM``.

    ``reset_after``: True as in ``nn.GRU`` and Keras since tf.keras 2.0; False as in Keras before.
    """

    cell_class = "GRU"


class BiRNN(BidirectionalStack):
    """A stack of bidirectional ``nn.RNN`` (Keras: SimpleRNN) layers; see ``BiLSTM``."""

    cell_class = "SimpleRNN"


def _on_mask(sequences: Callable[[Asked], Result], asked: Asked, mask: Tensor | None) -> Result:
    """On all steps, or where ``mask`` says that they count."""
    if mask is None:
        return sequences(asked)
    return run_masked(sequences, asked, mask, ("zeros", "zeros"))


def _stacked(states: Sequence[State]) -> tuple[Tensor, ...]:
    """States of all layers and directions, as torch's layers give them."""
    return tuple(torch.stack(parts) for parts in zip(*states, strict=True))


def _on_gpu(stack: nn.Module) -> bool:
    return any(parameter.is_cuda for parameter in stack.parameters())


def example(layer: Recurrence, batch: int, *, masked: bool) -> Asked:
    """A call of so many rows, to ask ``decide`` about."""
    weight = layer.weights[0].ih
    x = weight.detach().new_zeros(batch, 1, weight.shape[1])
    return Asked(x, torch.ones(batch, dtype=torch.int64) if masked else None)


def _function(name: str) -> Any:
    if name == "hard_sigmoid":
        raise UsageError(
            "hard_sigmoid means two things",
            'use "hard_sigmoid_0.2" (Keras 1 and 2) or "hard_sigmoid_1/6" (Keras 3 and torch)',
        )
    if name not in FUNCTIONS:
        raise UsageError(f"activation {name!r}: one of {', '.join(FUNCTIONS)} is expected")
    return FUNCTIONS[name]


def _merge_modes(given: MergeMode | Sequence[MergeMode], num_layers: int) -> tuple[MergeMode, ...]:
    modes = (given,) * num_layers if given is None or isinstance(given, str) else tuple(given)
    if len(modes) != num_layers:
        raise UsageError(f"merge_mode: {len(modes)} modes for {num_layers} layers")
    for index, mode in enumerate(modes):
        if mode is None and index < num_layers - 1:
            raise UsageError("merge_mode=None: only the last layer may keep both directions apart")
        if mode is not None and mode not in MERGE:
            raise UsageError(f"merge_mode={mode!r}: one of {', '.join(MERGE)} or None is expected")
    return modes


def _each(change: Any, out: Merged) -> Merged:
    return tuple(change(y) for y in out) if isinstance(out, tuple) else change(out)


def _states(hx: Tensor | tuple[Tensor, Tensor] | None) -> tuple[Tensor, ...]:
    if hx is None:
        return ()
    return hx if isinstance(hx, tuple) else (hx,)


def _as_hx(final: tuple[Tensor, ...]) -> Any:
    return final if len(final) == 2 else final[0]
