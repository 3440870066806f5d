"""Convert many files: find them, name their outputs, share them among processes, sum up."""

from __future__ import annotations

import glob
import os
import shlex
import sys
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
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
    describe_failure,
    known_error,
    print_line,
    print_message,
    print_stderr,
)
from keras2torch_birnn.cli.converting import (
    Options,
    convert_file,
    describe,
    describe_verdict,
    verify_file,
)
from keras2torch_birnn.cli.input_files import name_architecture
from keras2torch_birnn.errors import (
    K2TError,
    MissingArchitectureError,
    OutputError,
    UsageError,
    escape_controls,
    in_file,
)
from keras2torch_birnn.progress import advance, begin, reporting_to
from keras2torch_birnn.saving.atomic import check_can_be_made, check_is_here, os_errors
from keras2torch_birnn.schema.custom_layers import REGISTERED
from keras2torch_birnn.torch_import import limit_threads

_SUFFIXES = (".h5", ".hdf5", ".keras")
_DROPPED = (*_SUFFIXES, ".json", ".index", ".zip", ".tar", ".gz", ".tgz")
# Files whose folder is the model.
_MARKS = ("saved_model.pb", "config.json")
_TFJS = "model.json"


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


def pair_with_outputs(names: Sequence[str], out_dir: Path, *, with_config: bool) -> list[Task]:
    """Find the models, and name the OUT of each: the same path below ``out_dir``, ending in .pt.

    names: models, folders that are searched for models, or patterns. Two models of one folder that
    differ in the suffix alone keep it: ``a.h5.pt``, ``a.keras.pt``. with_config: whether folders of
    checkpoints are models, too.

    Raises:
        UsageError: a folder without models, or two models with one OUT; OutputError: ``out_dir``
            is a file, an address, or cannot be made.
    """
    with in_file(out_dir), os_errors():
        check_is_here(out_dir, "folder")
        if not out_dir.exists():
            check_can_be_made(out_dir.absolute())
        elif not out_dir.is_dir():
            raise OutputError("is no folder", "name a folder: --out-dir DIR")
    found = {
        (model.absolute(), below): (model, below)
        for name in names
        for model, below in _find_models(name, with_config=with_config)
    }
    stems = Counter(_stem(below) for _, below in found.values())
    tasks = []
    for model, below in found.values():
        base = out_dir / (_stem(below) if stems[_stem(below)] == 1 else below)
        tasks.append(Task(model, base.with_name(f"{base.name}.pt")))
    by_out: dict[Path, list[str]] = {}
    for task in tasks:
        by_out.setdefault(task.out, []).append(escape_controls(task.model))
    for out, models in by_out.items():
        if len(models) > 1:
            raise UsageError(
                f"{' and '.join(models)} would both become {escape_controls(out)}",
                "name the folder that holds them all, or convert them into two folders",
            )
    return tasks


def _find_models(name: str, *, with_config: bool) -> Iterator[tuple[Path, Path]]:
    """Yield the models that a name stands for, each with its path below ``--out-dir``."""
    path = Path(name)
    if not os.path.lexists(path) and glob.has_magic(name):
        start = Path(path.anchor)  # of a pattern that no shell has expanded
        matches = sorted(map(str, start.glob(str(path.relative_to(start)))))
        if not matches:
            raise UsageError(f"{escape_controls(name)} matches no file", "check the pattern")
        for match in matches:
            yield from _find_models(match, with_config=with_config)
    elif path.is_dir() and not _is_model(path, with_config=with_config):
        models = list(_walk(path, with_config=with_config))
        if not models:
            raise UsageError(
                f"{escape_controls(name)} holds no Keras model",
                f"files that end in {', '.join(_SUFFIXES)}, SavedModel folders and model.json "
                "are searched for",
            )
        for model in models:
            yield model, _below(model, path)
    else:
        named = path.resolve() if path.name in ("", "..") else path
        yield path, _below(named, named.parent)


def _stem(below: Path) -> Path:
    """Drop the suffix of a file, but no part of a folder's name."""
    return below.with_suffix("") if below.suffix.lower() in _DROPPED else below


def _below(model: Path, folder: Path) -> Path:
    """Return the path below a folder; that of a TF.js model is its folder's."""
    if model.name == _TFJS and model.parent.name:
        start = folder.parent if model.parent == folder else folder
        return Path(os.path.relpath(model.parent, start))
    return Path(os.path.relpath(model, folder))


def _is_model(folder: Path, *, with_config: bool) -> bool:
    marks = (*_MARKS, "checkpoint") if with_config else _MARKS
    try:
        return any((folder / mark).is_file() for mark in marks)
    except PermissionError:
        return False


def _walk(folder: Path, *, with_config: bool) -> Iterator[Path]:
    """Yield the models of a folder and of the folders in it; links to folders are not followed.

    A folder that cannot be read is yielded, too: converting it says why.
    """
    closed: list[OSError] = []
    for where, folders, files in os.walk(folder, onerror=closed.append):
        here = Path(where)
        inside = [one for one in sorted(folders) if _is_model(here / one, with_config=with_config)]
        yield from (here / one for one in inside)
        folders[:] = sorted(set(folders) - set(inside))
        yield from (
            here / one for one in sorted(files) if one == _TFJS or one.lower().endswith(_SUFFIXES)
        )
    yield from (Path(error.filename) for error in closed)


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
