"""Script: train 200 steps with every optimizer of every Keras, and compare them with Keras.

    python long_training.py [PATTERN]

The tests take one Keras of each family. Run it in the repository, with ``tests/support`` and
``tests`` in PYTHONPATH. Ends with 1 if anything is wrong.
"""

from __future__ import annotations

import re
import sys
import tempfile
import warnings
from pathlib import Path

from compiled_fixtures import ROWS
from parsing_here import parsing_here
from replays import FOLLOWED, STEPS, follow


def main(pattern: str = "") -> int:
    """Follow all cases whose names match; print what is wrong."""
    names = [n for n in sorted(FOLLOWED.values()) if ROWS[n]["steps"] > STEPS]
    names = [name for name in names if re.search(pattern, name)]
    wrong = 0
    for name in names:
        with tempfile.TemporaryDirectory() as folder, parsing_here():
            try:
                follow(name, Path(folder), ROWS[name]["steps"])
            except AssertionError as error:
                wrong += 1
                print(name, error, flush=True)
    print(f"{len(names)} cases, {wrong} wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.exit(main(*sys.argv[1:]))
