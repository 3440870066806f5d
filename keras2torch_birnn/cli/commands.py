"""Commands of ``k2t``: parse arguments, call the package, print. ``--help`` imports no torch."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from keras2torch_birnn import __version__
from keras2torch_birnn.cli.bench import bench
from keras2torch_birnn.cli.console import (
    errors_as_lines,
    format_cell,
    print_json,
    print_line,
    print_message,
    print_stderr,
    print_table,
    show_progress,
)
from keras2torch_birnn.cli.exporting import export
from keras2torch_birnn.cli.options import (
    ConfigPath,
    Debug,
    Dtype,
    First,
    Json,
    Last,
    Masked,
    ModelPath,
    Plugins,
    check_dtype,
    file_named,
)
from keras2torch_birnn.cli.writers import write_back
from keras2torch_birnn.errors import (
    UsageError,
    gather,
    printable,
)
from keras2torch_birnn.plugins import SHIPPED, load_plugins
from keras2torch_birnn.spec import cut_at
from keras2torch_birnn.torch_import import loading_torch

app = typer.Typer(
    name="k2t",
    help="Keras Bidirectional LSTM/GRU models as PyTorch models: same numbers, no TensorFlow.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.command()(bench)
app.command()(export)
app.command("write-back")(write_back)

_STOPS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


class _Stopped(BaseException):
    """Ctrl-C or SIGTERM, raised so that every ``finally`` on the way up cleans up."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(f"k2t {__version__}")
        raise typer.Exit


