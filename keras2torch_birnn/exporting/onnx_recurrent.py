"""Recurrent layers as nodes of ONNX: LSTM, GRU and RNN, also under a mask, without a loop.

While a model is exported each cell is one operator of torch, which the exporter of torch takes for
a black box and ``nodes`` turns into a node of ONNX. Everything around it (masks, merges, states)
are the package's own functions, exported as the operators they are. B batch, T time, F features,
H units, G gates, D directions, S states.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx, nn

from keras2torch_birnn.errors import K2TError, UnsupportedLayerError, UnsupportedOptionError, gather
from keras2torch_birnn.exporting.onnx_activations import OnnxActivation, describe, to_onnx
from keras2torch_birnn.layers.convolution import ConvLSTM
from keras2torch_birnn.rnn.cell_kind import CELL_KINDS, GRU_BEFORE
from keras2torch_birnn.rnn.custom_cell import CustomRNN, StackedRNN
from keras2torch_birnn.rnn.layer import Cell, RnnCall, RnnResult, State, Weights
from keras2torch_birnn.rnn.masks import (
    ZEROS,
    reverse,
    reversed_first,
    shown_steps,
    to_bool_mask,
    valid_first,
    zero_past,
)
from keras2torch_birnn.rnn.modules import (
    AnyRecurrent,
    BidirectionalPair,
    Output,
    Plan,
    RecurrentModule,
    recurrent_forward,
)
from keras2torch_birnn.schema.merge_modes import MERGE_MODES, merge_outputs


class OnnxCell(NamedTuple):
    """Facts about one kind of cell in ONNX.

    operator: its name. order: ONNX' gates as indices of torch's. options: attributes of the node.
    """

    operator: str
    order: tuple[int, ...]
    options: Mapping[str, int] = {}


# Torch's gates: LSTM i, f, g, o; GRU r, z, n. ONNX': LSTM i, o, f, c; GRU z, r, h.
ONNX_CELLS: Mapping[str, OnnxCell] = {
    "LSTM": OnnxCell("LSTM", (0, 3, 1, 2)),
    "GRU": OnnxCell("GRU", (1, 0, 2), {"linear_before_reset": 1}),
    GRU_BEFORE: OnnxCell("GRU", (1, 0, 2), {"linear_before_reset": 0}),
    "SimpleRNN": OnnxCell("RNN", (0,)),
}
_INPUT_GATE, _FORGET_GATE = 0, 2  # of ONNX' LSTM
# Weight of the column that marks a step after the last valid one: far beyond any other sum.
_CLOSING = 1e6

# y (T, D, B, H), h (D, B, H), and c (D, B, H), which cells without one repeat.
torch.library.define(
    "k2t::onnx_rnn",
    "(Tensor x, Tensor w, Tensor r, Tensor b, Tensor? h, Tensor? c, str operator, "
    "str[] activations, float[] alpha, float[] beta, int linear_before_reset) "
    "-> (Tensor, Tensor, Tensor)",
)


def _shapes(x: Tensor, w: Tensor, r: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    time, batch, _f = x.shape
    directions, units = w.shape[0], r.shape[2]
    return (
        x.new_empty(time, directions, batch, units),
        x.new_empty(directions, batch, units),
        x.new_empty(directions, batch, units),
    )


torch.library.register_fake("k2t::onnx_rnn", _shapes)
OPERATOR: Any = torch.ops.k2t.onnx_rnn.default


class OnnxRecurrent(nn.Module):
    """A recurrent module whose ``run_sequence`` is a node of ONNX; called as ``module`` is.

    masks: whether it is called with a mask; both if it is called with and without. last_only:
    return the last step that each direction reads as the only one, where there is no mask: the
    output of a layer that returns no sequences.
    """

    carried: tuple[State, ...] | None = None

    def __init__(
        self, module: RecurrentModule, place: str, masks: Collection[bool], *, last_only: bool
    ) -> None:
        super().__init__()
        layer = module.rnn_layer()
        self.plan: Plan = module.plan
        self.kind = layer.cell.kind
        self.last_only = last_only
        self.place = place
        self.functions = _functions(layer.cell, place)
        self.directions = layer.count_directions()
        parts = [_to_onnx_layout(self.kind, weights) for weights in layer.get_weights()]
        if False in masks:  # both directions are one node
            self._keep("", [torch.cat(same) for same in zip(*parts, strict=True)])
        if True in masks:
            for d, part in enumerate(parts):
                self._keep(f"_{d}", part)
                if self.kind == "LSTM":
                    self._keep(f"_{d}_closed", _with_closing_column(*part))

    def _keep(self, suffix: str, weights: Sequence[Tensor]) -> None:
        for name, tensor in zip("WRB", weights, strict=True):
            self.register_buffer(f"{name}{suffix}", tensor)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, initial_state: Sequence[Tensor] | None = None
    ) -> Output:
        """Call the layer as Keras does."""
        if mask is None:
            return recurrent_forward(self, x, None, initial_state)
        mask = mask.flip(1) if self.plan.against_time else mask
        return recurrent_forward(_UnderMask(self, mask), x, None, initial_state)

    def run_sequence(self, call: RnnCall) -> RnnResult:
        """Return outputs (B, T, H) in the order of time and final states, one per direction."""
        if call.lengths is not None:
            return self._run_valid_steps(call, call.lengths)
        initial = None
        if call.initial_state:
            initial = tuple(torch.stack(parts) for parts in zip(*call.initial_state, strict=True))
        y, *ends = self._node(call.x.transpose(0, 1), "", initial)
        states = tuple(zip(*(end.unbind(0) for end in ends), strict=True))  # of each direction
        if self.last_only:
            return tuple(state[0][:, None] for state in states), states
        if call.merge == "concat":
            return (y.permute(2, 0, 1, 3).flatten(2),), states
        if call.merge and (reduction := MERGE_MODES[call.merge].reduction):
            # one node, without a copy of each direction
            return (getattr(y, reduction)(1).transpose(0, 1),), states
        merged = merge_outputs(tuple(y.unbind(1)), call.merge)  # before the one transposition
        return tuple(out.transpose(0, 1) for out in merged), states

    def _run_valid_steps(self, call: RnnCall, lengths: Tensor) -> RnnResult:
        """Run a direction at a time: each reads its valid steps first, then what has no effect."""
        outputs, states = [], []
        for d in range(self.directions):
            read = reverse(call.x, lengths) if d else call.x
            out, state = self.run_direction(read.transpose(0, 1), d, lengths, call)
            out = out.transpose(0, 1)
            outputs.append(zero_past(reverse(out, lengths) if d else out, lengths))
            states.append(state)
        return merge_outputs(tuple(outputs), call.merge), tuple(states)

    def run_direction(
        self, x: Tensor, d: int, lengths: Tensor, call: RnnCall
    ) -> tuple[Tensor, State]:
        """Read x (T, B, F), the valid steps first; return outputs (T, B, H) and the final state.

        What follows a row's valid steps has no effect on these, or on the state.
        """
        initial = call.initial_state[d] if call.initial_state else None
        begin = tuple(state[None] for state in initial) if initial else None
        closed = call.return_state and self.kind == "LSTM"
        if closed:
            x = self._mark_the_rest(x, lengths)
        y, _, *cell_state = self._node(x, f"_{d}_closed" if closed else f"_{d}", begin)
        out = y.squeeze(1)
        if not call.return_state:
            return out, ()
        last = (lengths - 1).clamp(min=0)[None, :, None].expand(1, -1, out.shape[2])
        h = torch.gather(out, 0, last)[0]
        before = initial[0] if initial else torch.zeros_like(h)
        h = torch.where(lengths[:, None] > 0, h, before)
        return out, (h, *(c[0] for c in cell_state))

    def _mark_the_rest(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Append a column that is 1 after the valid steps, where it carries c unchanged.

        Its weights close the input gate and open the forget gate, exactly.

        Raises:
            UnsupportedOptionError: the gates' activation cannot do that.
        """
        if not self.functions[0].saturates:
            raise UnsupportedOptionError(
                "the final c of an LSTM under a mask has an ONNX form only where "
                f"recurrent_activation is a sigmoid, found {self.functions[0].name}",
                place=self.place,
            )
        after = (torch.arange(x.shape[0], device=x.device)[:, None] >= lengths)[:, :, None]
        return torch.cat((torch.where(after, 0.0, x), after.to(x.dtype)), dim=2)

    def _node(self, x: Tensor, suffix: str, initial: Sequence[Tensor] | None) -> tuple[Tensor, ...]:
        """Read x (T, B, F); return y (T, D, B, H) and the final states (D, B, H)."""
        w, r, b = (getattr(self, f"{name}{suffix}") for name in "WRB")
        h, c = (*(initial or ()), None, None)[:2]
        functions = self.functions * w.shape[0]
        found: tuple[Tensor, ...] = OPERATOR(
            *(x, w, r, b, h, c),
            ONNX_CELLS[self.kind].operator,
            [one.name for one in functions],
            [alpha for one in functions for alpha in one.alpha],
            [beta for one in functions for beta in one.beta],
            ONNX_CELLS[self.kind].options.get("linear_before_reset", 0),
        )
        return found[: 1 + CELL_KINDS[self.kind].states]


