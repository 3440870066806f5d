"""Spectrograms of sound. Masks end here, as they do in Keras."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from keras2torch_birnn.functional.parameters import to_parameter
from keras2torch_birnn.layers.convolution import convolve
from keras2torch_birnn.layers.registry import NONE, Converter, Described
from keras2torch_birnn.schema.spectrograms import frame_step
from keras2torch_birnn.spec import LayerSpec

# ``keras.config.epsilon()``, which no file holds.
_SMALLEST = 1e-7


class STFTSpectrogram(Described):
    """Short-time Fourier transform by convolution with trained kernels (F, 1, frame)."""

    def __init__(
        self,
        *,
        mode: str,
        step: int,
        padding: str,
        expand: bool,
        **kernels: nn.Parameter,
    ) -> None:
        """kernels: "real", "imag" or both."""
        super().__init__()
        self.kernels = nn.ParameterDict(kernels)
        self.mode, self.step, self.padding = mode, step, padding
        self.expand = expand

    def forward(self, x: Tensor) -> Tensor:
        """Transform (B, T, C) -> (B, T', C F), or (B, T', F, C)."""
        y = self._power(x.movedim(-1, 1))  # (B, C, F, T')
        return y.permute(0, 3, 2, 1) if self.expand else y.flatten(1, 2).movedim(1, -1)

    def _power(self, x: Tensor) -> Tensor:
        if self.mode in ("real", "imag"):
            return self._part(x, self.kernels[self.mode])
        real, imag = (self._part(x, self.kernels[name]) for name in ("real", "imag"))
        if self.mode == "angle":
            return torch.atan2(imag, real)
        if self.mode == "stft":
            return torch.cat([real, imag], dim=2)
        power = real.square() + imag.square()
        if self.mode == "psd":
            return power + functional.pad(power[:, :, 1:-1], [0, 0, 1, 1])
        magnitude = power.clamp(min=_SMALLEST).sqrt()
        return magnitude if self.mode == "magnitude" else magnitude.clamp(min=_SMALLEST).log()

    def _part(self, x: Tensor, kernel: Tensor) -> Tensor:
        """Convolve every channel by itself: (B, C, T) -> (B, C, F, T')."""
        one = x.reshape(-1, 1, x.shape[2])
        y = convolve(one, kernel, stride=(self.step,), dilation=(1,), padding=self.padding)
        return y.reshape(-1, x.shape[1], y.shape[1], y.shape[2])


def stft_spectrogram(layer: LayerSpec) -> nn.Module:
    """Build an STFTSpectrogram. Kernel (frame, 1, F) -> (F, 1, frame)."""
    config = layer.config
    kernels: dict[str, Any] = {
        name.removesuffix("_kernel"): to_parameter(kernel.transpose(2, 1, 0))
        for name, kernel in layer.weights.items()
    }
    return STFTSpectrogram(
        **kernels,
        mode=config["mode"],
        step=frame_step(config),
        padding=config["padding"],
        expand=config["expand_dims"],
    )


class MelSpectrogram(Described):
    """Powers of a short-time Fourier transform, in bins of the mel scale.

    In decibels the loudest value of the whole batch limits the others.
    """

    def __init__(
        self,
        *,
        length: int,
        stride: int,
        window: tuple[str | None, int],
        frequencies: tuple[float, float, float],
        bins: int,
        exponent: float,
        decibels: tuple[float, float, float] | None,
    ) -> None:
        """window: its name and length; frequencies: sampling rate, lowest, highest.

        decibels: least power, reference power, range; None for powers.
        """
        super().__init__()
        self.length, self.stride, self.window = length, stride, window
        self.frequencies, self.bins, self.exponent = frequencies, bins, exponent
        self.decibels = decibels

    def forward(self, x: Tensor) -> Tensor:
        """Transform (B, T) -> (B, bins, T')."""
        half = self.length // 2
        x = functional.pad(x[:, None], [half, half], mode="reflect")[:, 0]
        count = (x.shape[1] - self.length) // self.stride + 1
        starts = torch.arange(count, device=x.device) * self.stride
        frames = x[:, starts[:, None] + torch.arange(self.length, device=x.device)]
        spectrum = torch.fft.rfft(frames * self._window(x))
        power = spectrum.abs() ** self.exponent
        y = power @ self._triangles(x)
        if self.decibels is not None:
            least, reference, span = self.decibels
            y = 10 * y.clamp(min=least).log10() - 10 * math.log10(max(abs(reference), least))
            y = torch.maximum(y, y.amax() - span)
        shown: Tensor = y.transpose(1, 2)
        return shown

    def _window(self, x: Tensor) -> Tensor:
        name, size = self.window
        before = (self.length - size) // 2
        around = [before, self.length - size - before]
        if name is None:
            return x.new_ones(self.length)
        share = 0.5 if name == "hann" else 0.54
        period = size - size % 2  # of an odd size TensorFlow's window is symmetric
        angle = torch.arange(size, dtype=torch.float64, device=x.device) * (2 * math.pi / period)
        return functional.pad(share - (1 - share) * angle.cos(), around).to(x.dtype)

    def _triangles(self, x: Tensor) -> Tensor:
        """Compute the share (frequencies, bins) of every frequency in the triangle of a bin."""
        rate, low, high = self.frequencies
        steps = torch.arange(self.length // 2 + 1, dtype=torch.float64, device=x.device)
        at = _mel(steps[:, None] * (rate / 2 / (self.length // 2)))
        first, last = (_mel(torch.full_like(steps[0], one)) for one in (low, high))
        width = (last - first) / (self.bins + 1)
        edges = first + width * torch.arange(self.bins + 2, device=x.device)
        left, middle, right = edges[:-2], edges[1:-1], edges[2:]
        rising, falling = (at - left) / (middle - left), (right - at) / (right - middle)
        return torch.minimum(rising, falling).clamp(min=0).to(x.dtype)


def _mel(hertz: Tensor) -> Tensor:
    return 1127 * (1 + hertz / 700).log()


def mel_spectrogram(layer: LayerSpec) -> nn.Module:
    """Build a MelSpectrogram."""
    config = layer.config
    length, rate = config["fft_length"], config["sampling_rate"]
    decibels = (config["min_power"], config["ref_power"], config["top_db"])
    return MelSpectrogram(
        length=length,
        stride=config["sequence_stride"],
        window=(config["window"], config["sequence_length"] or length),
        frequencies=(rate, config["min_freq"], config["max_freq"] or int(rate / 2)),
        bins=config["num_mel_bins"],
        exponent=config["mag_exp"],
        decibels=decibels if config["power_to_db"] else None,
    )


CONVERTERS: Mapping[str, Converter] = {
    "STFTSpectrogram": Converter(stft_spectrogram, NONE),
    "MelSpectrogram": Converter(mel_spectrogram, NONE),
}
