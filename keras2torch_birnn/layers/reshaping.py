"""Layers that change the shape of their input. Masks end here, as they do in Keras."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from keras2torch_birnn.layers.registry import NONE, Converter, Described, of_options
from keras2torch_birnn.spec import LayerSpec


class Flatten(nn.Module):
    """(B, ...) -> (B, product). With ``channels_first`` the channels go last before."""

    def __init__(self, *, channels_first: bool) -> None:
        super().__init__()
        self.channels_first = channels_first

    def forward(self, x: Tensor) -> Tensor:
        """Flatten, row-major from the first axis after B."""
        if x.dim() == 1:
            return x[:, None]
        if self.channels_first and x.dim() > 2:
            x = x.movedim(1, -1)
        return x.flatten(1)


def flatten(layer: LayerSpec) -> nn.Module:
    """Build a Flatten; torch's own takes no rows of a single number."""
    channels_first = layer.config["data_format"] == "channels_first"
    single = layer.input_shape is not None and len(layer.input_shape) == 1
    return Flatten(channels_first=channels_first) if channels_first or single else nn.Flatten()


class Reshape(Described):
    """(B, ...) -> (B, *target_shape); one size may be -1."""

    def __init__(self, target_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.target_shape = target_shape

    def forward(self, x: Tensor) -> Tensor:
        """Reshape, row-major."""
        return x.reshape(x.shape[0], *self.target_shape)


class Permute(Described):
    """Permutation of the axes after B; ``dims`` count from 1."""

    def __init__(self, dims: tuple[int, ...]) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        """Permute: output axis i is input axis dims[i]."""
        return x.permute(0, *self.dims)


class RepeatVector(Described):
    """(B, F) -> (B, n, F)."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n

    def forward(self, x: Tensor) -> Tensor:
        """Repeat the vector at every step."""
        return x[:, None, :].expand(-1, self.n, -1)


CONVERTERS: Mapping[str, Converter] = {
    "Flatten": Converter(flatten, NONE),
    "Reshape": Converter(of_options(Reshape, "target_shape"), NONE),
    "Permute": Converter(of_options(Permute, "dims"), NONE),
    "RepeatVector": Converter(of_options(RepeatVector, "n"), NONE),
}