@app.command()
def convert(
    model: ModelPath,
    out: Annotated[str, typer.Argument(metavar="OUT", help="A .pt, .pth or .safetensors file.")],
    config: ConfigPath = None,
    plugin: Plugins = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an OUT that k2t wrote.")] = False,
    dtype: Dtype = None,
    masked_steps: Masked = None,
    first: First = None,
    last: Last = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Read MODEL and write OUT.

    Example: k2t convert model.h5 model.pt

    With a file that holds only weights: k2t convert weights.h5 model.pt --config arch.json

    With custom layers: k2t convert model.keras model.pt --plugin my_layers.py

    Without the layer that turns text into ids: k2t convert model.keras model.pt --from embedding
    """
    with errors_as_lines(debug):
        from keras2torch_birnn.saving.atomic import check_output, is_stdout
        from keras2torch_birnn.saving.checkpoint_kind import CHECKPOINT

        target = file_named(out)
        read = (model, config, *map(Path, plugin or ()))
        check_output(target, CHECKPOINT, sources=read)
        load_plugins(plugin or ())
        check_dtype(dtype)
        from keras2torch_birnn.api import convert_with_spec

        with show_progress(f"converting {printable(model.name)}"):
            module, spec, vocabularies = convert_with_spec(
                model,
                config=config,
                dtype=dtype,
                masked_steps=masked_steps,
                cut=cut_at(first or (), last or ()),
                out=target,
                overwrite=force,
            )
        for note in spec.notes:
            print_message("note", note)
        count = sum(p.numel() for p in module.parameters())
        layers = sum(1 for _ in spec.root.walk()) - 1
        summary = f"{printable(out)}: {layers} layers, {count:,} parameters"
        if vocabularies is not None:
            summary += f"\n{printable(vocabularies)}: vocabulary of what was cut off"
        if as_json:
            facts: dict[str, Any] = {"out": out, "keras_version": spec.generation.version}
            facts |= {"parameters": count, "layers": layers, "notes": spec.notes}
            facts |= {"vocabulary": None if vocabularies is None else str(vocabularies)}
            summary = json.dumps(facts, indent=2)
        if is_stdout(target):  # the model went there
            print_stderr(summary)
        else:
            print_line(summary)


@app.command()
def verify(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The Keras file, or only OUT.")],
    out: Annotated[
        Path | None, typer.Argument(metavar="OUT", help="The file that `k2t convert` wrote.")
    ] = None,
    config: ConfigPath = None,
    plugin: Plugins = None,
    device: Annotated[
        list[str] | None, typer.Option("--device", help="cpu, cuda, or all; repeatable.")
    ] = None,
    against: Annotated[
        str,
        typer.Option(
            "--against",
            help="Compare with: reference, keras, golden (stored in OUT); auto: the first two.",
        ),
    ] = "auto",
    masked_steps: Masked = None,
    first: First = None,
    last: Last = None,
    per_layer: Annotated[bool, typer.Option("--per-layer", help="Show every layer.")] = False,
    inputs: Annotated[
        Path | None,
        typer.Option(
            "--inputs", metavar="DATA.npz", help="Your own data, in addition to random inputs."
        ),
    ] = None,
    atol: Annotated[
        float | None, typer.Option(help="Absolute tolerance, applied exactly.", show_default="1e-5")
    ] = None,
    rtol: Annotated[
        float | None, typer.Option(help="Relative tolerance, applied exactly.", show_default="1e-4")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Verify that OUT computes the same as MODEL. Exit code 1 if it does not.

    Example: k2t verify model.h5 model.pt --device all

    OUT alone is compared with the golden vectors inside it: k2t verify model.pt

    Also on your own data, by the inputs' names or in Keras' order: --inputs data.npz
    """
    with errors_as_lines(debug):
        load_plugins(plugin or ())
        with loading_torch():
            from keras2torch_birnn.verification import AGAINST
            from keras2torch_birnn.verification import verify as prove

        chosen = next((a for a in AGAINST if a == against), None)
        if chosen is None:
            raise UsageError(
                f"--against {printable(against)}: one of {', '.join(AGAINST)} is expected"
            )
        of_both = chosen in ("keras", "reference") or per_layer or config or inputs or first or last
        if out is None and of_both:
            raise UsageError(
                "OUT alone can be compared with its golden vectors only",
                "name both files: k2t verify MODEL OUT",
            )
        with show_progress(f"verifying {printable((out or model).name)}"):
            report = prove(
                model,
                out,
                config=config,
                devices=device or ("cpu",),
                masked_steps=masked_steps,
                from_layer=first or (),
                to_layer=last or (),
                against=chosen,
                atol=atol,
                rtol=rtol,
                inputs=inputs,
            )
        for note in report.notes:
            print_message("note", note)
        if as_json:
            print_json(report.to_dict())
        else:
            _print_report(report, per_layer=per_layer)
        raise typer.Exit(0 if report.ok else 1)


def _print_report(report: Any, *, per_layer: bool) -> None:
    if per_layer:
        print_line(f"{'layer (float64, against the reference)':44} {'max abs':>9} {'max rel':>9}")
        for layer in report.layers:
            how = "" if layer.judged.startswith("whole") else f"  {layer.judged}"
            mark = how if layer.ok else f"  WRONG: {layer.where}"
            name = printable(layer.path)
            print_line(f"{name:44} {layer.max_abs_error:9.1e} {layer.max_rel_error:9.1e}{mark}")
        print_line("")
    for c in report.comparisons:
        on = f" on {c.inputs}" if c.inputs else ""
        print_line(
            f"{c.device:5} against {c.against}{on}: max abs error {c.max_abs_error:.1e}, "
            f"relative {c.max_rel_error:.1e} (float32 rounding {c.yardstick_error:.1e}): "
            f"{_verdict(c)}"
        )
    wrong = next((layer for layer in report.layers if not layer.ok), None)
    if wrong is not None:
        print_line(f"first divergence: {printable(wrong.path)}: {printable(wrong.where)}")
    print_line("OK" if report.ok else "NOT EQUAL" if wrong or report.judged else "CANNOT BE JUDGED")


def _verdict(comparison: Any) -> str:
    """Return the verdict of one comparison in words."""
    if comparison.failure:
        return f"cannot be computed ({comparison.failure})"
    if not comparison.counts:
        return "for information"
    if not comparison.judged:
        return "cannot be judged on this input"
    return "equal" if comparison.ok else "NOT EQUAL"


@app.command()
def inspect(
    model: ModelPath,
    config: ConfigPath = None,
    plugin: Plugins = None,
    first: First = None,
    last: Last = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show each layer of MODEL with its engine, and everything unsupported.

    Example: k2t inspect model.h5
    """
    with errors_as_lines(debug):
        load_plugins(plugin or ())
        from keras2torch_birnn.inspection import inspect as look

        with show_progress(f"reading {printable(model.name)}"):
            found = look(model, config=config, from_layer=first or (), to_layer=last or ())
        if as_json:
            print_json(
                {
                    "layers": [asdict(row) for row in found.rows],
                    "notes": found.notes,
                    "unsupported": [line for p in found.problems for line in p.lines()],
                }
            )
        else:
            head: tuple[str, ...] = ("layer", "class", "output shape", "merge", "activations")
            head = (*head, "mask", "runs as", "why", "in training")
            # The last column only where it says something
            width = len(head) if any(row.training for row in found.rows) else len(head) - 1
            print_table(
                head[:width],
                [tuple(map(format_cell, asdict(row).values()))[:width] for row in found.rows],
            )
        for note in found.notes:
            print_message("note", note)
        if found.problems:
            error = gather(found.problems)
            error.file = str(model)
            raise error


@app.command()
def layers(as_json: Json = False, debug: Debug = False) -> None:
    """List the supported Keras layers and their unsupported options.

    Also list the layers of other packages that shipped plugins convert (--plugin NAME).

    Example: k2t layers
    """
    with errors_as_lines(debug):
        from keras2torch_birnn.cli.catalogue import catalogue, operation_rows, plugin_rows

        rows = (*catalogue(), *operation_rows())
        if as_json:
            print_json([asdict(row) for row in (*rows, *plugin_rows())])
        else:
            print_table(
                ("layer", "also called", "not supported"),
                [(row.class_name, ", ".join(row.aliases), "; ".join(row.refused)) for row in rows],
            )
            print_line("")
            print_table(
                ("--plugin", "layers", "of"),
                [(name, ", ".join(p.classes), p.origin) for name, p in SHIPPED.items()],
            )


def _fill_standard_streams() -> None:
    """Open /dev/null on closed descriptors 0 to 2, so that files opened later never get them.

    (``k2t inspect m.h5 >&-``: otherwise the model would be opened as standard output.)
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _stop(number: int, _frame: object) -> NoReturn:
    for other in _STOPS:  # a second signal must not interrupt the clean-up
        signal.signal(other, signal.SIG_IGN)
    raise _Stopped(number)


def main() -> None:
    """Run the command line. After Ctrl-C or SIGTERM, clean up and end by that signal."""
    _fill_standard_streams()
    for number in _STOPS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _stop)
    try:
        app()
    except _Stopped as stopped:
        # A shell must see that the signal ended the process (130, 143), to end its own loops.
        if sys.platform != "win32":
            signal.signal(stopped.number, signal.SIG_DFL)
            os.kill(os.getpid(), stopped.number)
        raise SystemExit(128 + stopped.number) from None
    except SystemExit as end:
        _exit_at_once(end)


def _exit_at_once(end: SystemExit) -> NoReturn:
    """End after an error without waiting for the thread that may still be importing torch.

    Python joins all threads at exit, and that import takes seconds and cannot be interrupted.
    ``os._exit`` skips the join; everything was cleaned up on the way here, so only the streams
    remain to be flushed.
    """
    if end.code and threading.active_count() > 1:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            with suppress(OSError):
                stream.flush()
        os._exit(end.code if isinstance(end.code, int) else 1)
    raise end
