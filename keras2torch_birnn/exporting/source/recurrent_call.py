"""Statements that call a recurrent layer: masks, merge, states. H units.

Names: ``out`` are outputs (B, T, H), ``h`` and ``c`` final states (directions, B, H) as torch
returns them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from keras2torch_birnn.exporting.source.emission import Called, Helper, Site, refuse
from keras2torch_birnn.spec import LayerSpec

_MASKS = "keras2torch_birnn.exporting.source.helpers.masks"
RUN = Helper(_MASKS, "run_valid_steps")
HOLD = Helper(_MASKS, "hold_last")
_MERGES: Mapping[str, str] = {
    "concat": "torch.cat(({0}, {1}), dim=-1)",
    "sum": "{0} + {1}",
    "mul": "{0} * {1}",
    "ave": "({0} + {1}) / 2",
}


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

    out: str
    states: tuple[str, ...]
    before: tuple[str, ...] = ()


class _Writer:
    """Writer of the statements of one call."""

    def __init__(self, loop: Loop, site: Site) -> None:
        self.loop, self.site = loop, site
        self.lines: list[str] = []

    def name(self, wanted: str) -> str:
        """Return a fresh local name."""
        return self.site.fresh(wanted)

    def assign(self, wanted: str, expression: str) -> str:
        """Assign an expression to a fresh name."""
        name = self.name(wanted)
        self.lines.append(f"{name} = {expression}")
        return name

    def run_part(
        self,
        part: Part,
        x: str,
        mask: str | None,
        initial: Sequence[Sequence[str]] | None,
        *,
        out: bool,
    ) -> _Ran:
        """Run one module; ``initial``: of each direction its states."""
        before: tuple[str, ...] = ()
        state = ""
        if initial is not None:
            state = _torch_state(part, initial)
            before = tuple(given[0] for given in initial)
        elif self.loop.stateful:
            state = f"self.{part.name}_state"
            before = ("carried",) * part.directions
        if part.dropout:
            x = f"self.{part.dropout}({x})"
        named = [x, *([state] if state else [])]
        if part.looped:
            named += [f"mask={mask}"] if mask else []
            text = f"self.{part.name}({', '.join(named)})"
        elif mask:
            text = f"run_valid_steps(self.{part.name}, {x}, {mask}{', ' + state if state else ''})"
        else:
            text = f"self.{part.name}({', '.join(named)})"
        keeps = self.loop.stateful or self.loop.return_state
        target = self.name("out") if out else "_"
        h = self.name("h") if keeps or not out else "_"
        c = self.name("c") if keeps and part.states == 2 else "_"
        if h == "_":
            self.lines.append(f"{target}, _ = {text}")
        else:
            finals = f"({h}, {c})" if part.states == 2 else h
            self.lines.append(f"{target}, {finals} = {text}")
        return _Ran(target, (h, c)[: part.states], before)

    def carry(self, part: Part, ran: _Ran) -> None:
        """Keep the states of a stateful layer for the next batch."""
        if self.loop.stateful:
            detached = [f"{state}.detach()" for state in ran.states]
            value = f"({', '.join(detached)})" if part.states == 2 else detached[0]
            self.lines.append(f"self.{part.name}_state = {value}")


def _torch_state(part: Part, initial: Sequence[Sequence[str]]) -> str:
    """Write initial states as torch takes them: (directions, B, H), h and c as a tuple."""
    parts = []
    for number in range(part.states):
        each = [given[number] for given in initial]
        parts.append(f"{each[0]}[None]" if len(each) == 1 else f"torch.stack(({', '.join(each)}))")
    return f"({', '.join(parts)})" if part.states == 2 else parts[0]


def call_layer(loop: Loop, site: Site) -> str | Called:
    """Write the call of a recurrent layer."""
    writer = _Writer(loop, site)
    initial = _split_states(loop, site)
    x, mask = site.x, site.mask
    if mask is not None and loop.against_time:
        mask = writer.assign("turned", f"{mask}.flip(1)")
    if loop.against_time:
        x = f"{x}.flip(1)"
    whole = len(loop.chains) == 1 and loop.chains[0].parts[0].directions == 2
    if whole:
        outputs, states = _call_whole(writer, x, mask, initial)
    else:
        outputs, states = _call_chains(writer, x, mask, initial)
    tail = states if loop.return_state else ()
    return _finish(writer, outputs, tail)


def _finish(writer: _Writer, outputs: tuple[str, ...], tail: tuple[str, ...]) -> str | Called:
    """Give the first output the name that the graph has for it."""
    site, lines = writer.site, writer.lines
    if len(outputs) == 1 and not tail:
        if len(lines) == 1 and lines[0].startswith(f"{outputs[0]}, _ = "):
            text = lines[0].partition(" = ")[2]
            if site.declared:
                return Called((f"{site.out}, _ = {text}",), site.out)
            return f"{text}[0]"
        *before, last = lines
        if last.startswith(f"{outputs[0]} = "):
            return Called((*before, site.out + last[len(outputs[0]) :]), site.out)
        return Called((*lines, f"{site.out} = {outputs[0]}"), site.out)
    values = [site.out, *(site.fresh("state") for _ in (*outputs[1:], *tail))]
    pairs = zip(values, (*outputs, *tail), strict=True)
    return Called((*lines, *(f"{name} = {text}" for name, text in pairs)), tuple(values))


def _split_states(loop: Loop, site: Site) -> list[list[str]] | None:
    """Return the initial states of each direction in Keras' order."""
    given = site.kwargs.get("initial_state")
    if given is None:
        return None
    flat = list(given) if isinstance(given, tuple | list) else [given]
    directions = len(loop.rules)
    each = len(flat) // directions
    return [flat[d * each : (d + 1) * each] for d in range(directions)]


