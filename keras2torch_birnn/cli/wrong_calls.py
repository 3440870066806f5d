"""Wrong calls: what the parser refuses, missing files, and files in each other's place."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

import keras2torch_birnn
from keras2torch_birnn.cli.console import (
    Output,
    describe_failure,
    print_line,
    print_message,
    print_stderr,
)
from keras2torch_birnn.errors import (
    K2TError,
    MissingArchitectureError,
    UsageError,
    escape_controls,
    in_file,
)
from keras2torch_birnn.suggestions import did_you_mean

# The base of what the parser raises: typer has a parser of its own from some version on.
_PARSER_ERROR: type[Exception] = typer.BadParameter.__mro__[1]
# A call without arguments, which the parser answers with the help.
_HELP = "NoArgsIsHelpError"
_WORDS = "keras2torch_birnn.words"


class CommandGroup(TyperGroup):
    """All commands; a wrong call of one of them is printed as JSON on stdout, if that is asked."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> Any:
        """Parse the options before the command."""
        words = tuple(args)
        with _usage_errors(words):
            context = super().make_context(info_name, args, parent, **extra)
        context.meta[_WORDS] = words
        return context

    def invoke(self, ctx: Any) -> Any:
        """Parse the command's own arguments, and run it."""
        words = ctx.meta[_WORDS]
        with _usage_errors(words):
            if "" in words:
                raise typer.BadParameter(
                    f"argument {words.index('')} is empty (a variable that is not set?)", ctx=ctx
                )
            return super().invoke(ctx)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command; of what is a function in Python alone, say so."""
        function = args[0].replace("-", "_")
        if args[0] not in self.commands and function in keras2torch_birnn.__all__:
            ctx.fail(f"No such command '{args[0]}'. In Python it is k2t.{function}")
        return super().resolve_command(ctx, args)


@contextmanager
def _usage_errors(words: Sequence[str]) -> Iterator[None]:
    """Print an error of the parser as others are: one line, and one JSON object if that is asked.

    words: the arguments.
    """
    try:
        yield
    except _PARSER_ERROR as error:
        if type(error).__name__ == _HELP:
            raise
        found: Any = error
        if found.ctx is not None:
            print_stderr(found.ctx.get_usage())
        known = _as_error(found, words)
        # A guess of what is meant is advice enough.
        guess = known.message.endswith("?")
        print_message("error", known.message if guess else f"{known.message}; {known.advice}")
        if "--json" in words:
            print_line(Output.format(describe_failure(known)))
        raise typer.Exit(known.exit_code) from None


def _as_error(error: Any, words: Sequence[str]) -> UsageError:
    """Return what the parser found, with our own guess at an option that it does not know."""
    # Of an option without its value the parser does not tell the command.
    command = " ".join(("k2t", *words[:1])) if error.ctx is None else error.ctx.command_path
    message = str(error.format_message()).removesuffix(".")
    advice = f"{command} --help lists what is expected"
    option = getattr(error, "option_name", None)
    if error.ctx is not None and option is not None and hasattr(error, "possibilities"):
        parser = error.ctx.command
        message = f"No such option: {option}"
        if option in _list_options(*getattr(parser, "commands", {}).values()):
            advice = f"it follows a command: k2t COMMAND {option}"
        else:
            alike = [name.removeprefix("--") for name in _list_options(parser)]
            guess = did_you_mean(option.lstrip("-"), alike)
            message += f"; {guess.replace('mean ', 'mean --')}" if guess else ""
    return UsageError(message, advice, place=_place(error))


def _list_options(*commands: Any) -> set[str]:
    """Return the options of commands."""
    return {name for one in commands for option in one.params for name in option.opts}


def _place(error: Any) -> str:
    """Return the option or argument that an error is about, if it is about one."""
    parameter = getattr(error, "param", None)
    if parameter is None:
        return str(getattr(error, "option_name", ""))
    options = [name for name in parameter.opts if name.startswith("-")]
    return str(options[0] if options else parameter.metavar or parameter.name)


# Command -> what it expects, the first two of it being files, and which of these k2t wrote.
_ORDERS: Mapping[str, tuple[str, int]] = {
    "convert": ("MODEL OUT", 1),
    "verify": ("MODEL OUT", 1),
    "export": ("SOURCE TARGET", 0),
    "write-back": ("OUT MODEL NEW", 0),
}


# Files beside a model that are tried as its architecture.
_BESIDE = 20


@contextmanager
def checking_files(command: str, arguments: Mapping[str, Any]) -> Iterator[None]:
    """Refuse files that are missing, before torch is imported; tell two that were exchanged.

    Raises:
        InvalidModelFileError: a file is missing; UsageError: the order that fits.
    """
    to_read = (arguments.get(one) for one in ("out", "model", "source"))
    for path in filter(None, to_read):
        if path is not arguments.get("out") or ends_as_out(path):
            refuse_missing(path)
    try:
        yield
    except MissingArchitectureError as error:
        models = arguments.get("paths") or [arguments.get("model")]
        name_architecture(error, Path(models[0]))
        raise
    except K2TError as error:
        exchanged = _find_exchanged(command, arguments)
        if exchanged is None:
            raise
        raise exchanged from error


def name_architecture(error: MissingArchitectureError, model: Path) -> None:
    """Name in the advice the one ``.json`` beside a file of weights that fits it."""
    from keras2torch_birnn.readers import read_model

    def fits(architecture: Path) -> bool:
        try:
            read_model(model, config=architecture)
        except K2TError:
            return False
        return True

    found = [one for one in sorted(model.parent.glob("*.json"))[:_BESIDE] if fits(one)]
    if len(found) == 1:
        error.advice = f"{escape_controls(found[0])} fits: --config {shlex.quote(str(found[0]))}"


def _find_exchanged(command: str, arguments: Mapping[str, Any]) -> UsageError | None:
    """Return an error that shows the right call, if k2t wrote the other one of two files."""
    if command not in _ORDERS:
        return None
    from keras2torch_birnn.saving.checkpoint_kind import is_checkpoint

    expected, of_k2t = _ORDERS[command]
    named = arguments.get("paths") or [
        arguments[one] for one in map(str.lower, expected.split()) if arguments[one] is not None
    ]
    first, second, *others = map(str, (*named, ""))
    files = Path(first), Path(second)
    if not all(one.is_file() for one in files) or not is_checkpoint(files[1 - of_k2t]):
        return None
    if command != "export" and not _is_model(files[of_k2t]):
        return None
    call = shlex.join(("k2t", command, second, first, *filter(None, others)))
    return UsageError(
        f"{escape_controls(files[1 - of_k2t])} is a model that k2t converted; "
        f"expected is k2t {command} {expected}",
        f"run {call}",
    )


def _is_model(path: Path) -> bool:
    """Return whether a file seems to hold a Keras model."""
    from keras2torch_birnn.readers.containers import open_container

    try:
        open_container(path).close()
    except K2TError:
        return False
    return True


def refuse_missing(path: Path) -> None:
    """Refuse a file to read that does not exist.

    Raises:
        InvalidModelFileError: the error of opening it.
    """
    if not is_there(path):
        from keras2torch_birnn.readers.input_files import open_file

        with in_file(path):
            open_file(path).close()


def ends_as_out(path: Path | None) -> bool:
    """Return whether a path has a suffix of what ``k2t convert`` writes."""
    return path is not None and path.suffix.lower() in (".pt", ".pth", ".safetensors")


def is_there(path: Path) -> bool:
    """Return whether a path exists, or is the prefix of a checkpoint's files."""
    try:
        return os.path.lexists(path) or os.path.lexists(f"{path}.index")
    except ValueError:  # opening it will say so
        return False
