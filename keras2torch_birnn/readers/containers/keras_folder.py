"""An unzipped ``.keras`` file: a folder with the members of the archive."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from keras2torch_birnn.errors import in_place
from keras2torch_birnn.readers.containers.container import KerasContainer, OpenPath
from keras2torch_birnn.readers.containers.files import file_window, read_text
from keras2torch_birnn.readers.containers.hdf5_store import open_store
from keras2torch_birnn.readers.containers.keras_archive import CONFIG, METADATA, WEIGHTS
from keras2torch_birnn.readers.containers.shards import open_shards
from keras2torch_birnn.readers.weights.store import Store

SHARD_INDEX = "model.weights.json"


class KerasFolder(KerasContainer):
    """The members of a ``.keras`` file in a folder."""

    kind = "folder"

    @staticmethod
    def recognises(source: OpenPath) -> bool:
        """Tell whether the source is a folder of such members, and no SavedModel.

        Models of the Hugging Face Hub have a ``config.json``, too.
        """
        folder = source.path
        others = (METADATA, WEIGHTS, SHARD_INDEX)
        return (
            (folder / CONFIG).exists()
            and any((folder / name).exists() for name in others)
            and not (folder / "saved_model.pb").exists()
        )

    @classmethod
    def open(cls, source: OpenPath, opening: ExitStack) -> KerasFolder:
        """Read both texts and open the weights."""
        config, metadata = (_member_text(opening, source.path, n) for n in (CONFIG, METADATA))
        return cls(_open_weights(opening, source.path), config, metadata)


def _member_text(opening: ExitStack, folder: Path, name: str) -> str:
    with in_place(name):
        return read_text(file_window(opening, folder / name, member=True), name)


def _open_weights(opening: ExitStack, folder: Path) -> Store:
    if (folder / SHARD_INDEX).exists() and not (folder / WEIGHTS).exists():
        return open_shards(opening, folder, _member_text(opening, folder, SHARD_INDEX), SHARD_INDEX)
    with in_place(WEIGHTS):
        return opening.enter_context(
            open_store(file_window(opening, folder / WEIGHTS, member=True))
        )
