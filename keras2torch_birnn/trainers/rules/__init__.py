"""Update rules of Keras' optimizers, one page for each family; ``RULES`` has them by class."""

from __future__ import annotations

from collections.abc import Mapping

from keras2torch_birnn.errors import UnsupportedOptionError, printable
from keras2torch_birnn.trainers.compiled import OptimizerConfig, runs_on_tensorflow
from keras2torch_birnn.trainers.options import Options
from keras2torch_birnn.trainers.rules.adafactor import Adafactor
from keras2torch_birnn.trainers.rules.adagrad import Adadelta, Adagrad, RMSprop
from keras2torch_birnn.trainers.rules.adam import Adam, Adamax, Lamb, Nadam
from keras2torch_birnn.trainers.rules.ftrl import Ftrl
from keras2torch_birnn.trainers.rules.muon import Muon
from keras2torch_birnn.trainers.rules.rule import Rule
from keras2torch_birnn.trainers.rules.sgd import SGD, Lion

# Names of Keras' classes in lower case, as older files may write them.
RULES: Mapping[str, type[Rule]] = {
    "sgd": SGD,
    "rmsprop": RMSprop,
    "adam": Adam,
    "adamw": Adam,
    "nadam": Nadam,
    "adamax": Adamax,
    "adagrad": Adagrad,
    "adadelta": Adadelta,
    "ftrl": Ftrl,
    "lion": Lion,
    "lamb": Lamb,
    "muon": Muon,
    "adafactor": Adafactor,
}
_PLACE = "optimizer"


def parse_rule(config: OptimizerConfig) -> Rule:
    """Find the rule of an optimizer, and read its options.

    Raises:
        UnsupportedOptionError: another class than Keras' own, or one that is not supported.
    """
    found = RULES.get(config.class_name.lower())
    if found is None:
        inner = config.class_name.startswith("LossScaleOptimizer")
        raise UnsupportedOptionError(
            f"the optimizer {printable(config.class_name)} is not supported",
            "compile with the optimizer inside of it, without loss scaling"
            if inner
            else "make it in torch, with k2t.convert for the model",
            place=_PLACE,
        )
    on_tensorflow = runs_on_tensorflow(config.backend)
    options = Options(config.config, _PLACE, config.version, on_tensorflow)
    return found.parse(options, config.family)