@dataclass
class _UnderMask:
    """A module as ``recurrent_forward`` calls it, with a mask (B, T) for all that it reads.

    It computes what ``run_masked`` does. A step is copied once on its way in, to its place in the
    order of reading, and once on its way out.
    """

    module: OnnxRecurrent
    mask: Tensor
    carried: tuple[State, ...] | None = None

    def __post_init__(self) -> None:
        self.plan = self.module.plan

    @property
    def _are_zeros(self) -> bool:
        """Tell whether both directions leave zeros at masked steps, which merge to zeros."""
        return self.plan.rules in ZEROS and not self.module.last_only

    def run_sequence(self, call: RnnCall) -> RnnResult:
        """Return outputs (B, T, H) in the order of time and final states, one per direction.

        Raises:
            ArgumentValueError: the mask has another shape than x has steps.
        """
        mask = to_bool_mask(call.x, self.mask)
        lengths, order = mask.sum(dim=1), valid_first(mask)
        runs = [self._run_direction(d, order, lengths, call) for d in range(len(self.plan.rules))]
        shown = [self._show(out, d, mask, lengths, call) for d, (out, _) in enumerate(runs)]
        outputs = merge_outputs(tuple(shown), call.merge)
        if self._are_zeros:
            outputs = tuple(torch.where(mask[:, :, None], out, 0.0) for out in outputs)
        return outputs, tuple(state for _, state in runs)

    def _run_direction(
        self, d: int, order: Tensor, lengths: Tensor, call: RnnCall
    ) -> tuple[Tensor, State]:
        steps = torch.gather(order, 1, reversed_first(lengths, order.shape[1])) if d else order
        rows = torch.arange(steps.shape[0], device=steps.device) * steps.shape[1]
        read = _pick_rows(call.x.flatten(0, 1), steps.T + rows)
        return self.module.run_direction(read, d, lengths, call)

    def _show(self, out: Tensor, d: int, mask: Tensor, lengths: Tensor, call: RnnCall) -> Tensor:
        """Move outputs (T, B, H) from the order of reading to their steps; fill the masked ones."""
        rule = self.plan.rules[d]
        steps = slice(None)
        if self.module.last_only:  # the step that the direction reads last
            steps = slice(1) if d else slice(-1, None)
        index, nothing_yet, keep = (
            found[:, steps] for found in shown_steps(mask, backward=d == 1, rule=rule)
        )
        read = (lengths[:, None] - 1 - index if d else index).clamp(0, out.shape[0] - 1)
        batch = out.shape[1]
        places = read * batch + torch.arange(batch, device=read.device)[:, None]
        filled = _pick_rows(out.flatten(0, 1), places)
        if rule == "previous_state" and call.initial_state:
            return torch.where(nothing_yet[:, :, None], call.initial_state[d][0][:, None], filled)
        return filled if self._are_zeros else torch.where(keep[:, :, None], filled, 0.0)


