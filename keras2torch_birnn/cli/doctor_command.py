"""``k2t doctor``: everything that a report of a fault should say about the machine."""

from __future__ import annotations

import platform
from dataclasses import asdict

from keras2torch_birnn.cli.console import Output, print_line
from keras2torch_birnn.cli.tables import print_columns
from keras2torch_birnn.cli.version_command import describe_versions


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
        rows = [asdict(row) for row in engines]
        output.print_result({**versions, "torch": found, "kernel": kernel, "engines": rows})
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
        call = "trained" if row.training else "called"
        alike.setdefault((row.device, call, row.engine, row.reason), []).append(row.cell)
    print_columns(
        ("device", "", "engine", "cells", "reason"),
        [
            (device, call, engine, "; ".join(cells), reason)
            for (device, call, engine, reason), cells in alike.items()
        ],
    )
