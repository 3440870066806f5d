"""Keras' optimizers as those of torch: Adam, AdamW, SGD and RMSprop by Keras' rule.

torch's Adam adds epsilon to the root of the corrected second moment, Keras' to that of the
uncorrected one: torch's epsilon is set before each step so that both are the same. Keras has the
learning rate inside of the velocity of SGD, and epsilon inside of RMSprop's root; these two rules
stand here. Sources: ``optimizers`` of Keras 2.2.4 and 2.3.1, ``optimizer_v2`` of tf.keras 2.4,
``optimizers`` of tf.keras 2.15 and Keras 3.15.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from keras2torch_birnn.errors import (
    InvalidModelFileError,
    UnsupportedOptionError,
    UsageError,
    printable,
)
from keras2torch_birnn.trainers.compiled import (
    HOW_ELSE,
    PLACE,
    OptimizerConfig,
    Options,
    runs_on_tensorflow,
)

_EPSILON = 1e-7  # ``backend.epsilon()`` of every Keras, which null or 0 in a file stand for
# loss_scale_factor: of the loss, and back: it changes nothing.
_COMMON = frozenset(
    "name learning_rate lr decay weight_decay clipnorm clipvalue global_clipnorm use_ema "
    "ema_momentum ema_overwrite_frequency jit_compile is_legacy_optimizer loss_scale_factor "
    "gradient_accumulation_steps".split()
)
_SCHEDULED = ("initial_learning_rate", "warmup_target", "end_learning_rate")
_OTHERS: Mapping[str, type[Optimizer]] = {
    "nadam": torch.optim.NAdam,
    "adamax": torch.optim.Adamax,
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
}


@dataclass(frozen=True)
class Made:
    """An optimizer made of a file's settings.

    ``slots``: names in the optimizer's state, in the order in which Keras stores them: those of one
    tuple weight by weight, before those of the next. ``unused``: Keras stores zeros for a third
    slot of each weight, too. ``before``: arrays of each weight that Keras stores before the slots.
    ``fresh``: a state of Keras cannot be read into it.
    """

    optimizer: Optimizer
    notes: tuple[str, ...]
    slots: tuple[tuple[str, ...], ...] = ()
    unused: bool = False
    before: int = 0
    fresh: bool = False


# ---- the rules ----------------------------------------------------------------------------------


class KerasStep(Optimizer):
    """An optimizer whose step begins as Keras' does: gradients are clipped, Adam's epsilon is set.

    Copies and pickles of an optimizer lose their hooks, so it is hooked again by ``__setstate__``.
    """

    hooked = False

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Set the state of a copy, or one that is loaded."""
        super().__setstate__(state)
        self.hook_step()

    def hook_step(self) -> None:
        """Let each step begin as Keras' does."""
        if not self.hooked:
            self.register_step_pre_hook(begin_step)
            self.hooked = True


def begin_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Clip the gradients, and set the epsilon of torch's Adam to that of Keras at this step."""
    for group in optimizer.param_groups:
        clips = group.get("clips", ())
        if clips and any(one is not None for one in (*args[1:], *kwargs.values())):
            raise UsageError(
                "a step with a closure, and gradients that Keras clips",
                "compute the gradients before, and call step()",
            )
        for kind, limit in clips:
            _clip(group["params"], group["owners"], kind, limit)
        if "epsilon" in group:
            states = [optimizer.state[p] for p in group["params"] if p in optimizer.state]
            step = 1 + max((float(one["step"]) for one in states if one), default=0.0)
            group["eps"] = group["epsilon"] / math.sqrt(1 - group["betas"][1] ** step)


def _clip(
    params: Sequence[nn.Parameter], owners: Sequence[tuple[int, ...]], kind: str, limit: float
) -> None:
    """Clip gradients in place; a weight of Keras in several parameters has one norm."""
    found: dict[tuple[int, ...], list[Tensor]] = {}
    for param, own in zip(params, owners, strict=False):  # those that were added have no number
        if param.grad is not None:
            found.setdefault(tuple(own) if kind == "norm of each" else (), []).append(param.grad)
    for grads in found.values():
        if kind == "value":
            for grad in grads:
                grad.clamp_(-limit, limit)
            continue
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in grads]))
        for grad in grads:
            grad.mul_(limit / norm.clamp_min(limit))


