"""Convert a file for ``k2t convert``, or many: share them among processes, and sum up."""

from __future__ import annotations

import os
import shlex
import sys
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from threading import local
from typing import Any

import typer

from keras2torch_birnn.cli.console import (
    Output,
    count_words,
    describe_failure,
    known_error,
    print_line,
    print_message,
    print_stderr,
)
from keras2torch_birnn.cli.wrong_calls import name_architecture, refuse_missing
from keras2torch_birnn.errors import (
    K2TError,
    MissingArchitectureError,
    OutputError,
    escape_controls,
    in_file,
)
from keras2torch_birnn.plugins import load_plugins
from keras2torch_birnn.progress import advance, begin, reporting_to
from keras2torch_birnn.schema.custom_layers import REGISTERED
from keras2torch_birnn.spec import NO_CUT, Cut
from keras2torch_birnn.torch_import import limit_threads


@dataclass(frozen=True)
class Options:
    """Options of a conversion, the same for all files of one command."""

    config: Path | None = None
    plugins: tuple[str, ...] = ()
    dtype: str | None = None
    cut: Cut = NO_CUT
    force: bool = False
    verify: bool = False


@dataclass(frozen=True)
class Done:
    """A written OUT, as data.

    layers, parameters: as Keras counts them. verified: the report of ``verify``, if it was asked.
    """

    out: str
    keras_version: str
    layers: int
    parameters: int | None
    notes: tuple[str, ...]
    vocabulary: str | None
    verified: dict[str, Any] | None = None

    @property
    def is_equal(self) -> bool:
        """True unless ``verify`` found a difference."""
        return self.verified is None or bool(self.verified["ok"])

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as JSON has them."""
        facts = {"ok": self.is_equal, "exit": 0 if self.is_equal else 1, **self.__dict__}
        return facts if self.verified else {k: v for k, v in facts.items() if k != "verified"}


def convert_file(model: Path, out: Path, options: Options) -> Done:
    """Convert one file, and verify the result if that was asked.

    Raises:
        K2TError: as ``k2t.convert``; OutputError: OUT cannot be written.
    """
    from keras2torch_birnn.saving.atomic import check_output
    from keras2torch_birnn.saving.checkpoint_kind import CHECKPOINT

    sources = (model, options.config, *map(Path, options.plugins))
    check_output(out, CHECKPOINT, sources=sources)
    refuse_missing(model)
    load_plugins(options.plugins)
    from keras2torch_birnn.conversion import convert_to_file
    from keras2torch_birnn.inspection import count_parameters, layers_of

    spec, vocabularies = convert_to_file(
        model,
        out,
        config=options.config,
        dtype=options.dtype,
        cut=options.cut,
        overwrite=options.force,
    )
    return Done(
        out=str(out),
        keras_version=spec.generation.version,
        layers=len(layers_of(spec)),
        parameters=count_parameters(spec.root),
        notes=spec.notes,
        vocabulary=None if vocabularies is None else str(vocabularies),
        verified=verify_file(model, out, options) if options.verify else None,
    )


def verify_file(model: Path, out: Path, options: Options) -> dict[str, Any]:
    """Verify one file against its model; return the report as data."""
    from keras2torch_birnn.verification import verify

    return verify(model, out, config=options.config, plugins=options.plugins).to_dict()


def describe(done: Done, shown: str) -> tuple[str, ...]:
    """Write the lines of a converted file; ``shown``: OUT as the user named it."""
    verdict = "" if done.verified is None else describe_verdict(done.verified)
    layers = count_words(done.layers, "layer")
    parameters = "unknown" if done.parameters is None else f"{done.parameters:,}"
    line = f"{shown}: {layers}, {parameters} parameters{verdict}"
    if done.vocabulary is None:
        return (line,)
    return line, f"{done.vocabulary}: vocabulary of what was cut off"


def describe_verdict(verified: dict[str, Any]) -> str:
    """Write the end of the line of a file that was verified."""
    return ", verify: OK" if verified["ok"] else ", verify: NOT EQUAL"


@dataclass(frozen=True)
class Task:
    """A model and the file that it becomes."""

    model: Path
    out: Path


@dataclass(frozen=True)
class Outcome:
    """Result of a task: ``state`` is "converted", "skipped" or "refused".

    plugins: those that its process has loaded, and whether each registers anything.
    """

    task: Task
    state: str
    facts: dict[str, Any]
    lines: tuple[str, ...]
    errors: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    plugins: Mapping[str, bool] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """Exit code, as a command for this file alone would have it."""
        return int(self.facts["exit"])

    def to_dict(self) -> dict[str, Any]:
        """Return the object of this file in JSON Lines."""
        named = {"file": str(self.task.model), "sha256": _sha256(self.task.model)}
        return {**named, "out": str(self.task.out), "state": self.state, **self.facts}


def convert_many(
    output: Output, tasks: Sequence[Task], options: Options, *, jobs: int, fail_fast: bool
) -> None:
    """Convert all tasks: print a line for each and a summary, and end with the worst exit code.

    An OUT that is newer than its model is skipped, unless ``options.force``. fail_fast: stop at
    the first error.
    """
    done: list[Outcome] = []
    try:
        with (
            closing(_run(tasks, options, jobs)) as outcomes,
            output.show_progress("converting") as bar,
        ):
            begin("", len(tasks), "files")
            for outcome in outcomes:
                advance(1)
                done.append(outcome)
                REGISTERED.loaded.update(outcome.plugins)
                with bar.hidden():
                    _print(output, outcome)
                if outcome.exit_code and fail_fast:
                    break
    finally:  # also after Ctrl-C
        _sum_up(output, done, len(tasks))
    raise typer.Exit(max((outcome.exit_code for outcome in done), default=0))


def _sum_up(output: Output, done: Sequence[Outcome], total: int) -> None:
    """Print the notes, each once, and how many files were converted."""
    named: dict[str, list[Path]] = {}
    for outcome in done:
        for note in outcome.notes:
            named.setdefault(note, []).append(outcome.task.model)
    output.print_notes(
        f"{models[0]}: {note}" if len(models) == 1 else f"{len(models)} files: {note}"
        for note, models in named.items()
    )
    if len(done) < total:
        call = shlex.join(("k2t", *(word for word in sys.argv[1:] if word != "--force")))
        print_message(
            "note", f"{total - len(done)} not tried; to go on, run {escape_controls(call)}"
        )
    states = Counter(outcome.state for outcome in done)
    summary = ", ".join(f"{count} {state}" for state, count in states.items())
    (print_stderr if output.as_json else print_line)(summary or "no models")


def _print(output: Output, outcome: Outcome) -> None:
    for line in outcome.errors:
        print_message("error", line)
    if output.as_json:
        print_line(output.format(outcome.to_dict()))
    else:
        for line in outcome.lines:
            print_line(line)


def _run(tasks: Sequence[Task], options: Options, jobs: int) -> Generator[Outcome, None, None]:
    """Convert the tasks, in their order, in this process or in several."""
    if min(jobs, len(tasks)) <= 1:
        for task in tasks:
            with reporting_to(None):  # the bar counts files
                outcome = convert_task(task, options)
            yield outcome
        return
    workers = _Workers(options, min(jobs, len(tasks)))
    threads = ThreadPoolExecutor(workers.count)
    try:
        yield from threads.map(workers.convert, tasks)
    finally:
        threads.shutdown(cancel_futures=True)
        workers.shut_down()


class _Workers:
    """One process for each thread that uses it, so that one that dies costs one file."""

    def __init__(self, options: Options, count: int) -> None:
        self.count = count
        self._options = options
        self._own = local()
        self._pools: list[ProcessPoolExecutor] = []

    def convert(self, task: Task) -> Outcome:
        """Convert a task in the process of this thread."""
        pool = getattr(self._own, "pool", None) or self._start()
        try:
            return pool.submit(convert_task, task, self._options).result()
        except BrokenProcessPool:
            self._own.pool = None
            what = "its process ended without a result, as the system ends one if memory is short"
            advice = "free some, or see what k2t convert MODEL OUT --debug shows"
            return _refuse(task, K2TError(what, advice))

    def _start(self) -> ProcessPoolExecutor:
        """Start a process that imports torch once for all its files."""
        threads = max(1, (os.cpu_count() or 1) // self.count)
        pool = ProcessPoolExecutor(
            1, get_context("spawn"), initializer=limit_threads, initargs=(threads,)
        )
        self._own.pool = pool
        self._pools.append(pool)
        return pool

    def shut_down(self) -> None:
        """End the processes."""
        for pool in self._pools:
            pool.shutdown(cancel_futures=True)


def convert_task(task: Task, options: Options) -> Outcome:
    """Convert one of many files; an error is an outcome like others."""
    return replace(_convert(task, options), plugins=dict(REGISTERED.loaded))


def _convert(task: Task, options: Options) -> Outcome:
    try:
        with in_file(task.model):
            if not options.force and _is_newer(task.out, task.model):
                return _skip(task, options)
        task.out.parent.mkdir(parents=True, exist_ok=True)
        # An OUT of k2t that is older than its model may be replaced.
        own = replace(options, force=options.force or os.path.lexists(task.out))
        try:
            done = convert_file(task.model, task.out, replace(own, config=None))
        except MissingArchitectureError as error:  # --config is for such files alone
            if own.config is None:
                name_architecture(error, task.model)
                raise
            done = convert_file(task.model, task.out, own)
    except OSError as error:
        return _refuse(task, OutputError(f"cannot be written ({error.strerror})"))
    except Exception as error:
        return _refuse(task, known_error(error))
    return Outcome(
        task, "converted", done.to_dict(), describe(done, str(task.out)), notes=done.notes
    )


def _skip(task: Task, options: Options) -> Outcome:
    """Skip a task whose OUT is up to date; verify OUT if asked, as it may never have been."""
    text = f"{task.out}: skipped, it is newer than its model"
    if not options.verify:
        return Outcome(task, "skipped", {"ok": True, "exit": 0}, (text,))
    verified = verify_file(task.model, task.out, options)
    facts = {"ok": verified["ok"], "exit": 0 if verified["ok"] else 1, "verified": verified}
    return Outcome(task, "skipped", facts, (text + describe_verdict(verified),))


def _refuse(task: Task, error: K2TError) -> Outcome:
    error.file = error.file or str(task.model)
    return Outcome(task, "refused", describe_failure(error), (), tuple(error.lines()))


def _is_newer(out: Path, model: Path) -> bool:
    """Return whether OUT was written by k2t after the last change of the model."""
    from keras2torch_birnn.saving.checkpoint_kind import is_checkpoint

    try:
        return _last_change(out) >= _last_change(model) and is_checkpoint(out)
    except OSError:
        return False


def _last_change(path: Path) -> int:
    """Return when a file, or anything in a folder, was changed last, in nanoseconds."""
    inside = path.rglob("*") if path.is_dir() else ()
    times: list[int] = [one.stat().st_mtime_ns for one in (path, *inside)]
    return max(times)


def _sha256(file: Path) -> str | None:
    """Return the hash of a file; None of a folder, or of what cannot be read."""
    from keras2torch_birnn.readers.input_files import hash_file

    try:
        return hash_file(file)
    except OSError:
        return None
