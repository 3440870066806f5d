"""``training``: a compiled Keras model as all that is needed to train it on in torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from torch import Tensor, nn

from keras2torch_birnn.conversion import build_model
from keras2torch_birnn.errors import (
    UnsupportedOptionError,
    UsageError,
)
from keras2torch_birnn.plugins import PluginName, load_plugins
from keras2torch_birnn.readers.config.policies import notes_of_half_precision
from keras2torch_birnn.readers.containers import opened
from keras2torch_birnn.readers.containers.container import Container
from keras2torch_birnn.readers.source import ModelSource
from keras2torch_birnn.readers.steps import PathLike, read, read_given_config
from keras2torch_birnn.spec import ModelSpec
from keras2torch_birnn.trainers.compiled import CompiledTraining
from keras2torch_birnn.trainers.embedding_rows import record_rows
from keras2torch_birnn.trainers.losses import KerasLoss, build_loss, describe_loss
from keras2torch_birnn.trainers.notes import (
    describe_differences,
    describe_state,
    needs_rows,
)
from keras2torch_birnn.trainers.optimizer import KerasOptimizer
from keras2torch_birnn.trainers.penalties import constrain_, has_constraints, penalty
from keras2torch_birnn.trainers.rules import parse_rule
from keras2torch_birnn.trainers.settings import parse_settings
from keras2torch_birnn.trainers.stored import StoredState, find_state, read_compiled
from keras2torch_birnn.trainers.variables import Variable
from keras2torch_birnn.writers.layers import Located, locate
from keras2torch_birnn.writers.optimizer_state import read_state
from keras2torch_birnn.writers.trained_variables import (
    TrainedVariables,
    check_one_owner,
    find_variables,
    find_whole_variables,
)

OptimizerState = Literal["file", "new"]
"""The optimizer's state: that of the file, or a new one."""


@dataclass(frozen=True)
class Training:
    """All that is needed to train on; a step of Keras is

        loss = state.loss(state.model(x), y) + state.penalty()
        loss.backward()
        state.optimizer.step()
        state.constrain_()

    ``penalty`` and ``constrain_`` are ``k2t.penalty`` and ``k2t.constrain_`` of the model.

    Attributes:
        model: The model, in training mode, on the CPU.
        optimizer: An optimizer of torch, see ``KerasOptimizer``.
        compiled: What the file says of the training.
        spec: The parsed model.
        notes: Differences from Keras.
    """

    model: nn.Module
    optimizer: KerasOptimizer
    compiled: CompiledTraining
    spec: ModelSpec
    notes: tuple[str, ...]

    @cached_property
    def loss(self) -> KerasLoss:
        """The loss of a batch that was compiled: ``state.loss(state.model(x), y)``.

        Where an output has a mask, add ``mask=k2t.output_mask(state.model, x)``.

        Raises:
            UnsupportedOptionError: none was compiled, or one that k2t does not know.
        """
        return build_loss(self.compiled, self.spec)

    def penalty(self) -> Tensor:
        """Compute the sum of all regularizers, to add to the loss: see ``k2t.penalty``."""
        return penalty(self.model)

    def constrain_(self) -> None:
        """Apply all constraints, after a step of the optimizer: see ``k2t.constrain_``.

        It does nothing where that Keras applies none: ``optimizers.experimental`` of 2.10.
        """
        if self.compiled.optimizer.applies_constraints:
            constrain_(self.model)


def training(
    source: ModelSource,
    *,
    config: PathLike | None = None,
    dtype: str | None = None,
    masked_steps: str | None = None,
    plugins: Iterable[PluginName] = (),
    state: OptimizerState = "file",
) -> Training:
    """Read a compiled Keras model to train it on: model, optimizer, loss, penalty, constraints.

    Args:
        source: As ``path`` for ``convert``.
        config: As for ``convert``.
        dtype: As for ``convert``.
        masked_steps: As for ``convert``.
        plugins: As for ``convert``.
        state: "file" for the slots, iterations and learning rate of the file; "new" for those of a
            new optimizer.

    Returns:
        The model in training mode, with what trains it.

    Raises:
        UnsupportedOptionError: Nothing was compiled, or an optimizer, schedule or option that is
            not supported.
        K2TError: As ``convert``.
    """
    if state not in ("file", "new"):
        raise UsageError(f'state {state!r}: "file" or "new" is expected')
    load_plugins(plugins)
    given = read_given_config(config)
    with opened(source) as container:
        reading = read(container, config=config, masked_steps=masked_steps)
        reading.check()
        model = build_model(reading.spec, dtype=dtype).train()
        located = locate(container, config=config, masked_steps=masked_steps)
        compiled = read_compiled(container, given, located.spec.generation)
        variables = find_variables(located, model)
        optimizer = make_optimizer(compiled, located, variables)
        tables = record_rows(model) if needs_rows(optimizer) else []
        optimizer.record(tables)
        unconstrained = has_constraints(model) and not compiled.optimizer.applies_constraints
        notes = notes_of_half_precision(located.spec.notes) + describe_differences(
            optimizer, embeddings=bool(tables), unconstrained=unconstrained
        )
        if state == "file":
            stored = _read(container, optimizer, located, variables)
            notes += describe_state(optimizer, stored, container)
    notes += describe_loss(compiled, located.spec)
    return Training(model, optimizer, compiled, located.spec, notes)


def make_optimizer(
    compiled: CompiledTraining, located: Located, variables: TrainedVariables
) -> KerasOptimizer:
    """Make an optimizer with a new state for the trained parameters of a model.

    Raises:
        UnsupportedOptionError, InvalidModelFileError: as ``training``.
    """
    rule = parse_rule(compiled.optimizer)
    settings = parse_settings(compiled.optimizer, rule.known())
    parameters = variables.parameters
    if not parameters:
        raise UnsupportedOptionError("all weights of the model are frozen", _HOW_TO_THAW)
    if any(kind == "by variable" for kind, _ in settings.clips):
        check_one_owner(parameters, "clipnorm")
    whole: tuple[Variable, ...] = ()
    if rule.of_whole_variables:
        check_one_owner(parameters, compiled.optimizer.class_name)
        whole = find_whole_variables(located, variables)
    owners = [one.owners[0] for one in parameters]
    return KerasOptimizer([one.param for one in parameters], rule, settings, owners, whole)


def _read(
    container: Container,
    optimizer: KerasOptimizer,
    located: Located,
    variables: TrainedVariables,
) -> StoredState | None:
    """Read the optimizer's state; return where it is, or None if the file has none."""
    stored = find_state(container, variables.arrays, optimizer)
    if stored is not None:
        read_state(optimizer, stored, located, variables)
    return stored


_HOW_TO_THAW = "thaw layers in Keras and save again, or thaw parameters of k2t.convert in torch"
