"""``Hashing.call`` in Python's integers, text by text.

FarmHash64 is ``farmhashna::Hash64`` (what TensorFlow calls ``Fingerprint64``), here for up to 32
bytes; the keyed hash is SipHash-2-4. Both as published by their authors.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from keras2torch_birnn.reference.context import Context, Equation, Result
from keras2torch_birnn.reference.preprocessing import encoded
from keras2torch_birnn.spec import Array, LayerSpec, Structure

BITS = (1 << 64) - 1
K0, K1, K2 = 0xC3A5C85C97CB3127, 0xB492B66FBE98F273, 0x9AE16A3B2F90404F


def _number(part: bytes) -> int:
    return int.from_bytes(part, "little")


def _turn(x: int, left: int) -> int:
    return ((x << left) | (x >> (64 - left))) & BITS


def _hash_of_two(u: int, v: int, factor: int) -> int:
    a = ((u ^ v) * factor) & BITS
    a ^= a >> 47
    b = ((v ^ a) * factor) & BITS
    b ^= b >> 47
    return (b * factor) & BITS


def farm_hash(text: bytes) -> int:
    """Compute FarmHash64 of 1 to 32 bytes."""
    size = len(text)
    factor = (K2 + 2 * size) & BITS
    if size > 16:
        a, b = (_number(text[:8]) * K1) & BITS, _number(text[8:16])
        c, d = (_number(text[-8:]) * factor) & BITS, (_number(text[-16:-8]) * K2) & BITS
        u = _turn((a + b) & BITS, 21) + _turn(c, 34) + d
        return _hash_of_two(u & BITS, (a + _turn((b + K2) & BITS, 46) + c) & BITS, factor)
    if size >= 8:
        a, b = (_number(text[:8]) + K2) & BITS, _number(text[-8:])
        c = (_turn(b, 27) * factor + a) & BITS
        return _hash_of_two(c, ((_turn(a, 39) + b) * factor) & BITS, factor)
    if size >= 4:
        return _hash_of_two(size + (_number(text[:4]) << 3), _number(text[-4:]), factor)
    y, z = text[0] + (text[size // 2] << 8), size + (text[-1] << 2)
    mixed = ((y * K2) ^ (z * K0)) & BITS
    return ((mixed ^ (mixed >> 47)) * K2) & BITS


def sip_hash(text: bytes, key: tuple[int, int]) -> int:
    """Compute SipHash-2-4."""
    first, second = key[0] & BITS, key[1] & BITS
    v = [first ^ 0x736F6D6570736575, second ^ 0x646F72616E646F6D,
         first ^ 0x6C7967656E657261, second ^ 0x7465646279746573]  # fmt: skip

    def compress(rounds: int) -> None:
        for _ in range(rounds):
            v[0] = (v[0] + v[1]) & BITS
            v[1] = _turn(v[1], 13) ^ v[0]
            v[0] = _turn(v[0], 32)
            v[2] = (v[2] + v[3]) & BITS
            v[3] = _turn(v[3], 16) ^ v[2]
            v[0] = (v[0] + v[3]) & BITS
            v[3] = _turn(v[3], 21) ^ v[0]
            v[2] = (v[2] + v[1]) & BITS
            v[1] = _turn(v[1], 17) ^ v[2]
            v[2] = _turn(v[2], 32)

    padded = text + bytes(7 - len(text) % 8) + bytes([len(text) & 0xFF])
    for start in range(0, len(padded), 8):
        word = _number(padded[start : start + 8])
        v[3] ^= word
        compress(2)
        v[0] ^= word
    v[2] ^= 0xFF
    compress(4)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


def hashing(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """Compute ``Hashing._hash_values_to_bins``: the text of a number, hashed, modulo the bins."""
    config = layer.config
    alone = config["mask_value"] is not None and config["num_bins"] > 1
    bins = config["num_bins"] - 1 if alone else config["num_bins"]
    ids = np.zeros(np.shape(x), dtype=np.int64)
    for place, value in np.ndenumerate(np.asarray(x)):
        if alone and value == config["mask_value"]:
            continue
        text = str(int(value)).encode()
        hashed = farm_hash(text) if config["salt"] is None else sip_hash(text, config["salt"])
        ids[place] = hashed % bins + (1 if alone else 0)
    if config["output_mode"] == "int":
        return ids, None
    return encoded(ids, config["output_mode"], config["num_bins"], context), None


EQUATIONS: Mapping[str, Equation] = {
    "Hashing": hashing,
}
