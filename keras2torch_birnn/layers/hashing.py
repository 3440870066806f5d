"""Hashing: integers -> their digits as text -> FarmHash64 or SipHash -> a bin.

Torch has signed numbers of 64 bits: sums and products wrap around as unsigned ones do, and what
does not (shifts, remainders) is written out here.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from keras2torch_birnn.layers.preprocessing import encode, numbered_tokens
from keras2torch_birnn.layers.registry import NONE, Converter, Described, of_options

# "-9223372036854775808" has 20 characters; words of 8 may be read beyond the end.
_WIDTH = 24


def _signed(number: int) -> int:
    """Return the signed number with the same 64 bits."""
    return number - (1 << 64) if number >> 63 else number


def _right(x: Tensor, count: int) -> Tensor:
    """Shift to the right, filling with zeros."""
    return (x >> count) & ((1 << (64 - count)) - 1)


def _rotated(x: Tensor, count: int) -> Tensor:
    """Rotate to the right."""
    return _right(x, count) | (x << (64 - count))


def remainder(x: Tensor, divisor: int) -> Tensor:
    """Return the remainder of x taken as unsigned."""
    return ((_right(x, 1) % divisor) * 2 + (x & 1)) % divisor


def digits(x: Tensor) -> tuple[Tensor, Tensor]:
    """Write integers (...) as text: bytes (..., 24), zeros after the end, and lengths (...)."""
    places, rest = [], x
    for _ in range(19):
        quotient = torch.div(rest, 10, rounding_mode="trunc")
        places.append((rest - quotient * 10).abs())
        rest = quotient
    backwards = torch.stack(places, dim=-1)
    numbers = torch.arange(1, 20, device=x.device)
    count = torch.where(backwards != 0, numbers, 1).amax(dim=-1, keepdim=True)
    negative = (x < 0).unsqueeze(-1)
    length = count + negative
    at = torch.arange(_WIDTH, device=x.device)
    place = (length - 1 - at).clamp(0, 18)  # of the digit at that position
    text = backwards.gather(-1, place) + ord("0")
    text = torch.where(negative & (at == 0), ord("-"), text)
    return torch.where(at < length, text, 0), length.squeeze(-1)


def _word(text: Tensor, start: Tensor, size: int = 8) -> Tensor:
    """Read ``size`` bytes from a place on, the first one lowest."""
    places = start.unsqueeze(-1) + torch.arange(size, device=text.device)
    found = text.gather(-1, places.clamp(0, _WIDTH - 1))
    return (found << (8 * torch.arange(size, device=text.device))).sum(dim=-1)


# ---- FarmHash64: ``Fingerprint64`` of texts of up to 32 characters -------------------------------

_K0 = _signed(0xC3A5C85C97CB3127)
_K1 = _signed(0xB492B66FBE98F273)
_K2 = _signed(0x9AE16A3B2F90404F)


def _mixed(u: Tensor, v: Tensor, factor: Tensor) -> Tensor:
    a = (u ^ v) * factor
    b = (v ^ a ^ _right(a, 47)) * factor
    return (b ^ _right(b, 47)) * factor


def farm_hash(text: Tensor, length: Tensor) -> Tensor:
    """Hash texts that are not empty, by their lengths."""
    zero = torch.zeros_like(length)
    factor = length * 2 + _K2
    first, last = text[..., 0], text.gather(-1, length.unsqueeze(-1) - 1).squeeze(-1)
    middle = text.gather(-1, length.unsqueeze(-1) // 2).squeeze(-1)
    tiny = ((first + (middle << 8)) * _K2) ^ ((length + (last << 2)) * _K0)
    tiny = (tiny ^ _right(tiny, 47)) * _K2
    short = _mixed(
        length + (_word(text, zero, 4) << 3), _word(text, length - 4, 4), factor
    )  # 4 to 7 characters
    a, b = _word(text, zero) + _K2, _word(text, length - 8)
    c, d = _rotated(b, 37) * factor + a, (_rotated(a, 25) + b) * factor
    middling = _mixed(c, d, factor)  # 8 to 16
    a, b = _word(text, zero) * _K1, _word(text, zero + 8)
    c, d = _word(text, length - 8) * factor, _word(text, length - 16) * _K2
    long = _mixed(
        _rotated(a + b, 43) + _rotated(c, 30) + d, a + _rotated(b + _K2, 18) + c, factor
    )  # 17 to 32
    return torch.where(
        length < 4,
        tiny,
        torch.where(length < 8, short, torch.where(length < 17, middling, long)),
    )


# ---- SipHash-2-4 ---------------------------------------------------------------------------------

_SIP = tuple(
    _signed(k)
    for k in (0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573)
)
State = tuple[Tensor, Tensor, Tensor, Tensor]


def _round(state: State) -> State:
    a, b, c, d = state
    a, c = a + b, c + d
    b, d = _rotated(b, 64 - 13) ^ a, _rotated(d, 64 - 16) ^ c
    a = _rotated(a, 32)
    c, a = c + b, a + d
    b, d = _rotated(b, 64 - 17) ^ c, _rotated(d, 64 - 21) ^ a
    return a, b, _rotated(c, 32), d


def sip_hash(text: Tensor, length: Tensor, salt: tuple[int, int]) -> Tensor:
    """Hash texts with a key of two numbers."""
    at = torch.arange(_WIDTH, device=text.device)
    blocks = length.unsqueeze(-1) // 8
    text = torch.where(at == blocks * 8 + 7, length.unsqueeze(-1), text)
    keys = (*salt, *salt)
    zero = torch.zeros_like(length)
    a, b, c, d = (zero + (key ^ start) for key, start in zip(keys, _SIP, strict=True))
    for block in range(_WIDTH // 8):
        word = _word(text, zero + 8 * block)
        after = _round(_round((a, b, c, d ^ word)))
        there = block <= blocks.squeeze(-1)
        a, b, c, d = (
            torch.where(there, new, old)
            for new, old in zip((after[0] ^ word, *after[1:]), (a, b, c, d), strict=True)
        )
    state = (a, b, c ^ 0xFF, d)
    for _ in range(4):
        state = _round(state)
    a, b, c, d = state
    return a ^ b ^ c ^ d


# ---- the layer -----------------------------------------------------------------------------------


def bins_of(x: Tensor, count: int, salt: tuple[int, int] | None) -> Tensor:
    """Return a bin, from 0 on, for every integer."""
    text, length = digits(x)
    hashed = farm_hash(text, length) if salt is None else sip_hash(text, length, salt)
    return remainder(hashed, count)


class Hashing(Described):
    """Bins, as ids or encoded; bin 0 is for ``mask_value`` alone."""

    tokens: Tensor

    def __init__(
        self, bins: int, mask_value: int | None, salt: tuple[int, int] | None, mode: str
    ) -> None:
        super().__init__()
        self.bins, self.mask_value, self.salt, self.mode = bins, mask_value, salt, mode
        if mode != "int":
            self.register_buffer("tokens", numbered_tokens(bins))

    def forward(self, x: Tensor) -> Tensor:
        """Hash (B, ...) -> ids of the same shape, or as CategoryEncoding encodes them."""
        if self.mask_value is None or self.bins == 1:
            ids = bins_of(x.long(), self.bins, self.salt)
        else:
            others = bins_of(x.long(), self.bins - 1, self.salt) + 1
            ids = torch.where(x == self.mask_value, 0, others)
        return ids if self.mode == "int" else encode(ids, self.tokens, self.mode)


_OPTIONS = ("num_bins", "mask_value", "salt", "output_mode")
CONVERTERS: Mapping[str, Converter] = {"Hashing": Converter(of_options(Hashing, *_OPTIONS), NONE)}
