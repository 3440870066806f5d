"""The HDF5 reader against h5py: good files, and damaged ones."""

from __future__ import annotations

import cProfile
import io
import pstats
from typing import Any

import h5py
import numpy as np
import pytest
from hdf5_files import NUMBERS, _temporary, assert_same, draw_numbers, make_file, open_store, read
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from specs import ENTRIES, FIXTURES, assert_same_weights, describe, read_entry

from keras2torch_birnn.errors import InvalidModelFileError
from keras2torch_birnn.readers import read_model
from keras2torch_birnn.readers.hdf5 import parser_child, parser_process

# --- Right on good files ---


@pytest.mark.own_processes
@pytest.mark.parametrize(
    "file", [name for name in ENTRIES if name.endswith((".h5", ".keras"))][::149]
)
def test_a_process_reads_what_is_parsed_here(file: str) -> None:
    config = ENTRIES[file]["config"]
    process = read_model(FIXTURES / file, config=None if config is None else FIXTURES / config)
    here = read_entry(file)
    assert describe(process) == describe(here)
    assert_same_weights(process, here)


@st.composite
def datasets(draw: st.DrawFn) -> dict[str, Any]:
    rank = draw(st.integers(0, 3))
    shape = tuple(draw(st.integers(0, 9)) for _ in range(rank))
    dtype = draw(st.sampled_from(["<", ">"])) + draw(st.sampled_from(NUMBERS))
    plan: dict[str, Any] = {"shape": shape, "dtype": dtype}
    if rank and draw(st.booleans()):
        plan["chunks"] = tuple(draw(st.integers(1, 11)) for _ in shape)
        plan["maxshape"] = (None,) * rank
        plan["shuffle"] = draw(st.booleans())
        plan["fletcher32"] = draw(st.booleans())
        plan["compression"] = draw(st.sampled_from([None, 0, 1, 9]))
    return plan