class KerasAdam(KerasStep, torch.optim.AdamW):
    """torch's AdamW whose epsilon is Keras': without weight decay it is Adam."""


class KerasSGD(KerasStep):
    """Gradient descent with Keras' momentum: v = momentum v - lr g; p += v."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take a step; ``closure``: computes the loss and the gradients anew."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group, param, grad in _updates(self):
            rate, momentum = group["lr"], group["momentum"]
            if not momentum:
                param.add_(grad, alpha=-rate)
                continue
            velocity = _slot(self.state[param], "velocity", param)
            velocity.mul_(momentum).add_(grad, alpha=-rate)
            if group["nesterov"]:
                param.add_(velocity, alpha=momentum).add_(grad, alpha=-rate)
            else:
                param.add_(velocity)
        return loss


class KerasRMSprop(KerasStep):
    """RMSprop with Keras' epsilon, which is inside of the root but in older rules; see there."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take a step; ``closure``: computes the loss and the gradients anew."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group, param, grad in _updates(self):
            state, rho, epsilon = self.state[param], group["rho"], group["eps"]
            squares = _slot(state, "squares", param)
            squares.mul_(rho).addcmul_(grad, grad, value=1 - rho)
            if group["centered"]:
                mean = _slot(state, "mean", param)
                mean.lerp_(grad, 1 - rho)
                squares = squares - mean.square()
            root = (squares + epsilon).sqrt() if group["inside"] else squares.sqrt() + epsilon
            if not group["momentum"]:
                param.addcdiv_(grad, root, value=-group["lr"])
                continue
            steps = _slot(state, "momentum", param)
            steps.mul_(group["momentum"]).addcdiv_(grad, root, value=group["lr"])
            param.sub_(steps)
        return loss


def _updates(optimizer: Optimizer) -> Iterable[tuple[dict[str, Any], nn.Parameter, Tensor]]:
    """Yield what has a gradient, after its weight decay."""
    for group in optimizer.param_groups:
        for param in group["params"]:
            if param.grad is not None:
                if group["weight_decay"]:
                    param.mul_(1 - group["lr"] * group["weight_decay"])
                yield group, param, param.grad


def _slot(state: dict[str, Any], name: str, param: nn.Parameter) -> Tensor:
    if name not in state:
        state[name] = torch.zeros_like(param, memory_format=torch.preserve_format)
    found: Tensor = state[name]
    return found


# ---- from a file --------------------------------------------------------------------------------


def make_optimizer(
    config: OptimizerConfig,
    params: Sequence[nn.Parameter],
    owners: Sequence[tuple[int, ...]],
    *,
    embeddings: bool,
) -> Made:
    """Make an optimizer without a state. owners: the numbers of Keras' variables in each parameter.

    embeddings: the model has a table of one that is trained.

    Raises:
        UnsupportedOptionError: torch has none such; InvalidModelFileError: an option is broken.
    """
    name, options = config.class_name.lower(), Options(config.config)
    rate, notes = _read_rate(options, 0.01 if name == "sgd" else 0.001)
    clips = _read_clips(options, config.family)
    notes += [note for note, applies in _differences(options, config) if applies]
    if name in _OTHERS:
        rest = {"lr": rate, "eps": _epsilon(options)}
        notes += [_FRESH.format(name=config.class_name)] + [_UNCLIPPED] * bool(clips)
        with _refusals_of_torch():
            other = _make_other(name, params, rest, options, config)
        return Made(other, tuple(notes), fresh=True)
    if embeddings and _counts_rows(name, options, config, clips):
        notes.append(_ROWS)
    shared = {"lr": rate, "weight_decay": options.number("weight_decay")}
    if shared["weight_decay"]:
        notes.append(_DECAYS)
    group: dict[str, Any] = {"params": list(params), "clips": clips, "owners": list(owners)}
    make = _MAKERS.get(name)
    if make is None:
        raise UnsupportedOptionError(
            f"the optimizer {printable(config.class_name)}, which torch does not have as Keras has "
            "it",
            HOW_ELSE,
            place=PLACE,
        )
    with _refusals_of_torch():
        made = make(group, shared, options, config)
    if isinstance(made.optimizer, KerasStep):
        made.optimizer.hook_step()
    before = sum((options.flag("use_ema"), options.number("gradient_accumulation_steps") != 0))
    return replace(made, notes=tuple(notes), before=before)