def _call_whole(
    writer: _Writer, x: str, mask: str | None, initial: list[list[str]] | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Call one bidirectional module."""
    loop = writer.loop
    (part,) = loop.chains[0].parts
    ran = writer.run_part(part, x, mask, initial, out=loop.return_sequences)
    first = _before(writer, part, ran, mask)
    if not loop.return_sequences:
        halves = tuple(
            _last(writer, f"{ran.states[0]}[{d}]", d, mask, loop.rules[d], backward=d == 1)
            for d in range(2)
        )
        outputs = _merged(loop, halves)
    else:
        outputs = _merged_sequences(writer, part, ran, mask, first)
    writer.carry(part, ran)
    return outputs, tuple(f"{state}[{d}]" for d in range(2) for state in ran.states)


def _merged_sequences(
    writer: _Writer, part: Part, ran: _Ran, mask: str | None, first: tuple[str, ...]
) -> tuple[str, ...]:
    loop, out = writer.loop, ran.out
    plain = mask is None or not any(
        _needs_fill(part, rule, given=bool(first)) for rule in loop.rules
    )
    if plain and loop.merge == "concat":
        return (out,)
    if mask is not None and not plain and set(loop.rules) == {"zeros"}:
        out, plain = _filled(writer, part, out, mask, "zeros", "", backward=False), True
        if loop.merge == "concat":
            return (out,)
    ahead, back = writer.name("ahead"), writer.name("back")
    writer.lines.append(f"{ahead}, {back} = {out}.chunk(2, dim=-1)")
    if not plain and mask is not None:
        starts = first or ("", "")
        ahead = _filled(writer, part, ahead, mask, loop.rules[0], starts[0], backward=False)
        back = _filled(writer, part, back, mask, loop.rules[1], starts[1], backward=True)
    return _merged(loop, (ahead, back))


def _merged(loop: Loop, halves: tuple[str, ...]) -> tuple[str, ...]:
    if len(halves) == 1 or loop.merge is None:
        return halves
    return (_MERGES[loop.merge].format(*halves),)


def _call_chains(
    writer: _Writer, x: str, mask: str | None, initial: list[list[str]] | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Call a chain of modules for each direction; the second reads from the end."""
    loop = writer.loop
    outputs, states = [], []
    for d, chain in enumerate(loop.chains):
        reads, its_mask = x, mask
        if d == 1:
            reads = f"{x}.flip(1)"
            its_mask = writer.assign("turned", f"{mask}.flip(1)") if mask else None
        given = _per_cell(chain, initial[d]) if initial is not None else None
        ran = []
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
                start = first[0] if first else ""
                rule = loop.rules[d]
                out = _filled(
                    writer, part, out, its_mask, rule, start, backward=False, turned=d == 1
                )
            outputs.append(f"{out}.flip(1)" if d == 1 else out)
        else:
            text = f"{last.states[0]}[0]"
            outputs.append(_last(writer, text, d, its_mask, loop.rules[d], backward=False))
        for part, one in zip(chain.parts, ran, strict=True):
            writer.carry(part, one)
        states += [f"{state}[0]" for cell, _ in chain.order for state in ran[cell].states]
    return _merged(loop, tuple(outputs)), tuple(states)


def _per_cell(chain: Chain, given: Sequence[str]) -> dict[int, list[str]]:
    rest = iter(given)
    return {cell: [next(rest) for _ in range(count)] for cell, count in chain.order}


def _before(writer: _Writer, part: Part, ran: _Ran, mask: str | None) -> tuple[str, ...]:
    """Return what stands before the first valid step of each direction; none if zeros."""
    loop = writer.loop
    if not ran.before or mask is None or part.looped or "previous_state" not in loop.rules:
        return ran.before if mask is not None else ()
    if ran.before[0] != "carried":
        return ran.before
    raise refuse(loop.layer, "a mask and states that go on from batch to batch")


def _needs_fill(part: Part, rule: str, *, given: bool) -> bool:
    """Tell whether outputs at masked steps are not yet those of the rule."""
    if not part.looped:
        return rule != "zeros"
    return rule not in ("previous_state", "previous_output") or (rule != "previous_state" and given)


def _filled(
    writer: _Writer,
    part: Part,
    out: str,
    mask: str,
    rule: str,
    first: str,
    *,
    backward: bool,
    turned: bool = False,
) -> str:
    """Put at masked steps what the rule of this Keras puts there.

    A loop leaves the state there, run_valid_steps zeros. backward: the direction reads from the
    end of ``out``; turned: ``out`` and ``mask`` themselves are turned round.
    """
    if not _needs_fill(part, rule, given=bool(first)):
        return out
    if rule == "zeros":
        return writer.assign("out", f"{out}.masked_fill(~{mask}[..., None], 0.0)")
    start = f", {first}" if first and rule == "previous_state" else ""
    held = f"hold_last({out}, {mask}{start})"
    if backward:
        held = f"hold_last({out}.flip(1), {mask}.flip(1){start}).flip(1)"
    if rule == "zeros_unreversed":
        held = f"{writer.assign('held', held)}.masked_fill(~{mask}.flip(1)[..., None], 0.0)"
    elif rule not in ("previous_state", "previous_output"):
        raise refuse(writer.loop.layer, f"masked_output={rule}")
    return writer.assign("back" if backward or turned else "ahead", held)


def _last(writer: _Writer, h: str, d: int, mask: str | None, rule: str, *, backward: bool) -> str:
    """Return the output at the last step that is read, of a final state."""
    loop = writer.loop
    if mask is None or rule == "previous_state":
        return h
    if rule == "zeros":
        step = f"{mask}[:, :1]" if backward else f"{mask}[:, -1:]"
        return f"{h}.masked_fill(~{step}, 0.0)"
    if rule != "previous_output":
        raise refuse(loop.layer, f"masked_output={rule}")
    if loop.stateful or "initial_state" in writer.site.kwargs:
        return f"{h}.masked_fill(~{mask}.any(dim=1, keepdim=True), 0.0)"
    return h
