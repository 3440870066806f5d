"""LocallyConnected1D and 2D, place after place, as Keras holds their kernels.

Sources: ``local_conv``, ``locally_connected_utils`` and ``conv_connected_inputs`` of tf.keras 2.15,
which agree with ``layers/local.py`` of Keras 1.2.2 to 2.3.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from keras2torch_birnn.reference.activations import activate
from keras2torch_birnn.reference.context import Context, Equation, Result
from keras2torch_birnn.spec import Array, LayerSpec, Structure

Corner = tuple[int, ...]
Window = tuple[slice, ...]


def _windows(layer: LayerSpec, sizes: tuple[int, ...]) -> Iterator[tuple[Corner, Window]]:
    """Yield every output's position and the input's steps that it reads."""
    config = layer.config
    same = config["padding"] == "same"
    counts = [
        -(-steps // stride) if same else (steps - size) // stride + 1
        for steps, size, stride in zip(sizes, config["kernel_size"], config["strides"], strict=True)
    ]
    for corner in np.ndindex(*counts):
        window = []
        for at, steps, size, stride in zip(
            corner, sizes, config["kernel_size"], config["strides"], strict=True
        ):
            center = at * stride + (0 if same else size // 2)
            first = max(0, center - size // 2)
            window.append(slice(first, min(steps, center + size - size // 2)))
        yield corner, tuple(window)


def locally_connected(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """Compute ``LocallyConnected1D.call``, ``LocallyConnected2D.call``.

    A matrix for every place.
    """
    config, x = layer.config, context.number(x)
    kernel, filters = context.weight(layer, "kernel"), config["filters"]
    last = config["data_format"] == "channels_last"
    outputs: list[Array] = []
    corner: Corner = ()
    at = 0  # how many inputs all places before have
    for corner, window in _windows(layer, x.shape[1:-1] if last else x.shape[2:]):
        steps: tuple[Any, ...] = (*window, slice(None)) if last else (slice(None), *window)
        every_row = (slice(None), *steps)
        part = x[every_row].reshape(len(x), -1)
        width = part.shape[1]
        if config["implementation"] == 1:
            matrix = kernel[len(outputs)]
        elif config["implementation"] == 2:
            places: tuple[Any, ...] = (*corner, slice(None)) if last else (slice(None), *corner)
            block = (*steps, *places)
            matrix = kernel[block].reshape(width, filters)
        elif last:
            matrix = kernel[at * filters : (at + width) * filters].reshape(filters, width).T
        else:
            matrix = kernel.reshape(filters, -1)[:, at : at + width].T
        outputs.append(part @ matrix)
        at += width
    y = np.stack(outputs, axis=1).reshape(len(x), *(size + 1 for size in corner), filters)
    y = y if last else np.moveaxis(y, -1, 1)
    if config["use_bias"]:
        bias = context.weight(layer, "bias")
        # ``backend.bias_add`` reshapes; it does not move the filters to the front
        y = y + (bias if last else bias.reshape(filters, *bias.shape[:-1]))
    return activate(config["activation"], y), None


EQUATIONS: Mapping[str, Equation] = {
    "LocallyConnected1D": locally_connected,
    "LocallyConnected2D": locally_connected,
}
