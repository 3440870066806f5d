"""``k2t bench``: options, progress and printing."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keras2torch_birnn.bench import DRAWN_BY
from keras2torch_birnn.cli.console import Output, print_line, print_lines, print_message
from keras2torch_birnn.cli.options import ConfigPath, Devices, First, Last, one_of
from keras2torch_birnn.cli.tables import print_columns
from keras2torch_birnn.errors import UsageError, printable
from keras2torch_birnn.saving.atomic import (
    FileKind,
    check_output,
    check_replacing,
    marked_by,
    write_atomically,
)
from keras2torch_birnn.spec import cut_at
from keras2torch_birnn.suggestions import did_you_mean, unknown_value

if TYPE_CHECKING:
    from keras2torch_birnn.bench.case import Case
    from keras2torch_birnn.bench.measure import Row

_OTHER = "name another"
_RESULTS = FileKind("the file of --json-file", (".json",), marked_by('"native_kernel"'), _OTHER)
_DRAWINGS = FileKind("the file of --plot", (".png", ".svg"), marked_by(DRAWN_BY), _OTHER)
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
    first: First = None,
    last: Last = None,
    rnn: Annotated[
        str | None,
        one_of("--rnn", ("lstm", "gru", "rnn"), "Instead of MODEL, a stack of such layers."),
    ] = None,
    merge: Annotated[
        str,
        typer.Option(
            "--merge",
            metavar="MODE[,MODE]",
            help="concat, sum, mul or ave; several with commas; or all.",
        ),
    ] = "concat",
    layers: Annotated[int, _count("--layers", help="Layers of the stack.")] = 2,
    batch: Annotated[
        str, typer.Option("--batch", metavar="N[,N]", help="One size or several: 1,8,32.")
    ] = "1",
    time: Annotated[int, _count("--time", help="Steps.")] = 50,
    units: Annotated[int, _count("--units", help="Units of each direction.")] = 128,
    features: Annotated[
        int | None,
        _count("--features", help="Width of the input; default: --units."),
    ] = None,
    gate: Annotated[
        str,
        one_of(
            "--recurrent-activation",
            ("sigmoid", "hard_sigmoid_0.2", "hard_sigmoid_1/6"),
            "sigmoid, hard_sigmoid_0.2 or hard_sigmoid_1/6.",
            metavar="NAME",
        ),
    ] = "sigmoid",
    reset_after: Annotated[
        bool,
        typer.Option("--reset-after/--reset-before", help="Which GRU; default: --reset-after."),
    ] = True,
    masked: Annotated[
        bool, typer.Option("--masked", help="Pad rows at the end, on average to half of the steps.")
    ] = False,
    training: Annotated[
        bool, typer.Option("--training", help="Time a training step instead of a call.")
    ] = False,
    dropout: Annotated[
        float,
        typer.Option(
            "--dropout",
            metavar="RATE",
            help="With --training: of the inputs and states inside the layers.",
        ),
    ] = 0.0,
    device: Devices = None,
    threads: Annotated[int, _count("--threads", help="Threads of each contender.")] = 2,
    rounds: Annotated[int, _count("--rounds", help="Runs of each contender.")] = 9,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="NAME", help="Only this contender; repeatable."),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json-file", metavar="FILE.json", help="Write all measurements."),
    ] = None,
    plot_file: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE.png/.svg", help="Draw the medians.")
    ] = None,
) -> None:
    """Time a model or a stack against Keras, PyTorch and others.

    A contender with other numbers is excluded. Each runs in its own process; figures are medians.

    Example: k2t bench model.h5 --batch 1,32

    Layers without a file, drawn: k2t bench --rnn gru --merge all --plot gru.svg
    """
    from keras2torch_birnn.bench.case import Model, Stack
    from keras2torch_birnn.bench.report import check_plot

    for file, kind in ((json_file, _RESULTS), (plot_file, _DRAWINGS)):
        if file is not None:
            check_output(file, kind, sources=(model, config))
            check_replacing(file, kind, overwrite=True)
    if plot_file is not None:
        check_plot(plot_file)
    rows, cut = [_number(text) for text in batch.split(",")], cut_at(first or (), last or ())
    if (model is None) == (rnn is None):
        raise UsageError("either MODEL or --rnn is expected")
    if model is None and cut:
        raise UsageError("--from and --to cut a MODEL", "leave them out with --rnn")
    if model is not None and (training or dropout):
        option = "--training" if training else "--dropout"
        raise UsageError(
            f"{option} is for stacks (--rnn)", "a file does not define a training task"
        )
    cases: list[Case] = []
    if model is not None:
        from keras2torch_birnn.readers import read_model
        from keras2torch_birnn.verification.live_keras import keras_for

        package = keras_for(read_model(model, config=config, cut=cut))
        architecture = None if config is None else str(config)
        cases += [
            Model(str(model), architecture, package, one, time, cut.first, cut.last) for one in rows
        ]
    else:
        if not 0 <= dropout < 1:
            raise UsageError(f"--dropout {dropout}: a rate from 0 to below 1 is expected")
        if dropout and not training:
            raise UsageError("--dropout needs --training", "a call without it drops nothing")
        width, of_layers = features or units, (gate, reset_after, masked, training, dropout)
        cases += [
            Stack(str(rnn), mode, layers, one, time, width, units, *of_layers)
            for mode, one in itertools.product(_merges(str(rnn), merge, gate), rows)
        ]
    _run(output, cases, device, threads, rounds, only, json_file, plot_file)


def _merges(rnn: str, merge: str, gate: str) -> tuple[str, ...]:
    """Return the merge modes that are asked for.

    Raises:
        UsageError: one of the words is not allowed.
    """
    from keras2torch_birnn.bench.case import CLASSES, GATES, MERGES

    merges = MERGES if merge == "all" else tuple(merge.split(","))
    for name, value, allowed in (
        *(("--merge", mode, MERGES) for mode in merges),
        ("--rnn", rnn, tuple(CLASSES)),
        ("--recurrent-activation", gate, GATES),
    ):
        if value not in allowed:
            raise unknown_value(f"{name} {printable(value)}", allowed, value)
    return merges


def _number(text: str) -> int:
    digits = text.isascii() and text.isdigit() and len(text) <= len(str(_SIZES[-1]))
    if not digits or int(text) not in _SIZES:
        raise UsageError(
            f"--batch {printable(text)}: integers of at least 1 are expected, at most {_SIZES[-1]}"
        )
    return int(text)


def _run(
    output: Output,
    cases: list[Case],
    devices: list[str] | None,
    threads: int,
    rounds: int,
    only: list[str] | None,
    json_file: Path | None,
    plot_file: Path | None,
) -> None:
    """Measure all cases on all devices, print each result, and write the files that are asked for.

    Raises:
        UsageError: ``only`` names no contender, or a device is not there.
    """
    from keras2torch_birnn.bench import measure, report
    from keras2torch_birnn.bench.contenders import CONTENDERS
    from keras2torch_birnn.verification import expand_devices

    for name in only or ():
        if name not in CONTENDERS:
            raise UsageError(
                f"--only {printable(name)}: one of {'; '.join(CONTENDERS)} is expected",
                did_you_mean(name, CONTENDERS),
            )
    places = expand_devices(devices or ["cpu"])
    rows = []
    facts = measure.facts(threads, rounds)
    if not output.as_json:
        flat = {key: value for key, value in facts.items() if key != "precisions"}
        print_lines([", ".join(f"{key} {value}" for key, value in flat.items())])
        print_lines(f"{name} by {words}" for name, words in facts["precisions"].items())
    with output.show_progress("bench") as bar:
        for case in cases:
            for device in places:
                row = measure.measure(
                    case,
                    device=device,
                    threads=threads,
                    rounds=rounds,
                    contenders=tuple(only or CONTENDERS),
                )
                rows.append(row)
                with bar.hidden():
                    if not output.as_json:
                        _print_row(row)
    warning = report.find_disturbance(facts, rows)
    if warning:
        print_message("warning", warning)
    data = report.as_data(facts, rows)
    if output.as_json:
        output.print_result(data)
    if json_file is not None:
        text = output.format(data, indent=1) + "\n"
        write_atomically(
            json_file, lambda place: place.write_text(text, "utf-8"), _RESULTS, overwrite=True
        )
    if plot_file is not None:
        form = plot_file.suffix[1:]
        write_atomically(
            plot_file,
            lambda place: report.plot(facts, rows, place, form),
            _DRAWINGS,
            overwrite=True,
        )


def _print_row(row: Row) -> None:
    from keras2torch_birnn.bench import report

    print_line("")
    print_lines([f"{row.case.label}, {row.device}"])
    print_columns(report.HEAD, report.table(row), numbers=range(1, len(report.HEAD)))
    print_lines(report.footnotes(row))
