"""``BiLSTM``, ``BiGRU`` and ``BiRNN``: stacks of bidirectional layers with Keras' merge modes.

Torch's arguments, parameter names and states, and after every layer the merge that Keras has
(``keras.layers.Bidirectional``). No Keras file is needed.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias, TypeVar, overload

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.types import Device

from keras2torch_birnn.errors import ArgumentValueError
from keras2torch_birnn.rnn.bidirectional_stack import BidirectionalStack
from keras2torch_birnn.rnn.checks import MergeChoice, resolve_nonlinearity
from keras2torch_birnn.rnn.engines import EngineRequest

Stack = TypeVar("Stack", bound=type[BidirectionalStack])

# The docstring of each class, between its first line and its example.
_DOCSTRING = """{summary}

The positional arguments are those of ``nn.{torch}``, in its order; so are the names of the
parameters. T time, B batch, H hidden_size, L num_layers.

Args:
{arguments}
Shape:
    ``weight_ih_l{{k}}``, ``weight_hh_l{{k}}``, ``bias_ih_l{{k}}``, ``bias_hh_l{{k}}`` and the
    same with ``_reverse``, as in ``nn.{torch}``. Layer k reads input_size features (k = 0),
    2 H after "concat", else H: with "concat" everywhere the ``state_dict`` is that of
    ``nn.{torch}(..., bidirectional=True)``.

Inputs:
    - ``input``: (T, B, input_size), or (T, input_size) without batch, or a PackedSequence; of
      the weights' dtype.
    - ``hx``: {hx}
    - ``mask``: bool, (T, B) or (T,), with ``batch_first`` (B, T); false where a step does not
      count: it leaves the states alone, and the output there is zero.
    - ``lengths``: instead of a mask, the number of steps of each row that count, (B,), or one
      number without batch.

Outputs:
    - ``output``: (T, B, H), (T, B, 2 H) after "concat", with None a pair of (T, B, H).
    - {states}, the states after the last step that counts.

Raises:
    ArgumentTypeError: An argument is of a type that has no meaning here; the message says which
        and what is allowed. It is a UsageError and a TypeError.
    ArgumentValueError: The same of a value or shape. It is a UsageError and a ValueError.

