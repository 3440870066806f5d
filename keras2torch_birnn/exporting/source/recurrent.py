"""Source text of recurrent layers: torch's own where they compute the same, else a loop.

A layer is one part (one direction, or both in a bidirectional module), or chains of parts: a chain
for each direction whose halves differ, a part for each cell of a stack.

Local names: ``out`` are outputs (B, T, H), ``h`` and ``c`` final states (directions, B, H) as torch
returns them. H units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from keras2torch_birnn.exporting.source import helpers
from keras2torch_birnn.exporting.source.code import (
    Called,
    Emission,
    Expression,
    Helper,
    Site,
    Statement,
    call,
    code,
    join,
    literal,
    member,
    refuse,
    symbol,
)
from keras2torch_birnn.exporting.source.functions import function_of
from keras2torch_birnn.layers.core import ShapedDropout
from keras2torch_birnn.rnn.cell_kind import (
    CELL_KINDS,
    GRU_BEFORE,
    can_share_module,
    kind_of,
    layers_of_stack,
    unwrap,
)
from keras2torch_birnn.rnn.engines import why_not_torch_kernel
from keras2torch_birnn.rnn.parameters import torch_parameters
from keras2torch_birnn.schema import CELL_GATES, CONV_LSTMS
from keras2torch_birnn.schema.custom_cells import has_custom_cell, states_of
from keras2torch_birnn.schema.merge_modes import MERGE_MODES
from keras2torch_birnn.spec import LayerSpec

_LOOP_CLASSES: Mapping[str, type[helpers.Loop]] = {
    "LSTM": helpers.LoopLSTM,
    "GRU": helpers.LoopGRU,
    GRU_BEFORE: helpers.ResetBeforeGRU,
    "SimpleRNN": helpers.LoopRNN,
}
_TEMPLATES: Mapping[str, str] = {name: mode.source for name, mode in MERGE_MODES.items()}
_UNUSED = symbol("_")
_CARRIED = symbol("carried")  # in the place of a state that is not in a variable

Expressions: TypeAlias = tuple[Expression, ...]


# ---- modules -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """One module of a recurrent layer: an LSTM, a GRU or a SimpleRNN, or two alike.

    states: of one direction; looped: whether it is a loop of ``helpers``; dropout: the attribute of
    its dropout, empty without. The rest is as in ``Emission``.
    """

    name: str
    states: int
    directions: int
    looped: bool
    dropout: str
    members: Mapping[str, Expression]
    state: Mapping[str, str]
    helpers: tuple[Helper, ...]
    notes: tuple[str, ...]


def _make_part(halves: Sequence[LayerSpec], name: str, prefix: str) -> Part:
    """Make one part; ``prefix``: of the names of its state in the converted layer."""
    layer, config = halves[0], halves[0].config
    kind = kind_of(layer)
    facts, both = CELL_KINDS[kind], len(halves) == 2
    looped = why_not_torch_kernel(layer) != ""
    width, units = int(layer.weights["kernel"].shape[0]), int(config["units"])
    options: dict[str, object] = {}
    needed: tuple[Helper, ...] = ()
    if not config["use_bias"]:
        options["bias"] = False
    if looped:
        constructor = _LOOP_CLASSES[kind].__name__
        needed = (_LOOP_CLASSES[kind],)
        for option, default in (("activation", "tanh"), ("recurrent_activation", "sigmoid")):
            if (value := config.get(option, default)) != default:
                options[option], more = function_of(value)
                needed += more
    else:
        constructor = f"nn.{facts.torch_name}"
        if kind == "SimpleRNN" and config["activation"] != "tanh":
            options["nonlinearity"] = config["activation"]
        options["batch_first"] = True
    if both:
        options["bidirectional"] = True
    names = [
        key
        for half, suffix in zip(halves, ("", "_reverse"), strict=False)
        for key in torch_parameters(half, suffix)
    ]
    if config["use_bias"] and not looped:  # torch's second bias, which Keras may not have
        names += [key.replace("_ih_", "_hh_") for key in names if key.startswith("bias_ih")]
    members = {name: call(symbol(constructor), width, units, **options)}
    dropout = ""
    notes: tuple[str, ...] = ()
    if 0.0 < config["dropout"] < 1.0:
        dropout = f"{name}_dropout"
        members[dropout] = call(symbol("ShapedDropout"), config["dropout"], (None, 1, None))
        needed += (ShapedDropout,)
        several = "gate" if config["implementation"] != 2 else "direction" if both else ""
        if several:
            notes = (f"{name}: one dropout mask of the input, Keras draws one for each {several}",)
    if 0.0 < config["recurrent_dropout"] < 1.0:
        notes += (f"{name}: recurrent_dropout of Keras is not applied in training",)
    state = {f"{prefix}{key}": f"{name}.{key}" for key in dict.fromkeys(names)}
    return Part(name, facts.states, len(halves), looped, dropout, members, state, needed, notes)


def _make_chain(layer: LayerSpec, name: str, prefix: str) -> list[Part]:
    """Make the parts of one direction of any recurrent layer."""
    if layer.class_name in CELL_GATES:
        return [_make_part((layer,), name, prefix)]
    if layer.class_name in CONV_LSTMS:
        raise refuse(layer)
    if has_custom_cell(layer):
        raise refuse(layer, "a custom cell")
    return [
        _make_part((cell,), f"{name}_{number}", f"{prefix}cells.{number}.")
        for number, cell in enumerate(layers_of_stack(layer))
    ]


def emit_recurrent(layer: LayerSpec, name: str, built: Any) -> Emission:
    """Write a layer of one direction."""
    layer = unwrap(layer)
    return _emit((layer,), [_make_chain(layer, name, "")], None)


def emit_bidirectional(layer: LayerSpec, name: str, built: Any) -> Emission:
    """Write a layer of two directions, in one module if they are alike."""
    halves = (unwrap(layer.parts["forward_layer"]), unwrap(layer.parts["backward_layer"]))
    merge = layer.config["merge_mode"]
    if halves[0].class_name in CELL_GATES and can_share_module(*halves):
        return _emit(halves, [[_make_part(halves, name, "")]], merge)
    chains = [
        _make_chain(half, f"{name}_{which}", f"{which}_layer.")
        for half, which in zip(halves, ("forward", "backward"), strict=True)
    ]
    return _emit(halves, chains, merge)


def _emit(
    layers: Sequence[LayerSpec], chains: Sequence[Sequence[Part]], merge: str | None
) -> Emission:
    parts = [part for chain in chains for part in chain]
    return Emission(
        lambda site: CallWriter(layers, chains, merge, site).write(),
        {name: value for part in parts for name, value in part.members.items()},
        {key: there for part in parts for key, there in part.state.items()},
        tuple(helper for part in parts for helper in part.helpers),
        tuple(dict.fromkeys(note for part in parts for note in part.notes)),
        {part.name: part.states for part in parts if layers[0].config["stateful"]},
        options=frozenset({"initial_state"}),
    )


# ---- calls ---------------------------------------------------------------------------------------


class CallWriter:
    """Writer of the statements of one call.

    layers: those of the directions; merge: of Bidirectional.
    """

    def __init__(
        self,
        layers: Sequence[LayerSpec],
        chains: Sequence[Sequence[Part]],
        merge: str | None,
        site: Site,
    ) -> None:
        self.layers, self.chains, self.merge, self.site = layers, chains, merge, site
        self.rules = [str(layer.semantics["masked_output"]) for layer in layers]
        config = layers[0].config
        self.stateful, self.return_state = config["stateful"], config["return_state"]
        self.return_sequences = config["return_sequences"]
        self.lines: list[Statement] = []
        self.initial: list[list[Expression]] | None = None  # of each direction, in Keras' order
        if (given := site.kwargs.get("initial_state")) is not None:
            flat = list(replace(site, args=(given,)).tensors)
            each = len(flat) // len(layers)
            self.initial = [flat[d * each : (d + 1) * each] for d in range(len(layers))]
        self.mask, self.x = site.step_mask, site.x
        if config["go_backwards"]:
            self.mask = self.turn(self.mask)
            self.x = _turned(self.x)

    def write(self) -> Expression | Called:
        """Write the whole call."""
        part = self.chains[0][0]
        outputs, states = self.call_both(part) if part.directions == 2 else self.call_chains()
        return self.finish(outputs, states if self.return_state else ())

    def add(self, target: Expression, value: Expression) -> None:
        """Add a statement."""
        self.lines.append(Statement(target, value))

    def assign(self, wanted: str, expression: Expression) -> Expression:
        """Assign an expression to a fresh name."""
        target = self.site.fresh(wanted)
        self.add(target, expression)
        return target

    def turn(self, mask: Expression | None) -> Expression | None:
        """Turn a mask round."""
        return None if mask is None else self.assign("turned", _turned(mask))

    def run_part(
        self,
        part: Part,
        x: Expression,
        mask: Expression | None,
        initial: Sequence[Sequence[Expression]] | None,
        *,
        out: bool,
    ) -> tuple[Expression, Expressions]:
        """Run one module; ``initial``: of each direction its states. Return output and states."""
        state: Expressions = ()
        if initial is not None:
            state = (_torch_state(part, initial),)
        elif self.stateful:
            state = (member(f"{part.name}_state"),)
        if part.dropout:
            x = call(member(part.dropout), x)
        module = member(part.name)
        if mask and not part.looped:
            ran = call(symbol("run_valid_steps"), module, x, mask, *state)
        else:
            ran = call(module, x, *state, **({"mask": mask} if mask else {}))
        keeps = self.stateful or self.return_state
        target = self.site.fresh("out") if out else _UNUSED
        h = self.site.fresh("h") if keeps or not out else _UNUSED
        c = self.site.fresh("c") if keeps and part.states == 2 else _UNUSED
        finals = literal((h, c)) if part.states == 2 and h != _UNUSED else h
        self.add(join(", ", (target, finals)), ran)
        return target, (h, c)[: part.states]

    def carry(self, part: Part, states: Expressions) -> None:
        """Keep the states of a stateful layer for the next batch."""
        if self.stateful:
            detached = [code("{}.detach()", state) for state in states]
            value = literal(detached) if part.states == 2 else detached[0]
            self.add(member(f"{part.name}_state"), value)

    def finish(self, outputs: Expressions, tail: Expressions) -> Expression | Called:
        """Give the first output the name that the graph has for it."""
        site, lines = self.site, self.lines
        if len(outputs) == 1 and not tail:
            *before, last = lines
            if not before and last.target == join(", ", (outputs[0], _UNUSED)):
                if site.declared:
                    named = Statement(join(", ", (site.out, _UNUSED)), last.value)
                    return Called((named,), site.out)
                return code("{}[0]", last.value)
            if last.target == outputs[0]:
                return Called((*before, Statement(site.out, last.value)), site.out)
            return Called((*lines, Statement(site.out, outputs[0])), site.out)
        values = [site.out, *(site.fresh("state") for _ in (*outputs[1:], *tail))]
        pairs = zip(values, (*outputs, *tail), strict=True)
        return Called((*lines, *(Statement(*pair) for pair in pairs)), tuple(values))

    def call_both(self, part: Part) -> tuple[Expressions, Expressions]:
        """Call one bidirectional module; return outputs and states."""
        out, states = self.run_part(
            part, self.x, self.mask, self.initial, out=self.return_sequences
        )
        first = self.starts(part, self.initial, self.mask)
        if self.return_sequences:
            outputs = self.merge_sequences(part, out, first)
        else:
            halves = (self.last(_at(states[0], d), d, self.mask, backward=d == 1) for d in (0, 1))
            outputs = self.merged(tuple(halves))
        self.carry(part, states)
        return outputs, tuple(_at(state, d) for d in range(2) for state in states)

    def merge_sequences(self, part: Part, out: Expression, first: Expressions) -> Expressions:
        """Fill what is masked in both directions of an output, and merge them."""
        mask = self.mask
        plain = mask is None or not any(
            _needs_fill(part, rule, starts=bool(first)) for rule in self.rules
        )
        if plain and self.merge == "concat":
            return (out,)
        if mask is not None and not plain and set(self.rules) == {"zeros"}:
            out, plain = self.filled(part, out, mask, "zeros", None, backward=False), True
            if self.merge == "concat":
                return (out,)
        ahead, back = self.site.fresh("ahead"), self.site.fresh("back")
        self.add(join(", ", (ahead, back)), code("{}.chunk(2, dim=-1)", out))
        if not plain and mask is not None:
            starts = first or (None, None)
            ahead = self.filled(part, ahead, mask, self.rules[0], starts[0], backward=False)
            back = self.filled(part, back, mask, self.rules[1], starts[1], backward=True)
        return self.merged((ahead, back))

    def merged(self, halves: Expressions) -> Expressions:
        """Merge the outputs of both directions."""
        if len(halves) == 1 or self.merge is None:
            return halves
        return (code(_TEMPLATES[self.merge], *halves),)

    def call_chains(self) -> tuple[Expressions, Expressions]:
        """Call a chain of modules for each direction; the second reads from the end."""
        outputs: list[Expression] = []
        finals: list[Expression] = []
        for d, (layer, chain) in enumerate(zip(self.layers, self.chains, strict=True)):
            reads, mask = (self.x, self.mask) if d == 0 else (_turned(self.x), self.turn(self.mask))
            rule, last = self.rules[d], chain[-1]
            # Keras' order of the states: (cell, how many)
            order = tuple(states_of(layer.parts["cell"])) if layer.class_name == "RNN" else ()
            order = order or ((0, chain[0].states),)
            initial: dict[int, list[Expression]] = {}
            if self.initial is not None:
                rest = iter(self.initial[d])
                initial = {cell: [next(rest) for _ in range(count)] for cell, count in order}
            states: list[Expressions] = []
            for number, part in enumerate(chain):
                wants = self.return_sequences or part is not last
                own = [initial[number]] if initial else None
                reads, found = self.run_part(part, reads, mask, own, out=wants)
                states.append(found)
            if len(chain) > 1 and mask and (self.stateful or initial) and not last.looped:
                raise refuse(self.layers[0], "states and a mask into a stack of cells")
            if len(chain) > 1 and mask and rule == "previous_first_state":
                raise refuse(self.layers[0], "a mask into a stack of cells of this Keras")
            first = self.starts(last, own, mask)
            if self.return_sequences:
                out = reads
                if mask:
                    start = first[0] if first else None
                    out = self.filled(last, out, mask, rule, start, backward=False, turned=d == 1)
                outputs.append(_turned(out) if d == 1 else out)
            else:
                outputs.append(self.last(_at(states[-1][0], 0), d, mask, backward=False))
            for part, found in zip(chain, states, strict=True):
                self.carry(part, found)
            finals += [_at(state, 0) for cell, _ in order for state in states[cell]]
        return self.merged(tuple(outputs)), tuple(finals)

    def starts(
        self,
        part: Part,
        initial: Sequence[Sequence[Expression]] | None,
        mask: Expression | None,
    ) -> Expressions:
        """Return the outputs before the first valid step of each direction; none if zeros."""
        if mask is None or (initial is None and not self.stateful):
            return ()
        if initial is not None:
            return tuple(states[0] for states in initial)
        if not part.looped and "previous_state" in self.rules:
            raise refuse(self.layers[0], "a mask and states that go on from batch to batch")
        return (_CARRIED,) * part.directions

    def filled(
        self,
        part: Part,
        out: Expression,
        mask: Expression,
        rule: str,
        first: Expression | None,
        *,
        backward: bool,
        turned: bool = False,
    ) -> Expression:
        """Put at masked steps what the rule of this Keras puts there.

        A loop leaves the state there, run_valid_steps zeros. backward: the direction reads from
        the end of ``out``; turned: ``out`` and ``mask`` themselves are turned round.
        """
        if not _needs_fill(part, rule, starts=bool(first)):
            return out
        if rule == "zeros":
            return self.assign("out", code("{}.masked_fill(~{}[..., None], 0.0)", out, mask))
        start = (first,) if first and rule == "previous_state" else ()
        hold = symbol("hold_last")
        held = call(hold, out, mask, *start)
        if backward:
            held = _turned(call(hold, _turned(out), _turned(mask), *start))
        if rule == "zeros_unreversed":
            kept, valid = self.assign("held", held), _turned(mask)
            held = code("{}.masked_fill(~{}[..., None], 0.0)", kept, valid)
        elif rule not in ("previous_state", "previous_output"):
            raise refuse(self.layers[0], f"masked_output={rule}")
        return self.assign("back" if backward or turned else "ahead", held)

    def last(
        self, h: Expression, direction: int, mask: Expression | None, *, backward: bool
    ) -> Expression:
        """Return the output at the last step that is read, of a final state."""
        rule = self.rules[direction]
        if mask is None or rule == "previous_state":
            return h
        if rule == "zeros":
            step = code("{}[:, :1]", mask) if backward else code("{}[:, -1:]", mask)
            return code("{}.masked_fill(~{}, 0.0)", h, step)
        if rule != "previous_output":
            raise refuse(self.layers[0], f"masked_output={rule}")
        if self.stateful or self.initial is not None:
            return code("{}.masked_fill(~{}.any(dim=1, keepdim=True), 0.0)", h, mask)
        return h


def _torch_state(part: Part, initial: Sequence[Sequence[Expression]]) -> Expression:
    """Write initial states as torch takes them: (directions, B, H), h and c as a tuple."""
    parts = []
    for number in range(part.states):
        each = [states[number] for states in initial]
        one = len(each) == 1
        parts.append(code("{}[None]", each[0]) if one else code("torch.stack({})", each))
    return literal(parts) if part.states == 2 else parts[0]


def _turned(x: Expression) -> Expression:
    return code("{}.flip(1)", x)


def _at(state: Expression, direction: int) -> Expression:
    return code("{}[{}]", state, direction)


def _needs_fill(part: Part, rule: str, *, starts: bool) -> bool:
    """Tell whether outputs at masked steps are not yet those of the rule."""
    if not part.looped:
        return rule != "zeros"
    return rule not in ("previous_state", "previous_output") or (
        rule != "previous_state" and starts
    )
