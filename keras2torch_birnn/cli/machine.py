"""``k2t doctor`` and ``k2t version``: what a report of a fault should say about the machine."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

from keras2torch_birnn import __version__
from keras2torch_birnn.cli.console import Output, print_columns, print_line

_NEEDED = ("torch", "numpy", "h5py", "safetensors", "typer", "rich")


def version(output: Output) -> None:
    """Print the version; with -v also those of what it runs on.

    Example: k2t version -v
    """
    found = describe_versions()
    kernels = _describe_kernels()
    named = {**found["packages"], "kernels": ", ".join(f"{p} {by}" for p, by in kernels.items())}
    more = [*(f"{name} {value}" for name, value in named.items()), found["folder"]]
    lines = [f"k2t {__version__}", *(more if output.verbose else ())]
    output.print_result({**found, "kernels": kernels}, lines)


def describe_versions() -> dict[str, Any]:
    """Return the version, the folder of the package, and the versions of what it runs on."""
    packages = {"python": platform.python_version(), **{name: _find(name) for name in _NEEDED}}
    return {
        "version": __version__,
        "folder": str(Path(__file__).parents[1]),
        "packages": packages,
    }


def _describe_kernels() -> dict[str, str]:
    """Return the best instruction set for each precision, or why there is none."""
    from keras2torch_birnn.rnn.native.codes import PRECISIONS
    from keras2torch_birnn.rnn.native.library import find_sets, why_missing, why_no_precision

    def describe(precision: str) -> str:
        reason = why_missing() or why_no_precision(precision)
        return f"none, {reason}" if reason else next(iter(find_sets(precision)))

    return {one: describe(one) for one in PRECISIONS}


def _find(package: str) -> str:
    try:
        return version_of(package)
    except PackageNotFoundError:
        return "not installed"


def doctor(output: Output) -> None:
    """Say what this machine has, and how each cell is computed.

    Example: k2t doctor

    For a report: k2t doctor --json
    """
    from keras2torch_birnn.rnn.diagnosis import choose_engines, describe_kernel, describe_torch
    from keras2torch_birnn.verification import find_accelerators

    try:
        devices = ("cpu", *find_accelerators())
    except Exception:  # a driver may raise anything: what is on that device says how it fails
        devices = ("cpu", "cuda")
    kernel, found, engines = describe_kernel(), describe_torch(), choose_engines(devices)
    versions = {**describe_versions(), "platform": platform.platform()}
    if output.as_json:
        output.print_result({**versions, "torch": found, "kernel": kernel, "engines": engines})
        return
    packages = versions.pop("packages")
    versions |= packages
    sets = kernel.pop("instruction_sets")
    facts = {**versions, **found.pop("variables"), **found, **kernel}
    facts |= {f"instructions, {precision}": ", ".join(names) for precision, names in sets.items()}
    print_columns(
        ("", ""),
        [
            (name, (", ".join(v) if isinstance(v, list) else str(v or "")) or "none")
            for name, v in facts.items()
        ],
    )
    print_line("")
    # One line for all cells that run alike, for the same reason.
    alike: dict[tuple[str, str, str, str], list[str]] = {}
    for row in engines:
        call = "trained" if row["training"] else "called"
        key = (row["device"], call, row["engine"], row["reason"])
        alike.setdefault(key, []).append(row["cell"])
    print_columns(
        ("device", "", "engine", "cells", "reason"),
        [
            (device, call, engine, "; ".join(cells), reason)
            for (device, call, engine, reason), cells in alike.items()
        ],
    )
