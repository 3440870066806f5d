"""HDF5 files that reach out, lie about their size, or hold what no Keras model holds.

Every one is a whole model, once as ``.h5`` and once inside a ``.keras`` archive. The reader's own
tests (``tests/readers/test_hdf5_refusals.py``) go through every refusal of the format one by one.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from builders import CONTAINERS, by_commands, in_containers, instead, kernel_of, with_weights
from commands import STACK_H5, changed_h5
from harness import Report, Runner, refused
from sampling import in_turn

SECRET = "/etc/passwd"


def low_level(group: h5py.Group, name: str, kind: Any, shape: tuple[int, ...] = (3, 20)) -> Any:
    space = h5py.h5s.create_simple(shape)
    return h5py.h5d.create(group.id, name.encode(), kind, space)


def virtual(group: h5py.Group, name: str) -> None:
    layout = h5py.VirtualLayout((3, 20), "f4")
    layout[:] = h5py.VirtualSource(SECRET, "x", (3, 20))
    group.create_virtual_dataset(name, layout)


def unknown_filter(group: h5py.Group, name: str) -> None:
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_chunk((3, 20))
    plan.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, ())
    space = h5py.h5s.create_simple((3, 20))
    data = h5py.h5d.create(group.id, name.encode(), h5py.h5t.IEEE_F32LE, space, plan)
    data.write_direct_chunk((0, 0), bytes(240))


def chunk_of(stored: bytes) -> Any:
    """Make one chunk of these bytes, which should be 240 bytes through gzip."""

    def make(group: h5py.Group, name: str) -> None:
        data = group.create_dataset(name, (3, 20), "<f4", chunks=(3, 20), compression=1)
        data.id.write_direct_chunk((0, 0), stored)

    return instead(make)


def inflates_to(count: int) -> Any:
    """Make one chunk whose gzip data inflate to this many bytes instead of 240."""
    return chunk_of(zlib.compress(bytes(count), 9))


def cumulative(group: h5py.Group, name: str) -> None:
    """A chunk of half a gigabyte in few bytes: refused before a byte of it is inflated."""
    data = group.create_dataset(
        name, (3, 20), "<f4", chunks=(1 << 12, 1 << 15), maxshape=(None, None), compression=9
    )
    data.id.write_direct_chunk((0, 0), zlib.compress(bytes(99)))


def dataset(*arguments: Any, **options: Any) -> Any:
    """Put an array into the kernel's place, as h5py's ``create_dataset`` makes it."""
    return instead(lambda group, name: group.create_dataset(name, *arguments, **options))


def item(value: Any) -> Any:
    """Put anything else into the kernel's place."""
    return instead(lambda group, name: group.__setitem__(name, value))


