"""The fixtures in TensorFlow's containers are complete, unchanged, and of every kind."""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path

import numpy as np
import pytest
from tensorflow_fixtures import (
    ENTRIES,
    TENSORFLOW,
    files,
    names_of_arrays,
    recorded,
    unpack,
)

WRITERS = (
    "tf-2.1.4",
    "tf.keras-2.4.0",
    "tf.keras-2.6.0",
    "tf.keras-2.10.0",
    "tf.keras-2.15.0",
    "tf_keras-2.21.0",
    "tensorflowjs-4.22.0",
    "tfjs-4.22.0",
)


def sha256(file: str) -> str:
    return hashlib.sha256((TENSORFLOW / file).read_bytes()).hexdigest()


def test_no_file_is_left_out_of_the_tensorflow_manifest() -> None:
    known = {e[key] for e in ENTRIES.values() for key in ("file", "npz") if e[key] is not None}
    found = {path.relative_to(TENSORFLOW).as_posix() for path in TENSORFLOW.glob("*/*")}
    assert {name for name in found if not name.startswith("pins/")} == known


def test_there_are_models_of_every_writer() -> None:
    converting = [ENTRIES[file] for file in files("converts")]
    assert len(converting) >= 150
    assert {entry["writer"] for entry in converting} >= set(WRITERS)


def names_in(file: str) -> set[str]:
    """The first parts of the names in an archive."""
    with tarfile.open(TENSORFLOW / file) as archive:
        return {Path(name).parts[0] for name in archive.getnames()}


@pytest.mark.thorough
def test_the_archives_are_those_of_the_manifest() -> None:
    keys = {"file": "sha256", "npz": "npz_sha256"}
    rows = [(e[key], e.get(digest)) for e in ENTRIES.values() for key, digest in keys.items()]
    assert not [file for file, digest in rows if file is not None and sha256(file) != digest]
    assert not [file for file, entry in ENTRIES.items() if names_in(file) != {entry["case"]}]


@pytest.mark.thorough
def test_the_two_precisions_of_the_writer_agree() -> None:
    for file in files("converts"):
        if "y0_float64" not in names_of_arrays(file):
            continue
        single, double = recorded(file), recorded(file, "_float64")
        for one, other in zip(single.outputs, double.outputs, strict=True):
            for a, b in zip(one, other, strict=True):
                np.testing.assert_allclose(a, b, atol=1e-4, err_msg=file)


def test_an_archive_unpacks_to_what_its_row_names(tmp_path: Path) -> None:
    file = next(file for file in files("converts") if ENTRIES[file]["kind"] == "weights")
    found = unpack(file, tmp_path)
    assert found.model.with_suffix(".index").is_file()
    assert found.config is not None
    assert found.config.is_file()
