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

# The base of what the parser raises: typer has a parser of its own from some version on.
_PARSER_ERROR: type[Exception] = typer.BadParameter.__mro__[1]
_HELP = "NoArgsIsHelpError"
_ASKED = "keras2torch_birnn.as_json"


class CommandGroup(TyperGroup):
    """All commands; a wrong call of one of them is printed as JSON on stdout, if that is asked."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> Any:
        """Parse the options before the command."""
        as_json = "--json" in args
        with _usage_errors(as_json=as_json):
            context = super().make_context(info_name, args, parent, **extra)
        context.meta[_ASKED] = as_json
        return context

    def invoke(self, ctx: Any) -> Any:
        """Parse the command's own arguments, and run it."""
        with _usage_errors(as_json=ctx.meta[_ASKED]):
            return super().invoke(ctx)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command; of what is a function in Python alone, say so."""
        function = args[0].replace("-", "_")
        if args[0] not in self.commands and function in keras2torch_birnn.__all__:
            ctx.fail(f"No such command '{args[0]}'. In Python it is k2t.{function}")
        return super().resolve_command(ctx, args)


@contextmanager
def _usage_errors(*, as_json: bool) -> Iterator[None]:
    """Print an error of the parser as others are: one line, and one JSON object if that is asked.

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
        known = _as_error(found)
        told = known.found.endswith("?")  # what may be meant
        print_message("error", known.found if told else f"{known.found}; {known.advice}")
        if as_json:
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


def _as_error(error: Any) -> UsageError:
    command = "k2t" if error.ctx is None else error.ctx.command_path
    return UsageError(
        str(error.format_message()).removesuffix("."),
        f"{command} --help lists what is expected",
        place=_place(error),
    )


def _place(error: Any) -> str:
    """Return the option or argument that an error is about, if it is about one."""
    parameter = getattr(error, "param", None)
    if parameter is None:
        return str(getattr(error, "option_name", ""))
    options = [name for name in parameter.opts if name.startswith("-")]
    return str(options[0] if options else parameter.metavar or parameter.name)
