"""Compare thousands of random models, written by the installed Keras and converted.

    python benchmarks/random_models.py keras --count 2000 --seed 1 --out run.json
    python benchmarks/random_models.py tf_keras --count 2000 --seed 1 --out run.json

Needs ``pip install '.[keras,test]'``. The record holds the seed, the versions, how often each layer
class was seen, the worst errors, and the graph of everything that did not agree. ``tests/`` draws a
few of the same graphs wherever Keras is installed.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
import live
from random_graphs import classes, graphs

SAVE_EVERY = 50


class Record:
    """Results so far."""

    def __init__(self, package: str, seed: int) -> None:
        self.facts = {
            "package": live.label(package),
            "seed": seed,
            "versions": {
                name: version(name) for name in ("tensorflow", "torch", "numpy", "hypothesis")
            },
            "python": platform.python_version(),
        }
        self.outcomes: Counter[str] = Counter()
        self.layers: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self.as_far_as_keras = 0
        self.worst = {"against Keras": 0.0, "float64 against the reference": 0.0}
        self.failures: list[dict[str, Any]] = []
        self.started = time.time()

    def add(self, graph: dict[str, Any], kind: str, result: live.Outcome | str) -> None:
        """Add the result of one graph."""
        if isinstance(result, str):
            outcome, problem = "Keras fails", result
        elif result.ok:
            outcome, problem = "equal", ""
            self.layers.update(classes(graph))
            self.kinds[kind] += 1
            if result.error > 1:
                self.as_far_as_keras += 1
            else:
                self.worst["against Keras"] = max(self.worst["against Keras"], result.error)
            exact = max(self.worst["float64 against the reference"], result.exact_error)
            self.worst["float64 against the reference"] = exact
        else:
            outcome = "refused or failed" if result.problem else "different"
            problem = result.problem or repr(result)
        self.outcomes[outcome] += 1
        if problem:
            self.failures.append(
                {"outcome": outcome, "kind": kind, "problem": problem, "graph": repr(graph)}
            )

    def write(self, out: Path) -> None:
        """Write the record as JSON; errors in units of what is allowed."""
        data = {
            **self.facts,
            "seconds": round(time.time() - self.started),
            "graphs": sum(self.outcomes.values()),
            "outcomes": dict(self.outcomes),
            "as far from Keras as Keras from float64": self.as_far_as_keras,
            "allowed": {"atol": live.ATOL, "rtol": live.RTOL, "float64": live.EXACT},
            "worst error in units of what is allowed": self.worst,
            "kinds": dict(self.kinds),
            "graphs with each layer class": dict(self.layers.most_common()),
            "failures": self.failures,
        }
        out.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Parse, run, write; the exit code tells whether all agreed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("package", choices=tuple(live.DISTRIBUTIONS))
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    record = Record(options.package, options.seed)
    with live.LiveKeras(options.package) as keras:

        @hypothesis.seed(options.seed)
        @settings(
            max_examples=options.count,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(graphs(options.package, operations=True))
        def one(graph: dict[str, Any]) -> None:
            kinds = live.KINDS[options.package]
            kind = kinds[keras.count % len(kinds)]
            file = keras.write(graph, kind)
            record.add(graph, kind, file if isinstance(file, str) else live.compared(file))
            if keras.count % SAVE_EVERY == 0:
                record.write(options.out)

        one()
    record.write(options.out)
    print(dict(record.outcomes), "see", options.out)
    bad = record.outcomes["different"] + record.outcomes["refused or failed"]
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
