"""The HDF5 reader against h5py, and against files that lie."""

from __future__ import annotations

import cProfile
import hashlib
import io
import json
import os
import pstats
import re
import signal
import subprocess
import sys
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from commands import MASKED, k2t
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keras2torch_birnn import limits
from keras2torch_birnn.errors import InvalidModelFileError, K2TError
from keras2torch_birnn.readers import read_model
from keras2torch_birnn.readers.files.window import Window
from keras2torch_birnn.readers.hdf5 import arrays, index_check, parser_child, parser_process
from keras2torch_birnn.readers.hdf5.store import HDF5Store

NUMBERS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")
RANDOM = np.random.default_rng(7)


@contextmanager
def opened(data: bytes | Path, offset: int = 0) -> Iterator[HDF5Store]:
    """A store over a file, or over bytes in a temporary one."""
    with data.open("rb", buffering=0) if isinstance(data, Path) else _temporary(data) as file:
        size = os.fstat(file.fileno()).st_size - offset
        with HDF5Store(Window(file, offset, size)) as store:
            yield store


@contextmanager
def _temporary(data: bytes) -> Iterator[Any]:
    with tempfile.TemporaryFile(buffering=0) as file:
        file.write(data)
        yield file


def made(make: Callable[[h5py.File], object], **options: Any) -> bytes:
    """The bytes of an HDF5 file that ``make`` fills."""
    memory = io.BytesIO()
    with h5py.File(memory, "w", **options) as file:
        make(file)
    return memory.getvalue()


def read(data: bytes | Path, *paths: str) -> list[Any]:
    with opened(data) as store:
        return [array.read() for array in store.arrays(paths)]


def numbers(dtype: str, shape: tuple[int, ...]) -> Any:
    return RANDOM.integers(0, 200, shape).astype(dtype)


def same(ours: Any, theirs: Any) -> None:
    assert ours.dtype == theirs.dtype.newbyteorder("=")
    assert ours.dtype.isnative
    assert ours.shape == theirs.shape
    assert ours.tobytes() == theirs.astype(ours.dtype).tobytes()
    assert ours.flags.writeable
    assert ours.flags.c_contiguous


# --- Right on good files ---


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
            file.create_dataset(f"g/{number}", data=numbers(plan["dtype"], plan["shape"]), **plan)

    data = made(fill, libver=libver, userblock_size=userblock)
    paths = [f"/g/{number}" for number in range(len(plans))]
    with h5py.File(io.BytesIO(data)) as file, opened(b"x" * prefix + data, prefix) as store:
        for path, array in zip(paths, store.arrays(paths), strict=True):
            theirs = file[path][()]
            assert (array.shape, array.dtype, array.nbytes) == (
                theirs.shape,
                theirs.dtype.newbyteorder("="),
                theirs.nbytes,
            )
            same(array.read(), np.asarray(theirs))


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

    flags, floats, inline = read(made(fill), "bool", "bfloat", "compact")
    same(flags, np.array([[True, False, True]]))
    same(floats, np.array([1.5, -2.0, 3.140625, np.inf], "f4"))
    same(inline, np.arange(6, dtype="f4").reshape(2, 3))


def test_a_chunk_whose_filter_was_skipped_is_read() -> None:
    values = numbers("<f4", (4, 4))

    def fill(file: h5py.File) -> None:
        data = file.create_dataset("x", (4, 4), "<f4", chunks=(4, 4), compression=1)
        data.id.write_direct_chunk((0, 0), values.tobytes(), filter_mask=1)

    same(read(made(fill), "x")[0], values)


@pytest.mark.parametrize("length", [0, 1, 2, 359, 720, 721, 131072, 131077])
@pytest.mark.parametrize("byte", [0, 1, 255, None])
def test_fletcher32_is_that_of_the_hdf5_library(length: int, byte: int | None) -> None:
    if not length:
        assert arrays.fletcher32(b"") == (0, 0)
        return
    values = np.full(length, byte, "u1") if byte is not None else numbers("u1", (length,))
    data = made(lambda f: f.create_dataset("x", data=values, chunks=(length,), fletcher32=True))
    same(read(data, "x")[0], values)


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
    with opened(made(fill, libver="latest")) as store:
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

    with opened(made(fill)) as store:
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