def _pick_rows(table: Tensor, index: Tensor) -> Tensor:
    """Copy rows of a table (N, F) to the shape of the index; one node of ONNX, Gather."""
    return nn.functional.embedding(index, table)


def _functions(cell: Cell, place: str) -> tuple[OnnxActivation, ...]:
    """Return the activations of one direction in ONNX' order.

    Raises:
        UnsupportedOptionError: ONNX has none of them.
    """
    gates = {"recurrent_activation": cell.recurrent_activation, "activation": cell.activation}
    if cell.kind == "SimpleRNN":
        del gates["recurrent_activation"]
    found: list[OnnxActivation] = []
    for option, function in gates.items():
        activation = to_onnx(function)
        if activation is None:
            name, options = describe(function)
            shown = ", ".join(f"{key}={value}" for key, value in options.items())
            raise UnsupportedOptionError(
                f"{option} {name}{f' ({shown})' if shown else ''} has no ONNX form in a recurrent "
                "layer",
                place=place,
            )
        found.append(activation)
    if cell.kind == "LSTM":  # of the gates, of the candidate, of the output
        found.append(found[-1])
    return tuple(found)


def _to_onnx_layout(kind: str, weights: Weights) -> tuple[Tensor, Tensor, Tensor]:
    """Return W (1, G*H, F), R (1, G*H, H) and B (1, 2*G*H), with the gates in ONNX' order."""
    order = ONNX_CELLS[kind].order

    def sort_gates(tensor: Tensor) -> Tensor:
        gates = tensor.detach().chunk(len(order))
        return torch.cat([gates[g] for g in order])

    zero = weights.hh.new_zeros(len(weights.hh))
    biases = [zero if bias is None else bias for bias in (weights.bias_ih, weights.bias_hh)]
    return (
        sort_gates(weights.ih)[None],
        sort_gates(weights.hh)[None],
        torch.cat([sort_gates(bias) for bias in biases])[None],
    )


