"""``k2t compare``: options and printing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from keras2torch_birnn.cli.console import Output, print_lines
from keras2torch_birnn.cli.options import ConfigPath, ModelPath, Plugins
from keras2torch_birnn.torch_import import loading_torch


def compare_port(
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
) -> None:
    """Say what is wrong in a PyTorch port that you wrote by hand.

    It is compared with MODEL, layer by layer.
    Ends with 0 if both compute the same, else with 1.

    Example: k2t compare model.h5 my_model.py:Net --weights net.pt
    """
    with output.show_progress(f"comparing {model.name}"):
        with loading_torch():
            from keras2torch_birnn.porting.comparing import compare
            from keras2torch_birnn.porting.user_file import load_port, read_map
        report = compare(
            model,
            load_port(port, weights),
            inputs=inputs,
            map=None if map_file is None else read_map(map_file),
            config=config,
            plugins=plugin or (),
        )
    if output.as_json:
        output.print_result(report.to_dict())
    else:
        print_lines(report.lines())
        output.print_notes(report.notes)
    raise typer.Exit(0 if report.ok else 1)
