"""Statements that call a recurrent layer: masks, merge, states. H units.

Names: ``out`` are outputs (B, T, H), ``h`` and ``c`` final states (directions, B, H) as torch
returns them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

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


@dataclass(frozen=True)
class Part:
    """One module: its attribute, units, states, directions, whether it is a loop, its dropout."""

    name: str
    units: int
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
    """A recurrent layer: its chains, and Keras' options (``rnn.modules.Plan``)."""

    chains: tuple[Chain, ...]
    rules: tuple[str, ...]
    merge: str | None
    return_sequences: bool
    return_state: bool
    against_time: bool
    stateful: bool
    layer: LayerSpec


@dataclass(frozen=True)
class _Ran:
    """Results of a part: names of outputs and states, and its state before the first step."""

    out: Expression
    states: tuple[Expression, ...]
    before: tuple[Expression, ...] = ()


class _Writer:
    """Writer of the statements of one call."""

    def __init__(self, loop: Loop, site: Site) -> None:
        self.loop, self.site = loop, site
        self.lines: list[Statement] = []

    def symbol(self, wanted: str) -> Expression:
        """Return a fresh local name."""
        return self.site.fresh(wanted)

    def add(self, target: Expression, value: Expression) -> None:
        """Add a statement."""
        self.lines.append(Statement(target, value))

    def assign(self, wanted: str, expression: Expression) -> Expression:
        """Assign an expression to a fresh name."""
        target = self.symbol(wanted)
        self.add(target, expression)
        return target

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
            before = tuple(given[0] for given in initial)
        elif self.loop.stateful:
            state = (member(f"{part.name}_state"),)
            before = (_CARRIED,) * part.directions
        if part.dropout:
            x = call(member(part.dropout), x)
        module = member(part.name)
        if mask and not part.looped:
            ran = call(symbol(RUN.name), module, x, mask, *state)
        else:
            ran = call(module, x, *state, **({"mask": mask} if mask else {}))
        keeps = self.loop.stateful or self.loop.return_state
        target = self.symbol("out") if out else _UNUSED
        h = self.symbol("h") if keeps or not out else _UNUSED
        c = self.symbol("c") if keeps and part.states == 2 else _UNUSED
        finals = literal((h, c)) if part.states == 2 and h != _UNUSED else h
        self.add(join(", ", (target, finals)), ran)
        return _Ran(target, (h, c)[: part.states], before)

    def carry(self, part: Part, ran: _Ran) -> None:
        """Keep the states of a stateful layer for the next batch."""
        if self.loop.stateful:
            detached = [code("{}.detach()", state) for state in ran.states]
            value = literal(detached) if part.states == 2 else detached[0]
            self.add(member(f"{part.name}_state"), value)


def _torch_state(part: Part, initial: Sequence[Sequence[Expression]]) -> Expression:
    """Write initial states as torch takes them: (directions, B, H), h and c as a tuple."""
    parts = []
    for number in range(part.states):
        each = [given[number] for given in initial]
        one = len(each) == 1
        parts.append(code("{}[None]", each[0]) if one else code("torch.stack({})", each))
    return literal(parts) if part.states == 2 else parts[0]


def call_layer(loop: Loop, site: Site) -> Expression | Called:
    """Write the call of a recurrent layer."""
    writer = _Writer(loop, site)
    initial = _split_states(loop, site)
    x, mask = site.x, site.step_mask
    if mask is not None and loop.against_time:
        mask = writer.assign("turned", _turned(mask))
    if loop.against_time:
        x = _turned(x)
    whole = len(loop.chains) == 1 and loop.chains[0].parts[0].directions == 2
    if whole:
        outputs, states = _call_whole(writer, x, mask, initial)
    else:
        outputs, states = _call_chains(writer, x, mask, initial)
    tail = states if loop.return_state else ()
    return _finish(writer, outputs, tail)


def _turned(x: Expression) -> Expression:
    return code("{}.flip(1)", x)


