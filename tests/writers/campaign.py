"""Script: write every fixture back, untouched and trained; or inject faults at random steps.

    python campaign.py fixtures [PART/PARTS]
    python campaign.py faults RUNS

Run it in the repository, with ``tests/support`` in PYTHONPATH. Ends with 1 if anything is wrong.
"""

from __future__ import annotations

import random
import sys
import tempfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import test_faults
from parsing_here import parsing_here
from specs import FIXTURES
from tensorflow_fixtures import ENTRIES, unpack
from trained import config_of, contents, differing, train

import keras2torch_birnn as k2t

# What the file has no place for: rounded or quantized numbers, layers that are one in Keras, and
# statistics that are an option there.
EXPECTED = ("cannot hold", "a quantized weight", "one in Keras, but differ", "are fixed in Keras")


def fixtures() -> list[str]:
    """Return all fixtures: files, and packed models of several files."""
    files = (p for p in sorted(FIXTURES.rglob("*")) if p.suffix in (".h5", ".keras"))
    plain = [p.relative_to(FIXTURES).as_posix() for p in files if "plugins" not in p.parts]
    return [*plain, *ENTRIES]


def check(name: str, folder: Path) -> str:
    """Write a fixture back twice; return what happened."""
    if name in ENTRIES:
        (folder / "source").mkdir()
        unpacked = unpack(name, folder / "source")
        source, config, out = unpacked.model, unpacked.config, folder / "new"
        base = source if source.is_dir() else source.parent
    else:
        source, config, out = FIXTURES / name, config_of(FIXTURES / name), folder / Path(name).name
        base = source
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
    if name.endswith(".keras") and _is_compressed(source):
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


def run_fixtures(part: int, parts: int) -> int:
    """Check a part of all fixtures; print what happened how often."""
    found: Counter[str] = Counter()
    for name in fixtures()[part::parts]:
        with tempfile.TemporaryDirectory() as folder, parsing_here():
            result = check(name, Path(folder))
        found[result] += 1
        if any(word.isupper() for word in result.split()):
            print(name, result)
    print(dict(found))
    return any(word.isupper() for result in found for word in result.split())


@contextmanager
def _patched(step: str, at: int) -> Iterator[list[int]]:
    import pytest

    with pytest.MonkeyPatch.context() as patch, test_faults.failing(step, at, patch) as calls:
        yield calls


def run_faults(runs: int) -> int:
    """Inject faults at random steps; print how many runs went as they should."""
    drawn, found = random.Random(5), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        cases: list[tuple[Path, Any, Path, dict[str, bytes], dict[str, int]]] = []
        for number, name in enumerate(test_faults.SOURCES):
            place = Path(folder) / str(number)
            (place / "source").mkdir(parents=True)
            (place / "out").mkdir()
            source, model, out = test_faults.prepared(name, place)
            totals: dict[str, int] = {}
            for step in test_faults.STEPS:
                with _patched(step, 0) as calls:
                    test_faults.attempt(model, source, out)
                totals[step] = calls[0]
                whole = contents(out.parent)
                test_faults.remove(out)
            cases.append((source, model, out, whole, totals))
        for _ in range(runs):
            source, model, out, whole, totals = drawn.choice(cases)
            step = drawn.choice([step for step, total in totals.items() if total])
            before = contents(source)
            with _patched(step, drawn.randint(1, totals[step])):
                done = test_faults.attempt(model, source, out)
            intact = contents(source) == before
            clean = contents(out.parent) == (whole if done else {})
            found["written" if done else "refused"] += 1
            found["WRONG"] += not (intact and clean)
            if done:
                test_faults.remove(out)
    print(dict(found))
    return found["WRONG"] > 0


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    if sys.argv[1] == "faults":
        sys.exit(run_faults(int(sys.argv[2])))
    first, _, count = (sys.argv[2] if len(sys.argv) > 2 else "0/1").partition("/")
    sys.exit(run_fixtures(int(first), int(count)))