def test_a_thousand_layers_in_one_exchange() -> None:
    def fill(file: h5py.File) -> None:
        for i in range(1000):
            file[f"layer_{i}/kernel:0"] = np.float32(i)
            file[f"layer_{i}"].attrs["weight_names"] = [b"kernel:0"]

    groups = [f"layer_{i}" for i in range(1000)]
    with opened(made(fill)) as store:
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

    data = made(fill)
    assert read(data, "x")[0] == 1.0
    with _temporary(data) as file, h5py.File(file, "r") as store:
        index = parser_child.Index(h5py, store, parser_process._LIMITS)
        profile = cProfile.Profile()
        request = {"ask": "dataset", "paths": ["x"]}
        (reply,) = profile.runcall(parser_child.answer, index, request, parser_process._LIMITS)
    assert "is" in reply
    assert pstats.Stats(profile).total_calls < 500


# --- Refuses the rest ---


def external_link(file: h5py.File, target: str) -> None:
    file["x"] = h5py.ExternalLink(target, "/secret")


def external_storage(file: h5py.File, target: str) -> None:
    file.create_dataset("x", (3,), "u1", external=[(target, 0, 3)])


def virtual(file: h5py.File, target: str) -> None:
    layout = h5py.VirtualLayout((3,), "f4")
    layout[:] = h5py.VirtualSource(target, "secret", (3,))
    file.create_virtual_dataset("x", layout)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (external_link, "'x' is a link to another file"),
        (external_storage, "stored in another file (external storage)"),
        (virtual, "put together from other datasets (virtual dataset)"),
    ],
)
def test_other_files_are_never_reached(
    make: Callable[[h5py.File, str], None], words: str, tmp_path: Path
) -> None:
    with h5py.File(tmp_path / "secret.h5", "w") as secret:
        secret["secret"] = np.arange(3, dtype="f4")
    data = made(lambda file: make(file, str(tmp_path / "secret.h5")))
    with pytest.raises(InvalidModelFileError, match=rf"^/x: {re.escape(words)}; refused$"):
        read(data, "/x")


def _named_type(file: h5py.File) -> None:
    file["x"] = np.dtype("f4")


def _of_named_type(file: h5py.File) -> None:
    file["t"] = np.dtype("f4")
    file.create_dataset("x", (2,), dtype=file["t"])


def _cycle(file: h5py.File) -> None:
    file.create_group("g")["g"] = file["g"]


def _low_level(file: h5py.File, kind: Any, space: Any = None, plan: Any = None) -> Any:
    space = space or h5py.h5s.create_simple((2,))
    return h5py.h5d.create(file.id, b"x", kind, space, plan)


def _odd_float(file: h5py.File) -> None:
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_ebias(100)
    _low_level(file, kind)


def _unknown_filter(file: h5py.File) -> None:
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_chunk((2,))
    plan.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, ())
    _low_level(file, h5py.h5t.IEEE_F32LE, plan=plan).write_direct_chunk((0,), b"12345678")


def _twice_gzip(file: h5py.File) -> None:
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_chunk((2,))
    plan.set_deflate(1)
    plan.set_deflate(1)
    data = _low_level(file, h5py.h5t.IEEE_F32LE, plan=plan)
    data.write(h5py.h5s.ALL, h5py.h5s.ALL, np.zeros(2, "f4"))


def _chunk(raw: bytes, **options: Any) -> Callable[[h5py.File], None]:
    def fill(file: h5py.File) -> None:
        data = file.create_dataset("x", (2,), "<f4", chunks=(2,), **options)
        data.id.write_direct_chunk((0,), raw)

    return fill


def _zeros(count: int) -> bytes:
    return zlib.compress(bytes(count))


