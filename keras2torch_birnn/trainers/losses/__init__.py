"""Losses of compiled models: ``build_loss`` reads one, ``KerasLoss`` computes it.

``formulas`` has Keras' functions, ``means`` how each generation makes one number of their values.
"""

from keras2torch_birnn.trainers.losses.keras_loss import KerasLoss
from keras2torch_birnn.trainers.losses.reading import build_loss, describe_loss

__all__ = ["KerasLoss", "build_loss", "describe_loss"]