@given(
    plans=st.lists(datasets(), min_size=1, max_size=6),
    libver=st.sampled_from(["earliest", "latest", "v110"]),
    userblock=st.sampled_from([0, 512, 2048]),
    prefix=st.sampled_from([0, 1, 977]),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_reads_what_h5py_reads(
    plans: list[dict[str, Any]], libver: str, userblock: int, prefix: int
) -> None:
    def fill(file: h5py.File) -> None:
        for number, plan in enumerate(plans):
            file.create_dataset(
                f"g/{number}", data=draw_numbers(plan["dtype"], plan["shape"]), **plan
            )

    data = make_file(fill, libver=libver, userblock_size=userblock)
    paths = [f"/g/{number}" for number in range(len(plans))]
    with h5py.File(io.BytesIO(data)) as file, open_store(b"x" * prefix + data, prefix) as store:
        for path, array in zip(paths, store.arrays(paths), strict=True):
            theirs = file[path][()]
            assert (array.shape, array.dtype, array.nbytes) == (
                theirs.shape,
                theirs.dtype.newbyteorder("="),
                theirs.nbytes,
            )
            assert_same(array.read(), np.asarray(theirs))


def test_reads_bool_and_bfloat16_and_compact_data() -> None:
    bfloat = (np.array([1.5, -2.0, 3.1415, np.inf], "<f4").view("<u4") >> 16).astype("<u2")

    def fill(file: h5py.File) -> None:
        file["bool"] = np.array([[True, False, True]])
        file.create_dataset("bfloat", data=bfloat.view("V2")).attrs["dtype"] = "bfloat16"
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_layout(h5py.h5d.COMPACT)
        space = h5py.h5s.create_simple((2, 3))
        inline = h5py.h5d.create(file.id, b"compact", h5py.h5t.IEEE_F32BE, space, plan)
        inline.write(h5py.h5s.ALL, h5py.h5s.ALL, np.arange(6, dtype="f4").reshape(2, 3))

    flags, floats, inline = read(make_file(fill), "bool", "bfloat", "compact")
    assert_same(flags, np.array([[True, False, True]]))
    assert_same(floats, np.array([1.5, -2.0, 3.140625, np.inf], "f4"))
    assert_same(inline, np.arange(6, dtype="f4").reshape(2, 3))


def test_a_chunk_whose_filter_was_skipped_is_read() -> None:
    values = draw_numbers("<f4", (4, 4))

    def fill(file: h5py.File) -> None:
        data = file.create_dataset("x", (4, 4), "<f4", chunks=(4, 4), compression=1)
        data.id.write_direct_chunk((0, 0), values.tobytes(), filter_mask=1)

    assert_same(read(make_file(fill), "x")[0], values)


@pytest.mark.parametrize("length", [1, 720, 131077])
@pytest.mark.parametrize("byte", [0, 1, 255, None])
def test_arrays_with_checksums_are_read(length: int, byte: int | None) -> None:
    values = np.full(length, byte, "u1") if byte is not None else draw_numbers("u1", (length,))
    data = make_file(
        lambda f: f.create_dataset("x", data=values, chunks=(length,), fletcher32=True)
    )
    assert_same(read(data, "x")[0], values)


def test_attributes_of_every_writer() -> None:
    long = [f"{'n' * 300}_{i}" for i in range(500)]

    def fill(file: h5py.File) -> None:
        attrs = file.attrs
        attrs["str"], attrs["bytes"] = "grün", np.bytes_(b"2.2.4-tf")
        attrs["fixed"] = np.array([b"dense_1", b"a"])
        attrs["vlen"] = ["x", "größer"]
        attrs["empty"] = []
        attrs["int"], attrs["float"] = 3, 0.5
        attrs["layer_names0"] = np.array([n.encode() for n in long[:250]], "S320")[:100]
        attrs["layer_names1"] = np.array([n.encode() for n in long[100:200]], "S320")

    wanted = ["str", "bytes", "fixed", "vlen", "empty", "int", "float", "layer_names", "absent"]
    with open_store(make_file(fill, libver="latest")) as store:
        assert store.attributes("/", wanted) == {
            "str": "grün",
            "bytes": "2.2.4-tf",
            "fixed": ("dense_1", "a"),
            "vlen": ("x", "größer"),
            "empty": (),
            "int": 3,
            "float": 0.5,
            "layer_names": tuple(long[:200]),
        }


def test_members_and_kinds() -> None:
    def fill(file: h5py.File) -> None:
        file.create_group("b/c")
        file["a"] = [1.0]
        file["b/10"] = file["b/2"] = [1.0]

    with open_store(make_file(fill)) as store:
        assert store.members("/") == {"a": "dataset", "b": "group"}
        assert list(store.members("b").items()) == [
            ("10", "dataset"),
            ("2", "dataset"),
            ("c", "group"),
        ]
        assert [store.kind(p) for p in ("/", "/a", "b", "x", "x/y")] == [
            "group",
            "dataset",
            "group",
            None,
            None,
        ]


@pytest.mark.own_processes
def test_a_thousand_layers_in_one_exchange() -> None:
    def fill(file: h5py.File) -> None:
        for i in range(1000):
            file[f"layer_{i}/kernel:0"] = np.float32(i)
            file[f"layer_{i}"].attrs["weight_names"] = [b"kernel:0"]

    groups = [f"layer_{i}" for i in range(1000)]
    with open_store(make_file(fill)) as store:
        found = store.attributes_of(groups, ["weight_names"])
        assert found == [{"weight_names": ("kernel:0",)}] * 1000
        known = store.arrays([f"{group}/kernel:0" for group in groups])
        assert [float(array.read()) for array in known] == list(range(1000))
        assert store.arrays(["layer_7/kernel:0"])[0] is known[7]


def test_groups_that_are_not_asked_for_cost_nothing() -> None:
    def fill(file: h5py.File) -> None:
        group = file
        for i in range(1500):
            group = group.create_group(f"g{i}")
        for i in range(5000):
            file.create_group(f"extra/{i}")
        file["x"] = 1.0

    data = make_file(fill)
    assert read(data, "x")[0] == 1.0
    with _temporary(data) as file:
        source = parser_child.InheritedFile(file.fileno(), 0, len(data))
        index = parser_child.Index(h5py, source, parser_process._LIMITS)
        profile = cProfile.Profile()
        request, said = b'{"ask": "dataset", "paths": ["x"], "more": []}', io.BytesIO()
        profile.runcall(parser_child.respond, index, request, parser_process._LIMITS, said)
        index.file.close()
    assert said.getvalue().startswith(b'[{"is": ')
    assert pstats.Stats(profile).total_calls < 500


def test_large_arrays_come_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parser_child, "_BLOCK", 100)
    values = draw_numbers("<f4", (37, 5))

    def fill(file: h5py.File) -> None:
        file["plain"], file["flat"], file["number"] = values, values.ravel(), values[0, 0]
        file.create_dataset("packed", data=values, chunks=(7, 2), compression=1, shuffle=True)
        file.create_dataset("large chunk", data=values, chunks=(37, 5), compression=1)

    plain, flat, number, packed, large = read(
        make_file(fill), "plain", "flat", "number", "packed", "large chunk"
    )
    assert_same(plain, values)
    assert_same(flat, values.ravel())
    assert_same(number, values[0, 0])
    assert_same(packed, values)
    assert_same(large, values)


def test_a_chunk_that_the_index_hides_is_not_read_as_zeros() -> None:
    """The tree of chunks names a wrong place: the library finds none at the right one."""
    values = draw_numbers("<f4", (8, 4)) + 1

    def fill(file: h5py.File) -> None:
        file.create_dataset("x", data=values, chunks=(2, 4), shuffle=True)

    data = make_file(fill)
    tree = data.index(b"TREE\x01")
    # Keys of chunks: their size, then filters, then where they start
    keys = [at for at in range(tree, tree + 400) if data[at : at + 4] == b"\x20\0\0\0"]
    assert len(keys) >= 4
    at = keys[2] + 8
    assert data[at : at + 8] == (4).to_bytes(8, "little")
    damaged = data[:at] + (6).to_bytes(8, "little") + data[at + 8 :]
    with h5py.File(io.BytesIO(damaged)) as file:
        assert not np.array_equal(file["x"][()], values)
    with pytest.raises(InvalidModelFileError, match=r"^x: damaged HDF5 structure"):
        read(damaged, "x")
