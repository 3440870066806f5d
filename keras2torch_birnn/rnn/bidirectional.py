"""``BiLSTM``, ``BiGRU`` and ``BiRNN``: stacks of bidirectional layers with Keras' merge modes.

Torch's arguments, parameter names and states, and after every layer the merge that Keras has
(``keras.layers.Bidirectional``). No Keras file is needed. B batch, T time, H hidden_size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from keras2torch_birnn.errors import ArgumentValueError, UsageError
from keras2torch_birnn.rnn.arguments import (
    MergeMode,
    check_flags,
    check_rate,
    check_sizes,
    function_named,
    merge_modes,
    one_function,
)
from keras2torch_birnn.rnn.call import Asked, Result, State
from keras2torch_birnn.rnn.checked import check_dtypes, check_shape, check_tensor
from keras2torch_birnn.rnn.engine_choice import VARIABLE, Choice, Wish, wish
from keras2torch_birnn.rnn.engines import (
    KERNELS,
    Recurrence,
    can_pack,
    decide,
    is_exporting,
    run,
    run_masked,
)
from keras2torch_birnn.rnn.fold_layers import cannot_fold, run_folded
from keras2torch_birnn.rnn.loop import WEIGHT_NAMES, Cell, Weights
from keras2torch_birnn.rnn.native.library import missing, native_numbers, say_once_if_missing
from keras2torch_birnn.schema import CELL_GATES

# merge_mode None in the last layer: (forward, backward)
Merged: TypeAlias = Any
_DIRECTIONS = ("", "_reverse")
_TORCH_LAYERS = {"LSTM": nn.LSTM, "GRU": nn.GRU, "SimpleRNN": nn.RNN}


class BidirectionalStack(nn.Module):
    """Layers of one cell, both directions, merged after every layer. See the three subclasses."""

    cell_class: str
    # As nn.LSTM has them. Of the class: a module that an older version pickled has them, too.
    bidirectional = True
    proj_size = 0

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        *,
        merge_mode: MergeMode | Sequence[MergeMode],
        activation: str,
        engine: Wish | None,
        device: Any,
        dtype: torch.dtype | None,
        recurrent_activation: str = "sigmoid",
        reset_after: bool = True,
    ) -> None:
        super().__init__()
        check_sizes(input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
        check_flags(
            bias=bias,
            batch_first=batch_first,
            bidirectional=bidirectional,
            reset_after=reset_after,
        )
        if not bidirectional:
            raise UsageError("bidirectional=False: there is nothing to merge", "use torch's own")
        check_rate(dropout)
        if wish(engine) in ("auto", "native"):
            say_once_if_missing()
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.dropout = bias, batch_first, float(dropout)
        self.merge_mode = merge_modes(merge_mode, num_layers)
        self.activation, self.recurrent_activation = activation, recurrent_activation
        self.reset_after, self.engine = reset_after, engine
        self._kind = (
            "GRU before" if self.cell_class == "GRU" and not reset_after else self.cell_class
        )
        gate = "linear" if self.cell_class == "SimpleRNN" else recurrent_activation
        self._cell = Cell(self._kind, function_named(activation), function_named(gate))
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
        self.flatten_parameters()

    @property
    def mode(self) -> str:
        """The cell in torch's words: "LSTM", "GRU", "RNN_TANH", "RNN_RELU"."""
        simple = self.cell_class == "SimpleRNN"
        return f"RNN_{self.activation.upper()}" if simple else self.cell_class

    @property
    def all_weights(self) -> list[list[nn.Parameter]]:
        """The parameters of each layer and direction, in torch's order."""
        return [[getattr(self, name) for name in names] for names in self._weight_names()]

    @property
    def _flat_weights(self) -> list[nn.Parameter]:
        """``all_weights`` in one list, as code that knows ``nn.LSTM`` reads it."""
        return list(chain.from_iterable(self.all_weights))

    def _weight_names(self) -> list[list[str]]:
        return [
            [f"{name}_l{layer}{suffix}" for name in WEIGHT_NAMES[: 4 if self.bias else 2]]
            for layer in range(self.num_layers)
            for suffix in _DIRECTIONS
        ]

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
        hx: Tensor | Sequence[Tensor] | None = None,
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
            ArgumentTypeError: no tensor, or not the dtype of the weights. A UsageError and a
                TypeError.
            ArgumentValueError: sizes that do not fit. A UsageError and a ValueError.
            UsageError: a mask together with a PackedSequence, or of another shape than the input.
        """
        if isinstance(input, PackedSequence):
            if mask is not None:
                raise UsageError("a mask and a PackedSequence: one of them says what counts")
            return self._packed(input, hx)
        check_tensor("input", input, self)
        batched = input.dim() == 3
        if input.dim() not in (2, 3):
            raise ArgumentValueError(
                f"an input of 2 or 3 dimensions is expected, found {input.dim()}"
            )
        if mask is not None:
            _check_mask(mask, input)
        states = self._states(hx)
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
        if folded := self._folded(layers, layers[0].weights[0].ih, masked=masked):
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
        """Move or cast, as ``nn.Module`` does, then lay the weights as ``nn.LSTM`` does."""
        module: Any = super()
        module._apply(fn, recurse)
        self.flatten_parameters()
        return self

    def flatten_parameters(self) -> None:
        """Lay the weights of one call of cuDNN side by side, else it copies them; on a GPU only.

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
        own = self._parameters  # nn.Module's own way to a parameter is a slow one
        names = [f"{name}_l{layer}{suffix}" for name in WEIGHT_NAMES]
        found: list[Any] = [own[n] if n in own else getattr(self, n, None) for n in names]
        return Weights(*found)

    def _states(self, hx: Any) -> tuple[Tensor, ...]:
        """Return what was given, none, one, or several in a tuple or a list, as a tuple."""
        if hx is None:
            return ()
        states = tuple(hx) if isinstance(hx, tuple | list) else (hx,)
        for state in states:
            check_tensor("hx", state, self)
        return states

    def _start(
        self, states: tuple[Tensor, ...], batch: int
    ) -> tuple[tuple[State, ...], ...] | None:
        """Torch's stacked states -> per layer, per direction."""
        if not states:
            return None
        wanted = (2 * self.num_layers, batch, self.hidden_size)
        count = 2 if self.cell_class == "LSTM" else 1
        if len(states) != count or any(s.shape != wanted for s in states):
            raise ArgumentValueError(
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
        begin = None if start is None else tuple(chain.from_iterable(start))
        weight = layers[0].weights[0].ih
        if begin or x.dtype is not weight.dtype:
            check_dtypes(x, begin and begin[:1], weight, "hx")  # the others are parts of the same
        if self._folded(layers, x, masked=lengths is not None or mask is not None):
            check_shape(x.shape, self.input_size)
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

    def _folded(
        self, layers: Sequence[Recurrence], like: Tensor, *, masked: bool = False
    ) -> Choice | None:
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
        if masked and not can_pack(like):
            return None
        if not self._concatenates() or cannot_fold(layers, self.merge_mode, self.dropout):
            return None
        return Choice("folded", "torch's own kernel, all layers in one call")

    def _packed(self, packed: PackedSequence, hx: Any) -> tuple[Merged, Any]:
        """Padded, run, packed again; states are in the order of the caller's rows."""
        x, counts = pad_packed_sequence(packed, batch_first=True)
        states = self._states(hx)
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

    The positional arguments are those of ``nn.LSTM``, in its order; so are the names of the
    parameters. T time, B batch, H hidden_size, L num_layers.

    Args:
        input_size: features of the input.
        hidden_size: features of each direction's state.
        num_layers: layers, each reading what the one before merged to.
        bias: whether there are ``bias_ih`` and ``bias_hh``.
        batch_first: whether input and output are (B, T, ...) and not (T, B, ...).
        dropout: rate of a dropout after each layer but the last, in training.
        bidirectional: True; there is no merge of one direction.
        proj_size: 0; Keras has no projections.
        merge_mode: "concat", "sum", "mul" or "ave", for all layers or a list with one for each;
            None, which keeps both directions apart, for the last.
        activation, recurrent_activation: Keras' names, with ``hard_sigmoid`` spelled out as
            "hard_sigmoid_0.2" (Keras 1 and 2) or "hard_sigmoid_1/6" (Keras 3, torch).
        engine: "auto", "torch", "fused", "folded", "loop", "graph" or "native" (see
            docs/performance.md); None for what K2T_ENGINE says.
        device, dtype: of the parameters.

    Shape:
        ``weight_ih_l{k}``, ``weight_hh_l{k}``, ``bias_ih_l{k}``, ``bias_hh_l{k}`` and the
        same with ``_reverse``, as in ``nn.LSTM``. Layer k reads input_size features (k = 0),
        2 H after "concat", else H: with "concat" everywhere the ``state_dict`` is that of
        ``nn.LSTM(..., bidirectional=True)``.

    Inputs:
        input: (T, B, input_size), or (T, input_size) without batch, or a PackedSequence; of the
            weights' dtype.
        hx: (h_0, c_0), a tuple or a list, each (2 L, B, H), or (2 L, H) without batch; zeros if
            they are not given.
        mask: bool, (T, B) or (T,), with ``batch_first`` (B, T); false where a step does not count:
            it leaves the states alone, and the output there is zero.

    Outputs:
        output: (T, B, H), (T, B, 2 H) after "concat", with None a pair of (T, B, H).
        (h_n, c_n): each (2 L, B, H), the states after the last step that counts.

    Raises:
        UsageError: an argument has no meaning here; the message says which and what is allowed.

    Example:
        >>> rnn = BiLSTM(5, 7, num_layers=2, merge_mode="sum", batch_first=True)
        >>> output, (h_n, c_n) = rnn(torch.randn(3, 11, 5))
        >>> output.shape, h_n.shape
        (torch.Size([3, 11, 7]), torch.Size([4, 3, 7]))
    """

    cell_class = "LSTM"

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
        engine: Wish | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if type(proj_size) is not int or proj_size:
            found = "Keras has no projections and no merge is defined for them"
            raise UsageError(f"proj_size={proj_size!r}: {found}", "use nn.LSTM")
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            merge_mode=merge_mode,
            activation=activation,
            recurrent_activation=recurrent_activation,
            engine=engine,
            device=device,
            dtype=dtype,
        )


class BiGRU(BidirectionalStack):
    """A stack of bidirectional GRU layers with a merge after every layer.

    The positional arguments are those of ``nn.GRU``, in its order; so are the names of the
    parameters. T time, B batch, H hidden_size, L num_layers.

    Args:
        input_size: features of the input.
        hidden_size: features of each direction's state.
        num_layers: layers, each reading what the one before merged to.
        bias: whether there are ``bias_ih`` and ``bias_hh``.
        batch_first: whether input and output are (B, T, ...) and not (T, B, ...).
        dropout: rate of a dropout after each layer but the last, in training.
        bidirectional: True; there is no merge of one direction.
        merge_mode: "concat", "sum", "mul" or "ave", for all layers or a list with one for each;
            None, which keeps both directions apart, for the last.
        activation, recurrent_activation: Keras' names, with ``hard_sigmoid`` spelled out as
            "hard_sigmoid_0.2" (Keras 1 and 2) or "hard_sigmoid_1/6" (Keras 3, torch).
        reset_after: True as in ``nn.GRU`` and Keras since tf.keras 2.0; False as in Keras before.
        engine: "auto", "torch", "fused", "folded", "loop", "graph" or "native" (see
            docs/performance.md); None for what K2T_ENGINE says.
        device, dtype: of the parameters.

    Shape:
        ``weight_ih_l{k}``, ``weight_hh_l{k}``, ``bias_ih_l{k}``, ``bias_hh_l{k}`` and the
        same with ``_reverse``, as in ``nn.GRU``. Layer k reads input_size features (k = 0),
        2 H after "concat", else H: with "concat" everywhere the ``state_dict`` is that of
        ``nn.GRU(..., bidirectional=True)``.

    Inputs:
        input: (T, B, input_size), or (T, input_size) without batch, or a PackedSequence; of the
            weights' dtype.
        hx: h_0, (2 L, B, H), or (2 L, H) without batch; zeros if it is not given.
        mask: bool, (T, B) or (T,), with ``batch_first`` (B, T); false where a step does not count:
            it leaves the states alone, and the output there is zero.

    Outputs:
        output: (T, B, H), (T, B, 2 H) after "concat", with None a pair of (T, B, H).
        h_n: (2 L, B, H), the states after the last step that counts.

    Raises:
        UsageError: an argument has no meaning here; the message says which and what is allowed.

    Example:
        >>> rnn = BiGRU(5, 7, merge_mode="concat")
        >>> mask = torch.ones(11, 3, dtype=torch.bool)
        >>> output, h_n = rnn(torch.randn(11, 3, 5), mask=mask)
        >>> output.shape, h_n.shape
        (torch.Size([11, 3, 14]), torch.Size([2, 3, 7]))
    """

    cell_class = "GRU"

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
        merge_mode: MergeMode | Sequence[MergeMode] = "concat",
        activation: str = "tanh",
        recurrent_activation: str = "sigmoid",
        reset_after: bool = True,
        engine: Wish | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            merge_mode=merge_mode,
            activation=activation,
            recurrent_activation=recurrent_activation,
            reset_after=reset_after,
            engine=engine,
            device=device,
            dtype=dtype,
        )


class BiRNN(BidirectionalStack):
    """A stack of bidirectional SimpleRNN layers with a merge after every layer.

    The positional arguments are those of ``nn.RNN``, in its order; so are the names of the
    parameters. T time, B batch, H hidden_size, L num_layers.

    Args:
        input_size: features of the input.
        hidden_size: features of each direction's state.
        num_layers: layers, each reading what the one before merged to.
        nonlinearity: "tanh" or "relu"; "tanh" if neither this nor ``activation`` is given.
        bias: whether there are ``bias_ih`` and ``bias_hh``.
        batch_first: whether input and output are (B, T, ...) and not (T, B, ...).
        dropout: rate of a dropout after each layer but the last, in training.
        bidirectional: True; there is no merge of one direction.
        merge_mode: "concat", "sum", "mul" or "ave", for all layers or a list with one for each;
            None, which keeps both directions apart, for the last.
        activation: Keras' name of any function, in place of ``nonlinearity``; see ``BiLSTM``.
        engine: "auto", "torch", "fused", "folded", "loop", "graph" or "native" (see
            docs/performance.md); None for what K2T_ENGINE says.
        device, dtype: of the parameters.

    Shape:
        ``weight_ih_l{k}``, ``weight_hh_l{k}``, ``bias_ih_l{k}``, ``bias_hh_l{k}`` and the
        same with ``_reverse``, as in ``nn.RNN``. Layer k reads input_size features (k = 0),
        2 H after "concat", else H: with "concat" everywhere the ``state_dict`` is that of
        ``nn.RNN(..., bidirectional=True)``.

    Inputs:
        input: (T, B, input_size), or (T, input_size) without batch, or a PackedSequence; of the
            weights' dtype.
        hx: h_0, (2 L, B, H), or (2 L, H) without batch; zeros if it is not given.
        mask: bool, (T, B) or (T,), with ``batch_first`` (B, T); false where a step does not count:
            it leaves the states alone, and the output there is zero.

    Outputs:
        output: (T, B, H), (T, B, 2 H) after "concat", with None a pair of (T, B, H).
        h_n: (2 L, B, H), the states after the last step that counts.

    Raises:
        UsageError: an argument has no meaning here; the message says which and what is allowed.

    Example:
        >>> rnn = BiRNN(5, 7, 2, "relu", merge_mode=["mul", None])
        >>> (forward, backward), h_n = rnn(torch.randn(11, 3, 5))
        >>> forward.shape, backward.shape, h_n.shape
        (torch.Size([11, 3, 7]), torch.Size([11, 3, 7]), torch.Size([4, 3, 7]))
    """

    cell_class = "SimpleRNN"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str | None = None,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = True,
        *,
        merge_mode: MergeMode | Sequence[MergeMode] = "concat",
        activation: str = "",
        engine: Wish | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            merge_mode=merge_mode,
            activation=one_function(nonlinearity, activation),
            engine=engine,
            device=device,
            dtype=dtype,
        )

    @property
    def nonlinearity(self) -> str:
        """The activation, by the name that ``nn.RNN`` has for it."""
        return self.activation


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


def _check_mask(mask: Any, input: Tensor) -> None:
    check_tensor("mask", mask, torch.bool)
    if mask.shape != input.shape[:-1]:
        raise UsageError(f"mask: {list(input.shape[:-1])} is expected, found {list(mask.shape)}")


def _each(change: Any, out: Merged) -> Merged:
    return tuple(change(y) for y in out) if isinstance(out, tuple) else change(out)


def _as_hx(final: tuple[Tensor, ...]) -> Any:
    return final if len(final) == 2 else final[0]
