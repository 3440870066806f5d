"""Spectrograms of sound (Keras 3.15, TensorFlow).

Letters: B batch, T time, C channels, F frequencies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from keras2torch_birnn.reference.context import Context, Equation, Result
from keras2torch_birnn.reference.windows import window_starts
from keras2torch_birnn.spec import Array, LayerSpec, Structure

_EPSILON = 1e-7


def stft_spectrogram(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """Compute ``STFTSpectrogram.call``: frames times kernels, (B, T, C) -> (B, T', C F)."""
    x = context.number(x)
    config, length = layer.config, layer.config["frame_length"]
    step = config["frame_step"] or max(length // 2, 1)
    starts = window_starts(x.shape[1], length, step, config["padding"])
    before = max(-starts[0], 0)
    after = max(starts[-1] + length - x.shape[1], 0)
    padded = np.pad(x, [(0, 0), (before, after), (0, 0)])
    frames = np.stack([padded[:, s + before : s + before + length] for s in starts], axis=1)

    def part(name: str) -> Array:  # (B, T', C, F)
        kernel = context.weight(layer, name)[:, 0]
        return np.asarray(np.einsum("btkc,kf->btcf", frames, kernel))

    y = _combine(config["mode"], part)
    if config["expand_dims"]:
        return y.transpose(0, 1, 3, 2), None
    return y.reshape(*y.shape[:2], -1), None


def _combine(mode: str, part: Callable[[str], Array]) -> Array:
    if mode in ("real", "imag"):
        return part(f"{mode}_kernel")
    real, imag = part("real_kernel"), part("imag_kernel")
    if mode == "angle":
        return np.asarray(np.arctan2(imag, real))
    if mode == "stft":
        return np.concatenate([real, imag], axis=-1)
    power: Array = real**2 + imag**2
    if mode == "psd":
        twice = np.full(power.shape[-1], 2.0, power.dtype)
        twice[[0, -1]] = 1
        return np.asarray(power * twice)
    magnitude = np.sqrt(np.maximum(power, _EPSILON))
    if mode == "magnitude":
        return np.asarray(magnitude)
    return np.asarray(np.log(np.maximum(magnitude, _EPSILON)))


def mel_spectrogram(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """Compute ``MelSpectrogram.call``: (B, T) -> (B, bins, T'), frames around every stride."""
    config, x = layer.config, context.number(x)
    length, stride = config["fft_length"], config["sequence_stride"]
    x = np.pad(x, [(0, 0), (length // 2, length // 2)], mode="reflect")
    starts = range(0, x.shape[1] - length + 1, stride)
    window = _window(config["window"], config["sequence_length"] or length, length)
    spectra = [np.fft.rfft(x[:, start : start + length] * window) for start in starts]
    power = np.abs(np.stack(spectra, axis=1)) ** config["mag_exp"]
    y = power @ _triangles(config, length // 2 + 1)
    if config["power_to_db"]:
        least = config["min_power"]
        y = 10 * np.log10(np.maximum(y, least) / max(abs(config["ref_power"]), least))
        y = np.maximum(y, y.max() - config["top_db"])
    return y.transpose(0, 2, 1).astype(x.dtype), None


def _window(name: str | None, size: int, length: int) -> Array:
    """Return a window in the middle of a frame (``ops.stft``); none fills the frame.

    ``tf.signal.hann_window(periodic=True)`` is periodic for even sizes only.
    """
    if name is None:
        return np.ones(length)
    alpha = {"hann": 0.5, "hamming": 0.54}[name]
    inside = [
        alpha - (1 - alpha) * math.cos(2 * math.pi * i / (size // 2 * 2)) for i in range(size)
    ]
    before = (length - size) // 2
    return np.pad(np.array(inside), (before, length - size - before))


def _triangles(config: Mapping[str, Any], frequencies: int) -> Array:
    """Compute ``linear_to_mel_weight_matrix``: each bin's triangle over the mel scale of HTK."""

    def mel(hertz: float) -> float:
        return 1127.0 * math.log(1.0 + hertz / 700.0)

    rate, bins = config["sampling_rate"], config["num_mel_bins"]
    low, high = mel(config["min_freq"]), mel(config["max_freq"] or int(rate / 2))
    width = (high - low) / (bins + 1)
    shares = np.zeros((frequencies, bins))
    for row in range(1, frequencies):
        place = mel(rate / 2 * row / (frequencies - 1))
        for column in range(bins):
            away = abs(place - (low + (column + 1) * width))
            shares[row, column] = max(0.0, 1 - away / width)
    return shares


EQUATIONS: Mapping[str, Equation] = {
    "STFTSpectrogram": stft_spectrogram,
    "MelSpectrogram": mel_spectrogram,
}
