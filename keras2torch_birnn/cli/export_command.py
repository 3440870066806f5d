"""``k2t export``: parse arguments, export, print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from keras2torch_birnn.cli.console import Output
from keras2torch_birnn.cli.options import (
    ConfigPath,
    Dtype,
    First,
    Last,
    Plugins,
    check_dtype,
    file_named,
)
from keras2torch_birnn.errors import UsageError
from keras2torch_birnn.exporting import TARGETS, find_target, join_words
from keras2torch_birnn.plugins import load_plugins
from keras2torch_birnn.spec import Cut, cut_at
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
    from keras2torch_birnn.building import DTYPES
    from keras2torch_birnn.conversion import convert_with_spec
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
