"""``k2t write-back``: options and printing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from keras2torch_birnn.cli.console import Output, print_line, print_stderr
from keras2torch_birnn.cli.options import ConfigPath, Plugins, file_named, one_of
from keras2torch_birnn.errors import UsageError, printable
from keras2torch_birnn.saving.atomic import is_stdout
from keras2torch_birnn.suggestions import did_you_mean
from keras2torch_birnn.torch_import import loading_torch

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
            from keras2torch_birnn.writers import write_back as write
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