UNLIMITED = (None, None)
ATTACKS: dict[str, tuple[Any, str]] = {
    "link to another file": (
        item(h5py.ExternalLink(SECRET, "/x")),
        "is a link to another file; refused",
    ),
    "link to a pipe": (
        item(h5py.ExternalLink("/dev/zero", "/x")),
        "is a link to another file; refused",
    ),
    "soft link": (item(h5py.SoftLink("/a")), "is a soft link"),
    "soft link to itself": (
        instead(lambda g, n: g.__setitem__(n, h5py.SoftLink(f"{g.name}/{n}"))),
        "is a soft link",
    ),
    "external storage": (
        dataset((3, 20), "f4", external=[(SECRET, 0, 240)]),
        "stored in another file (external storage)",
    ),
    "virtual dataset": (instead(virtual), "put together from other datasets"),
    "group": (instead(lambda g, n: g.create_group(n)), "a group, expected a dataset"),
    "named type": (item(np.dtype("f4")), "a named type, expected a dataset"),
    "text": (dataset(data=np.full((3, 20), b"1.0")), "it holds text"),
    "compound": (dataset((3, 20), "f4,i4"), "it holds compound values"),
    "sequences": (dataset((3, 20), h5py.vlen_dtype("f4")), "it holds sequences of varying length"),
    "references": (dataset((3, 20), h5py.ref_dtype), "it holds references"),
    "opaque": (dataset(data=np.zeros((3, 20), "V3")), "it holds opaque bytes"),
    "enumerated": (dataset((3, 20), h5py.enum_dtype({"a": 1})), "it holds enumerated values"),
    "long double": (
        dataset(data=np.zeros((3, 20), np.longdouble)),
        "it holds floats of an unusual kind",
    ),
    "complex": (dataset(data=np.zeros((3, 20), "c8")), "it holds "),
    "integers": (
        dataset(data=np.zeros((3, 20), "i8")),
        "kernel holds int64, float weights are expected",
    ),
    "no shape": (item(h5py.Empty("f4")), "an empty dataspace"),
    "other filter": (instead(unknown_filter), "filter 32015"),
    "4 TiB declared": (
        dataset((1 << 20, 1 << 20), "f4", chunks=(1024, 1024)),
        "none of its 1048576 chunks stored",
    ),
    "32 GiB declared": (
        instead(lambda g, n: low_level(g, n, h5py.h5t.IEEE_F32LE, (1 << 33,))),
        "no bytes stored, 34359738368 declared",
    ),
    "the right shape, nothing stored": (
        instead(lambda g, n: low_level(g, n, h5py.h5t.IEEE_F32LE)),
        "no bytes stored, 240 declared",
    ),
    "chunk of 2 GiB": (
        dataset((3, 20), "f4", chunks=(1 << 14, 1 << 15), maxshape=UNLIMITED),
        "none of its 1 chunks stored",
    ),
    "chunk of 512 MiB in few bytes": (instead(cumulative), "its chunks inflate to 536870912 bytes"),
    "transposed": (
        dataset(data=np.zeros((20, 3), "f4")),
        "kernel (20, 3), the configuration implies ",
    ),
    "one value": (dataset(data=np.float32(1)), "kernel (), the configuration implies "),
    "missing": (instead(lambda g, n: None), ""),
}
# Lies that only the bytes of the weights tell. `inspect` opens none of these bytes.
INSIDE: dict[str, tuple[Any, str]] = {
    "chunk that inflates to 64 MiB": (
        inflates_to(64 << 20),
        "a chunk inflates to more than 240 bytes, expected exactly 240",
    ),
    "chunk that inflates to nothing": (inflates_to(0), "a chunk inflates to 0 bytes"),
    "chunk that is no gzip data": (chunk_of(b"x" * 99), "damaged gzip data"),
    "chunk that ends early": (chunk_of(zlib.compress(bytes(240), 0)[:99]), "a chunk inflates to "),
    "chunk with more after it": (
        chunk_of(zlib.compress(bytes(240)) + b"more"),
        "a chunk inflates to 240 bytes, expected exactly 240",
    ),
}


@pytest.mark.parametrize(("name", "way"), in_containers(ATTACKS), ids=str)
def test_hostile_weights_are_refused(
    name: str, way: tuple[str, str], runners: Mapping[str, Runner], tmp_path: Path
) -> None:
    (change, words), (suffix, command) = ATTACKS[name], way
    if (name, suffix) == ("named type", ".keras"):  # its groups are listed before a weight is read
        words = "is neither a group nor a dataset"
    file = with_weights(suffix, change)(tmp_path)
    refused(runners[command], command, file, words, tmp_path)


@pytest.fixture(scope="module")
def honest(converting: Runner) -> Mapping[str, Report]:
    """Inspect an honest model in each container."""
    files = CONTAINERS.items()
    return {suffix: converting.k2t("inspect", file, reads=(file,)) for suffix, file in files}


@pytest.mark.parametrize(("name", "suffix"), in_turn(INSIDE, CONTAINERS))
def test_lies_inside_the_weights_are_refused_when_they_are_read(
    name: str, suffix: str, honest: Mapping[str, Report], converting: Runner, tmp_path: Path
) -> None:
    """By ``convert``, and never inflated beyond the size that is due; ``inspect`` inflates none."""
    change, words = INSIDE[name]
    file = with_weights(suffix, change)(tmp_path)
    seen = converting.k2t("inspect", file, reads=(file,), folder=tmp_path)
    plain = honest[suffix]
    assert (seen.code, seen.out, seen.crimes) == (0, plain.out, []), seen.err
    report = refused(converting, "convert", file, words, tmp_path)
    assert max(seen.peak_mib, report.peak_mib) < plain.peak_mib + 32


# ---- attributes and groups of a whole model -----------------------------------------------------


def attribute(name: str, value: Any, group: str = "/") -> Any:
    def change(file: h5py.File) -> None:
        file[group].attrs[name] = value

    return change