@contextmanager
def _refusals_of_torch() -> Iterator[None]:
    """Refuse in k2t's words what torch's own optimizers do not take, as a rate below 0."""
    try:
        yield
    except ValueError as error:
        words = f"an option of an optimizer that torch does not take ({printable(error)})"
        raise InvalidModelFileError(words, "refused", place=PLACE) from None


def _read_rate(options: Options, default: float) -> tuple[float, list[str]]:
    """Read the learning rate; of a schedule its first one, with a note."""
    found = options.values.get("learning_rate")
    if not isinstance(found, Mapping):
        return options.number("learning_rate", "lr", default=default), []
    config = found.get("config")
    given = Options(config if isinstance(config, Mapping) else {})
    values = given.values.get("values")
    first = values[0] if isinstance(values, list) and values else None
    rates = [Options({"learning_rate": first}).number("learning_rate")]
    rates += [given.number(one) for one in _SCHEDULED]
    rate = next((one for one in rates if one), default)
    return rate, [_SCHEDULE.format(name=printable(found.get("class_name")), rate=rate)]


def _read_clips(options: Options, family: str) -> list[tuple[str, float]]:
    """Return how gradients are clipped, in order; newer optimizers clip in one way only."""
    norm, value = options.positive("clipnorm"), options.positive("clipvalue")
    every = options.positive("global_clipnorm")
    if family == "keras2":
        found = [("norm of all", norm), ("value", value)]
    elif family == "legacy":
        found = [("value", value), ("norm of each", norm), ("norm of all", every)]
    else:
        found = [("norm of each", norm), ("norm of all", every), ("value", value)]
    used = [(kind, limit) for kind, limit in found if limit]
    return used if family in ("keras2", "legacy") else used[:1]


def _differences(options: Options, config: OptimizerConfig) -> list[tuple[str, bool]]:
    older = config.family in ("keras2", "legacy") and config.class_name.lower() != "nadam"
    decay = options.positive("decay") if older else 0.0
    steps = options.number("gradient_accumulation_steps")
    return [
        (_RATE_DECAY.format(decay=decay), decay != 0),
        (_AVERAGES, options.flag("use_ema")),
        (_ACCUMULATED.format(steps=f"{steps:g}"), steps > 1),
        (_SCALED, config.scaled),
    ]


def _counts_rows(
    name: str, options: Options, config: OptimizerConfig, clips: Sequence[tuple[str, float]]
) -> bool:
    """Tell whether this Keras takes the gradients of an Embedding's ids one by one."""
    if config.family == "keras3":
        return runs_on_tensorflow(config.backend) and (bool(clips) or name != "sgd")
    if config.family == "keras2":
        return any(kind == "value" for kind, _ in clips)
    return bool(clips) or (config.family == "legacy" and options.number("momentum") != 0)


def _epsilon(options: Options) -> float:
    return options.number("epsilon") or _EPSILON


def _betas(options: Options, config: OptimizerConfig) -> tuple[float, float]:
    """Return the betas as Keras computes with them: TensorFlow rounds them to float32."""
    betas = [options.number(f"beta_{n}", default=usual) for n, usual in ((1, 0.9), (2, 0.999))]
    rounds = config.family != "keras2" and runs_on_tensorflow(config.backend)
    first, second = (float(np.float32(one)) if rounds else one for one in betas)
    return first, second


def _make_adam(
    group: dict[str, Any], shared: dict[str, Any], options: Options, config: OptimizerConfig
) -> Made:
    options.check_names(_COMMON | {"beta_1", "beta_2", "epsilon", "amsgrad", "adaptive_epsilon"})
    amsgrad = options.flag("amsgrad")
    group["epsilon"] = _epsilon(options)
    adam = KerasAdam([group], betas=_betas(options, config), amsgrad=amsgrad, **shared)
    older = config.family in ("keras2", "legacy")
    moments = (("exp_avg",), ("exp_avg_sq",)) if older else (("exp_avg", "exp_avg_sq"),)
    largest = (("max_exp_avg_sq",),) if amsgrad else ()
    return Made(adam, (), (*moments, *largest), unused=config.family == "keras2" and not amsgrad)


