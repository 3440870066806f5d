"""Files of a folder by their names below it: nothing outside it is opened, no link is followed."""

from __future__ import annotations

import stat
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from keras2torch_birnn.errors import InvalidModelFileError, in_place, invalid, printable
from keras2torch_birnn.readers.containers.files import file_window
from keras2torch_birnn.readers.files.window import Window

_FORBIDDEN = ("\\", ":", "\0")


@dataclass(frozen=True)
class Folder:
    """A folder on disk. Files stay open until ``opening`` ends and must not change meanwhile."""

    path: Path
    opening: ExitStack

    def holds(self, name: str) -> bool:
        """Tell whether there is a file of this name."""
        try:
            return (self.path / name).is_file()
        except (OSError, ValueError):
            return False

    def open(self, name: str) -> Window:
        """Open a file."""
        check_name(name)
        with in_place(name):
            *folders, _ = Path(name).parts
            for count in range(1, len(folders) + 1):
                self._check_folder(self.path.joinpath(*folders[:count]))
            return file_window(self.opening, self.path / name, member=True)

    def _check_folder(self, path: Path) -> None:
        try:
            is_link = stat.S_ISLNK(path.lstat().st_mode)
        except OSError as error:
            raise InvalidModelFileError(f"cannot be opened ({error.strerror})") from None
        if is_link:
            raise InvalidModelFileError("in a folder that is a link", "give the folder itself")


def check_name(name: str) -> None:
    """Refuse a name that a file may have outside of the folder.

    Raises:
        InvalidModelFileError: absolute, with ``..``, or with marks of other systems.
    """
    parts = name.split("/")
    if any(mark in name for mark in _FORBIDDEN) or any(p in ("", ".", "..") for p in parts):
        raise invalid(f"{printable(name)} is no name of a file in the folder")
