"""An unzipped ``.keras`` file: a folder with the members of the archive."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from keras2torch_birnn.errors import InvalidModelFileError, in_place
from keras2torch_birnn.readers.containers.container import KerasContainer, OpenPath
from keras2torch_birnn.readers.containers.files import file_window, read_text
from keras2torch_birnn.readers.containers.hdf5_store import open_store
from keras2torch_birnn.readers.containers.keras_archive import CONFIG, METADATA, WEIGHTS


class KerasFolder(KerasContainer):
    """The members of a ``.keras`` file in a folder."""

    kind = "folder"

    @staticmethod
    def recognises(source: OpenPath) -> bool:
        """Tell whether the source is a folder of such members, and no SavedModel.

        Models of the Hugging Face Hub have a ``config.json``, too.
        """
        folder = source.path
        return (
            (folder / CONFIG).exists()
            and any((folder / name).exists() for name in (METADATA, WEIGHTS))
            and not (folder / "saved_model.pb").exists()
        )

    @classmethod
    def open(cls, source: OpenPath, opening: ExitStack) -> KerasFolder:
        """Read both texts and open the weights."""
        config, metadata = (_member_text(opening, source.path, n) for n in (CONFIG, METADATA))
        shards = source.path / "model.weights.json"
        if shards.exists() and not (source.path / WEIGHTS).exists():
            from keras2torch_birnn.readers.containers.mistakes import SHARDS

            raise InvalidModelFileError(*SHARDS)
        with in_place(WEIGHTS):
            window = file_window(opening, source.path / WEIGHTS, member=True)
            return cls(opening.enter_context(open_store(window)), config, metadata)


def _member_text(opening: ExitStack, folder: Path, name: str) -> str:
    with in_place(name):
        return read_text(file_window(opening, folder / name, member=True), name)
