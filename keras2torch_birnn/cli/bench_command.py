"""``k2t bench``: options, progress and printing."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keras2torch_birnn.cli.console import Output, print_lines, print_message, print_table
from keras2torch_birnn.cli.options import ConfigPath, one_of
from keras2torch_birnn.errors import UsageError, printable
from keras2torch_birnn.saving.atomic import (
    FileKind,
    NewFile,
    check_output,
    marked_by,
    write_atomically,
)
from keras2torch_birnn.schema.merge_modes import MERGE_MODES
from keras2torch_birnn.suggestions import unknown_value

if TYPE_CHECKING:
    from keras2torch_birnn.cli.bench.measure import Case
    from keras2torch_birnn.spec import ModelSpec

_CELLS = ("lstm", "gru", "rnn")
_DRAWINGS = FileKind("the file of --plot", (".png", ".svg"), marked_by("k2t bench"), "name another")
# Of each size: beyond it the memory of no machine suffices.
_SIZES = range(1, 1_000_001)


def _count(flag: str, help: str) -> Any:
    return typer.Option(flag, metavar="N", min=1, max=_SIZES[-1], help=help)


def bench(
    output: Output,
    model: Annotated[
        Path | None,
        typer.Argument(metavar="MODEL", help="A Keras model in any format that convert reads."),
    ] = None,
    config: ConfigPath = None,
    rnn: Annotated[
        str | None, one_of("--rnn", _CELLS, "Instead of MODEL, a stack of such layers.")
    ] = None,
    merge: Annotated[
        str,
        typer.Option(
            "--merge",
            metavar="MODE[,MODE]",
            help=f"{', '.join(MERGE_MODES)}; several with commas; or all.",
        ),
    ] = "concat",
    layers: Annotated[int, _count("--layers", help="Layers of the stack.")] = 2,
    units: Annotated[int, _count("--units", help="Units of each direction.")] = 128,
    features: Annotated[
        int | None, _count("--features", help="Width of the stack's input; default: --units.")
    ] = None,
    batch: Annotated[
        str, typer.Option("--batch", metavar="N[,N]", help="One size or several: 1,8,32.")
    ] = "1",
    time: Annotated[int, _count("--time", help="Steps.")] = 50,
    threads: Annotated[int, _count("--threads", help="Threads of each contender.")] = 2,
    rounds: Annotated[int, _count("--rounds", help="Runs of each contender.")] = 9,
    plot_file: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE.png/.svg", help="Draw the medians.")
    ] = None,
) -> None:
    """Time a model against plain PyTorch, ONNX Runtime and Keras.

    The model is frozen, as for serving; a contender with other numbers is excluded.
    Each runs in its own process; figures are medians.

    Example: k2t bench model.h5 --batch 1,32

    Layers without a file, drawn: k2t bench --rnn gru --merge all --plot gru.svg
    """
    if plot_file is not None:
        from keras2torch_birnn.cli.bench.report import check_plot

        check_output(plot_file, _DRAWINGS, sources=(model, config), overwrite=True)
        check_plot(plot_file)
    rows = [_number(text) for text in batch.split(",")]
    if (model is None) == (rnn is None):
        raise UsageError("either MODEL or --rnn is expected")
    if rnn not in (None, *_CELLS):
        raise unknown_value(f"--rnn {printable(rnn)}", _CELLS, str(rnn))
    merges = tuple(MERGE_MODES) if merge == "all" else tuple(merge.split(","))
    for mode in merges:
        if mode not in MERGE_MODES:
            raise unknown_value(f"--merge {printable(mode)}", MERGE_MODES, mode)
    from keras2torch_birnn.cli.bench.measure import Case
    from keras2torch_birnn.cli.bench.stack import Stack, write_stack
    from keras2torch_birnn.readers import read_model

    with tempfile.TemporaryDirectory(prefix="k2t-") as folder:
        if model is not None:
            spec = read_model(model, config=config)
            arch = None if config is None else str(config)
            label = f"{model.name}, batch {{}}"
            cases = [(Case(label.format(one), str(model), arch, one, time), spec) for one in rows]
        else:
            cases = []
            for mode in merges:
                write_stack(
                    Stack(str(rnn), mode, layers, features or units, units),
                    file := Path(folder, f"{mode}.h5"),
                )
                spec = read_model(file)
                label = f"{rnn} {mode}, {layers} x {units} units, batch {{}}, {time} steps"
                cases += [
                    (Case(label.format(one), str(file), None, one, time), spec) for one in rows
                ]
        _run(output, cases, threads, rounds, plot_file)


def _number(text: str) -> int:
    digits = text.isascii() and text.isdigit() and len(text) <= len(str(_SIZES[-1]))
    if not digits or int(text) not in _SIZES:
        raise UsageError(
            f"--batch {printable(text)}: integers of at least 1 are expected, at most {_SIZES[-1]}"
        )
    return int(text)


def _run(
    output: Output,
    cases: list[tuple[Case, ModelSpec]],
    threads: int,
    rounds: int,
    plot_file: Path | None,
) -> None:
    """Measure all cases, print each result, and draw if that is asked for."""
    from keras2torch_birnn.cli.bench import measure, report

    facts, rows = measure.facts_of_machine(threads, rounds), []
    if not output.as_json:
        print_lines([", ".join(f"{key} {value}" for key, value in facts.items())])
    with output.show_progress("bench") as bar:
        for case, spec in cases:
            row = measure.measure(case, spec, threads=threads, rounds=rounds)
            rows.append(row)
            with bar.hidden():
                if not output.as_json:
                    print_lines(("", case.label))
                    print_table(report.make_table(row))
                    print_lines(report.footnotes(row))
    warning = report.find_disturbance(facts, rows)
    if warning:
        print_message("warning", warning)
    if output.as_json:
        output.print_result({**facts, "rows": [report.as_data(row) for row in rows]})
    if plot_file is not None:
        drawing = NewFile(
            plot_file, _DRAWINGS, lambda place: report.plot(facts, rows, place, plot_file)
        )
        write_atomically(drawing, overwrite=True)
