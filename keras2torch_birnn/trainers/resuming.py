"""``training``: a compiled Keras model as all that is needed to train it on in torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from keras2torch_birnn.conversion import build_model
from keras2torch_birnn.errors import UnsupportedOptionError, UsageError
from keras2torch_birnn.plugins import PluginName, load_plugins
from keras2torch_birnn.readers.config.parsing import notes_of_half_precision
from keras2torch_birnn.readers.containers import opened
from keras2torch_birnn.readers.containers.container import ModelSource
from keras2torch_birnn.readers.steps import PathLike, read, read_given_config
from keras2torch_birnn.schema.training_rules import describe_batch_rule
from keras2torch_birnn.trainers.compiled import parse_compiled
from keras2torch_birnn.trainers.losses import KerasLoss, describe_loss
from keras2torch_birnn.trainers.optimizers import make_optimizer
from keras2torch_birnn.trainers.output_masks import Masks, output_mask
from keras2torch_birnn.trainers.penalties import constrain_, penalty
from keras2torch_birnn.trainers.slots import find_variables, read_state
from keras2torch_birnn.trainers.weight_places import locate_in

OptimizerState = Literal["file", "new"]
"""The optimizer's state: that of the file, or a new one."""


@dataclass(frozen=True)
class Training:
    """All that is needed to train on; a step of Keras is

        mask = state.output_mask(x)
        loss = state.loss(state.model(x), y, mask=mask) + state.penalty()
        loss.backward()
        state.optimizer.step()
        state.constrain_()

    ``penalty``, ``constrain_`` and ``output_mask`` are those of ``k2t``, of the model.

    Attributes:
        model: The model, in training mode, on the CPU.
        optimizer: An optimizer of torch, with the settings of the file.
        loss: The loss of a batch that was compiled; None if it is none that k2t has.
        notes: Differences from Keras.
    """

    model: nn.Module
    optimizer: Optimizer
    loss: KerasLoss | None
    notes: tuple[str, ...]

    def penalty(self) -> Tensor:
        """Compute the sum of all regularizers, to add to the loss: see ``k2t.penalty``."""
        return penalty(self.model)

    def constrain_(self) -> None:
        """Apply all constraints, after a step of the optimizer: see ``k2t.constrain_``."""
        constrain_(self.model)

    def output_mask(self, *inputs: Tensor) -> Masks:
        """Compute the mask of the model's output: see ``k2t.output_mask``."""
        return output_mask(self.model, *inputs)


def training(
    source: ModelSource,
    *,
    config: PathLike | None = None,
    dtype: str | None = None,
    plugins: Iterable[PluginName] = (),
    state: OptimizerState = "file",
) -> Training:
    """Read a compiled Keras model to train it on: model, optimizer, loss, penalty, constraints.

    Adam, AdamW, SGD and RMSprop take Keras' rule, and of ``.h5`` and ``.keras`` files the slots,
    the steps and the learning rate. Nadam, Adamax, Adagrad and Adadelta are torch's own, new.

    Args:
        source: As ``path`` for ``convert``.
        config: As for ``convert``.
        dtype: As for ``convert``.
        plugins: As for ``convert``.
        state: "file" for the state of the optimizer in the file; "new" for a new one.

    Returns:
        The model in training mode, with what trains it.

    Raises:
        UnsupportedOptionError: Nothing was compiled, or an optimizer or option that is not
            supported.
        K2TError: As ``convert``.
    """
    if state not in ("file", "new"):
        raise UsageError(f'state {state!r}: "file" or "new" is expected')
    load_plugins(plugins)
    given = read_given_config(config)
    with opened(source) as container:
        reading = read(container, config=config)
        model: Any = build_model(reading.finish(), dtype=dtype).train()
        located = locate_in(reading)
        spec = located.spec
        backend = reading.architecture.backend
        compiled = parse_compiled(container.compiled(given), spec.generation, backend)
        variables = find_variables(located, model)
        if not variables.parameters:
            raise UnsupportedOptionError("all weights of the model are frozen", _HOW_TO_THAW)
        made = make_optimizer(
            compiled.optimizer,
            [one.param for one in variables.parameters],
            [one.owners for one in variables.parameters],
            embeddings=any(isinstance(one, nn.Embedding) for one in model.modules()),
        )
        notes = [*notes_of_half_precision(spec.notes), *made.notes]
        notes += describe_batch_rule(spec.root, spec.generation)
        if state == "file":
            notes.append(read_state(container, compiled.optimizer, made, located, variables))
    masked = any(model.meta.get("output_masks") or ())
    loss, of_loss = describe_loss(compiled, spec, masked=masked)
    return Training(model, made.optimizer, loss, (*filter(None, notes), *of_loss))


_HOW_TO_THAW = "thaw layers in Keras and save again, or thaw parameters of k2t.convert in torch"
