"""Where the fixtures are: unpacked from their archives, once for all who read them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "tools"))
from fixture_archives import STORE, MissingArchivesError, unpacked


class _PlainFiles(type(Path())):
    """The folder of a source archive: a test is skipped that asks for what is not there."""

    reason = ""

    def __truediv__(self, key: str | os.PathLike[str]) -> Path:
        path: Path = super().__truediv__(key)
        if not path.exists():
            import pytest

            pytest.skip(self.reason, allow_module_level=True)
        return path


def find_fixtures() -> Path:
    """Return the unpacked fixtures, or those few that a source archive has."""
    try:
        return unpacked()
    except MissingArchivesError as error:
        _PlainFiles.reason = str(error)
        return _PlainFiles(STORE)


FIXTURES = find_fixtures()
