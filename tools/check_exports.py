"""Export fixtures to every target, verify each file, and count what is equal, refused or wrong.

    python tools/check_exports.py                        # one file of each case, in every target
    python tools/check_exports.py --only mask_ --suffixes .onnx .py

Each export is verified as ``k2t verify OUT EXPORT`` does it: in a process that cannot import this
package, with every padding and at lengths that were not recorded.
Needs ``pip install '.[export]'``.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from fixture_archives import unpacked

import keras2torch_birnn as k2t
from keras2torch_birnn.errors import K2TError

SUFFIXES = (".onnx", ".pt2", ".py")


def list_cases(only: str, *, every: bool) -> Iterator[Path]:
    """Yield models with an architecture whose names match; of each case the newest writer's."""
    folder = unpacked()
    entries = json.loads((folder / "manifest.json").read_text("utf-8"))["files"]
    chosen = {}
    for entry in entries:
        file = folder / entry["file"]
        if not entry.get("config") and re.search(only, entry["file"]):
            chosen[entry["file"] if every else file.name] = file
    yield from chosen.values()


def check(model: Path, suffixes: Sequence[str], folder: Path) -> Iterator[tuple[str, str]]:
    """Yield each target with the verdict on its file: "equal", "refused: ..." or "WRONG: ..."."""
    out = folder / "model.pt"
    converted = k2t.convert(model)
    k2t.save(converted, out)
    for suffix in suffixes:
        exported = folder / f"model{suffix}"
        try:
            k2t.export(converted, exported)
        except K2TError as error:
            yield suffix, f"refused: {re.sub(r'[0-9]+', 'N', error.lines()[0])[-120:]}"
            continue
        report = k2t.verify(out, exported)
        wrong = [one.inputs for one in report.comparisons if one.judged and not one.ok]
        yield suffix, f"WRONG: {wrong}" if wrong else "equal" if report.ok else "not judged"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line for each verdict of each target, with the number of files and one of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", default="", help="pattern of the names")
    parser.add_argument("--every", action="store_true", help="every file, not one of each case")
    parser.add_argument("--suffixes", nargs="+", default=SUFFIXES, choices=SUFFIXES)
    options = parser.parse_args(arguments)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    example: dict[tuple[str, str], Path] = {}
    for model in list_cases(options.only, every=options.every):
        with tempfile.TemporaryDirectory() as folder:
            for suffix, verdict in check(model, options.suffixes, Path(folder)):
                counts[suffix][verdict] += 1
                example.setdefault((suffix, verdict), model)
    for suffix, found in counts.items():
        for verdict, count in found.most_common():
            print(f"{suffix}\t{count}\t{verdict}\t{example[suffix, verdict].name}")
    return int(any(verdict.startswith("WRONG") for found in counts.values() for verdict in found))


if __name__ == "__main__":
    raise SystemExit(main())
