"""Known mistakes in layers that scale their input by constants, as changes to try."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import product

import numpy as np

from keras2torch_birnn.porting.changes import Change, LayerCall, Maker, configured
from keras2torch_birnn.porting.moments import Divide, divide_by_deviation, standardize
from keras2torch_birnn.reference.context import Result
from keras2torch_birnn.spec import Array

Formula = Callable[[Array, Array, Array], Array]


def constant_changes(maker: Maker) -> Iterator[Change]:
    """Yield other uses of the constants of a Rescaling: y = x scale + offset."""
    scale, offset = (np.asarray(maker.config[name], float) for name in ("scale", "offset"))
    for words, formula in _RESCALED.items():
        yield maker.change(
            "formula", f"{words}, Keras x scale + offset", partial(_by, formula, scale, offset)
        )


def statistic_changes(maker: Maker) -> Iterator[Change]:
    """Yield other uses of the statistics of a Normalization: y = (x - mean) / sqrt(variance)."""
    for words, formula in _NORMALIZED.items():
        words = f"{words}, Keras (x - mean) / sqrt(variance)"
        yield maker.change("formula", words, partial(_normalized, formula))
    for (what, axes), (how, divide), free in product(_OWN.items(), _DIVIDED.items(), (0, 1)):
        words = f"it normalizes by {what} own mean and deviation{how}"
        words += " of n - 1 (as torch.std has it)" * free
        apply = partial(_normalized, partial(_by_own, axes, divide, free))
        yield maker.change("formula", f"{words}, Keras by those of its weights", apply)


def encoding_changes(maker: Maker) -> Iterator[Change]:
    """Yield another way to encode ids: by whether they are there, or by how often."""
    own = maker.config["output_mode"]
    for name in ("one_hot", "multi_hot", "count"):
        if name != own:
            words = f"it encodes ids as {name}, Keras as {own}"
            yield maker.change("formula", words, configured(output_mode=name))


def _by(formula: Formula, first: Array, second: Array, call: LayerCall) -> Result:
    _, out_mask = call.run()
    return formula(call.context.number(np.asarray(call.inputs)), first, second), out_mask


def _normalized(formula: Formula, call: LayerCall) -> Result:
    """Compute with the statistics that the layer has, found by what it does to 0 and 1."""
    usual = call.aside().configured(invert=False)
    x = np.asarray(call.inputs, np.float64)
    zero, _ = usual._replace(inputs=np.zeros_like(x), mask=None).run()
    one, _ = usual._replace(inputs=np.ones_like(x), mask=None).run()
    deviation = 1 / (one - zero)
    return _by(formula, -zero * deviation, deviation, call)


def _by_own(
    choose: Callable[[int], tuple[int, ...]], divide: Divide, free: int, x: Array, *_: Array
) -> Array:
    axes = choose(x.ndim)
    if not axes:
        raise ValueError("there are no such axes")
    return standardize(axes, x, free=free, divide=divide)


# Whose statistics -> the axes over which they are taken
_OWN: Mapping[str, Callable[[int], tuple[int, ...]]] = {
    "each row's": lambda count: tuple(range(1, count - 1)),
    "the batch's": lambda count: tuple(range(count - 1)),
    "each step's": lambda count: (count - 1,),
    "all features' of each row": lambda count: tuple(range(1, count)),
    "the whole batch's": lambda count: tuple(range(count)),
}
# What is added to the deviation -> x without its mean, divided by that
_DIVIDED: Mapping[str, Divide] = {
    "": divide_by_deviation,
    **{
        words.format(f"{epsilon:g}"): partial(formula, epsilon)
        for epsilon in (1e-8, 1e-7, 1e-6, 1e-5, 1e-3)
        for words, formula in (
            (" + {}", lambda e, x, v: x / (np.sqrt(v) + e)),
            (", with variance + {}", lambda e, x, v: x / np.sqrt(v + e)),
        )
    },
}
_RESCALED: Mapping[str, Formula] = {
    "computes x scale": lambda x, a, b: x * a,
    "computes x + offset": lambda x, a, b: x + b,
    "computes (x + offset) scale": lambda x, a, b: (x + b) * a,
    "computes x scale - offset": lambda x, a, b: x * a - b,
    "computes x / scale + offset": lambda x, a, b: x / a + b,
    "computes x / scale": lambda x, a, b: x / a,
    "computes x offset + scale": lambda x, a, b: x * b + a,
}
_NORMALIZED: Mapping[str, Formula] = {
    "computes (x - mean) / variance": lambda x, mean, s: (x - mean) / s**2,
    "computes (x - mean) sqrt(variance)": lambda x, mean, s: (x - mean) * s,
    "computes (x + mean) / sqrt(variance)": lambda x, mean, s: (x + mean) / s,
    "computes x - mean": lambda x, mean, s: x - mean,
    "computes x / sqrt(variance)": lambda x, mean, s: x / s,
    "computes x / sqrt(variance) - mean": lambda x, mean, s: x / s - mean,
    "computes (x - variance) / sqrt(mean)": lambda x, mean, s: (x - s**2) / np.sqrt(mean),
    "computes x sqrt(variance) + mean": lambda x, mean, s: x * s + mean,
    "computes (x - mean) / (sqrt(variance) + 1e-7)": lambda x, mean, s: (x - mean) / (s + 1e-7),
    "computes (x - mean) / sqrt(variance + 1e-3)": (
        lambda x, mean, s: (x - mean) / np.sqrt(s**2 + 1e-3)
    ),
    "computes (x - mean) / sqrt(variance + 1e-5)": (
        lambda x, mean, s: (x - mean) / np.sqrt(s**2 + 1e-5)
    ),
}
