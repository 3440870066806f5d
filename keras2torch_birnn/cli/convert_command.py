"""``k2t convert``: one file, or many into a folder."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from keras2torch_birnn.cli.batch import Options, Task, convert_file, convert_many, describe
from keras2torch_birnn.cli.console import Output, count_words, print_line, print_stderr
from keras2torch_birnn.cli.options import (
    ConfigPath,
    Dtype,
    First,
    Last,
    Plugins,
    check_dtype,
    file_named,
)
from keras2torch_birnn.cli.wrong_calls import ends_as_out, is_there
from keras2torch_birnn.errors import OutputError, UsageError, escape_controls, in_file
from keras2torch_birnn.saving.atomic import check_can_be_made, check_is_here, os_errors
from keras2torch_birnn.spec import cut_at

_SUFFIXES = (".h5", ".hdf5", ".keras")
_DROPPED = (*_SUFFIXES, ".json", ".index", ".zip", ".tar", ".gz", ".tgz")
# Files whose folder is the model.
_MARKS = ("saved_model.pb", "config.json")
_TFJS = "model.json"


def convert(
    output: Output,
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL OUT",
            help="A Keras model: a file, a SavedModel folder, a checkpoint or model.json; and a "
            ".pt, .pth or .safetensors file to write, or - for a .pt file to a pipe. With "
            "--out-dir: models, and folders of them.",
        ),
    ],
    config: ConfigPath = None,
    plugin: Plugins = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an OUT that k2t wrote.")] = False,
    dtype: Dtype = None,
    first: First = None,
    last: Last = None,
    out_dir: Annotated[
        Path | None,
        typer.Option("--out-dir", metavar="DIR", help="Convert many: write NAME.pt into DIR."),
    ] = None,
    jobs: Annotated[
        int,
        typer.Option("--jobs", "-j", metavar="N", min=1, help="With --out-dir: processes."),
    ] = 1,
    verify: Annotated[
        bool, typer.Option("--verify", help="Verify each OUT against its model.")
    ] = False,
    fail_fast: Annotated[
        bool, typer.Option("--fail-fast", help="With --out-dir: stop at the first error.")
    ] = False,
) -> None:
    """Write a Keras model as a PyTorch file, or many into a folder.

    Example: k2t convert model.h5 model.pt

    With a file that holds only weights: k2t convert weights.h5 model.pt --config arch.json

    With custom layers: k2t convert model.keras model.pt --plugin my_layers.py

    Without the layer that turns text into ids: k2t convert model.keras model.pt --from embedding

    Many files: k2t convert models/ extra.h5 --out-dir converted --jobs 2
    """
    check_dtype(dtype)
    options = Options(
        config,
        tuple(plugin or ()),
        dtype,
        cut_at(first or (), last or ()),
        force,
        verify,
    )
    if out_dir is not None:
        out = Path(paths[-1])
        if ends_as_out(out) and not is_there(out):
            raise UsageError(
                f"{escape_controls(out)} is no model; with --out-dir each OUT has its model's name",
                "leave it out",
            )
        tasks = pair_with_outputs(paths, out_dir, with_config=config is not None)
        convert_many(output, tasks, options, jobs=jobs, fail_fast=fail_fast)
        return
    for name, given in (("--jobs", jobs > 1), ("--fail-fast", fail_fast)):
        if given:
            raise UsageError(f"{name} is for many files", "name a folder for them: --out-dir DIR")
    if len(paths) != 2:
        raise UsageError(
            f"MODEL and OUT are expected, found {count_words(len(paths), 'path')}",
            "to convert many: k2t convert MODEL... --out-dir DIR",
        )
    from keras2torch_birnn.saving.atomic import is_stdout, is_stream

    model, target = Path(paths[0]), file_named(paths[1])
    if verify and is_stream(target):
        raise UsageError("--verify reads OUT again, which a pipe does not allow", "name a file")
    with output.show_progress(f"converting {model.name}"):
        done = convert_file(model, target, options)
    output.print_notes(done.notes)
    # The model may be what goes to stdout.
    show = print_stderr if is_stdout(target) else print_line
    output.print_result(done.to_dict(), describe(done, paths[1]), show=show)
    if not done.is_equal:
        raise typer.Exit(1)


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
