"""Mutations of spectrograms."""

from __future__ import annotations

from mutations.patches import K3, Mutation, edit

_MEL, _STFT = "layers.spectrograms:MelSpectrogram", "layers.spectrograms:STFTSpectrogram"

MUTATIONS = {
    "a window of an odd size is periodic": Mutation(
        edit(f"{_MEL}._window", "size - size % 2", "size"), (f"{K3}/mel.keras",)
    ),
    "every row has a loudest value of its own": Mutation(
        edit(f"{_MEL}.forward", "y.amax()", "y.amax((1, 2), keepdim=True)"),
        (f"{K3}/mel_decibels.keras",),
    ),
    "bins of equal widths in hertz": Mutation(
        edit("layers.spectrograms:_mel", "(1 + hertz / 700).log()", "hertz / 700"),
        (f"{K3}/mel.keras", f"{K3}/mel_powers.keras"),
    ),
    "the first and last frequency count twice in psd": Mutation(
        edit(f"{_STFT}._power", "power[:, :, 1:-1], [0, 0, 1, 1]", "power, [0, 0, 0, 0]"),
        (f"{K3}/stft_psd.keras",),
    ),
    "imaginary over real turned round": Mutation(
        edit(f"{_STFT}._power", "torch.atan2(imag, real)", "torch.atan2(real, imag)"),
        (f"{K3}/stft_angle.keras",),
    ),
}