REFUSALS: dict[str, tuple[Callable[[h5py.File], object], str]] = {
    "missing": (lambda f: None, "not in the file"),
    "soft link": (lambda f: f.update(x=h5py.SoftLink("/nowhere")), "'x' is a soft link"),
    "self link": (lambda f: f.update(x=h5py.SoftLink("/x")), "'x' is a soft link"),
    "group": (lambda f: f.create_group("x"), "a group, expected a dataset"),
    "named type": (_named_type, "a named type, expected a dataset"),
    "of a named type": (_of_named_type, "its values are of a named type"),
    "text": (lambda f: f.update(x=["a", "b"]), "it holds text"),
    "fixed text": (lambda f: f.update(x=np.array([b"ab"])), "it holds text"),
    "compound": (lambda f: f.update(x=np.zeros(2, "f4,i4")), "it holds compound values"),
    "vlen": (
        lambda f: f.create_dataset("x", (2,), h5py.vlen_dtype("f4")),
        "it holds sequences of varying length",
    ),
    "reference": (lambda f: f.create_dataset("x", (2,), h5py.ref_dtype), "it holds references"),
    "enum": (
        lambda f: f.create_dataset("x", (2,), h5py.enum_dtype({"a": 1})),
        "it holds enumerated values",
    ),
    "opaque": (lambda f: f.update(x=np.zeros(2, "V3")), "it holds opaque bytes"),
    "array": (lambda f: f.create_dataset("x", (2,), "(3,)f4"), "it holds nested arrays"),
    "complex": (lambda f: f.update(x=np.zeros(2, "c8")), "it holds "),
    "odd float": (_odd_float, "it holds floats of an unusual kind"),
    "long double": (
        lambda f: f.update(x=np.zeros(2, np.longdouble)),
        "it holds floats of an unusual kind",
    ),
    "bits": (lambda f: _low_level(f, h5py.h5t.STD_B8LE), "it holds bit fields"),
    "null": (
        lambda f: _low_level(f, h5py.h5t.IEEE_F32LE, h5py.h5s.create(h5py.h5s.NULL)),
        "an empty dataspace (no values, not even a shape)",
    ),
    "filter": (_unknown_filter, "filter 32015"),
    "lzf": (lambda f: f.create_dataset("x", (9,), "f4", compression="lzf"), "filter 32000 (lzf)"),
    "scale": (lambda f: f.create_dataset("x", (9,), "i4", scaleoffset=3), "filter 6 (scaleoffset)"),
    "gzip twice": (_twice_gzip, "filter 1 twice"),
    "nothing stored": (
        lambda f: f.create_dataset("x", (1 << 40,), "f4"),
        "no bytes stored, 4398046511104 declared",
    ),
    "no chunks": (
        lambda f: f.create_dataset("x", (1 << 33,), "f4", chunks=(1 << 20,)),
        "none of its 8192 chunks stored",
    ),
    "a chunk missing": (
        lambda f: f.create_dataset("x", (9,), "f4", chunks=(2,)).__setitem__(0, 1.0),
        "1 of its 5 chunks stored",
    ),
    "chunk bomb": (
        lambda f: f.create_dataset(
            "x",
            data=np.ones((3, 4), "f4"),
            chunks=(1 << 13, 1 << 12),
            compression=1,
            maxshape=(None, None),
        ),
        "its chunks inflate to 134217728 bytes",
    ),
    "inflates to more": (
        _chunk(_zeros(1 << 20), compression=1),
        "a chunk inflates to more than 8 bytes, expected exactly 8",
    ),
    "inflates to less": (
        _chunk(_zeros(7), compression=1),
        "a chunk inflates to 7 bytes, expected exactly 8",
    ),
    "cut gzip": (
        _chunk(_zeros(8)[:-2], compression=1),
        "a chunk inflates to 8 bytes, expected exactly 8",
    ),
    "bad gzip": (_chunk(b"no gzip data", compression=1), "damaged gzip data"),
    "bad checksum": (
        _chunk(bytes(8) + b"\1\0\0\0", fletcher32=True),
        "a chunk's checksum (fletcher32)",
    ),
    "short chunk": (_chunk(bytes(7)), "a chunk of 7 bytes, expected 8"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refuses(name: str) -> None:
    make, words = REFUSALS[name]
    data = made(make)
    with pytest.raises(InvalidModelFileError, match=rf"^/x: {re.escape(words)}") as caught:
        read(data, "/x")
    assert str(caught.value).count("\n") == 0
    assert caught.value.exit_code == 3


def test_all_refused_arrays_are_listed_and_good_ones_stay_readable() -> None:
    def fill(file: h5py.File) -> None:
        file["good"], file["text"] = 1.0, "a"

    with opened(made(fill)) as store:
        with pytest.raises(InvalidModelFileError) as caught:
            store.arrays(["/text", "/good", "/gone"])
        assert caught.value.lines() == (
            "/text: it holds text; refused",
            "/gone: not in the file; refused",
        )
        assert store.arrays(["/good"])[0].read() == 1.0


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/g//x", "not a plain path"),
        ("//x", "not a plain path"),
        ("g/../x", "not a plain path"),
        ("g/./x", "not a plain path"),
        ("g/" * 64 + "x", "a path of 65 groups, more than 64"),
        ("n" * 65537, "a name longer than 65536 bytes"),
        ("a\0b", "a name longer than 65536 bytes"),
        ("x/y", "'x' is a dataset, expected a group"),
        ("soft/x", "'soft' is a soft link"),
    ],
)
def test_only_plain_paths_are_followed(path: str, words: str) -> None:
    def fill(file: h5py.File) -> None:
        file["x"] = 1.0
        file["soft"] = h5py.SoftLink("/")

    with opened(made(fill)) as store:
        with pytest.raises(InvalidModelFileError, match=re.escape(words)):
            store.arrays([path])


