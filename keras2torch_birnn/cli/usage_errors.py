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
