"""Completion in zsh that works at the first Tab of a shell."""

from __future__ import annotations

from typing import Any

import typer

# zsh loads the script when Tab is first pressed, runs it as the function that completes, and waits
# for what it offers. Typer's script (0.18 to 0.29) defines a function for later and offers nothing.
_AT_ONCE = """
if [[ "$funcstack[1]" = "_%(prog_name)s" ]]; then
  %(complete_func)s "$@"
fi
"""


def complete_at_first_tab() -> None:
    """Change typer's script for zsh so that the first Tab already completes."""
    # Not public: without it, completion works from the second Tab on.
    scripts: Any = getattr(getattr(typer, "_completion_shared", None), "_completion_scripts", {})
    if "zsh" in scripts and not scripts["zsh"].endswith(_AT_ONCE):
        scripts["zsh"] += _AT_ONCE
