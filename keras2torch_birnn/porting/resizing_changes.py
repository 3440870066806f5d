"""Known mistakes in layers that move, repeat, add or remove steps, as changes to try."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from keras2torch_birnn.porting.changes import Change, LayerCall, Maker, configured
from keras2torch_birnn.porting.window_changes import BORDERS
from keras2torch_birnn.reference.context import Result
from keras2torch_birnn.spec import Array


def margin_changes(maker: Maker) -> Iterator[Change]:
    """Yield other steps that a padding adds or a cropping removes at both ends."""
    option = "padding" if "Padding" in maker.layer.class_name else "cropping"
    own = tuple(maker.config[option])
    others = {
        "front and back are exchanged": tuple(pair[::-1] for pair in own),
        "all of it is in front": tuple((sum(pair), 0) for pair in own),
        "all of it is at the end": tuple((0, sum(pair)) for pair in own),
        "there is one step less in front": tuple((max(0, a - 1), b + 1) for a, b in own),
        "there is one step more in front": tuple((a + 1, max(0, b - 1)) for a, b in own),
        **{
            f"{words}, as many at the other": tuple((max(0, a + m), max(0, b + n)) for a, b in own)
            for words, (m, n) in _ONE_OFF.items()
        },
        "it is not done": tuple((0, 0) for _ in own),
    }
    for words, margins in others.items():
        if margins != own:
            words = f"{option}: {words}, Keras has {', '.join(map(str, own))}"
            yield maker.change("margins", words, configured(**{option: margins}))
    for mode, name in BORDERS.items() if option == "padding" else ():
        words = f"its padding repeats values of the input ({name}), Keras pads with zeros"
        yield maker.change("margins", words, partial(_moved, partial(_bordered, own, mode)))


# What is done -> steps more in front and at the end
_ONE_OFF: Mapping[str, tuple[int, int]] = {
    "there is one step less at the front end": (-1, 0),
    "there is one step more at the front end": (1, 0),
    "there is one step less at the back end": (0, -1),
    "there is one step more at the back end": (0, 1),
}


def _bordered(widths: Sequence[tuple[int, int]], mode: str, x: Array, y: Array) -> Array:
    pad: Callable[..., Array] = np.pad
    return pad(x, [(0, 0), *widths, *[(0, 0)] * (x.ndim - 1 - len(widths))], mode=mode)


def moved_changes(maker: Maker) -> Iterator[Change]:
    """Yield other ways to repeat or to permute the steps."""
    kind, moves = _MOVES[maker.layer.class_name]
    for words, move in moves.items():
        yield maker.change(kind, words, partial(_moved, move))


def up_sampling_changes(maker: Maker) -> Iterator[Change]:
    """Yield factors of both axes exchanged, and other values between the points of an image."""
    size, own = maker.config["size"], maker.config["interpolation"]
    if size != size[::-1]:
        words = "the factors of both axes are exchanged"
        yield maker.change("axes", words, configured(size=size[::-1]))
    for name in ("nearest", "bilinear", "bicubic"):
        if name != own:
            words = f"its interpolation is {name}, Keras has {own}"
            yield maker.change("interpolation", words, configured(interpolation=name))
    words = f"its interpolation is bilinear with align_corners=True, Keras has {own}"
    yield maker.change("interpolation", words, partial(_moved, _bilinear))


def _moved(move: Callable[[Array, Array], Array], call: LayerCall) -> Result:
    """Make a change of the output, from the input and the right output."""
    output, out_mask = call.run()
    return move(np.asarray(call.inputs), output), out_mask


def _bilinear(x: Array, y: Array) -> Array:
    """Interpolate an image (B, H, W, C) so that its corners stay, as align_corners=True does."""
    found = x
    for axis in (1, 2):
        front = np.moveaxis(found, axis, 1)
        wanted = np.empty((len(x), y.shape[axis], 1))
        rows = _between(front.reshape(*front.shape[:2], -1), wanted, aligned=True)
        found = np.moveaxis(rows.reshape(len(x), -1, *front.shape[2:]), 1, axis)
    return found


def _tiled(x: Array, y: Array) -> Array:
    """Repeat the whole sequence (B, T, F) in place of every step."""
    return np.tile(x, (1, y.shape[1] // x.shape[1], *[1] * (x.ndim - 2)))


def _between(x: Array, y: Array, *, aligned: bool) -> Array:
    """Interpolate between the steps (B, T, F), as torch does, with ``align_corners`` or not."""
    steps, wanted = x.shape[1], y.shape[1]
    at = np.linspace(0, steps - 1, wanted)
    if not aligned:
        at = np.clip((np.arange(wanted) + 0.5) * steps / wanted - 0.5, 0, steps - 1)
    first = np.floor(at).astype(int)
    share = (at - first)[:, np.newaxis]
    found: Array = x[:, first] * (1 - share) + x[:, np.minimum(first + 1, steps - 1)] * share
    return found


# Class -> the kind of its mistakes, and what it does in words: from the input and right output
_MOVES: Mapping[str, tuple[str, Mapping[str, Callable[[Array, Array], Array]]]] = {
    "RepeatVector": (
        "repeated",
        {
            "each feature is repeated, Keras repeats the whole vector": (
                lambda x, y: np.repeat(x, y.shape[1], axis=1).reshape(y.shape)
            ),
            "rows of the batch are mixed (repeated along the batch, then viewed)": (
                lambda x, y: np.tile(x, (y.shape[1], 1)).reshape(y.shape)
            ),
            "it is given at the first step alone, zeros at the others": (
                lambda x, y: np.concatenate([y[:, :1], np.zeros_like(y[:, 1:])], axis=1)
            ),
            "it is given at the last step alone, zeros at the others": (
                lambda x, y: np.concatenate([np.zeros_like(y[:, 1:]), y[:, :1]], axis=1)
            ),
        },
    ),
    "Permute": (
        "not permuted",
        {
            "it is left out: the axes stay as they are": lambda x, y: x,
            "the array is viewed in the new shape, Keras exchanges axes": (
                lambda x, y: x.reshape(y.shape)
            ),
        },
    ),
    "UpSampling1D": (
        "steps",
        {
            "the whole sequence is repeated, Keras repeats every step": _tiled,
            "it is linear between the steps, Keras repeats them": partial(_between, aligned=False),
            "it is linear between the steps (align_corners), Keras repeats them": (
                partial(_between, aligned=True)
            ),
        },
    ),
}
