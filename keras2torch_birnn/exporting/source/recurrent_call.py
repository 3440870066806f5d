"""Statements that call a recurrent layer: masks, merge, states. H units.

Names: ``out`` are outputs (B, T, H), ``h`` and ``c`` final states (directions, B, H) as torch
returns them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from keras2torch_birnn.exporting.source.code import (
    Expression,
    Statement,
    call,
    code,
    join,
    literal,
    member,
    symbol,
)
from keras2torch_birnn.exporting.source.emission import Called, Helper, Site, Value, refuse
from keras2torch_birnn.merge_modes import MERGE_MODES
from keras2torch_birnn.spec import LayerSpec

_MASKS = "keras2torch_birnn.exporting.source.helpers.masks"
RUN = Helper(_MASKS, "run_valid_steps")
HOLD = Helper(_MASKS, "hold_last")
_TEMPLATES: Mapping[str, str] = {name: mode.source for name, mode in MERGE_MODES.items()}
_UNUSED = symbol("_")
_CARRIED = symbol("carried")  # in the place of a state that is not in a variable


Expressions: TypeAlias = tuple[Expression, ...]


@dataclass(frozen=True)
class Part:
    """One module: its attribute, states, directions, whether it is a loop, its dropout."""

    name: str
    states: int
    directions: int
    looped: bool
    dropout: str = ""


@dataclass(frozen=True)
class Chain:
    """Parts that read each other's outputs, and the order of their states in Keras."""

    parts: tuple[Part, ...]
    order: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Loop:
    """A recurrent layer: its chains, rules of masked steps, merge; ``layer`` has the options."""

    chains: tuple[Chain, ...]
    rules: tuple[str, ...]
    merge: str | None
    layer: LayerSpec


@dataclass(frozen=True)
class _Ran:
    """Results of a part: names of outputs and states, and its state before the first step."""

    out: Expression
    states: tuple[Expression, ...]
    before: tuple[Expression, ...] = ()


