"""Forms of an operation: its calls in the dialects of files, and the function that computes it.

A form is written ``DIALECT.NAME(PARAMETERS)|STEP|STEP``. Parameters are in the order of the call,
each as "theirs=ours" or "same"; "theirs=-" has no effect; "theirs=!" must be absent, null, false or
zero; "ours:VALUE" is what holds unless another value is given. A step names a function that
converts the values where renaming is not enough (``readers.operations.reworks``), and what else it
is given, after colons; "unsaved": Keras never saves all arguments of this form. Steps of torch's
functions: "tensors", which takes no plain numbers; "gives:DTYPE", where a result has another dtype
than the row says, in the order of the results.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

FORM = re.compile(r"(\w+)\.([\w.]+)(?:\(([^)]*)\))?((?:\|\S+)*)")
_WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


@dataclass(frozen=True)
class Form:
    """One form of the operation ``op``; ``parameters``: theirs -> ours; ``fixed``: by ours."""

    op: str
    dialect: str
    name: str
    parameters: Mapping[str, str]
    fixed: Mapping[str, Any]
    steps: tuple[tuple[str, ...], ...] = ()
    saved: bool = True


def parse_forms(op: str, text: str, usual: Mapping[str, str]) -> Iterator[Form]:
    """Yield the forms in a text; ``usual``: dialect -> the parameters of a name without any."""
    for dialect, name, parameters, steps in FORM.findall(text):
        words = (parameters or usual.get(dialect, "")).split()
        renamed = [word.partition("=") for word in words if ":" not in word]
        fixed = [word.partition(":") for word in words if ":" in word]
        more = [step.split(":") for step in steps.split("|")[1:]]
        yield Form(
            op,
            dialect,
            name,
            {theirs: ours or theirs for theirs, _, ours in renamed},
            {ours: _value(value) for ours, _, value in fixed},
            tuple(tuple(step) for step in more if step != ["unsaved"]),
            saved=["unsaved"] not in more,
        )


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def function_name(op: str) -> str:
    """Return an operation's name as that of a function: ``TopK`` -> ``top_k``."""
    return _WORDS.sub("_", op).lower()
