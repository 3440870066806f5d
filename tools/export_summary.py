"""Count the records of ``check_exports.py``, and make the tables of ``docs/deploy.md`` from that.

A file counts by the verdict on its model, which may have been exported from another file.
"""

from __future__ import annotations

import json
import lzma
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
RESULT = RESULTS / "exports-2026-11-27.json"
KEPT = RESULTS / "exports.jsonl.xz"
SIZES = ("own", "5, T", "1, T", "3, T + 4", "4, T + 5", "2, 1")
# Runner -> what it runs, in the words of the table.
RUNNERS: Mapping[str, str] = {
    "ONNX Runtime": "`.onnx` in ONNX Runtime",
    "OpenVINO": "`.onnx` in OpenVINO (f32)",
    "torch.export": "`.pt2` in torch",
    "AOTInductor": "`.pt2` by AOTInductor",
    "source": "`.py` in torch",
    "gradients": "gradients of `.py`",
}
# What runs the file of another runner, which lists why it was refused.
SAME_FILE = ("OpenVINO", "AOTInductor", "gradients")
FINE = ("equal", "rounding")
UNREAD = ("not converted", "broken")  # why a file has no model here
REAL = "real/"
# In front of OpenVINO's reasons: the node, and the line of its source.
_WHERE = re.compile(r"^.*(?:CALLBACK HAS THROWN: |Exception from \S+ )")
_SHOWN = 3  # names of cases in a line
_WIDTH = 160  # characters of a reason in a line


class Verdict(NamedTuple):
    """Verdict on one file in one runner: its kind, and details by size or as a reason."""

    file: str
    kind: str
    reasons: tuple[str, ...]
    sizes: Mapping[str, str]
    nodes: int | None


# ---- records ------------------------------------------------------------------------------------


def read(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a record, compressed or not."""
    packed = path.read_bytes()
    text = lzma.decompress(packed) if path.suffix == ".xz" else packed
    return [json.loads(line) for line in text.splitlines()]


def kept() -> list[dict[str, Any]]:
    """Return the rows that are kept."""
    return read(KEPT) if KEPT.exists() else []


def compact(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Merge rows: one a file; the first of a structure has what its runners found last."""
    rows = list(rows)
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    for row in rows:
        found[row.get("key", "")].update(row.get("paths", {}))
    return [
        {"name": name, "key": row["key"], "paths": found.pop(row["key"], {})}
        if "key" in row
        else {"name": name, **{why: row[why] for why in UNREAD if why in row}}
        for name, row in {row["name"]: row for row in rows}.items()
    ]


def write(records: Iterable[Path]) -> None:
    """Add records to those that are kept, count all, and print the counts."""
    rows = compact([*kept(), *(row for path in records for row in read(path))])
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    KEPT.write_bytes(lzma.compress(lines.encode(), preset=9))
    result = merge(json.loads(RESULT.read_text("utf-8")), count(rows))
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(result) + problems(result))


# ---- counting -----------------------------------------------------------------------------------