def weight_names(*names: str) -> Any:
    return attribute("weight_names", [name.encode() for name in names], "model_weights/dense")


def layer_names(*names: str) -> Any:
    return attribute("layer_names", [name.encode() for name in names], "model_weights")


def twice(file: h5py.File) -> None:
    """Two kernels that are the same bytes of the file."""
    path = kernel_of(file)
    other = path.replace("backward_lstm", "forward_lstm")
    assert other != path
    del file[other]
    file[other] = file[path]


STRUCTURES: dict[str, tuple[Any, str]] = {
    "absolute name": (weight_names("/model_weights/dense/kernel", "bias"), "leaves its group"),
    "name that climbs": (weight_names("../dense_1/kernel", "bias"), "leaves its group"),
    "group that climbs": (layer_names("..", "dense"), "leaves its group"),
    "empty name": (weight_names("", "bias"), "leaves its group"),
    "names that are no list": (
        attribute("layer_names", "dense", "model_weights"),
        "a list of names is expected",
    ),
    "names that are numbers": (
        attribute("layer_names", np.arange(3), "model_weights"),
        "attribute 'layer_names' holds integers",
    ),
    "architecture of numbers": (attribute("model_config", 7), "model_config is no text"),
    "architecture that is a list": (
        attribute("model_config", [b"{}", b"{}"]),
        "model_config is no text",
    ),
    "architecture that is not UTF-8": (
        attribute("model_config", np.bytes_(b"\xff{}")),
        "attribute 'model_config' is not UTF-8 text",
    ),
    "architecture that is empty": (
        attribute("model_config", h5py.Empty("f4")),
        "attribute 'model_config' is empty",
    ),
    "version of numbers": (attribute("keras_version", 7), "is not a version of Keras"),
    "version of 5000 digits": (attribute("keras_version", "9" * 5000 + ".1"), "is not a version"),
    "version with a digit that is none": (attribute("keras_version", "3.5\xb2"), "not a version"),
    "version of 1 MB": (attribute("keras_version", "v" * (1 << 20)), "is not a version of Keras"),
    "version with lines": (attribute("keras_version", "3.1\nk2t: error: x"), "is not a version"),
    "one array twice": (twice, "its bytes are also those of"),
}


@pytest.mark.every(3)
@pytest.mark.parametrize(("name", "command"), by_commands(STRUCTURES))
def test_a_hostile_structure_is_refused(
    name: str, command: str, runners: Mapping[str, Runner], tmp_path: Path
) -> None:
    change, words = STRUCTURES[name]
    file = changed_h5(STACK_H5, tmp_path / "model.h5", change)
    refused(runners[command], command, file, words, tmp_path)


# ---- what must go well all the same -------------------------------------------------------------


def crowded(file: h5py.File, path: str) -> None:
    """5,000 groups, and one of depth 1,500, that nothing asks for."""
    for i in range(5_000):
        file.create_group(f"crowd/{i}")
    group = file
    for i in range(1_500):
        group = group.create_group(f"g{i}")


def many_attributes(file: h5py.File, path: str) -> None:
    file.attrs["backend"] = "\x1b[2J" * 10_000
    file.attrs["notes"] = "x" * 60_000
    for i in range(2_000):
        file.create_group("noise", track_order=True) if i == 0 else None
        file["noise"].attrs[f"a{i}"] = i


HONEST = np.arange(60.0).reshape(3, 20) / 99
ODD: dict[str, Any] = {
    "big endian": dataset(data=HONEST, dtype=">f4"),
    "float16": dataset(data=HONEST, dtype="f2"),
    "crowded": crowded,
    "many attributes": many_attributes,
}


@pytest.mark.parametrize(("name", "suffix"), in_turn(ODD, CONTAINERS))
def test_an_odd_but_honest_file_converts(
    name: str, suffix: str, converting: Runner, tmp_path: Path
) -> None:
    file, out = with_weights(suffix, ODD[name])(tmp_path), tmp_path / "out.pt"
    report = converting.k2t("convert", file, out, reads=(file,), writes=(tmp_path,))
    assert (report.code, report.crimes) == (0, []), report.err
    assert (
        converting.k2t("verify", file, out, "--against", "reference", reads=(file, out)).code == 0
    )
