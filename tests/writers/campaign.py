"""Script: write every ``.h5`` and ``.keras`` fixture back, untouched and trained.

    python campaign.py fixtures [PART/PARTS]
    python campaign.py models MODEL[:CONFIG] ...

``models``: the same as ``fixtures`` for other files. Run it in the repository, with
``tests/support`` in PYTHONPATH. Ends with 1 if anything is wrong.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from parsing_here import parsing_here
from specs import FIXTURES
from trained import config_of, differing, train

import keras2torch_birnn as k2t

# What the file has no place for: rounded or quantized numbers, layers that are one in Keras, and
# statistics that are an option there.
EXPECTED = (
    *("cannot hold", "one in Keras, but differ", "are fixed in Keras"),
    "is computed from the weights",
)
SUFFIXES = (".h5", ".hdf5", ".keras")


def fixtures() -> list[str]:
    """Return all fixtures that can be written back."""
    files = (p for p in sorted(FIXTURES.rglob("*")) if p.suffix in SUFFIXES)
    return [p.relative_to(FIXTURES).as_posix() for p in files if "plugins" not in p.parts]


def check(source: Path, config: Path | None, folder: Path) -> str:
    """Write a model back twice; return what happened."""
    same, out = folder / f"same{source.suffix}", folder / f"new{source.suffix}"
    try:
        model = k2t.convert(source, config=config)
    except k2t.K2TError:
        return "not converted"
    written = k2t.write_back(model, source, same, config=config)
    if written.changed or same.read_bytes() != source.read_bytes():
        return "untouched: DIFFERS"
    try:
        k2t.write_back(train(model), source, out, config=config)
    except k2t.WeightMismatchError as error:
        if not any(words in str(error) for words in EXPECTED):
            return f"trained: REFUSED {error}"
        return "untouched equal, trained refused by name"
    if differing(model, out, config=config):
        return "trained: DIFFERS"
    return "untouched equal, trained bit-equal"


def run(models: Iterable[tuple[Path, Path | None]]) -> int:
    """Check models; print what happened how often."""
    found: Counter[str] = Counter()
    for source, config in models:
        with tempfile.TemporaryDirectory() as folder, parsing_here():
            result = check(source, config, Path(folder))
        found[result] += 1
        if any(word.isupper() for word in result.split()):
            print(source, result)
    print(dict(found))
    return any(word.isupper() for result in found for word in result.split())


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    command, *arguments = sys.argv[1:]
    if command == "models":
        pairs = (argument.partition(":") for argument in arguments)
        sys.exit(run((Path(name), Path(config) if config else None) for name, _, config in pairs))
    first, _, count = (arguments[0] if arguments else "0/1").partition("/")
    chosen = [FIXTURES / name for name in fixtures()[int(first) :: int(count)]]
    sys.exit(run((path, config_of(path)) for path in chosen))
