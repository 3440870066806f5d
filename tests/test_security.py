"""SECURITY.md says what the code does: its limits and its formats are read from there."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from keras2torch_birnn.readers import hdf5_child, limits
from keras2torch_birnn.readers.arrays import FLETCHER32, GZIP, SHUFFLE, STORED_DTYPES

POLICY = (Path(__file__).parent.parent / "SECURITY.md").read_text(encoding="utf-8")
PLACES = {
    "limits": "keras2torch_birnn.readers.limits",
    "architecture": "keras2torch_birnn.readers.architecture",
    "options": "keras2torch_birnn.schema.options",
    "op_shapes": "keras2torch_birnn.schema.op_shapes",
    "shapes": "keras2torch_birnn.shapes",
}
ROW = re.compile(r"^\| .+ \| ([\d,]+) ?(KiB|MiB|s)? \| `(\w+)\.([A-Z_]+)` \|$", re.MULTILINE)
UNITS = {"": 1, "s": 1, "KiB": 1 << 10, "MiB": 1 << 20}
# Sizes that no file can reach: how much is asked or kept at once.
OWN = {"MIB", "BATCH", "OPEN_GROUPS"}


def stated() -> dict[str, int]:
    """Every row of the table: the constant's name and what the table says it is."""
    return {
        f"{module}.{name}": int(digits.replace(",", "")) * UNITS[unit]
        for digits, unit, module, name in ROW.findall(POLICY)
    }


@pytest.mark.parametrize(("name", "number"), stated().items())
def test_a_limit_is_what_the_table_says(name: str, number: int) -> None:
    module, _, constant = name.partition(".")
    assert getattr(importlib.import_module(PLACES[module]), constant) == number


def test_every_limit_of_the_readers_is_in_the_table() -> None:
    known = {f"limits.{name}" for name in vars(limits) if name.isupper() and name not in OWN}
    assert known == {name for name in stated() if name.startswith("limits.")}
    table = POLICY.partition("## Limits")[2].partition("## What is read")[0]
    assert table.count("\n| ") == len(stated()) + 1  # no row that the pattern passes over


def test_the_kinds_of_numbers_are_those_that_are_read() -> None:
    wide = {8 * int(name[2:]) for name in STORED_DTYPES if name[0] in "<>" and name[1] == "f"}
    whole = {8 * int(name[2:]) for name in STORED_DTYPES if name[0] in "<>" and name[1] in "iu"}
    others = {name for name in STORED_DTYPES if name[0] not in "<>"}
    assert (wide, whole) == ({16, 32, 64}, {8, 16, 32, 64})
    assert others == {"bool", "bfloat16"}
    assert "Floats of 16, 32 and 64 bits, integers of 8 to 64 bits, both byte orders" in POLICY
    assert all(f"`{name}`" in POLICY for name in others)


def test_the_filters_are_those_that_are_read() -> None:
    numbers = {"gzip": GZIP, "shuffle": SHUFFLE, "fletcher32": FLETCHER32}
    child = {hdf5_child.GZIP, hdf5_child.SHUFFLE, hdf5_child.FLETCHER32}
    assert set(numbers.values()) == child
    assert f"The filters {', '.join(list(numbers)[:2])} and fletcher32." in POLICY
