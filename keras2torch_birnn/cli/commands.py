"""Commands of ``k2t``: parse arguments, call the package, print. ``--help`` imports no torch."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, NoReturn

import typer

from keras2torch_birnn import __version__
from keras2torch_birnn.cli.bench_command import bench
from keras2torch_birnn.cli.convert_command import convert
from keras2torch_birnn.cli.inspect_command import inspect
from keras2torch_birnn.cli.listings import layers, list_weights, plugin_commands
from keras2torch_birnn.cli.machine import doctor, version
from keras2torch_birnn.cli.options import with_common_options
from keras2torch_birnn.cli.proofs import compare_port, verify
from keras2torch_birnn.cli.written_files import export, write_back
from keras2torch_birnn.cli.wrong_calls import CommandGroup

app = typer.Typer(
    name="k2t",
    cls=CommandGroup,
    help="Keras Bidirectional LSTM/GRU models as PyTorch models: same numbers, no TensorFlow.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

# In the order of the help.
COMMANDS: dict[str, Callable[..., None]] = {
    "convert": convert,
    "verify": verify,
    "inspect": inspect,
    "export": export,
    "write-back": write_back,
    "compare": compare_port,
    "map": list_weights,
    "layers": layers,
    "bench": bench,
    "doctor": doctor,
    "version": version,
}
for _name, _run in COMMANDS.items():
    app.command(_name)(with_common_options(_run, _name))
app.add_typer(plugin_commands, name="plugin")

_STOPS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


class _Stopped(BaseException):
    """Ctrl-C or SIGTERM, raised so that every ``finally`` on the way up cleans up."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"k2t {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    _: Annotated[
        bool,
        typer.Option(
            "--version", "-V", help="Print the version.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    """Take the options before the command."""


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
        app(prog_name="k2t")
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