def _make_sgd(
    group: dict[str, Any], shared: dict[str, Any], options: Options, config: OptimizerConfig
) -> Made:
    options.check_names(_COMMON | {"momentum", "nesterov"})
    momentum = options.number("momentum")
    own = {"momentum": momentum, "nesterov": options.flag("nesterov")}
    always = config.family in ("keras2", "tf.keras")  # a slot that nothing may use
    return Made(KerasSGD([group], shared | own), (), (("velocity",),) * bool(always or momentum))


def _make_rmsprop(
    group: dict[str, Any], shared: dict[str, Any], options: Options, config: OptimizerConfig
) -> Made:
    options.check_names(_COMMON | {"rho", "momentum", "epsilon", "centered"})
    momentum, centered = options.number("momentum"), options.flag("centered")
    own = {
        "rho": options.number("rho", default=0.9),
        "momentum": momentum,
        "centered": centered,
        "eps": _epsilon(options),
        "inside": config.family in ("tf.keras", "keras3") or bool(momentum),
    }
    slots = (("squares",), *((("momentum",),) if momentum else ()))
    slots = (*slots, ("mean",)) if centered else slots
    return Made(KerasRMSprop([group], shared | own), (), slots)


_MAKERS = {"adam": _make_adam, "adamw": _make_adam, "sgd": _make_sgd, "rmsprop": _make_rmsprop}


def _make_other(
    name: str,
    params: Sequence[nn.Parameter],
    shared: dict[str, Any],
    options: Options,
    config: OptimizerConfig,
) -> Optimizer:
    """Make an optimizer of torch by its own rule, with the options that both have."""
    own: dict[str, Any] = {}
    if name in ("nadam", "adamax"):
        own["betas"] = _betas(options, config)
    older = config.family in ("keras2", "legacy")
    if name == "nadam":  # 1 step of the schedule for each step in newer optimizers
        own["momentum_decay"] = options.number("schedule_decay", "decay", default=0.004)
        own["momentum_decay"] = own["momentum_decay"] if older else 1.0
    if name == "adadelta":
        own["rho"] = options.number("rho", default=0.95)
    if name == "adagrad":
        first = options.number("initial_accumulator_value", default=0.1)
        own["initial_accumulator_value"] = 0.0 if config.family == "keras2" else first
    return _OTHERS[name](list(params), **shared, **own)


# ---- notes --------------------------------------------------------------------------------------

_SCHEDULE = (
    "the learning rate follows {name} in Keras; here it is {rate:g} throughout: "
    "torch.optim.lr_scheduler has schedules"
)
_RATE_DECAY = (
    "the learning rate is divided by 1 + {decay:g} * step in Keras, and not here: "
    "torch.optim.lr_scheduler.LambdaLR does it"
)
_AVERAGES = (
    "Keras keeps moving averages of the weights (use_ema), and k2t does not: "
    "torch.optim.swa_utils.AveragedModel does"
)
_ACCUMULATED = (
    "Keras takes the mean of {steps} batches' gradients for a step: call optimizer.step() after as "
    "many, and divide the loss by {steps}"
)
_SCALED = (
    "Keras scales its loss (LossScaleOptimizer), by itself where it computes in float16; here it "
    "is not scaled"
)
_FRESH = (
    "{name} is torch's own, with the options of the file and a new state: its steps are not those "
    "of Keras (docs/training.md)"
)
_UNCLIPPED = (
    "Keras clips the gradients, and this optimizer does not: call torch.nn.utils.clip_grad_norm_ "
    "or clip_grad_value_ before its step"
)
_ROWS = (
    "this Keras on TensorFlow takes the gradients of an Embedding's ids one by one (it squares or "
    "clips them before they are added up, or leaves other rows alone); here they are one gradient"
)
_DECAYS = (
    "all trained weights decay, as in Keras after load_model: no file says which of them were "
    "excluded by exclude_from_weight_decay"
)