def _finish(
    writer: _Writer, outputs: tuple[Expression, ...], tail: tuple[Expression, ...]
) -> Expression | Called:
    """Give the first output the name that the graph has for it."""
    site, lines = writer.site, writer.lines
    if len(outputs) == 1 and not tail:
        *before, last = lines
        if not before and last.target == join(", ", (outputs[0], _UNUSED)):
            if site.declared:
                return Called((Statement(join(", ", (site.out, _UNUSED)), last.value),), site.out)
            return code("{}[0]", last.value)
        if last.target == outputs[0]:
            return Called((*before, Statement(site.out, last.value)), site.out)
        return Called((*lines, Statement(site.out, outputs[0])), site.out)
    values = [site.out, *(site.fresh("state") for _ in (*outputs[1:], *tail))]
    pairs = zip(values, (*outputs, *tail), strict=True)
    return Called((*lines, *(Statement(*pair) for pair in pairs)), tuple(values))


def _split_states(loop: Loop, site: Site) -> list[list[Expression]] | None:
    """Return the initial states of each direction in Keras' order."""
    given: Value = site.kwargs.get("initial_state")
    if given is None:
        return None
    flat = list(replace(site, args=(given,)).tensors)
    directions = len(loop.rules)
    each = len(flat) // directions
    return [flat[d * each : (d + 1) * each] for d in range(directions)]


def _call_whole(
    writer: _Writer,
    x: Expression,
    mask: Expression | None,
    initial: list[list[Expression]] | None,
) -> tuple[tuple[Expression, ...], tuple[Expression, ...]]:
    """Call one bidirectional module."""
    loop = writer.loop
    (part,) = loop.chains[0].parts
    ran = writer.run_part(part, x, mask, initial, out=loop.return_sequences)
    first = _before(writer, part, ran, mask)
    if not loop.return_sequences:
        halves = tuple(
            _last(writer, _at(ran.states[0], d), d, mask, loop.rules[d], backward=d == 1)
            for d in range(2)
        )
        outputs = _merged(loop, halves)
    else:
        outputs = _merged_sequences(writer, part, ran, mask, first)
    writer.carry(part, ran)
    return outputs, tuple(_at(state, d) for d in range(2) for state in ran.states)


def _at(state: Expression, direction: int) -> Expression:
    return code("{}[{}]", state, direction)


def _merged_sequences(
    writer: _Writer,
    part: Part,
    ran: _Ran,
    mask: Expression | None,
    first: tuple[Expression, ...],
) -> tuple[Expression, ...]:
    loop, out = writer.loop, ran.out
    plain = mask is None or not any(
        _needs_fill(part, rule, starts=bool(first)) for rule in loop.rules
    )
    if plain and loop.merge == "concat":
        return (out,)
    if mask is not None and not plain and set(loop.rules) == {"zeros"}:
        out, plain = _filled(writer, part, out, mask, "zeros", None, backward=False), True
        if loop.merge == "concat":
            return (out,)
    ahead, back = writer.symbol("ahead"), writer.symbol("back")
    writer.add(join(", ", (ahead, back)), code("{}.chunk(2, dim=-1)", out))
    if not plain and mask is not None:
        starts = first or (None, None)
        ahead = _filled(writer, part, ahead, mask, loop.rules[0], starts[0], backward=False)
        back = _filled(writer, part, back, mask, loop.rules[1], starts[1], backward=True)
    return _merged(loop, (ahead, back))


def _merged(loop: Loop, halves: tuple[Expression, ...]) -> tuple[Expression, ...]:
    if len(halves) == 1 or loop.merge is None:
        return halves
    return (code(_TEMPLATES[loop.merge], *halves),)