def merge(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Put new counts in the place of old ones of the same runner, unless these cover more."""
    runners = {**old["runners"]}
    for runner, one in new["runners"].items():
        before = runners.get(runner, {})
        if all(one[kind] >= before.get(kind, 0) for kind in ("files", "models")):
            runners[runner] = one
    models = dict.fromkeys([*old["real"], *new["real"]])
    return {
        "not read": new["not read"],
        "runners": {runner: runners[runner] for runner in RUNNERS if runner in runners},
        "real": {
            model: {**old["real"].get(model, {}), **new["real"].get(model, {})} for model in models
        },
    }


def count(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return all counts by runner, and by name what is not equal."""
    files = {row["name"]: row["key"] for row in rows if row.get("key")}
    models: dict[str, dict[str, Any]] = defaultdict(dict)
    for row in rows:
        models[row.get("key", "")].update(row.get("paths", {}))
    verdicts = {
        runner: [
            _judge(file, models[key][runner])
            for file, key in files.items()
            if runner in models[key]
        ]
        for runner in RUNNERS
    }
    return {
        "not read": {
            row["name"]: next(row[why] for why in UNREAD if why in row)
            for row in rows
            if not row.get("key")
        },
        "runners": {
            runner: {
                "by": Counter(one[runner]["by"] for one in models.values() if runner in one),
                "models": len({files[one.file] for one in found}),
                **_count_runner(found),
            }
            for runner, found in verdicts.items()
            if found
        },
        "real": {
            file.removeprefix(REAL): {
                runner: _shown(_judge(file, models[key][runner]))
                for runner in RUNNERS
                if runner in models[key]
            }
            for file, key in files.items()
            if file.startswith(REAL)
        },
    }


def _judge(file: str, found: Mapping[str, Any]) -> Verdict:
    """Return the verdict on one file: the worst of its sizes."""
    nodes = found.get("nodes")
    if "refused" in found:
        reasons = tuple(dict.fromkeys(reason for _, reason in found["refused"]))
        return Verdict(file, "refused", reasons, {}, nodes)
    for kind in ("failed", "not opened"):
        if kind in found:
            return Verdict(file, kind, (_WHERE.sub("", found[kind]),), {}, nodes)
    sizes: Mapping[str, str] = found["sizes"]
    kinds = [verdict.partition(":")[0] for verdict in sizes.values()]
    worst_first = ("wrong", "not run", "rounding", "equal")
    worst = next((k for k in worst_first if k in kinds), "nothing to compare")
    bad = tuple(f"{size}: {v}" for size, v in sizes.items() if v not in FINE)
    return Verdict(file, worst, bad, sizes, nodes)


def _shown(one: Verdict) -> str:
    nodes = f", {one.nodes} nodes" if one.nodes else ""
    return f"{one.kind}{nodes}" + "".join(f"; {reason}" for reason in one.reasons)


def _count_runner(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    reasons: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for one in verdicts:
        for reason in one.reasons:
            reasons[one.kind][reason[:300]].append(one.file)
    by_size = {size: [v.sizes[size] in FINE for v in verdicts if size in v.sizes] for size in SIZES}
    return {
        "files": len(verdicts),
        **Counter(one.kind for one in verdicts),
        "sizes": {s: f"{sum(found):,} of {len(found):,}" for s, found in by_size.items() if found},
        "reasons": {kind: dict(found) for kind, found in reasons.items()},
    }


# ---- tables -------------------------------------------------------------------------------------


def show(make: Callable[[Mapping[str, Any]], str]) -> str:
    """Make a table of the counts that were written last, of the paths that there still are."""
    result = json.loads(RESULT.read_text("utf-8"))
    kept = {runner: one for runner, one in result["runners"].items() if runner in RUNNERS}
    return make({**result, "runners": kept})


def table(result: Mapping[str, Any]) -> str:
    """Make the table of counts by path and size."""
    head = [f"({size})" if size != "own" else "(B, T) of the file" for size in SIZES]
    lines = [
        "Of files with models of one structure, one was exported and counts for all:",
        "",
        f"| path | files | structures | refused | equal | {' | '.join(head)} |",
        f"|{'---|' * (5 + len(SIZES))}",
    ]
    for runner, one in result["runners"].items():
        sizes = [one["sizes"].get(size, "") for size in SIZES]
        equal = one.get("equal", 0) + one.get("rounding", 0)
        counts = (one["files"], one["models"], one.get("refused", 0), equal)
        cells = [RUNNERS[runner], *(f"{number:,}" for number in counts), *sizes]
        lines.append(f"| {' | '.join(cells)} |")
    return "".join(f"{line}\n" for line in lines)


def real_table(result: Mapping[str, Any]) -> str:
    """Make the table of trained models, by path; empty if none was run."""
    if not result["real"]:
        return ""
    lines = ["Trained models, also against what real Keras computed (to 5e-5):", ""]
    lines += [f"| model | {' | '.join(RUNNERS.values())} |", f"|{'---|' * (1 + len(RUNNERS))}"]
    for model, verdicts in result["real"].items():
        cells = [verdicts.get(runner, "") for runner in RUNNERS]
        lines.append(f"| {model} | {' | '.join(cells)} |")
    return "".join(f"{line}\n" for line in lines)


def problems(result: Mapping[str, Any]) -> str:
    """List by name what is refused, what a runtime does not take, and what is not equal."""
    return "".join(f"{line}\n" for line in _problem_lines(result))


def _problem_lines(result: Mapping[str, Any]) -> Iterator[str]:
    for runner, one in result["runners"].items():
        for kind, reasons in one["reasons"].items():
            if kind == "refused" and runner in SAME_FILE:
                continue
            yield f"- {RUNNERS[runner]}, {kind}:"
            for reason, files in sorted(reasons.items(), key=lambda item: -len(item[1])):
                names = list(dict.fromkeys(Path(file).name.split(".")[0] for file in files))
                more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
                shown = ", ".join(names[:_SHOWN])
                short = shorten(reason, _WIDTH, placeholder=" ...")
                yield f"  - {short} ({len(files)} files: {shown}{more})"
