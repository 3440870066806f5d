"""Errors of the command line itself, such as an unknown option: as JSON, too, with ``--json``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from keras2torch_birnn.errors import UsageError
from keras2torch_birnn.suggestions import advise_quotes

# The base of what the parser raises: typer has a parser of its own from some version on.
_PARSER_ERROR: type[Exception] = typer.BadParameter.__mro__[1]
_HELP = "NoArgsIsHelpError"
_GIVEN = "keras2torch_birnn.words"


class CommandGroup(TyperGroup):
    """All commands; a wrong call of one of them is printed as JSON on stdout, if that is asked."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> Any:
        """Parse the options before the command."""
        words = tuple(args)
        with _usage_errors(words):
            context = super().make_context(info_name, args, parent, **extra)
        context.meta[_GIVEN] = words
        return context

    def invoke(self, ctx: Any) -> Any:
        """Parse the command's own arguments, and run it."""
        with _usage_errors(ctx.meta[_GIVEN]):
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

    A call without arguments is one for the parser, which answers it with the help.
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
        told = known.message.endswith("?")  # what may be meant
        print_message("error", known.message if told else f"{known.message}; {known.advice}")
        if "--json" in words:
            print_line(Output.format(describe_failure(known)))
        raise typer.Exit(found.exit_code) from None


def refuse_empty(context: Any, arguments: Sequence[str]) -> None:
    """Refuse empty arguments, which would name the current folder.

    Raises:
        typer.BadParameter: the error of the parser.
    """
    for number, argument in enumerate(arguments, 1):
        if not argument:
            raise typer.BadParameter(
                f"argument {number} is empty (a variable that is not set?)", ctx=context
            )


def _as_error(error: Any, words: Sequence[str]) -> UsageError:
    option = str(getattr(error, "option_name", ""))
    if error.ctx is not None and option in _list_options(error.ctx):
        return UsageError(
            f"No such option: {option}", f"it follows a command: k2t COMMAND {option}", place=option
        )
    # Of an option without its value the parser does not tell the command.
    command = " ".join(("k2t", *words[:1])) if error.ctx is None else error.ctx.command_path
    return UsageError(
        str(error.format_message()).removesuffix("."),
        advise_quotes(words) or f"{command} --help lists what is expected",
        place=_place(error),
    )


def _list_options(context: Any) -> set[str]:
    """Return all options of the commands that a group has; of a command, which has none, none."""
    commands = getattr(context.command, "commands", {})
    return {name for one in commands.values() for option in one.params for name in option.opts}


def _place(error: Any) -> str:
    """Return the option or argument that an error is about, if it is about one."""
    parameter = getattr(error, "param", None)
    if parameter is None:
        return str(getattr(error, "option_name", ""))
    options = [name for name in parameter.opts if name.startswith("-")]
    return str(options[0] if options else parameter.metavar or parameter.name)