def _call_chains(
    writer: _Writer,
    x: Expression,
    mask: Expression | None,
    initial: list[list[Expression]] | None,
) -> tuple[tuple[Expression, ...], tuple[Expression, ...]]:
    """Call a chain of modules for each direction; the second reads from the end."""
    loop = writer.loop
    outputs: list[Expression] = []
    states: list[Expression] = []
    for d, chain in enumerate(loop.chains):
        reads, its_mask = x, mask
        if d == 1:
            reads = _turned(x)
            its_mask = writer.assign("turned", _turned(mask)) if mask else None
        given = _per_cell(chain, initial[d]) if initial is not None else None
        ran: list[_Ran] = []
        for number, part in enumerate(chain.parts):
            wants = loop.return_sequences or number < len(chain.parts) - 1
            own = [given[number]] if given is not None else None
            ran.append(writer.run_part(part, reads, its_mask, own, out=wants))
            reads = ran[-1].out
        last, part = ran[-1], chain.parts[-1]
        if len(chain.parts) > 1 and mask and (loop.stateful or initial) and not part.looped:
            raise refuse(loop.layer, "states and a mask into a stack of cells")
        if len(chain.parts) > 1 and mask and loop.rules[d] == "previous_first_state":
            raise refuse(loop.layer, "a mask into a stack of cells of this Keras")
        first = _before(writer, part, last, its_mask)
        if loop.return_sequences:
            out = last.out
            if its_mask:
                start = first[0] if first else None
                rule = loop.rules[d]
                out = _filled(
                    writer, part, out, its_mask, rule, start, backward=False, turned=d == 1
                )
            outputs.append(_turned(out) if d == 1 else out)
        else:
            final = _at(last.states[0], 0)
            outputs.append(_last(writer, final, d, its_mask, loop.rules[d], backward=False))
        for part, one in zip(chain.parts, ran, strict=True):
            writer.carry(part, one)
        states += [_at(state, 0) for cell, _ in chain.order for state in ran[cell].states]
    return _merged(loop, tuple(outputs)), tuple(states)


def _per_cell(chain: Chain, states: Sequence[Expression]) -> dict[int, list[Expression]]:
    rest = iter(states)
    return {cell: [next(rest) for _ in range(count)] for cell, count in chain.order}


def _before(
    writer: _Writer, part: Part, ran: _Ran, mask: Expression | None
) -> tuple[Expression, ...]:
    """Return what stands before the first valid step of each direction; none if zeros."""
    loop = writer.loop
    if not ran.before or mask is None or part.looped or "previous_state" not in loop.rules:
        return ran.before if mask is not None else ()
    if ran.before[0] != _CARRIED:
        return ran.before
    raise refuse(loop.layer, "a mask and states that go on from batch to batch")


def _needs_fill(part: Part, rule: str, *, starts: bool) -> bool:
    """Tell whether outputs at masked steps are not yet those of the rule."""
    if not part.looped:
        return rule != "zeros"
    return rule not in ("previous_state", "previous_output") or (
        rule != "previous_state" and starts
    )


def _filled(
    writer: _Writer,
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

    A loop leaves the state there, run_valid_steps zeros. backward: the direction reads from the
    end of ``out``; turned: ``out`` and ``mask`` themselves are turned round.
    """
    if not _needs_fill(part, rule, starts=bool(first)):
        return out
    if rule == "zeros":
        return writer.assign("out", code("{}.masked_fill(~{}[..., None], 0.0)", out, mask))
    start = (first,) if first and rule == "previous_state" else ()
    hold = symbol(HOLD.name)
    held = call(hold, out, mask, *start)
    if backward:
        held = _turned(call(hold, _turned(out), _turned(mask), *start))
    if rule == "zeros_unreversed":
        kept, valid = writer.assign("held", held), _turned(mask)
        held = code("{}.masked_fill(~{}[..., None], 0.0)", kept, valid)
    elif rule not in ("previous_state", "previous_output"):
        raise refuse(writer.loop.layer, f"masked_output={rule}")
    return writer.assign("back" if backward or turned else "ahead", held)


def _last(
    writer: _Writer,
    h: Expression,
    d: int,
    mask: Expression | None,
    rule: str,
    *,
    backward: bool,
) -> Expression:
    """Return the output at the last step that is read, of a final state."""
    loop = writer.loop
    if mask is None or rule == "previous_state":
        return h
    if rule == "zeros":
        step = code("{}[:, :1]", mask) if backward else code("{}[:, -1:]", mask)
        return code("{}.masked_fill(~{}, 0.0)", h, step)
    if rule != "previous_output":
        raise refuse(loop.layer, f"masked_output={rule}")
    if loop.stateful or "initial_state" in writer.site.kwargs:
        return code("{}.masked_fill(~{}.any(dim=1, keepdim=True), 0.0)", h, mask)
    return h