def test_two_arrays_never_share_bytes() -> None:
    def fill(file: h5py.File) -> None:
        file["a"] = np.ones(9, "f4")
        file["b"] = file["a"]

    with opened(made(fill)) as store:
        with pytest.raises(
            InvalidModelFileError, match=r"^b: its bytes are also those of a; refused"
        ):
            store.arrays(["a", "b"])


def test_many_small_bombs_count_together() -> None:
    def fill(file: h5py.File) -> None:
        for i in range(6):
            file.create_dataset(
                f"x{i}", data=np.zeros(1 << 22, "f4"), chunks=(1 << 22,), compression=9
            )

    data = made(fill)
    with opened(data) as store:
        with pytest.raises(
            InvalidModelFileError, match=r"^x4: its chunks inflate to 16777216 bytes"
        ):
            store.arrays([f"x{i}" for i in range(5)])


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.bytes_(b"\xff\xfe"), "attribute 'a' is not UTF-8 text"),
        (np.array([[b"a"]]), r"attribute 'a' of shape (1, 1)"),
        (np.arange(3), "attribute 'a' holds integers"),
        (np.arange(3.0), "attribute 'a' holds floats"),
        (np.zeros(1, "f4,f4")[0], "attribute 'a' holds compound values"),
        (h5py.Empty("f4"), "attribute 'a' is empty"),
    ],
)
def test_refuses_attributes(value: Any, words: str) -> None:
    with opened(made(lambda f: f.attrs.__setitem__("a", value))) as store:
        with pytest.raises(InvalidModelFileError, match=f"^/: {re.escape(words)}"):
            store.attributes("/", ["a"])


def test_long_attributes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(parser_process._LIMITS, "text", 1000)
    monkeypatch.setitem(parser_process._LIMITS, "names", 10)

    def fill(file: h5py.File) -> None:
        file.attrs["text"] = "x" * 1001
        file.attrs["fixed"] = np.bytes_(b"x" * 1001)
        file.attrs["many"] = ["a"] * 11
        file.attrs["pieces0"] = ["a"] * 6
        file.attrs["pieces1"] = ["a"] * 6
        file.attrs["numbers0"] = 1

    refusals = {
        "text": "attribute 'text' is longer than 1000 bytes",
        "fixed": "attribute 'fixed' is longer than 1000 bytes",
        "many": "attribute 'many' of shape (11,); at most 10 names",
        "pieces": "attribute 'pieces' holds more than 10 names",
        "numbers": "attribute 'numbers0' is no list of names",
    }
    with opened(made(fill)) as store:
        for name, words in refusals.items():
            with pytest.raises(InvalidModelFileError, match=re.escape(words)):
                store.attributes("/", [name])


def write_split(group: h5py.Group, name: str, texts: list[bytes]) -> int:
    """``save_attributes_to_hdf5_group`` of Keras 2.2.3 to 3.15; returns the number of pieces."""
    pieces = [np.asarray(texts)]
    while any(piece.nbytes > 64512 for piece in pieces):
        pieces = np.array_split(np.asarray(texts), len(pieces) + 1)
    if len(pieces) == 1:
        group.attrs[name] = texts
        return 1
    for number, piece in enumerate(pieces):
        group.attrs[f"{name}{number}"] = piece
    return len(pieces)