def _with_closing_column(w: Tensor, r: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Append input weights for a flag that closes an LSTM's input gate: (1, 4*H, F + 1)."""
    column = w.new_zeros(4, r.shape[2])
    column[_INPUT_GATE], column[_FORGET_GATE] = -_CLOSING, _CLOSING
    return torch.cat((w, column.reshape(1, -1, 1)), dim=2), r, b


# ---- replacing a model's modules -----------------------------------------------------------------


def replace_recurrent(model: nn.Module) -> None:
    """Replace every recurrent module of a model by its ``OnnxRecurrent``.

    Raises:
        UnsupportedLayerError, UnsupportedOptionError: lists all that have no ONNX form.
    """
    masks = _find_masks(model)
    problems: list[K2TError] = []
    for path, module in list(model.named_modules()):
        if not isinstance(module, AnyRecurrent) or path not in masks:
            continue
        try:
            _check(module, path)
            replaced = _replace(module, path, masks[path])
        except K2TError as problem:
            problems.append(problem)
        else:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, replaced)
    problems += [
        UnsupportedLayerError("a recurrent module in two places has no ONNX form", place=path)
        for path, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, RecurrentModule) and not problems
    ]
    if problems:
        raise gather(problems)


def _find_masks(model: nn.Module) -> dict[str, set[bool]]:
    """Return for each recurrent module that is called whether it gets masks; both if unknown."""
    found: dict[str, set[bool]] = defaultdict(set)
    inside: list[str] = []
    for path, module in model.named_modules():
        if isinstance(module, fx.GraphModule):
            for node in module.graph.find_nodes(op="call_module"):
                target = ".".join(filter(None, (path, str(node.target))))
                found[target].add("mask" in node.kwargs)
    for path, module in model.named_modules():
        if path.startswith(tuple(inside)):
            found.pop(path, None)
        elif isinstance(module, AnyRecurrent):
            inside.append(f"{path}.")
            found.setdefault(path, {False, True})
    return found


def _check(module: AnyRecurrent, path: str) -> None:
    """Refuse what no module here computes.

    Raises:
        UnsupportedLayerError: a ConvLSTM or a custom cell. UnsupportedOptionError: it is stateful,
            or in float64.
    """
    whole = cast(nn.Module, module)
    parts = [*whole.modules()]
    if any(isinstance(part, ConvLSTM) for part in parts):
        raise UnsupportedLayerError("a ConvLSTM has no ONNX form", place=path)
    if any(isinstance(part, CustomRNN) for part in parts):
        raise UnsupportedLayerError(
            "a custom cell has no ONNX form", "export it as .pt2", place=path
        )
    if module.plan.stateful:
        raise UnsupportedOptionError(
            "stateful=True has no ONNX form: a graph carries no state from call to call",
            "make the states inputs and outputs of the model (initial_state, return_state)",
            place=path,
        )
    dtypes = {parameter.dtype for parameter in whole.parameters()} - {torch.float32}
    if dtypes:
        raise UnsupportedOptionError(
            f"a recurrent layer in {min(map(str, dtypes)).removeprefix('torch.')}: ONNX Runtime "
            "computes them in float32 only",
            "use --dtype float32",
            place=path,
        )


def _replace(
    module: Any, path: str, masks: Collection[bool], *, is_part: bool = False
) -> nn.Module:
    """Replace a module; of a half of a pair or a cell of a stack all steps are needed."""
    if isinstance(module, BidirectionalPair):
        for name in ("forward_layer", "backward_layer"):
            setattr(module, name, _replace(getattr(module, name), path, masks, is_part=True))
        return module
    if isinstance(module, StackedRNN):
        for number, cell in enumerate(module.cells):
            module.cells[number] = _replace(cell, path, masks, is_part=True)
        return module
    last_only = not (is_part or module.plan.return_sequences)
    return OnnxRecurrent(module, path, masks, last_only=last_only)
