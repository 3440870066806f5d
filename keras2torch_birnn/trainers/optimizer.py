"""``KerasOptimizer``: an optimizer of torch that applies the rule of a Keras optimizer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from keras2torch_birnn.errors import UsageError
from keras2torch_birnn.layers.normalization import is_distributed
from keras2torch_birnn.torch_private import foreach
from keras2torch_birnn.trainers.clipping import Gradients, clip
from keras2torch_birnn.trainers.embedding_rows import RecordedRows, Rows
from keras2torch_birnn.trainers.rules.rule import Now, Rule
from keras2torch_birnn.trainers.settings import Settings
from keras2torch_birnn.trainers.variables import Variable

Loss = TypeVar("Loss")
# Slots that do not belong to a rule: moving averages of weights, sums of gradients.
AVERAGE, GATHERED = "average", "gathered"
_NO_SLOT = torch.empty(0)


class KerasOptimizer(Optimizer):
    """An optimizer with Keras' rule, state, number of iterations and learning-rate schedule.

    ``k2t.training`` makes it. It is used as any other: ``zero_grad``, ``step`` (with a closure,
    too), ``state_dict``, schedulers of torch, which set ``param_groups[...]["lr"]``, and
    ``GradScaler``. With a schedule of Keras, "lr" is the rate at its start, or, if that is 0, the
    one that it rises to; changing it scales the schedule. ``learning_rate`` is the rate of the next
    step. Constraints of Keras are no part of a step, see ``k2t.constrain_``. Slots of a rule of
    whole variables are in Keras' layout, in the state of the first parameter of a variable.

    Args:
        params: As for any optimizer of torch.
        rule: The rule of Keras.
        settings: The options of Keras.
        owners: The number of the Keras variable that each parameter belongs to, if it is not one of
            its own.
        variables: For a rule of whole variables, what Keras has in the parameters; without them
            each is a variable of the same layout.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        rule: Rule,
        settings: Settings,
        owners: Sequence[int] | None = None,
        variables: Iterable[Variable] = (),
    ) -> None:
        self.rule, self.settings = rule, settings
        self.variables = tuple(variables)
        self._recorded: tuple[tuple[Tensor, RecordedRows], ...] = ()
        self._together = False  # the gradients are means over processes
        self._said = False  # that gradients of Embeddings are dense
        defaults: dict[str, Any] = {
            "lr": settings.rate,
            "weight_decay": settings.weight_decay,
            "iterations": 0,
            "owners": None,
            "shared": {},
        }
        super().__init__(list(params), defaults)
        self.param_groups[0]["owners"] = None if owners is None else list(owners)
        self.param_groups[0]["shared"] = dict(rule.shared())

    def __getstate__(self) -> dict[str, Any]:
        """Return all that a copy needs."""
        names = ("rule", "settings", "variables", "_recorded", "_together", "_said")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in names}}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters; those that are in no variable yet are variables by themselves."""
        super().add_param_group(param_group)
        if self.rule.of_whole_variables:
            held = {id(param) for one in self.variables for param in one.parameters.values()}
            for param in self.param_groups[-1]["params"]:
                if id(param) not in held:
                    self.variables += (Variable.of(param, len(self.variables)),)

    @property
    def iterations(self) -> int:
        """The number of steps so far, those in Keras included."""
        return int(self.param_groups[0]["iterations"])

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step, of the first group of parameters."""
        group = self.param_groups[0]
        return self._rate(group, double=group["params"][0].dtype == torch.float64)

    def set_nominal_rate(self, rate: float) -> None:
        """Set the learning rate from which all others are measured."""
        self.settings = replace(self.settings, rate=rate)
        for group in self.param_groups:
            group["lr"] = rate

    def slot_names(self) -> tuple[tuple[str, ...], ...]:
        """Return the names of all slots, in the order in which Keras stores them."""
        extra = [(AVERAGE,)] if self.settings.average is not None else []
        extra += [(GATHERED,)] if self.settings.accumulate else []
        return (*extra, *self.rule.slots())

    def slots_of(self, param: Tensor) -> dict[str, Tensor]:
        """Return the slots of a parameter by name, with new ones where it has none yet."""
        state: dict[str, Tensor] = self.state[param]
        for name in (name for names in self.slot_names() for name in names):
            if name not in state and not self.is_of_variables(name):
                state[name] = self._new_slot(param, name)
        return state

    def slots_of_variable(self, variable: Variable) -> dict[str, Tensor]:
        """Return the slots that the rule has of a whole variable, new ones where there are none."""
        state: dict[str, Tensor] = self.state[variable.keeper]
        found = {}
        for name in (name for names in self.rule.slots() for name in names):
            shape = self.rule.slot_shape(name, variable)
            if shape is not None:
                if name not in state:
                    state[name] = variable.keeper.new_full(shape, self.rule.start(name))
                found[name] = state[name]
        return found

    def is_of_variables(self, slot: str) -> bool:
        """Tell whether a slot belongs to whole variables, in Keras' layout."""
        return self.rule.of_whole_variables and slot not in (AVERAGE, GATHERED)

    def slot_shape(self, slot: str, number: int, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """Return the shape in Keras of a slot of a variable (its number, shape), None if none."""
        if not self.is_of_variables(slot):
            return shape
        (variable, *_) = (one for one in self.variables if one.number == number)
        return self.rule.slot_shape(slot, variable)

    def _new_slot(self, param: Tensor, name: str) -> Tensor:
        if name == AVERAGE:
            return param.detach().clone()
        own = name != GATHERED
        kept = torch.preserve_format
        return torch.full_like(param, self.rule.start(name) if own else 0.0, memory_format=kept)

    def _rate(self, group: dict[str, Any], *, double: bool) -> float:
        return self.settings.rate_at(group["iterations"], float(group["lr"]), double=double)

    def record(self, tables: Iterable[tuple[Tensor, RecordedRows]]) -> None:
        """Take the gradients of these tables of Embeddings from what records their rows."""
        self._recorded = tuple(tables)

    def synchronize_rows(self) -> None:
        """Take the rows of Embeddings' gradients from all processes, as one process has them.

        For DistributedDataParallel, which takes the mean of gradients: all processes of the default
        group call ``step`` together.
        """
        self._together = True

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Remove all gradients, or set them to zero."""
        super().zero_grad(set_to_none)
        self._forget_rows()

    def _forget_rows(self) -> None:
        for _, recorded in self._recorded:
            recorded.clear()

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], Loss]) -> Loss: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], Loss] | None = None) -> Loss | None:
        """Update all parameters that have a gradient; return what the closure returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        count, every = self.iterations, self.settings.accumulate
        batches = list(self._batches())
        if self.settings.scaled and not _are_finite(batches):
            self._forget_rows()
            return loss
        if every:
            for batch in batches:
                batch.gather(last=(count + 1) % every == 0, steps=every)
        if not every or (count + 1) % every == 0:
            self._update(batches, count // every if every else count)
        self._average(count // every if every else count)
        for group in self.param_groups:
            group["iterations"] = count + 1
        self._forget_rows()
        return loss

    def _batches(self) -> Iterator[_Batch]:
        """Yield the parameters with gradients of each group, dtype and device."""
        start = 0
        for group in self.param_groups:
            owners = group["owners"] or range(start, start + len(group["params"]))
            start += len(group["params"])
            found: dict[tuple[torch.dtype, torch.device], _Batch] = {}
            for param, owner in zip(group["params"], owners, strict=True):
                if param.grad is None:
                    continue
                if param.grad.is_sparse:
                    raise UsageError(
                        "a sparse gradient", "use embeddings with sparse=False for this optimizer"
                    )
                batch = found.setdefault((param.dtype, param.device), _Batch(group))
                batch.params.append(param)
                batch.grads.append(param.grad)
                batch.owners.append(owner)
                batch.states.append(self.slots_of(param))
            yield from found.values()

    def _update(self, batches: Sequence[_Batch], iterations: int) -> None:
        """Take one step on all parameters; ``iterations``: the steps before it."""
        self._clip(batches)
        shared = self.param_groups[0]["shared"]
        before = dict(shared)
        for batch in batches:
            double = batch.params[0].dtype == torch.float64
            rate = self._rate(batch.group, double=double)
            shared.update(before)  # every batch starts from the numbers before this step
            now = Now(
                rate,
                iterations + 1,
                double,
                self.rule.family,
                shared,
                batch.owners,
                batch.rows if self.rule.family == "keras3" else {},
                frozenset(batch.rows),
                self.settings.on_tensorflow,
            )
            if self.rule.of_whole_variables:
                self._update_variables(batch, now)
                continue
            if decay := batch.group["weight_decay"]:
                foreach.mul_(batch.params, 1 - rate * float(now.cast(decay)))
            left = self.rule.left_alone() if self.rule.family == "legacy" else ""
            tables = list(batch.rows) if left else []
            restore = [batch.untouched(number, with_slots=left == "all") for number in tables]
            self.rule.apply(batch.params, batch.grads, batch.slots(self.rule.slots()), now)
            for tensor, rows, values in (one for some in restore for one in some):
                tensor[rows] = values

    def _update_variables(self, batch: _Batch, now: Now) -> None:
        """Update the variables in a batch as Keras has them."""
        grads = {id(param): grad for param, grad in zip(batch.params, batch.grads, strict=True)}
        rows = {id(batch.params[number]): one for number, one in batch.rows.items()}
        found = [v for v in self.variables if any(id(p) in grads for p in v.parameters.values())]
        values = [one.value() for one in found]
        common = batch.group["weight_decay"]
        for one, value in zip(found, values, strict=True):
            if decay := self.rule.weight_decay(one, common):
                value.mul_(1 - now.rate * float(now.cast(decay)))
        slots = [self.slots_of_variable(one) for one in found]
        self.rule.apply(
            values,
            [one.gradient(grads) for one in found],
            {
                name: [own.get(name, _NO_SLOT) for own in slots]
                for names in self.rule.slots()
                for name in names
            },
            replace(
                now,
                owners=[one.number for one in found],
                variables=found,
                rows={
                    at: rows[id(one.keeper)]
                    for at, one in enumerate(found)
                    if id(one.keeper) in rows and self.rule.family == "keras3"
                },
            ),
        )
        for one, value in zip(found, values, strict=True):
            one.write(value)

    def _clip(self, batches: Sequence[_Batch]) -> None:
        """Find the rows of Embeddings' gradients, and clip all gradients."""
        grads = [grad for batch in batches for grad in batch.grads]
        params = [param for batch in batches for param in batch.params]
        found: dict[int, Rows] = {}
        for table, recorded in self._recorded if not self.settings.accumulate else ():
            for number, param in enumerate(params):
                if param is not table:
                    continue
                together = self._together and is_distributed()
                rows = recorded.rows(grads[number], together=together)
                if rows is not None:
                    found[number] = rows
                elif not self._said and (
                    why := recorded.why_dense(grads[number], together=together)
                ):
                    warnings.warn(why, stacklevel=2)
                    self._said = True
        owners = tuple(owner for batch in batches for owner in batch.owners)
        on_torch = self.settings.backend == "torch"
        all_of_them = Gradients(tuple(grads), owners, found, single_norms=on_torch)
        if grads and self.settings.clips:
            all_of_them = clip(all_of_them, self.settings.clips)
        at = 0
        for batch in batches:
            batch.grads = list(all_of_them.dense[at : at + len(batch.grads)])
            batch.rows = {
                number - at: one
                for number, one in all_of_them.rows.items()
                if at <= number < at + len(batch.grads)
            }
            at += len(batch.grads)

    def _average(self, iterations: int) -> None:
        """Follow the weights with their averages, and put these in their place when it is time.

        All weights, as Keras does, also those that had no gradient.
        """
        momentum, every = self.settings.average, self.settings.overwrite
        if momentum is None:
            return
        if iterations == 0 and self.settings.family == "keras3":
            momentum = 0.0
        for group in self.param_groups:
            params = group["params"]
            averages = [self.slots_of(param)[AVERAGE] for param in params]
            foreach.mul_(averages, momentum)
            foreach.add_(averages, params, alpha=1 - momentum)
            if every and (iterations + 1) % every == 0:
                foreach.copy_(params, averages)

    @torch.no_grad()
    def use_averages_(self) -> None:
        """Replace the weights by their moving averages, as Keras does at the end of ``fit``.

        Raises:
            UsageError: the optimizer has none (``use_ema`` of Keras).
        """
        if self.settings.average is None:
            raise UsageError(
                "this optimizer keeps no moving averages", "compile with use_ema=True in Keras"
            )
        for group in self.param_groups:
            for param in group["params"]:
                if AVERAGE in self.state[param]:
                    param.copy_(self.state[param][AVERAGE])


def _are_finite(batches: Sequence[_Batch]) -> bool:
    return all(bool(grad.isfinite().all()) for batch in batches for grad in batch.grads)


@dataclass
class _Batch:
    """Parameters of one group, dtype and device, with their gradients and slots."""

    group: dict[str, Any]
    params: list[Tensor] = field(default_factory=list)
    grads: list[Tensor] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)
    states: list[dict[str, Tensor]] = field(default_factory=list)
    rows: dict[int, Rows] = field(default_factory=dict)

    def untouched(self, number: int, *, with_slots: bool) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Return the rows of a table, and of its slots, whose ids were not looked up."""
        param = self.params[number]
        free = torch.ones(len(param), dtype=torch.bool, device=param.device)
        free[self.rows[number].ids] = False
        tensors = [param, *(self.states[number].values() if with_slots else ())]
        return [(one, free, one[free]) for one in tensors]

    def slots(self, names: tuple[tuple[str, ...], ...]) -> dict[str, list[Tensor]]:
        return {name: [one[name] for one in self.states] for some in names for name in some}

    def gather(self, *, last: bool, steps: int) -> None:
        """Add the gradients to their sums; at the last step take the mean, and begin anew."""
        sums = [one[GATHERED] for one in self.states]
        foreach.add_(sums, self.grads)
        if last:
            self.grads = list(foreach.div(sums, float(steps)))
            foreach.zero_(sums)
