"""``k2t verify`` and ``k2t compare``: options, and the report as text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from keras2torch_birnn.cli.console import Output, print_line, print_lines, print_table
from keras2torch_birnn.cli.listings import make_table
from keras2torch_birnn.cli.options import (
    ConfigPath,
    Devices,
    First,
    Last,
    ModelPath,
    Plugins,
    one_of,
)
from keras2torch_birnn.errors import printable
from keras2torch_birnn.plugins import load_plugins
from keras2torch_birnn.spec import cut_at
from keras2torch_birnn.suggestions import unknown_value
from keras2torch_birnn.torch_import import loading_torch


def verify(
    output: Output,
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The Keras file, or only OUT.")],
    out: Annotated[
        Path | None, typer.Argument(metavar="OUT", help="The file that `k2t convert` wrote.")
    ] = None,
    config: ConfigPath = None,
    plugin: Plugins = None,
    device: Devices = None,
    against: Annotated[
        str,
        one_of(
            "--against",
            ("auto", "keras", "reference", "golden"),
            "Compare with: reference (NumPy, always there), keras (if installed), golden "
            "(numbers stored in OUT); auto: the first two.",
            metavar="WHAT",
        ),
    ] = "auto",
    first: First = None,
    last: Last = None,
    per_layer: Annotated[bool, typer.Option("--per-layer", help="Show every layer.")] = False,
    inputs: Annotated[
        Path | None,
        typer.Option(
            "--inputs", metavar="DATA.npz", help="Your own data, in addition to random inputs."
        ),
    ] = None,
    report_file: Annotated[
        Path | None,
        typer.Option("--report", metavar="FILE.html", help="Write a page with all results."),
    ] = None,
    atol: Annotated[
        float | None,
        typer.Option(metavar="X", help="Absolute tolerance, applied exactly.", show_default="1e-5"),
    ] = None,
    rtol: Annotated[
        float | None,
        typer.Option(metavar="X", help="Relative tolerance, applied exactly.", show_default="1e-4"),
    ] = None,
) -> None:
    """Check that OUT gives the numbers of MODEL, on random input. Ends with 1 if it does not.

    Example: k2t verify model.h5 model.pt --device all

    OUT alone is checked against the test numbers stored in it: k2t verify model.pt

    Also on your own data, by the inputs' names or in Keras' order: --inputs data.npz

    As one page, with pictures of the errors: --report report.html
    """
    if report_file is not None:
        from keras2torch_birnn.saving.atomic import check_output
        from keras2torch_birnn.verification.report_page import REPORT

        check_output(report_file, REPORT, sources=(model, out, config, inputs))
    load_plugins(plugin or ())
    with loading_torch():
        from keras2torch_birnn.verification import AGAINST, need_model
        from keras2torch_birnn.verification import verify as prove

    chosen = next((a for a in AGAINST if a == against), None)
    if chosen is None:
        raise unknown_value(f"--against {printable(against)}", AGAINST, against)
    if out is None and per_layer:
        raise need_model()
    with output.show_progress(f"verifying {(out or model).name}"):
        report = prove(
            model,
            out,
            config=config,
            devices=device or ("cpu",),
            from_layer=first or (),
            to_layer=last or (),
            against=chosen,
            atol=atol,
            rtol=rtol,
            inputs=inputs,
        )
    if report_file is not None:
        from keras2torch_birnn.porting.weight_map import map_weights
        from keras2torch_birnn.saving.checkpoint_kind import is_checkpoint
        from keras2torch_birnn.verification.report_page import write_report

        weights = None
        if out is not None and not (model.is_file() and is_checkpoint(model)):
            cut = cut_at(first or (), last or ())
            rows = map_weights(model, config=config, cut=cut)
            weights = make_table(rows)
        write_report(report, report_file, model=model, out=out, weights=weights)
    output.print_notes(report.notes)
    if output.as_json:
        output.print_result(report.to_dict())
    else:
        _print_report(report, per_layer=per_layer or (output.verbose and out is not None))
    raise typer.Exit(0 if report.ok else 1)


def _print_report(report: Any, *, per_layer: bool) -> None:
    """Print the tables of a report, the first wrong layer, and the verdict."""
    outputs, *layers = report.tables()
    for table in layers if per_layer else ():
        print_table(table)
        print_line("")
    print_table(outputs)
    wrong = next((layer for layer in report.layers if not layer.ok), None)
    if wrong is not None:
        print_lines([f"first divergence: {printable(wrong.path)}: {printable(wrong.where)}"])
    if not report.ok:
        print_line("NOT EQUAL" if wrong or report.judged else "CANNOT BE JUDGED", "red")
    elif report.without_keras:
        print_line("OK by the reference alone, NOT COMPARED with Keras", "green")
    else:
        print_line("OK", "green")


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