@pytest.mark.parametrize(("length", "pieces"), [(1531, 1), (30011, 2), (64512, 4)])
def test_names_as_long_as_keras_writes_them_are_read(
    length: int, pieces: int, tmp_path: Path
) -> None:
    """Real files of Keras 3.15.1 and tf_keras 2.21 with names of 60,000 bytes were read as well."""

    def lengthened(name: str) -> str:
        return name.ljust(length, "x")

    path = tmp_path / "m.h5"
    path.write_bytes(MASKED.read_bytes())
    with h5py.File(path, "r+") as file:
        text, group = str(file.attrs["model_config"]), file["model_weights"]
        names = [str(name) for name in group.attrs["layer_names"]]
        for name in names:
            text = text.replace(json.dumps(name), json.dumps(lengthened(name)))
            group.move(name, lengthened(name))
        file.attrs["model_config"] = text
        del group.attrs["layer_names"]
        told = [lengthened(name).encode() for name in names]
        assert write_split(group, "layer_names", told) == pieces
    expected, found = (list(read_model(file).root.walk()) for file in (MASKED, path))
    assert {lengthened(name) for name in names} <= {layer.name for layer in found}
    for one, other in zip(expected, found, strict=True):
        assert one.weights.keys() == other.weights.keys()
        assert all(np.array_equal(one.weights[key], other.weights[key]) for key in one.weights)
    assert k2t("convert", path, tmp_path / "out.pt").code == 0
    assert k2t("verify", path, tmp_path / "out.pt", "--against", "reference").code == 0


def test_long_names_are_bounded_all_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(parser_process._LIMITS, "text", 1000)

    def fill(file: h5py.File) -> None:
        for letter in "abc":
            file.create_group(f"few/{letter * 300}")
            file.create_group(f"many/{letter * 400}")

    with opened(made(fill)) as store:
        assert len(store.members("few")) == 3
        with pytest.raises(InvalidModelFileError, match="names of members longer than 1000 bytes"):
            store.members("many")


def test_members_refuse_links_types_and_crowds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(parser_process._LIMITS, "members", 3)

    def fill(file: h5py.File) -> None:
        file.create_group("links")["soft"] = h5py.SoftLink("/nowhere")
        file.create_group("types")["type"] = np.dtype("f4")
        for i in range(4):
            file.create_group(f"crowd/{i}")
        file["data"] = 1.0

    refusals = {
        "links": "'soft' is a soft link",
        "types": "'type' is neither a group nor a dataset",
        "crowd": "a group with more than 3 members",
        "data": "a dataset, expected a group",
        "gone": "not in the file",
    }
    with opened(made(fill)) as store:
        for group, words in refusals.items():
            with pytest.raises(
                InvalidModelFileError, match=f"^{group}: {re.escape(words)}; refused"
            ):
                store.members(group)
        with pytest.raises(InvalidModelFileError, match="a named type, expected a group or"):
            store.kind("types/type")


def test_a_chunk_table_that_is_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(parser_process._LIMITS, "chunks", 5)

    def fill(file: h5py.File) -> None:
        file.create_dataset("a", data=np.arange(4), chunks=(1,))
        file.create_dataset("b", data=np.arange(2), chunks=(1,))

    with opened(made(fill)) as store:
        with pytest.raises(InvalidModelFileError, match=r"^b: 2 more chunks, where 1 are left"):
            store.arrays(["a", "b"])


@pytest.mark.parametrize("userblock", [0, 512])
def test_a_truncated_file_says_so(userblock: int) -> None:
    data = made(lambda f: f.update(x=np.arange(1000.0)), userblock_size=userblock)
    size = len(data) - userblock
    with pytest.raises(
        InvalidModelFileError,
        match=f"^truncated: {size - 999} bytes here, its header says {size}; r",
    ):
        read(data[:-999], "x")


def test_no_hdf5_data() -> None:
    with pytest.raises(InvalidModelFileError, match="not HDF5 data"):
        read(b"something else" * 99, "x")


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    path.write_bytes(made(lambda f: f.update(x=np.arange(1000.0))))
    with opened(path) as store:
        (array,) = store.arrays(["x"])
        os.truncate(path, 3000)
        with pytest.raises(InvalidModelFileError, match=r"^x: the file became shorter while"):
            array.read()


