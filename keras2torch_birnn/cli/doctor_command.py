"""``k2t doctor``: everything that a report of a fault should say about the machine."""

from __future__ import annotations

import platform
from dataclasses import asdict

from keras2torch_birnn.cli.console import Output, print_line
from keras2torch_birnn.cli.tables import print_columns
from keras2torch_birnn.cli.version_command import describe_versions


def doctor(output: Output) -> None:
    """Print versions, devices, the kernels, and the engine of each cell with the reason.

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
    print_columns(
        ("device", "cell", "", "engine", "reason"),
        [
            (
                row.device,
                row.cell,
                "trained" if row.training else "called",
                row.engine,
                row.reason,
            )
            for row in engines
        ],
    )
