"""Hashing: TensorFlow's hashes, masks and salts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from spec_parity import assert_gives, integer_model
from specs import layer

from keras2torch_birnn.layers.registry import convert_layer
from keras2torch_birnn.reference import compute
from keras2torch_birnn.reference.sample_inputs import draw_inputs
from keras2torch_birnn.schema import SCHEMA, ShapeError

# ``to_hash_bucket_fast`` and ``to_hash_bucket_strong`` (key [133, -7]) of TensorFlow 2.21 for the
# texts of these numbers and 2^31 - 1 bins.
NUMBERS = (0, -7, 123, -4567, 1234567, -12345678, 10**15 - 1, -(10**15), 10**16, -(10**17),
           2**63 - 1, -(2**63))  # fmt: skip


FAST = (1633463888, 1094273164, 1786308055, 295515267, 2014225347, 557182415, 805459837, 1374815589,
        1630504064, 390971216, 1686013924, 379302079)  # fmt: skip


STRONG = (1607114708, 914337291, 949230436, 644476995, 2050700690, 1552204072, 1976221851,
          1222672802, 68879210, 1129232613, 2090987597, 143652844)  # fmt: skip


@pytest.mark.parametrize(("salt", "expected"), [(None, FAST), ((133, -7), STRONG)])
def test_numbers_of_every_length_hash_as_in_tensorflow(salt: Any, expected: Any) -> None:
    spec = integer_model(layer("Hashing", num_bins=2**31 - 1, salt=salt), 12)
    assert_gives(spec, [np.array([NUMBERS])], [expected])


def test_thousands_of_numbers_hash_alike_in_torch_and_python() -> None:
    """Between zero and all 64 bits, in bins of many counts, with a salt and without."""
    rng = np.random.default_rng(0)
    wide = rng.integers(-(2**63), 2**63 - 1, 3000) >> rng.integers(0, 63, 3000)
    for bins, salt in ((1, None), (2, None), (97, (5, 2**62)), (65537, None), (10**9, (-1, 0))):
        spec = integer_model(layer("Hashing", num_bins=bins, salt=salt), 3000)
        expected = compute(spec, [wide[np.newaxis]]).outputs[0]
        assert_gives(spec, [wide[np.newaxis]], expected)
        assert expected.max() < bins


def test_a_masked_number_has_the_first_bin_to_itself() -> None:
    x = np.array([[5, 0, 7, 5]])
    for bins, expected in ((1, [0, 0, 0, 0]), (2, [0, 1, 1, 0])):
        spec = integer_model(layer("Hashing", num_bins=bins, mask_value=5), 4)
        assert_gives(spec, [x], [expected])


def test_a_hashing_is_shown_and_drawn_numbers_of_every_length() -> None:
    one = layer("Hashing", "own", num_bins=7, salt=(1, 2), mask_value=0, output_mode="count")
    assert "bins=7, mask_value=0, salt=(1, 2), mode='count'" in repr(convert_layer(one))
    plain = layer("Hashing", "own", num_bins=7)
    assert "salt=None" in repr(convert_layer(plain))
    assert not convert_layer(plain).state_dict()
    (drawn,) = draw_inputs(integer_model(plain, 200), steps=7, seed=0)
    assert drawn.dtype == np.int32
    assert drawn.max() > 10**6


def test_several_tensors_are_no_input_of_a_hashing() -> None:
    """tf.keras 2.4 crosses them."""
    for name, options in (
        ("Hashing", {"num_bins": 3}),
        ("Discretization", {"bin_boundaries": [0]}),
    ):
        with pytest.raises(ShapeError, match="one tensor is expected, found several"):
            SCHEMA[name].output(layer(name, **options).config, ((None, 3), (None, 3)))