class CallWriter:
    """Writer of the statements of one call."""

    def __init__(self, loop: Loop, site: Site) -> None:
        self.loop, self.site, config = loop, site, loop.layer.config
        self.stateful, self.return_state = config["stateful"], config["return_state"]
        self.return_sequences = config["return_sequences"]
        self.lines: list[Statement] = []
        self.initial = _split_states(loop, site)
        self.mask, self.x = site.step_mask, site.x
        if config["go_backwards"]:
            self.mask = self.turn(self.mask)
            self.x = _turned(self.x)

    def write(self) -> Expression | Called:
        """Write the whole call."""
        parts = self.loop.chains[0].parts
        whole = len(self.loop.chains) == 1 and parts[0].directions == 2
        outputs, states = self.call_whole(parts[0]) if whole else self.call_chains()
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
    ) -> _Ran:
        """Run one module; ``initial``: of each direction its states."""
        before: tuple[Expression, ...] = ()
        state: tuple[Expression, ...] = ()
        if initial is not None:
            state = (_torch_state(part, initial),)
            before = tuple(states[0] for states in initial)
        elif self.stateful:
            state = (member(f"{part.name}_state"),)
            before = (_CARRIED,) * part.directions
        if part.dropout:
            x = call(member(part.dropout), x)
        module = member(part.name)
        if mask and not part.looped:
            ran = call(symbol(RUN.name), module, x, mask, *state)
        else:
            ran = call(module, x, *state, **({"mask": mask} if mask else {}))
        keeps = self.stateful or self.return_state
        target = self.site.fresh("out") if out else _UNUSED
        h = self.site.fresh("h") if keeps or not out else _UNUSED
        c = self.site.fresh("c") if keeps and part.states == 2 else _UNUSED
        finals = literal((h, c)) if part.states == 2 and h != _UNUSED else h
        self.add(join(", ", (target, finals)), ran)
        return _Ran(target, (h, c)[: part.states], before)

    def carry(self, part: Part, ran: _Ran) -> None:
        """Keep the states of a stateful layer for the next batch."""
        if self.stateful:
            detached = [code("{}.detach()", state) for state in ran.states]
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

    def call_whole(self, part: Part) -> tuple[Expressions, Expressions]:
        """Call one bidirectional module; return outputs and states."""
        ran = self.run_part(part, self.x, self.mask, self.initial, out=self.return_sequences)
        first = self.before(part, ran, self.mask)
        if self.return_sequences:
            outputs = self.merged_sequences(part, ran, first)
        else:
            halves = (
                self.last(_at(ran.states[0], d), d, self.mask, backward=d == 1) for d in (0, 1)
            )
            outputs = self.merged(tuple(halves))
        self.carry(part, ran)
        return outputs, tuple(_at(state, d) for d in range(2) for state in ran.states)

    def merged_sequences(self, part: Part, ran: _Ran, first: Expressions) -> Expressions:
        """Fill what is masked in both directions of an output, and merge them."""
        loop, out, mask = self.loop, ran.out, self.mask
        plain = mask is None or not any(
            _needs_fill(part, rule, starts=bool(first)) for rule in loop.rules
        )
        if plain and loop.merge == "concat":
            return (out,)
        if mask is not None and not plain and set(loop.rules) == {"zeros"}:
            out, plain = self.filled(part, out, mask, "zeros", None, backward=False), True
            if loop.merge == "concat":
                return (out,)
        ahead, back = self.site.fresh("ahead"), self.site.fresh("back")
        self.add(join(", ", (ahead, back)), code("{}.chunk(2, dim=-1)", out))
        if not plain and mask is not None:
            starts = first or (None, None)
            ahead = self.filled(part, ahead, mask, loop.rules[0], starts[0], backward=False)
            back = self.filled(part, back, mask, loop.rules[1], starts[1], backward=True)
        return self.merged((ahead, back))

    def merged(self, halves: Expressions) -> Expressions:
        """Merge the outputs of both directions."""
        if len(halves) == 1 or self.loop.merge is None:
            return halves
        return (code(_TEMPLATES[self.loop.merge], *halves),)

    def call_chains(self) -> tuple[Expressions, Expressions]:
        """Call a chain of modules for each direction; the second reads from the end."""
        loop = self.loop
        outputs: list[Expression] = []
        states: list[Expression] = []
        for d, chain in enumerate(loop.chains):
            reads, mask = (self.x, self.mask) if d == 0 else (_turned(self.x), self.turn(self.mask))
            initial = None if self.initial is None else _per_cell(chain, self.initial[d])
            ran: list[_Ran] = []
            for number, part in enumerate(chain.parts):
                wants = self.return_sequences or number < len(chain.parts) - 1
                own = None if initial is None else [initial[number]]
                ran.append(self.run_part(part, reads, mask, own, out=wants))
                reads = ran[-1].out
            last, part = ran[-1], chain.parts[-1]
            if len(chain.parts) > 1 and mask and (self.stateful or initial) and not part.looped:
                raise refuse(loop.layer, "states and a mask into a stack of cells")
            if len(chain.parts) > 1 and mask and loop.rules[d] == "previous_first_state":
                raise refuse(loop.layer, "a mask into a stack of cells of this Keras")
            first = self.before(part, last, mask)
            if self.return_sequences:
                out = last.out
                if mask:
                    start, rule = first[0] if first else None, loop.rules[d]
                    out = self.filled(part, out, mask, rule, start, backward=False, turned=d == 1)
                outputs.append(_turned(out) if d == 1 else out)
            else:
                outputs.append(self.last(_at(last.states[0], 0), d, mask, backward=False))
            for part, one in zip(chain.parts, ran, strict=True):
                self.carry(part, one)
            states += [_at(state, 0) for cell, _ in chain.order for state in ran[cell].states]
        return self.merged(tuple(outputs)), tuple(states)

    def before(self, part: Part, ran: _Ran, mask: Expression | None) -> Expressions:
        """Return the outputs before the first valid step of each direction; none if zeros."""
        loop = self.loop
        if not ran.before or mask is None or part.looped or "previous_state" not in loop.rules:
            return ran.before if mask is not None else ()
        if ran.before[0] != _CARRIED:
            return ran.before
        raise refuse(loop.layer, "a mask and states that go on from batch to batch")

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
        hold = symbol(HOLD.name)
        held = call(hold, out, mask, *start)
        if backward:
            held = _turned(call(hold, _turned(out), _turned(mask), *start))
        if rule == "zeros_unreversed":
            kept, valid = self.assign("held", held), _turned(mask)
            held = code("{}.masked_fill(~{}[..., None], 0.0)", kept, valid)
        elif rule not in ("previous_state", "previous_output"):
            raise refuse(self.loop.layer, f"masked_output={rule}")
        return self.assign("back" if backward or turned else "ahead", held)

    def last(
        self, h: Expression, direction: int, mask: Expression | None, *, backward: bool
    ) -> Expression:
        """Return the output at the last step that is read, of a final state."""
        loop = self.loop
        rule = loop.rules[direction]
        if mask is None or rule == "previous_state":
            return h
        if rule == "zeros":
            step = code("{}[:, :1]", mask) if backward else code("{}[:, -1:]", mask)
            return code("{}.masked_fill(~{}, 0.0)", h, step)
        if rule != "previous_output":
            raise refuse(loop.layer, f"masked_output={rule}")
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


def _split_states(loop: Loop, site: Site) -> list[list[Expression]] | None:
    """Return the initial states of each direction in Keras' order."""
    given: Value = site.kwargs.get("initial_state")
    if given is None:
        return None
    flat = list(replace(site, args=(given,)).tensors)
    directions = len(loop.rules)
    each = len(flat) // directions
    return [flat[d * each : (d + 1) * each] for d in range(directions)]


def _per_cell(chain: Chain, states: Sequence[Expression]) -> dict[int, list[Expression]]:
    rest = iter(states)
    return {cell: [next(rest) for _ in range(count)] for cell, count in chain.order}


def _needs_fill(part: Part, rule: str, *, starts: bool) -> bool:
    """Tell whether outputs at masked steps are not yet those of the rule."""
    if not part.looped:
        return rule != "zeros"
    return rule not in ("previous_state", "previous_output") or (
        rule != "previous_state" and starts
    )
