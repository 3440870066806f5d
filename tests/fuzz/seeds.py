"""The good files that the damaged ones come from: every container and every generation."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from fixture_files import FIXTURES
from tensorflow_files import Node


@dataclass(frozen=True, eq=False)
class Seed:
    """A model as files by name. ``main`` is opened ("": the folder), ``victims`` are damaged.

    ``tensorflow``: its files are of TensorFlow; ``root``: the objects that they were written from.
    """

    name: str
    files: Mapping[str, bytes]
    main: str
    victims: tuple[str, ...]
    config: str | None = None
    tensorflow: bool = False
    root: Node | None = None

    def write(self, folder: Path, files: Mapping[str, bytes]) -> tuple[Path, Path | None]:
        """Put ``files`` into ``folder``: the model's path, its config's, which lies beside it."""
        for name, data in files.items():
            path = folder / "arch.json" if name == self.config else folder / "m" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return folder / "m" / self.main, folder / "arch.json" if self.config else None


def _one(name: str, path: str, change: Callable[[bytes], bytes] | None = None) -> Seed:
    data = (FIXTURES / path).read_bytes()
    return Seed(name, {"m": change(data) if change else data}, "m", ("m",))


def _weights(name: str, path: str) -> Seed:
    config = path.split("_weights.")[0].split(".weights.")[0] + ".json"
    files = {"m": (FIXTURES / path).read_bytes(), "arch.json": (FIXTURES / config).read_bytes()}
    return Seed(name, files, "m", ("m",), "arch.json")


def rewritten(**options: Any) -> Callable[[bytes], bytes]:
    """Rewrite HDF5 content with another ``dtype``, ``libver``, ``userblock`` or chunk options."""
    dtype = options.pop("dtype", None)
    opening = {k: options.pop(k) for k in ("libver", "userblock_size") if k in options}

    def change(data: bytes) -> bytes:
        sink = io.BytesIO()
        with h5py.File(io.BytesIO(data)) as old, h5py.File(sink, "w", **opening) as new:

            def take(name: str, found: Any) -> None:
                if isinstance(found, h5py.Dataset):
                    values = (
                        found[()].astype(dtype) if dtype and found.dtype.kind == "f" else found[()]
                    )
                    split = options if np.ndim(values) else {}
                    chunks = tuple(max(1, n // 2) for n in np.shape(values)) if split else None
                    made: Any = new.create_dataset(name, data=values, chunks=chunks, **split)
                else:
                    made = new.require_group(name)
                for key, value in found.attrs.items():
                    made.attrs[key] = value

            for key, value in old.attrs.items():
                new.attrs[key] = value
            old.visititems(take)
        return sink.getvalue()

    return change


def deflated(data: bytes) -> bytes:
    """Rewrite an archive with every member compressed."""
    sink = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(data)) as old,
        zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    return sink.getvalue()


def seeds() -> tuple[Seed, ...]:
    """All of them."""
    saved = sorted((FIXTURES / "keras-3.15.1" / "as_folder").iterdir())
    folder = {path.name: path.read_bytes() for path in saved}
    packed = rewritten(compression=4, shuffle=True, fletcher32=True)
    return (
        _one("keras1-h5", "keras-1.2.2/mask_bi_gru_before_seq.h5"),
        _one("keras2.0-h5", "keras-2.0.8/batchnorm.h5"),
        _one("keras2.2-h5", "keras-2.2.4/plain_gru_after_back_seq.h5"),
        _weights("keras2.3-weights", "keras-2.3.1/weights_mask_weights.h5"),
        _one("tf2.2-h5", "tf-2.2.3/fast_simplernn.h5"),
        _one("tf2.4-h5", "tf.keras-2.4.0/backward_class.h5"),
        _one("tf2.15-h5", "tf.keras-2.15.0/mask_stack_bi_dense.h5"),
        _one("tf2.15-h5-packed", "tf.keras-2.15.0/plain_gru_after_back_seq.h5", packed),
        _one(
            "tf2.15-h5-latest",
            "tf.keras-2.15.0/state_lstm_seq.h5",
            rewritten(libver="latest", compression=1),
        ),
        _one(
            "tf2.15-h5-userblock-bigendian",
            "tf.keras-2.15.0/masking_minus_plain_simplernn.h5",
            rewritten(dtype=">f4", userblock_size=512),
        ),
        _one("tf2.13-keras", "tf.keras-2.13.1/hard_sigmoid_stack.keras"),
        _one("keras3-h5", "keras-3.15.1/plain_lstm_seq.h5"),
        _one("keras3-keras", "keras-3.15.1/bi_simplernn_ave_last.keras"),
        _one("keras3-keras-deflated", "keras-3.15.1/bi_simplernn_ave_last.keras", deflated),
        _weights("keras3-weights", "keras-3.15.1/weights_stack.weights.h5"),
        Seed("keras3-folder", folder, "", tuple(folder)),
    )