def test_arrays_of_a_closed_file_cannot_be_read() -> None:
    with opened(made(lambda f: f.update(x=1.0))) as store:
        (array,) = store.arrays(["x"])
    with pytest.raises(ValueError, match="closed file"):
        array.read()


# --- The child process ---


FAKE_CHILD = """
import functools, os, signal, sys, time
print, OPEN = functools.partial(print, flush=True), '[{"is": 1}]'
"""


def _fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str) -> bytes:
    script = tmp_path / "child.py"
    script.write_text(FAKE_CHILD + code)
    monkeypatch.setattr(parser_process, "_SCRIPT", script)
    return made(lambda f: f.update(x=1.0))


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "the HDF5 parser crashed (SIGSEGV) on this file"),
        ("os.kill(os.getpid(), signal.SIGXCPU)", "did not finish in 5 s of computing on this file"),
        ("os._exit(9)", "the HDF5 parser stopped (exit code 9) on this file"),
        ("print(OPEN); sys.stdin.readline(); os.abort()", "the HDF5 parser crashed (SIGABRT)"),
        ("print('[')", "the HDF5 parser was misled"),
        ("print('[' * 100000)", "the HDF5 parser was misled"),
        ("print('{}')", "the HDF5 parser was misled"),
        ("print('[1, 2]')", "the HDF5 parser was misled"),
        (
            "print(OPEN); sys.stdin.readline(); print(OPEN)",
            "the HDF5 parser was misled by this file",
        ),
        (
            "print(OPEN); sys.stdin.readline(); print('[3]')",
            "the HDF5 parser was misled by this file",
        ),
    ],
)
def test_a_child_that_fails_is_an_error_of_the_file(
    code: str, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data = _fake(monkeypatch, tmp_path, code)
    with opened(data) as store:
        for _ in range(2):
            with pytest.raises(InvalidModelFileError, match=re.escape(words)):
                store.arrays(["x"])


def test_a_child_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(limits, "MAX_PARSER_WALL_SECONDS", 0.3)
    with opened(_fake(monkeypatch, tmp_path, "time.sleep(60)")) as store:
        with pytest.raises(InvalidModelFileError, match=r"did not finish in 0\.3 s on this file"):
            store.kind("x")


def test_a_child_that_talks_without_end_is_stopped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(limits, "MAX_REPLY_BYTES", 10_000)
    with opened(_fake(monkeypatch, tmp_path, "while True: print('x', end='')")) as store:
        with pytest.raises(InvalidModelFileError, match="was misled"):
            store.kind("x")


def test_a_reply_that_is_too_long_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(parser_process._LIMITS, "reply", 200)
    with opened(made(lambda f: [f.create_group(f"group{i}") for i in range(99)])) as store:
        with pytest.raises(InvalidModelFileError, match=r"^/: too much to tell about it; refused"):
            store.members("/")


def test_h5py_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(parser_process, "_import_roots", lambda: [str(tmp_path)])
    with opened(made(lambda f: f.update(x=1.0))) as store:
        with pytest.raises(K2TError, match=r"h5py cannot be imported .*No module.*; reinstall it"):
            store.kind("x")
    monkeypatch.undo()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(K2TError, match="h5py is not installed; pip install h5py"):
        read(made(lambda f: f.update(x=1.0)), "x")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_the_child_has_no_rights_left() -> None:
    with opened(made(lambda f: f.update(x=1.0))) as store:
        store.kind("x")
        pid = store._parser._process.pid
        rows = Path(f"/proc/{pid}/limits").read_text().splitlines()
        soft = {row[:25].strip(): row[26:].split()[0] for row in rows[1:]}
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    assert soft["Max open files"] == soft["Max file size"] == soft["Max core file size"] == "0"
    assert soft["Max processes"] == "0"
    assert soft["Max cpu time"] == str(limits.MAX_PARSER_CPU_SECONDS)
    assert int(soft["Max address space"]) < 4 << 30
    assert b"HDF5_PLUGIN_PRELOAD=::" in environment
    assert b"HDF5_PLUGIN_PATH" not in environment


def test_closing_ends_the_child_at_any_time() -> None:
    with opened(made(lambda f: f.update(x=1.0))) as store:
        process = store._parser._process
        store.close()
    assert process.returncode is not None
    with opened(made(lambda f: f.update(x=1.0))) as store:
        store.kind("x")
        process = store._parser._process
    assert process.returncode == -signal.SIGKILL


def test_the_parent_imports_neither_h5py_nor_torch() -> None:
    code = (
        "import sys, keras2torch_birnn.readers.containers;print({'h5py', 'torch'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_what_the_child_does_works_in_any_process() -> None:
    """The child's own code, here in the open, where coverage sees it."""
    data = made(lambda f: f.update(x=np.arange(3, dtype=">i2")))
    with _temporary(data) as file:
        inherited = parser_child.InheritedFile(file.fileno(), 0, len(data))
        assert inherited.readable()
        assert inherited.seek(-4, io.SEEK_END) == inherited.tell()
        buffer = bytearray(b"xxxxxxxx")
        assert inherited.readinto(buffer) == 4
        assert buffer == data[-4:] + bytes(4)
        with h5py.File(inherited, "r") as opened_file:
            index = parser_child.Index(h5py, opened_file, parser_process._LIMITS)
            asked = {"ask": "dataset", "paths": ["x", "y"]}
            good, bad = parser_child.answer(index, asked, parser_process._LIMITS)
    assert good["is"]["dtype"] == ">i2"
    assert bad == {"refused": "not in the file"}


# --- A child that lies ---

CONTIGUOUS = {"shape": [2, 3], "dtype": "<f4", "layout": "contiguous", "offset": 8, "stored": 24}
CHUNKED = {
    "shape": [3],
    "dtype": "<f4",
    "layout": "chunked",
    "chunk": [2],
    "filters": [],
    "chunks": [[0, 0, 0, 8], [2, 0, 8, 8]],
}


def enter(*facts: object) -> None:
    with _temporary(bytes(64)) as file:
        ledger = index_check.Ledger(Window(file, 0, 64))
        for number, one in enumerate(facts):
            ledger.enter(f"/{number}", one).read()


def test_honest_facts_pass() -> None:
    enter(CHUNKED, {**CONTIGUOUS, "offset": 16})


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (CONTIGUOUS | {"offset": 41}, "its bytes end at 65, the file at 64"),
        (CONTIGUOUS | {"offset": 2**62}, "its bytes end at"),
        (CONTIGUOUS | {"stored": 25}, "25 bytes stored, 24 declared"),
        (CONTIGUOUS | {"offset": None}, "no bytes stored, 24 declared"),
        (CONTIGUOUS | {"layout": "inline", "bytes": "AAAA"}, "3 bytes stored, 24 declared"),
        (CHUNKED | {"chunks": [[0, 0, 0, 8], [0, 0, 8, 8]]}, "two chunks at the same place"),
        (CHUNKED | {"chunks": [[0, 0, 0, 8], [1, 0, 8, 8]]}, r"a chunk at \(1,\), outside"),
        (CHUNKED | {"chunks": [[0, 0, 0, 8], [4, 0, 8, 8]]}, r"a chunk at \(4,\), outside"),
        (CHUNKED | {"chunks": [[0, 0, 0, 8], [2, 0, 4, 8]]}, "its bytes are also those of /0"),
        (CHUNKED | {"chunks": [[0, 0, 4, 8], [2, 0, 0, 8]]}, "its bytes are also those of /0"),
        (CHUNKED | {"chunks": [[0, 0, 0, 8], [2, 0, 60, 8]]}, "its bytes end at 68"),
        (CHUNKED | {"filters": [[2, [8]]]}, r"shuffled as items of \(8,\) bytes, but they have 4"),
    ],
)
def test_facts_that_cannot_be_true_are_refused(facts: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidModelFileError, match=f"^/0: {words}"):
        enter(facts)