{example}"""
_ARGUMENTS = {
    "input_size": "Features of the input.",
    "hidden_size": "Features of each direction's state.",
    "num_layers": "Layers, each reading what the one before merged to.",
    "nonlinearity": '"tanh" or "relu"; "tanh" if neither this nor ``activation`` is given.',
    "bias": "Whether there are ``bias_ih`` and ``bias_hh``.",
    "batch_first": "Whether input and output are (B, T, ...) and not (T, B, ...).",
    "dropout": "Rate of a dropout after each layer but the last, in training.",
    "bidirectional": "True; there is no merge of one direction.",
    "proj_size": "0; Keras has no projections.",
    "merge_mode": """"concat", "sum", "mul" or "ave", for all layers or a list with one for each;
        None, which keeps both directions apart, for the last.""",
    "activation": """Keras' name, with ``hard_sigmoid`` spelled out as "hard_sigmoid_0.2"
        (Keras 1 and 2) or "hard_sigmoid_1/6" (Keras 3, torch).""",
    "recurrent_activation": "Keras' name, spelled out as that of ``activation``.",
    "reset_after": "True as in ``nn.GRU`` and Keras since tf.keras 2.0; False as in Keras before.",
    "engine": """A name of the table in docs/performance.md, "auto" or "torch"; None for
        ``K2T_ENGINE``.""",
    "device": "Device of the parameters.",
    "dtype": "Dtype of the parameters.",
}
_ONE_STATE = (
    "h_0, (2 L, B, H), or (2 L, H) without batch; zeros if it is not given.",
    "``h_n``: (2 L, B, H)",
)
_TWO_STATES = (
    "(h_0, c_0), a tuple or a list, each (2 L, B, H), or (2 L, H) without batch; zeros if\n"
    "      they are not given.",
    "``(h_n, c_n)``: each (2 L, B, H)",
)


def _documented(cls: Stack) -> Stack:
    """Put what all classes share into the docstring of one."""
    if cls.__doc__ is None:  # python -OO
        return cls
    summary, example = inspect.cleandoc(cls.__doc__).split("\n\n", 1)
    names = inspect.signature(cls).parameters
    hx, states = _TWO_STATES if cls.cell_class == "LSTM" else _ONE_STATE
    cls.__doc__ = _DOCSTRING.format(
        summary=summary,
        torch=cls.cell_class.removeprefix("Simple"),
        arguments="".join(f"    {name}: {_ARGUMENTS[name]}\n" for name in names),
        hx=hx,
        states=states,
        example=example,
    )
    return cls


@_documented
class BiLSTM(BidirectionalStack):
    """A stack of bidirectional LSTM layers with a merge after every layer.

    Example:
        >>> rnn = BiLSTM(5, 7, num_layers=2, merge_mode="sum", batch_first=True)
        >>> output, (h_n, c_n) = rnn(torch.randn(3, 11, 5))
        >>> output.shape, h_n.shape
        (torch.Size([3, 11, 7]), torch.Size([4, 3, 7]))
    """

    cell_class = "LSTM"
    __call__: TypedCall[Sequence[Tensor], tuple[Tensor, Tensor]]

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
        merge_mode: MergeChoice | Sequence[MergeChoice] = "concat",
        activation: str = "tanh",
        recurrent_activation: str = "sigmoid",
        engine: EngineRequest | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if type(proj_size) is not int or proj_size:
            found = "Keras has no projections and no merge is defined for them"
            raise ArgumentValueError(f"proj_size={proj_size!r}: {found}", "use nn.LSTM")
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


@_documented
class BiGRU(BidirectionalStack):
    """A stack of bidirectional GRU layers with a merge after every layer.

    Example:
        >>> rnn = BiGRU(5, 7, merge_mode="concat")
        >>> mask = torch.ones(11, 3, dtype=torch.bool)
        >>> output, h_n = rnn(torch.randn(11, 3, 5), mask=mask)
        >>> output.shape, h_n.shape
        (torch.Size([11, 3, 14]), torch.Size([2, 3, 7]))
    """

    cell_class = "GRU"
    __call__: TypedCall[Tensor, Tensor]


@_documented
class BiRNN(BidirectionalStack):
    """A stack of bidirectional SimpleRNN layers with a merge after every layer.

    Example:
        >>> rnn = BiRNN(5, 7, 2, "relu", merge_mode=["mul", None])
        >>> (forward, backward), h_n = rnn(torch.randn(11, 3, 5))
        >>> forward.shape, backward.shape, h_n.shape
        (torch.Size([11, 3, 7]), torch.Size([11, 3, 7]), torch.Size([4, 3, 7]))
    """

    cell_class = "SimpleRNN"
    __call__: TypedCall[Tensor, Tensor]

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
        merge_mode: MergeChoice | Sequence[MergeChoice] = "concat",
        activation: str = "",
        engine: EngineRequest | None = None,
        device: Device = None,
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
            activation=resolve_nonlinearity(nonlinearity, activation),
            engine=engine,
            device=device,
            dtype=dtype,
        )

    @property
    def nonlinearity(self) -> str:
        """The activation, by the name that ``nn.RNN`` has for it."""
        return self.activation


# ---- Types of a call ----------------------------------------------------------------------------

# After merge_mode None the output is a pair, which no type of the call can tell. A tensor can be
# unpacked as well; a PackedSequence has four parts, so that the Any of a union accepts its pair.
MergedPacked: TypeAlias = PackedSequence | Any

FirstStates = TypeVar("FirstStates", contravariant=True)
LastStates = TypeVar("LastStates", covariant=True)


class TypedCall(Protocol[FirstStates, LastStates]):
    """Call of a stack. FirstStates: the type of ``hx``; LastStates: that of the last states."""

    @overload
    def __call__(
        self,
        input: Tensor,
        hx: FirstStates | None = None,
        *,
        mask: Tensor | None = None,
        lengths: Tensor | Sequence[int] | int | None = None,
    ) -> tuple[Tensor, LastStates]: ...

    @overload
    def __call__(
        self, input: PackedSequence, hx: FirstStates | None = None
    ) -> tuple[MergedPacked, LastStates]: ...
