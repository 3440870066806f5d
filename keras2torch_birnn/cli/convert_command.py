"""``k2t convert``: one file, or many into a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from keras2torch_birnn.cli.batch import convert_many, pair_with_outputs
from keras2torch_birnn.cli.console import Output, count_words, print_line, print_stderr
from keras2torch_birnn.cli.converting import Options, convert_file, describe
from keras2torch_birnn.cli.input_files import ends_as_out, is_there
from keras2torch_birnn.cli.options import (
    ConfigPath,
    Dtype,
    First,
    Last,
    Plugins,
    check_dtype,
    file_named,
)
from keras2torch_birnn.errors import UsageError, escape_controls
from keras2torch_birnn.spec import cut_at


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
