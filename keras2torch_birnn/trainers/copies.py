"""Copies of ``.h5`` and ``.keras`` files with other values in some of their arrays.

The HDF5 library writes them. It runs in a process of its own, because it crashes on damaged files.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import keras2torch_birnn
from keras2torch_birnn import limits
from keras2torch_birnn.errors import InvalidModelFileError, UnsupportedOptionError, printable
from keras2torch_birnn.readers.containers.container import Container
from keras2torch_birnn.readers.containers.keras import WEIGHTS, KerasArchive
from keras2torch_birnn.readers.containers.zip_archive import (
    Budget,
    member_pieces,
    open_model_archive,
)
from keras2torch_birnn.readers.hdf5.parser_process import import_roots, isolated_environment
from keras2torch_birnn.readers.input_files import file_window
from keras2torch_birnn.readers.store import Store
from keras2torch_birnn.readers.weights.paths import weights_group
from keras2torch_birnn.spec import Array

_SCRIPT = Path(__file__).with_name("hdf5_child.py")
_PIECE = 1 << 20
_WRITTEN = ("hdf5", "keras_zip")
# The groups below the root of an HDF5 file: of a whole model, and of the layout of .keras files.
_OPTIMIZER_GROUPS = ("/optimizer_weights", "/optimizer")
_LEVELS = 6


def check_kind(container: Container) -> None:
    """Refuse what is no ``.h5`` and no ``.keras`` file.

    Raises:
        UnsupportedOptionError: it is none.
    """
    if container.kind not in _WRITTEN or container.source.path is None:
        raise UnsupportedOptionError(
            "only .h5 and .keras files are written back",
            "load the model in Keras, save it as .keras there, and convert that",
        )


def optimizer_groups(store: Store) -> list[str]:
    """Return the groups of an HDF5 store that hold the state of an optimizer."""
    if weights_group(store) == "/":  # groups are layers there
        return []
    return [group for group in _OPTIMIZER_GROUPS if _holds_arrays(store, group)]


def _holds_arrays(store: Store, group: str, depth: int = 0) -> bool:
    if depth > _LEVELS or store.kind(group) != "group":
        return False
    members = store.members(group)
    return "dataset" in members.values() or any(
        _holds_arrays(store, f"{group}/{name}", depth + 1) for name in members
    )


def write_copy(
    container: Container,
    source: Path,
    target: Path,
    new: Mapping[str, Array],
    remove: Sequence[str],
) -> None:
    """Copy the file of a container. new: path of an array -> its values; remove: groups.

    Raises:
        InvalidModelFileError: the HDF5 library does not manage it, or the source has changed.
    """
    if isinstance(container, KerasArchive) and (new or remove):
        with tempfile.TemporaryDirectory(prefix=".k2t-") as folder:
            weights = Path(folder, "weights")
            with weights.open("wb") as file:
                for at in range(0, container.weights.size, _PIECE):
                    file.write(container.weights.head(_PIECE, at))
            _change_hdf5(weights, new, remove)
            _write_archive(source, target, weights)
        return
    shutil.copyfile(source, target)
    if new or remove:
        _change_hdf5(target, new, remove)


def _write_archive(source: Path, target: Path, weights: Path) -> None:
    """Write an archive with the members of another, but these weights."""
    with ExitStack() as opening:
        window = file_window(opening, source)
        old, members = opening.enter_context(open_model_archive(window))
        out = opening.enter_context(zipfile.ZipFile(target, "w"))
        out.comment = old.comment
        budget = Budget(limits.max_inflated_bytes(window.size))
        for member in members:
            changed = member.filename == WEIGHTS
            info = zipfile.ZipInfo(member.filename, member.date_time)
            info.compress_type, info.external_attr = member.compress_type, member.external_attr
            info.create_system, info.comment = member.create_system, member.comment
            info.file_size = weights.stat().st_size if changed else member.file_size
            with out.open(info, "w") as copy:
                if changed:
                    with weights.open("rb") as file:
                        shutil.copyfileobj(file, copy, _PIECE)
                    continue
                for piece in member_pieces(old, member, budget):
                    copy.write(piece)


def _change_hdf5(path: Path, new: Mapping[str, Array], remove: Sequence[str]) -> None:
    """Let the HDF5 library change a file of our own."""
    if sys.platform == "win32":  # which cannot hand over open files by their numbers
        raise UnsupportedOptionError(
            "weights cannot be written back on Windows", "use another system"
        )
    with tempfile.TemporaryFile() as data, path.open("r+b", buffering=0) as file:
        edits: list[dict[str, Any]] = []
        for name, values in new.items():
            edit = {"path": name, "at": data.tell(), "size": values.nbytes}
            edits.append({**edit, "dtype": values.dtype.str})
            data.write(values.tobytes())
        data.flush()
        total = data.tell()
        job = {
            "fd": file.fileno(),
            "data": data.fileno(),
            "remove": list(remove),
            "edits": edits,
            "import_from": [*import_roots(), str(Path(keras2torch_birnn.__file__).parents[1])],
            "limits": {
                "cpu": limits.MAX_REWRITE_SECONDS,
                "memory": limits.MAX_PARSER_MEMORY + 2 * total,
                "file": 2 * (path.stat().st_size + total) + limits.MIB,
            },
        }
        _run(job, (file.fileno(), data.fileno()))


def _run(job: dict[str, Any], handles: tuple[int, ...]) -> None:
    with subprocess.Popen(
        [sys.executable, "-I", "-S", str(_SCRIPT)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=isolated_environment(),
        pass_fds=handles,
    ) as process:
        try:
            line = json.dumps(job).encode() + b"\n"
            out, _ = process.communicate(line, timeout=limits.MAX_REWRITE_SECONDS)
            answer = json.loads(out)
        except (subprocess.TimeoutExpired, ValueError):
            answer = {"refused": "the HDF5 library crashed or did not finish"}
        finally:
            process.kill()
    if answer != {}:
        why = answer.get("refused") if isinstance(answer, dict) else None
        raise InvalidModelFileError(
            f"its weights cannot be written again ({printable(why)})",
            "load the model in Keras, and save it again",
        )
