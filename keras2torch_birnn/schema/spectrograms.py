"""Spectrograms of sound."""

from __future__ import annotations

from collections.abc import Mapping

from keras2torch_birnn.limits import MAX_SPECTROGRAM_VALUES
from keras2torch_birnn.schema.options import choice, flag, number, optional, size
from keras2torch_birnn.schema.row import Config, Schema, ShapeError, WeightShapes, known
from keras2torch_birnn.schema.windows import window_length
from keras2torch_birnn.spec import Shape


def frame_step(config: Config) -> int:
    """Return the distance of two frames of an STFTSpectrogram; half a frame by default."""
    return int(config["frame_step"] or max(config["frame_length"] // 2, 1))


def _bins(config: Config) -> int:
    """Return the number of frequencies; by default of the next power of two (Keras 3.15)."""
    length = config["fft_length"] or 1 << (config["frame_length"] - 1).bit_length()
    return int(length) // 2 + 1


def _kernels(config: Config, shape: Shape | None) -> WeightShapes:
    if (config["fft_length"] or config["frame_length"]) < config["frame_length"]:
        raise ShapeError("fft_length below frame_length, which Keras refuses")
    kernel = (config["frame_length"], 1, _bins(config))
    real = {} if config["mode"] == "imag" else {"real_kernel": kernel}
    return real if config["mode"] == "real" else {**real, "imag_kernel": kernel}


def _stft_output(config: Config, shape: Shape | None) -> Shape | None:
    if (shape := known(shape, rank=3)) is None:
        return None
    steps, channels = shape[1:]
    if channels is None:
        raise ShapeError("the number of channels is not known")
    frames = window_length(steps, config["frame_length"], frame_step(config), config["padding"])
    bins = _bins(config) * (2 if config["mode"] == "stft" else 1)
    if config["expand_dims"]:
        return (shape[0], frames, bins, channels)
    return (shape[0], frames, channels * bins)


def _mel_output(config: Config, shape: Shape | None) -> Shape | None:
    length, stride, bins = config["fft_length"], config["sequence_stride"], config["num_mel_bins"]
    if (config["sequence_length"] or length) > length:
        raise ShapeError("fft_length below sequence_length, which Keras refuses")
    if bins * (length // 2 + 1) > MAX_SPECTROGRAM_VALUES:
        raise ShapeError(f"{bins} bins of {length // 2 + 1} frequencies")
    if (shape := known(shape, rank=2)) is None:
        return None
    if shape[1] is None:
        return (shape[0], bins, None)
    if shape[1] <= length // 2:
        raise ShapeError(f"{shape[1]} steps, which half of fft_length {length} does not reflect")
    frames = (shape[1] + length // 2 * 2 - length) // stride + 1
    if frames * length > MAX_SPECTROGRAM_VALUES:
        raise ShapeError(f"{frames} frames of {length} steps")
    return (shape[0], bins, frames)


_MODES = ("log", "magnitude", "psd", "real", "imag", "angle", "stft")

LAYERS: Mapping[str, Schema] = {
    "STFTSpectrogram": Schema(
        {
            "mode": choice("log", *_MODES),
            "frame_length": size(256),
            "frame_step": optional(size(None)),
            "fft_length": optional(size(None)),
            "padding": choice("valid", "valid", "same"),
            "expand_dims": flag(False),
            "data_format": choice("channels_last", "channels_last"),
        },
        _kernels,
        _stft_output,
        ignored=("window", "periodic", "scaling"),  # the weights hold them
        refused=("channels_first",),
    ),
    "MelSpectrogram": Schema(
        {
            "fft_length": size(2048, least=2),
            "sequence_stride": size(512),
            "sequence_length": optional(size(None, least=2)),
            "window": choice("hann", "hann", "hamming", None),
            "sampling_rate": number(16000),
            "num_mel_bins": size(128),
            "min_freq": number(20.0, 0.0),
            "max_freq": optional(number(None, 0.0)),
            "power_to_db": flag(True),
            "top_db": number(80.0),
            "mag_exp": number(2.0),
            "min_power": number(1e-10, 0.0),
            "ref_power": number(1.0),
        },
        output=_mel_output,
        refused=("a window given as numbers", "sound without a batch"),
    ),
}
