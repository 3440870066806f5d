"""Help of the commands: names as they are typed, as wide as the terminal up to 120 columns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from typer.core import TyperCommand

from keras2torch_birnn.cli.usage_errors import refuse_empty

# For every command.
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 120}


class Command(TyperCommand):
    """A command whose help shows no types: each option and argument has a name for its value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments; refuse empty ones, which are variables that a shell lacks."""
        refuse_empty(ctx, args)
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return what follows the command's name in the line of its usage."""
        names = [_name(one) for one in _arguments(self, ctx)]
        return [str(self.options_metavar), *names]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write what each argument and option is for."""
        arguments = [(_name(one), one.help or "") for one in _arguments(self, ctx)]
        parameters: list[Any] = [*self.get_params(ctx)]
        options = [
            (_options(one), _with_default(one))
            for one in parameters
            if one.param_type_name == "option" and not one.hidden
        ]
        for title, rows in (("Arguments", arguments), ("Options", options)):
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


def _arguments(command: Any, ctx: Any) -> Iterator[Any]:
    yield from (one for one in command.get_params(ctx) if one.param_type_name == "argument")


def _name(argument: Any) -> str:
    return str(argument.metavar) if argument.required else f"[{argument.metavar}]"


def _options(option: Any) -> str:
    """Write the names of an option, the short one first, and of its value."""
    names = ", ".join(sorted(option.opts, key=len))
    if option.secondary_opts:
        names += f" / {', '.join(option.secondary_opts)}"
    return f"{names} {option.metavar}" if option.metavar else names


def _with_default(option: Any) -> str:
    """Write what an option is for, and what it is if it is not given."""
    default = option.default
    shown = str(option.show_default) if isinstance(option.show_default, str) else ""
    if not shown and not isinstance(default, bool) and isinstance(default, int | float | str):
        shown = str(default)
    return f"{option.help or ''}  [default: {shown}]" if shown else option.help or ""
