"""Test ``k2t verify``: every mutation of OUT must be NOT EQUAL, every right OUT must be OK.

    python benchmarks/verify_power.py --fixtures 200 --models FOLDER ... --out power.json

``--fixtures``: so many of ``fixtures/``, of all generations in turn. ``--models``: folders with
whole models of your own (``.h5``, ``.hdf5``, ``.keras``; weights alone beside a ``.json``).
The model that was read and the reference's runs are kept from one mutation to the next.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import keras2torch_birnn as k2t
from keras2torch_birnn import verification
from keras2torch_birnn.verification import recurrent_check

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from out_mutations import mutations, read
from specs import ENTRIES, FIXTURES

KINDS = (".h5", ".hdf5", ".keras")


def some_fixtures(count: int) -> Iterator[tuple[Path, Path | None]]:
    """Fixtures of every generation in turn, spread over each."""
    by_generation: dict[str, list[str]] = defaultdict(list)
    for file in sorted(ENTRIES):
        by_generation[file.partition("/")[0]].append(file)
    share = dict.fromkeys(by_generation, 0)
    while sum(share.values()) < min(count, len(ENTRIES)):
        for name, files in by_generation.items():
            if share[name] < len(files) and sum(share.values()) < count:
                share[name] += 1
    for name, files in by_generation.items():
        for place in np.linspace(0, len(files) - 1, share[name]).astype(int):
            config = ENTRIES[files[place]]["config"]
            yield FIXTURES / files[place], config and FIXTURES / config


def models(folder: Path) -> Iterator[tuple[Path, Path | None]]:
    """Whole models of a folder; weights alone with the architecture beside them."""
    architectures = list(folder.glob("*.json"))
    for path in sorted(folder.rglob("*")):
        if path.suffix in KINDS and path.is_file():
            stem = path.name.partition("_weights")[0].partition("__")[0].partition("-")[0]
            beside = [a for a in architectures if a.name.startswith(stem)]
            yield path, beside[0] if "weights" in path.name and beside else None


def kept(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that keeps its results by the content of all arguments."""
    found: dict[Any, Any] = {}

    def key(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return value.shape, zlib.crc32(np.ascontiguousarray(value).tobytes())
        if isinstance(value, tuple):
            return tuple(map(key, value))
        return value if isinstance(value, str | bool | type(None)) else type(value).__name__

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        place = getattr(layer, "place", ""), getattr(layer, "name", "")
        name = (place, *map(key, args), *((k, key(v)) for k, v in sorted(kwargs.items())))
        if name not in found:
            found[name] = function(layer, *args, **kwargs)
        return found[name]

    return call


def run(path: Path, config: Path | None, folder: Path, most: int) -> dict[str, Any]:
    """Verify the right OUT of one model and all its mutations."""
    VERIFICATION.by_reference = kept(BY_REFERENCE)
    VERIFICATION.read_model = kept(READ_MODEL)
    RECURRENT_CHECK.compute_recurrent = kept(COMPUTE_RECURRENT)
    out = folder / "out.pt"
    k2t.save(k2t.convert(path, config=config), out)
    started = time.process_time()
    right = k2t.verify(path, out, config=config, against="reference")
    facts: dict[str, Any] = {
        "file": f"{path.parent.name}/{path.name}",
        "ok": right.ok,
        "seconds": round(time.process_time() - started, 2),
        "inputs": right.inputs,
        "tried": 0,
        "caught": 0,
        "layers caught": 0,
        "refused": [],
        "missed": [],
        "same": Counter(),
        "kinds": Counter(),
    }
    seen: Counter[str] = Counter()
    for mutation in mutations(read(out)):
        seen[mutation.kind] += 1
        if seen[mutation.kind] > most:
            continue
        torch.save(dict(mutation.content), folder / "wrong.pt")
        label = f"{mutation.kind}: {mutation.name}"
        try:
            report = k2t.verify(path, folder / "wrong.pt", config=config, against="reference")
        except k2t.K2TError as error:
            facts["refused"].append(f"{label}: {error}")
            continue
        if mutation.same:
            facts["same"][mutation.same] += 1
            continue
        facts["tried"] += 1
        facts["kinds"][mutation.kind] += 1
        facts["caught"] += not report.ok
        facts["layers caught"] += report.first_divergence is not None
        if report.ok:
            facts["missed"].append(label)
    return facts


# Modules whose functions are replaced.
VERIFICATION: Any = verification
RECURRENT_CHECK: Any = recurrent_check
READ_MODEL = VERIFICATION.read_model
BY_REFERENCE = VERIFICATION.by_reference
COMPUTE_RECURRENT = RECURRENT_CHECK.compute_recurrent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--fixtures", type=int, default=0)
    parser.add_argument("--models", type=Path, nargs="*", default=[])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--most", type=int, default=10**6, help="mutations of a kind and model")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    files = [*(pair for folder in asked.models for pair in models(folder))]
    files += some_fixtures(asked.fixtures)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for path, config in files:
            try:
                found.append(run(path, config, Path(folder), asked.most))
            except k2t.K2TError as error:
                found.append({"file": str(path), "not converted": str(error)})
            print(found[-1], flush=True)
            asked.out.write_text(json.dumps(summary(found), indent=1) + "\n", encoding="utf-8")


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the counts, and everything that is not as it should be."""
    done = [one for one in found if "tried" in one]
    kinds: Counter[str] = Counter()
    for one in done:
        kinds.update(one["kinds"])
    return {
        "models": len(done),
        "right ones OK": sum(one["ok"] for one in done),
        "mutations": sum(one["tried"] for one in done),
        "NOT EQUAL": sum(one["caught"] for one in done),
        "by the layers alone": sum(one["layers caught"] for one in done),
        "kinds": dict(kinds),
        "the same function": sum(sum(one["same"].values()) for one in done),
        "refused at load": sum(len(one["refused"]) for one in done),
        "not OK": [one["file"] for one in done if not one["ok"]],
        "missed": {one["file"]: one["missed"] for one in done if one["missed"]},
        "not converted": [one for one in found if "not converted" in one],
        "inputs": dict(Counter(one["inputs"] for one in done)),
    }


if __name__ == "__main__":
    main()