GARBAGE: tuple[Any, ...] = (None, -1, 1.5, True, "x", [], {}, [None], [-1], [[]], 2**70, "\ud800")


@pytest.mark.parametrize("facts", [CONTIGUOUS, CHUNKED], ids=["contiguous", "chunked"])
def test_garbled_facts_never_pass(facts: dict[str, Any]) -> None:
    for key in facts:
        for garbage in GARBAGE:
            if garbage == facts[key]:
                continue
            with pytest.raises((index_check.ImpossibleError, InvalidModelFileError)):
                enter(facts | {key: garbage})
    for garbage in GARBAGE:
        with pytest.raises(index_check.ImpossibleError):
            enter(garbage)


@pytest.mark.parametrize("check", [index_check.check_members, index_check.check_attributes])
def test_garbled_names_never_pass(check: Callable[[object], object]) -> None:
    assert check({}) == {}
    for garbage in (*GARBAGE, {"text": 3}, {"texts": "x"}, {"texts": [1]}, {"number": True}):
        if garbage != {}:
            with pytest.raises(index_check.ImpossibleError):
                check(garbage)
        with pytest.raises(index_check.ImpossibleError):
            check({"name": garbage})


def test_a_lying_child_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = _fake(monkeypatch, tmp_path, "print(OPEN); sys.stdin.readline(); print(OPEN)")
    with opened(data) as store:
        with pytest.raises(InvalidModelFileError, match="was misled by this file; refused"):
            store.members("/")


