"""``k2t export`` and ``k2t write-back``: parse arguments, write a file, print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from keras2torch_birnn.cli.console import Output, print_line, print_stderr
from keras2torch_birnn.cli.options import (
    ConfigPath,
    Dtype,
    First,
    Last,
    Plugins,
    check_dtype,
    file_named,
    one_of,
)
from keras2torch_birnn.errors import UsageError, printable
from keras2torch_birnn.exporting import TARGETS, find_target, join_words
from keras2torch_birnn.plugins import load_plugins
from keras2torch_birnn.saving.atomic import is_stdout
from keras2torch_birnn.spec import Cut, cut_at
from keras2torch_birnn.suggestions import did_you_mean
from keras2torch_birnn.torch_import import loading_torch

_SUFFIXES = join_words(row.suffix for row in TARGETS)


def export(
    output: Output,
    source: Annotated[
        Path,
        typer.Argument(metavar="SOURCE", help="What `k2t convert` wrote, or a Keras model."),
    ],
    target: Annotated[str, typer.Argument(metavar="TARGET", help=f"A file in {_SUFFIXES}.")],
    config: ConfigPath = None,
    plugin: Plugins = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a TARGET that k2t wrote.")
    ] = False,
    any_length: Annotated[
        bool, typer.Option("--any-length", help="Free the time axis also where the file fixes it.")
    ] = False,
    dtype: Dtype = None,
    first: First = None,
    last: Last = None,
) -> None:
    """Write a model as a file that runs without this package.

    TARGET's suffix says what it becomes.
    Batch and time are free where the Keras file leaves them free. TARGET is run on the golden
    vectors before it gets its name, if its runtime is installed.

    Example: k2t export model.pt model.onnx

    From a Keras file: k2t export model.h5 model.onnx
    """
    place = file_named(target, "TARGET")
    row = find_target(place)
    check_dtype(dtype)
    from keras2torch_birnn.saving.atomic import check_output

    check_output(place, sources=(source, config, *map(Path, plugin or ())))
    load_plugins(plugin or ())
    with loading_torch():
        from keras2torch_birnn.exporting.exporter import export as write

    with output.show_progress(f"exporting {source.name}"):
        model, notes = _read(source, config, dtype, cut_at(first or (), last or ()))
        done = write(model, place, overwrite=force, any_length=any_length)
    output.print_notes((*notes, *done.notes))
    lines = [f"{target}: {row.name}"]
    if done.checked is not None:
        error = done.checked.max_abs_error
        lines.append(f"{done.runtime} against golden: max abs error {error:.1e}: equal")
    output.print_result(done.to_dict(), lines)


def _read(
    source: Path, config: Path | None, dtype: str | None, cut: Cut
) -> tuple[Any, tuple[str, ...]]:
    """Load what ``k2t convert`` wrote, or convert; return the model and notes.

    Raises:
        UsageError: an option is for a Keras file, and ``source`` is none.
    """
    from keras2torch_birnn.conversion import convert_with_spec
    from keras2torch_birnn.layers.building import DTYPES
    from keras2torch_birnn.saving.checkpoint import load
    from keras2torch_birnn.saving.checkpoint_kind import is_checkpoint

    if not (source.is_file() and is_checkpoint(source)):
        converted = convert_with_spec(source, config=config, dtype=dtype, cut=cut)
        return converted.model, converted.spec.notes
    options: dict[str, Any] = {
        "--config": config,
        "--from": cut.first or None,
        "--to": cut.last or None,
    }
    for name, value in options.items():
        if value is not None:
            raise UsageError(f"{name} is for a Keras file; this one is converted", file=str(source))
    loaded = load(source)
    return (loaded if dtype is None else loaded.to(DTYPES[dtype])), ()


_OPTIMIZER = ("keep", "drop")


def write_back(
    output: Output,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The trained model: a file of k2t.")],
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="The Keras model that OUT was converted from.")
    ],
    new: Annotated[
        str,
        typer.Argument(
            metavar="NEW", help="The file to write, .h5 or .keras as MODEL; or -, a pipe."
        ),
    ],
    config: ConfigPath = None,
    plugin: Plugins = None,
    optimizer: Annotated[
        str,
        one_of("--optimizer", _OPTIMIZER, "The optimizer's state in MODEL: keep it, or drop it."),
    ] = "keep",
    allow_rounding: Annotated[
        bool,
        typer.Option("--allow-rounding", help="Round to the dtype of MODEL where it is coarser."),
    ] = False,
) -> None:
    """Write the trained weights of OUT into NEW, a copy of MODEL.

    MODEL is a .h5 or .keras file. NEW must not exist; it is read again before it gets its name.

    Example: k2t write-back trained.pt model.h5 new.h5
    """
    target = file_named(new, "NEW") if new == "-" else Path(new)
    if optimizer not in _OPTIMIZER:
        raise UsageError(
            f"--optimizer {printable(optimizer)}: keep or drop is expected",
            did_you_mean(optimizer, _OPTIMIZER),
        )
    with output.show_progress(f"writing {new}"):
        with loading_torch():
            from keras2torch_birnn.saving.checkpoint import load
            from keras2torch_birnn.trainers.writing_back import write_back as write
        trained = load(out, plugins=plugin or ())
        written = write(
            trained,
            model,
            target,
            optimizer=optimizer,
            config=config,
            plugins=plugin or (),
            allow_rounding=allow_rounding,
        )
    output.print_notes(written.notes)
    facts = {"new": new, "changed": written.changed, "arrays": written.arrays}
    text = f"{new}: {written.changed} of {written.arrays} arrays changed"
    # The model may be what goes to stdout.
    show = print_stderr if is_stdout(target) else print_line
    output.print_result({**facts, "notes": written.notes}, (text,), show=show)
