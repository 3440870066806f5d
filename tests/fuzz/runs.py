"""One mutant and its outcome, the tally of a batch, and the limits of its process.

Allowed: k2t does what it was asked, or raises ``K2TError`` with printable lines, which is no bug of
k2t's. Everything else is a finding: another exception, more than ``CPU_SECONDS``, what a subject
finds wrong in what was done.
"""

from __future__ import annotations

import os
import resource
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from keras2torch_birnn.errors import K2TError

CPU_SECONDS = 10.0  # of this process for one mutant; the parser's child has its own limit


class HangError(BaseException):
    """Error: one mutant took more than its seconds of computing."""


@dataclass
class Tally:
    """Outcomes of the mutants so far. ``findings``: those that should not happen."""

    outcomes: Counter[str] = field(default_factory=Counter)
    compared: Counter[str] = field(default_factory=Counter)
    findings: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        found = {"outcomes": dict(self.outcomes), "compared": dict(self.compared)}
        return {**found, "findings": self.findings}


@dataclass
class Mutant:
    """Number ``number`` of a run, which depends on nothing but ``random``.

    ``folder`` is empty, and is emptied afterwards. ``about`` goes into its findings.
    """

    number: int
    random: Random
    folder: Path
    tally: Tally
    about: dict[str, Any]

    def find(self, error: str) -> None:
        """Make it a finding."""
        self.tally.findings.append({"mutant": self.number, **self.about, "error": error})

    def attempt(
        self, work: Callable[[], Any], *, step: str = "", seconds: float = CPU_SECONDS
    ) -> Any:
        """Do ``work``; its result, or None. ``step``: what is done with a mutant that was taken."""
        if step:
            self.about["step"] = step
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
        result, outcome = None, "accepted"
        try:
            result = work()
        except K2TError as error:
            outcome = f"refused {type(error).__name__}"
            self._check_refusal(error)
        except (Exception, HangError) as error:
            outcome = f"UNEXPECTED {type(error).__name__}"
            self.find(_where(error))
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        if step:
            self.tally.compared[f"then {outcome}"] += 1
        else:
            self.tally.outcomes[outcome] += 1
        return result

    def _check_refusal(self, error: K2TError) -> None:
        text = str(error)
        if not all(line.isprintable() and line.isascii() for line in error.lines()):
            self.find(f"not printable: {ascii(text)[:300]}")
        if len(text) > 100_000:
            self.find(f"a message of {len(text)} characters")
        if error.exit_code == 70:
            self.find(f"exit 70: {ascii(text)[:300]}")
        if "the HDF5 parser " in text:
            said = text.split("the HDF5 parser ", 1)[1].split(" on this file")[0]
            self.tally.compared[f"the parser {said.split(' by this file')[0][:60]}"] += 1


def _where(error: BaseException) -> str:
    trace, lines = error.__traceback__, []
    while trace is not None:
        code = trace.tb_frame.f_code
        lines.append(f"{Path(code.co_filename).name}:{trace.tb_lineno} {code.co_name}")
        trace = trace.tb_next
    return f"{type(error).__name__}: {ascii(str(error))[:200]} at {' < '.join(lines[::-1][:6])}"


def guard(memory: int) -> None:
    """Make endless loops, and more new memory than so many bytes, errors in this process."""

    def hang(_number: int, _frame: object) -> None:
        raise HangError

    signal.signal(signal.SIGVTALRM, hang)
    facts = Path("/proc/self/statm")
    if not facts.exists():  # not Linux
        return
    pages = int(facts.read_text(encoding="ascii").split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + memory
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
