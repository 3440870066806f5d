"""Count the fixtures that ``.py`` exports exactly: k of n, and by name what is refused and fails.

    PYTHONPATH=.:tests/support python benchmarks/source.py [--every N] [PART_OF_NAME ...]

Every model runs in a process without this package, see ``tests/support/source_parity.py``.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import torch
from source_parity import prepare, run_child
from specs import ENTRIES, fixture

from keras2torch_birnn.errors import K2TError

CHUNK = 60


def main() -> None:
    """Run the count and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    files = [f for f in ENTRIES if not options.names or any(n in f for n in options.names)]
    files = files[options.start :: options.every]
    refused: dict[str, list[str]] = {}
    failed: dict[str, list[str]] = {}
    equal = 0
    for start in range(0, len(files), CHUNK):
        chunk = files[start : start + CHUNK]
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            numbers = {}
            for number, file in enumerate(chunk):
                case = fixture(file)
                fixture.cache_clear()
                try:
                    prepare(case.spec, case.inputs[0], folder, f"m{number}")
                    numbers[f"m{number}"] = file
                except K2TError as error:
                    refused[file] = [problem.found for problem in error.problems]
                except Exception as error:
                    (folder / f"m{number}.py").unlink(missing_ok=True)
                    failed[file] = [f"{type(error).__name__}: {error}"[:300]]
            for number, problems in run_child(folder).items():
                if problems:
                    failed[numbers[number]] = problems
                else:
                    equal += 1
        print(f"{start + len(chunk)}: {equal} equal", file=sys.stderr, flush=True)
    reasons = Counter(reason for found in refused.values() for reason in dict.fromkeys(found))
    result = {
        "files": len(files),
        "equal": equal,
        "refused": len(refused),
        "failed": failed,
        "reasons": dict(reasons.most_common()),
        "refused_files": refused,
    }
    text = json.dumps(result, indent=1)
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    print(f"equal {equal}, refused {len(refused)}, failed {len(failed)} of {len(files)}")
    for reason, count in reasons.most_common():
        print(f"  {count:4} {reason}")
    for file, problems in failed.items():
        print(f"  FAILED {file}: {problems[:2]}")


if __name__ == "__main__":
    main()
