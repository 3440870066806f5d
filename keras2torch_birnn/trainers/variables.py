"""Variables of Keras in its own layout, for rules that ask for their axes, sizes or names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from keras2torch_birnn.trainers.weight_views import Permuted, WeightView


@dataclass(frozen=True, eq=False)
class Variable:
    """A variable that is trained, and the parameters of torch that hold it.

    ``number``: its place among all of Keras. ``path``: as Keras names it after ``load_model``.
    ``around``: the names of wrappers and models around its layer, which a model that was never
    loaded has in the path, too. ``shape``: in Keras. ``parameters``: by their names in ``view``.
    """

    number: int
    path: str
    around: tuple[str, ...]
    shape: tuple[int, ...]
    view: WeightView
    parameters: Mapping[str, Tensor]

    @classmethod
    def of(cls, parameter: Tensor, number: int, path: str = "") -> Variable:
        """Make a variable of a parameter that has the same layout in Keras."""
        view = Permuted("", tuple(range(parameter.dim())))
        return cls(number, path, (), tuple(parameter.shape), view, {"": parameter})

    @property
    def keeper(self) -> Tensor:
        """The parameter by which an optimizer keeps the slots of the variable."""
        return next(iter(self.parameters.values()))

    def value(self) -> Tensor:
        """Return the variable; it shares the memory of a parameter unless it is scattered."""
        return self.view.read_from(self.parameters)

    def gradient(self, grads: Mapping[int, Tensor]) -> Tensor:
        """Return the gradient; ``grads``: by id of a parameter, those of others are 0."""
        return self.view.read_from(
            {
                name: grads[id(one)] if id(one) in grads else torch.zeros_like(one)
                for name, one in self.parameters.items()
            }
        ).contiguous()

    def write(self, value: Tensor) -> None:
        """Put a changed value into the parameters that do not share its memory."""
        if not self.view.shares_memory:
            self.view.write_into(self.parameters, value)
