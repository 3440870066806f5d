"""The optional dependencies of this package, and how a user gets them."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution


def advise_extra(extra: str) -> str:
    """Return the command that installs an extra, a key of ``optional-dependencies``.

    A package that runs from its folder, without being installed, is named by that folder.
    """
    try:
        name = distribution("keras2torch_birnn").metadata["Name"]
    except PackageNotFoundError:
        name = "."
    return f"pip install '{name}[{extra}]'"