# --- Damaged files ---

ORACLE = """
import hashlib, h5py, sys
for path in sys.argv[2:]:
    try:
        with h5py.File(path) as file:
            texts = []
            for name in sys.argv[1].split():
                values = file[name][()]
                values = values.astype(values.dtype.newbyteorder("<"))
                texts.append(f"{values.dtype.str}{values.shape}{values.tobytes().hex()}")
        print(path, hashlib.sha256("".join(texts).encode()).hexdigest(), flush=True)
    except Exception as error:
        print(path, "refused", flush=True)
"""


def _digest(values: list[Any]) -> str:
    little = [v.astype(v.dtype.newbyteorder("<")) for v in values]
    texts = [f"{v.dtype.str}{v.shape}{v.tobytes().hex()}" for v in little]
    return hashlib.sha256("".join(texts).encode()).hexdigest()


def _mutants(seeds: list[bytes], count: int) -> Iterator[bytes]:
    random = np.random.default_rng(20240607)
    for number in range(count):
        mutant = bytearray(seeds[number % len(seeds)])
        for at in random.integers(0, len(mutant), random.integers(1, 9)):
            mutant[at] = random.integers(0, 256)
        yield bytes(mutant)


def test_mutants_are_read_as_h5py_reads_them_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """200 damaged copies: no crash, no endless run, no error but ours, no values of our own."""
    names = ["model_weights/a", "model_weights/b", "model_weights/c"]

    def fill(file: h5py.File) -> None:
        file[names[0]] = numbers("<f4", (5, 7))
        file.create_dataset(
            names[1], data=numbers(">i4", (11,)), chunks=(4,), compression=4, shuffle=True
        )
        file.create_dataset(names[2], data=numbers("<f2", (13, 3)), chunks=(5, 2), fletcher32=True)
        file["model_weights"].attrs["layer_names"] = ["a", "b", "c"]

    monkeypatch.setitem(parser_process._LIMITS, "cpu", 2)
    ours: dict[str, str] = {}
    seeds = [made(fill, libver=libver) for libver in ("earliest", "latest")]
    for number, mutant in enumerate(_mutants(seeds, 200)):
        path = tmp_path / f"{number}.h5"
        path.write_bytes(mutant)
        try:
            with opened(path) as store:
                store.attributes("/model_weights", ["layer_names"])
                ours[str(path)] = _digest([array.read() for array in store.arrays(names)])
        except K2TError as error:
            assert all(line.isprintable() for line in error.lines())
    # h5py may crash or hang on a mutant; what it said before that counts. It may also miss a chunk
    # of a damaged tree and silently give zeros, where we find the chunk: the values of the seed.
    oracle = [sys.executable, "-c", ORACLE, " ".join(names), *ours]
    with subprocess.Popen(oracle, stdout=subprocess.PIPE, text=True) as process:
        alarm = threading.Timer(15, process.kill)
        alarm.start()
        theirs = dict(line.split() for line in process.communicate()[0].splitlines())
        alarm.cancel()
    undamaged = _digest(read(seeds[0], *names))
    assert len([path for path in theirs if theirs[path] == ours[path]]) > 30
    differing = [
        p for p in theirs if theirs[p] not in ("refused", ours[p]) and ours[p] != undamaged
    ]
    assert differing == []
