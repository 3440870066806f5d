"""``k2t map`` and ``k2t compare``: options and printing."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keras2torch_birnn.cli.console import Output
from keras2torch_birnn.cli.options import ConfigPath, First, Last, Masked, ModelPath, Plugins
from keras2torch_birnn.cli.tables import format_cell, print_columns
from keras2torch_birnn.errors import printable
from keras2torch_birnn.spec import cut_at
from keras2torch_birnn.torch_import import loading_torch

if TYPE_CHECKING:
    from keras2torch_birnn.porting.weight_map import MapRow

_MAP_HEAD = ("Keras weight", "shape", "torch name", "shape", "what is done")


def map_command(
    output: Output,
    model: ModelPath,
    config: ConfigPath = None,
    plugin: Plugins = None,
    masked_steps: Masked = None,
    first: First = None,
    last: Last = None,
) -> None:
    """List where each weight of MODEL goes in PyTorch, and what is done to it.

    Example: k2t map model.h5
    """
    with output.show_progress(f"reading {printable(model.name)}"):
        with loading_torch():
            from keras2torch_birnn.porting.weight_map import map_weights
        rows = map_weights(
            model,
            config=config,
            masked_steps=masked_steps,
            plugins=plugin or (),
            cut=cut_at(first or (), last or ()),
        )
    if output.as_json:
        output.print_result({"model": str(model), "weights": [asdict(row) for row in rows]}, "")
    else:
        print_columns(_MAP_HEAD, [_cells(row) for row in rows], folds=())


def _cells(row: MapRow) -> tuple[str, ...]:
    keras_shape = "" if row.keras_shape is None else format_cell(row.keras_shape)
    cells = (row.keras or "-", keras_shape, row.torch, format_cell(row.torch_shape), row.done)
    return tuple(map(printable, cells))


def compare_command(
    output: Output,
    model: ModelPath,
    port: Annotated[
        str,
        typer.Argument(
            metavar="FILE.py:NAME",
            help="Your port: a class or function that is called without arguments. FILE is run.",
        ),
    ],
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights", metavar="SD.pt", help="Its state_dict: .pt, .pth or .safetensors."
        ),
    ] = None,
    inputs: Annotated[
        Path | None,
        typer.Option("--inputs", metavar="DATA.npz", help="Your own data, as for verify."),
    ] = None,
    map_file: Annotated[
        Path | None,
        typer.Option(
            "--map",
            metavar="MAP.json",
            help="Names of your modules and the Keras layers that they are, if values do not tell.",
        ),
    ] = None,
    config: ConfigPath = None,
    plugin: Plugins = None,
    masked_steps: Masked = None,
) -> None:
    """Compare a PyTorch model that you wrote by hand with MODEL, and say what is wrong in it.

    Ends with 0 if both compute the same, else with 1.

    Example: k2t compare model.h5 my_model.py:Net --weights net.pt
    """
    with output.show_progress(f"comparing {printable(model.name)}"):
        with loading_torch():
            from keras2torch_birnn.porting.comparing import compare
            from keras2torch_birnn.porting.user_file import load_port, read_map
        report = compare(
            model,
            load_port(port, weights),
            inputs=inputs,
            map=None if map_file is None else read_map(map_file),
            config=config,
            masked_steps=masked_steps,
            plugins=plugin or (),
        )
    output.print_result(report.to_dict(), "\n".join(report.lines()))
    raise typer.Exit(0 if report.ok else 1)
