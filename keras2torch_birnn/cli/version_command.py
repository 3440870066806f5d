"""``k2t version``: what a report of a fault should say."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

from keras2torch_birnn import __version__
from keras2torch_birnn.cli.console import Output

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
