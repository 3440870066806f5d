"""Parse the training that was compiled into a file: optimizer, loss and its weights, as JSON.

``.keras`` files (and the text of Keras 3's ``model.to_json()``) hold it as ``compile_config``,
HDF5 files, SavedModels and TF.js as ``training_config``. Nothing of it is imported or run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from keras2torch_birnn.errors import InvalidModelFileError, UnsupportedOptionError, printable
from keras2torch_birnn.limits import MAX_OPTIMIZER_NUMBER
from keras2torch_birnn.spec import Generation

Json: TypeAlias = Any  # what strict JSON can hold: None, bool, int, float, str, list, dict
# The optimizers' families: Keras 1 to 2.3; OptimizerV2 of tf.keras, later called legacy; those that
# tf.keras 2.11 and tf_keras have instead; Keras 3.
Family = Literal["keras2", "legacy", "tf.keras", "keras3"]
_BUILT_IN_MODULES = ("keras", "tf_keras", "builtins")
# Options that are not those of a rule where only its name is given.
_NAMED: Mapping[str, Mapping[str, Json]] = {"adamw": {"weight_decay": 0.004}}
_SCALING = "LossScaleOptimizer"
HOW_ELSE = "make the optimizer in torch, with k2t.convert for the model"
PLACE = "optimizer"
_HOW_TO_COMPILE = "compile the model in Keras before it is saved, or make the optimizer in torch"


@dataclass(frozen=True)
class OptimizerConfig:
    """An optimizer as the file has it.

    ``class_name``: Keras' name of the class, such as "Adam". ``config``: its options as they are
    in the file, not checked. ``family``: whose rules these are. ``backend``: of the Keras that
    wrote the file, "" where the file does not say it. ``scaled``: it is inside of a
    LossScaleOptimizer.
    """

    class_name: str
    config: Mapping[str, Json]
    family: Family
    backend: str = ""
    scaled: bool = False


@dataclass(frozen=True)
class CompiledTraining:
    """Training that a model was compiled for; of its JSON only ``optimizer`` is parsed here.

    ``loss``: a name, a configuration of a loss, or a list or mapping of them by output; None if
    there is none. ``loss_weights``: as they are in the file.
    ``generation``, ``backend``: the Keras that wrote it, and on what if the file says it.
    """

    optimizer: OptimizerConfig
    loss: object
    loss_weights: object
    generation: Generation
    backend: str = ""


def runs_on_tensorflow(backend: str) -> bool:
    """Tell whether a backend is TensorFlow, as it is where a file does not say it."""
    return backend in ("", "tensorflow")


def parse_compiled(
    compiled: Mapping[str, Json] | None, generation: Generation, backend: str = ""
) -> CompiledTraining:
    """Parse what ``Container.compiled`` found; ``backend``: as the file says it.

    Raises:
        UnsupportedOptionError: nothing was compiled, or an optimizer that Keras does not have;
        InvalidModelFileError: it is broken.
    """
    if not compiled:
        raise UnsupportedOptionError("holds no compiled training", _HOW_TO_COMPILE)
    optimizer = compiled.get("optimizer", compiled.get("optimizer_config"))
    if optimizer is None:
        raise UnsupportedOptionError("compiled without an optimizer", _HOW_TO_COMPILE)
    return CompiledTraining(
        replace(_parse_optimizer(optimizer, generation), backend=backend),
        compiled.get("loss"),
        compiled.get("loss_weights"),
        generation,
        backend,
    )


def _parse_optimizer(optimizer: Json, generation: Generation) -> OptimizerConfig:
    if isinstance(optimizer, str):  # compile("adam"), as `.keras` files keep it
        options = _NAMED.get(optimizer.lower(), {})
        return OptimizerConfig(optimizer, options, _default_family(generation))
    name = optimizer.get("class_name") if isinstance(optimizer, Mapping) else None
    config = optimizer.get("config") if isinstance(optimizer, Mapping) else None
    if not isinstance(name, str) or not isinstance(config, Mapping):
        raise InvalidModelFileError(
            "an optimizer without class_name, config", "refused", place="optimizer"
        )
    module = optimizer.get("module")
    package, _, plain = name.rpartition(">")
    own = isinstance(module, str) and module.partition(".")[0] not in _BUILT_IN_MODULES
    if own or package not in ("", "Custom", "keras"):
        raise UnsupportedOptionError(
            f"the optimizer {printable(name)}, which its own Python code defines",
            "make it in torch, with k2t.convert for the model",
            place="optimizer",
        )
    if plain == _SCALING and generation.name == "keras3":
        return replace(_parse_optimizer(config.get("inner_optimizer"), generation), scaled=True)
    return OptimizerConfig(plain, config, _find_family(config, generation))


def _default_family(generation: Generation) -> Family:
    """Return the family of an optimizer that only its name stands for."""
    newer = generation.name == "tf.keras" and generation.numbers >= (2, 11)
    return "tf.keras" if newer else _find_family({}, generation)


def _find_family(config: Mapping[str, Json], generation: Generation) -> Family:
    """Tell the families of tf.keras apart, by options that only the newer one has."""
    if generation.name == "keras3":
        return "keras3"
    if generation.name != "tf.keras":
        return "keras2"
    newer = config.get("is_legacy_optimizer") is False or "jit_compile" in config
    if newer and generation.numbers < (2, 11):
        raise UnsupportedOptionError(
            "an optimizer of optimizers.experimental before tf.keras 2.11, which had rules of its "
            "own",
            "make it in torch, with k2t.convert for the model",
            place="optimizer",
        )
    return "tf.keras" if newer else "legacy"


# ---- options of the optimizer, checked when they are asked for ----


@dataclass(frozen=True)
class Options:
    """Options by name, as they are in the file."""

    values: Mapping[str, Any]

    def number(self, *names: str, default: float = 0.0) -> float:
        """Return the first of these options that is there and not null, as a finite number.

        Raises:
            InvalidModelFileError: it is no number.
        """
        for name in names:
            value = self.values.get(name)
            if value is None:
                continue
            plain = isinstance(value, int | float) and not isinstance(value, bool)
            if not plain or not math.isfinite(value) or abs(value) > MAX_OPTIMIZER_NUMBER:
                raise self._refuse(name, value)
            return float(value)
        return default

    def positive(self, name: str) -> float:
        """Return a number that is not negative."""
        value = self.number(name)
        if value < 0:
            raise self._refuse(name, value)
        return value

    def flag(self, name: str) -> bool:
        """Return a switch; null is False."""
        value = self.values.get(name) or False
        if not isinstance(value, bool):
            raise self._refuse(name, value)
        return value

    def check_names(self, known: frozenset[str]) -> None:
        """Refuse options that nothing here reads.

        Raises:
            UnsupportedOptionError: names them.
        """
        unknown = sorted(name for name, value in self.values.items() if name not in known and value)
        if unknown:
            raise UnsupportedOptionError(
                f"options {', '.join(map(printable, unknown))} of an optimizer are not supported",
                HOW_ELSE,
                place=PLACE,
            )

    def _refuse(self, name: str, value: Any) -> InvalidModelFileError:
        return InvalidModelFileError(
            f"{name}={printable(value)} of an optimizer", "refused", place=PLACE
        )
