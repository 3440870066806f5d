"""Script: write every fixture back, untouched and trained.

    python campaign.py fixtures [PART/PARTS]
    python campaign.py models MODEL[:CONFIG] ...

``models``: the same as ``fixtures`` for other files and SavedModels. Run it in the repository, with
``tests/support`` in PYTHONPATH. Ends with 1 if anything is wrong.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import compiled_fixtures
from commands import contents
from parsing_here import parsing_here
from specs import FIXTURES
from tensorflow_fixtures import ENTRIES, unpack
from trained import config_of, differing, train

import keras2torch_birnn as k2t

# What the file has no place for: rounded or quantized numbers, layers that are one in Keras, and
# statistics that are an option there.
EXPECTED = ("cannot hold", "a quantized weight", "one in Keras, but differ", "are fixed in Keras")
SUFFIXES = (".h5", ".hdf5", ".keras")


class Source(NamedTuple):
    """A model and its configuration; ``base``: the file or folder that holds all of it."""

    path: Path
    config: Path | None
    base: Path


def fixtures() -> list[str]:
    """Return all fixtures: files, and packed models of several files."""
    files = (p for p in sorted(FIXTURES.rglob("*")) if p.suffix in SUFFIXES)
    plain = [p.relative_to(FIXTURES).as_posix() for p in files if "plugins" not in p.parts]
    keys = ("file", "step5", "step100")
    rows = compiled_fixtures.ROWS.values()
    packed = [row[key] for row in rows for key in keys if row.get(key)]
    packed = [name for name in packed if not name.endswith(SUFFIXES)]
    return [*plain, *(f"compiled/{name}" for name in packed), *ENTRIES]


def opened(name: str, folder: Path) -> Source:
    """Find a fixture, or unpack it into a folder."""
    (folder / "source").mkdir()
    if name in ENTRIES:
        unpacked = unpack(name, folder / "source")
        source = unpacked.model
        return Source(source, unpacked.config, source if source.is_dir() else source.parent)
    if name.startswith("compiled/"):
        source = compiled_fixtures.unpack(name.removeprefix("compiled/"), folder / "source")
        if (source / "arch.json").exists():  # of a checkpoint
            return Source(source / "ckpt-1", source / "arch.json", source)
        return Source(source, None, source)
    source = FIXTURES / name
    return Source(source, config_of(source), source)


def given(argument: str) -> Source:
    """Return the model of an argument, which may name its configuration."""
    name, _, config = argument.partition(":")
    return Source(Path(name), Path(config) if config else None, Path(name))


def check(opened: Source, folder: Path) -> str:
    """Write a model back twice; return what happened."""
    source, config, base = opened
    out = folder / ("new" if base.is_dir() else base.name)
    try:
        model = k2t.convert(source, config=config)
    except k2t.K2TError:
        return "not converted"
    written = k2t.write_back(model, source, out, config=config)
    now, before = contents(out), contents(base)
    if written.changed or any(before[part] != data for part, data in now.items()):
        return "untouched: DIFFERS"
    again = folder / "again" / out.name
    again.parent.mkdir()
    try:
        k2t.write_back(train(model), source, again, config=config)
    except k2t.WeightMismatchError as error:
        if not any(words in str(error) for words in EXPECTED):
            return f"trained: REFUSED {error}"
        return "untouched equal, trained refused by name"
    place = again if base == source else again / source.name
    if differing(model, place, config=config):
        return "trained: DIFFERS"
    lengths = {part: len(data) for part, data in contents(again).items()}
    if base.suffix == ".keras" and _is_compressed(source):
        lengths = {}  # compressed anew
    if lengths != {part: len(before[part]) for part in lengths}:
        return "trained: ANOTHER LENGTH"
    return "untouched equal, trained bit-equal"


def _is_compressed(archive: Path) -> bool:
    """Tell whether a zip archive has compressed members."""
    if not zipfile.is_zipfile(archive):
        return False
    with zipfile.ZipFile(archive) as opened:
        return any(one.compress_type != zipfile.ZIP_STORED for one in opened.infolist())


def run(names: Sequence[str], source_of: Callable[[str, Path], Source]) -> int:
    """Check models; print what happened how often."""
    found: Counter[str] = Counter()
    for name in names:
        with tempfile.TemporaryDirectory() as folder, parsing_here():
            result = check(source_of(name, Path(folder)), Path(folder))
        found[result] += 1
        if any(word.isupper() for word in result.split()):
            print(name, result)
    print(dict(found))
    return any(word.isupper() for result in found for word in result.split())


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    command, *arguments = sys.argv[1:]
    if command == "models":
        sys.exit(run(arguments, lambda name, _: given(name)))
    first, _, count = (arguments[0] if arguments else "0/1").partition("/")
    sys.exit(run(fixtures()[int(first) :: int(count)], opened))
