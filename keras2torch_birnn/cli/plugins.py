"""``k2t plugin new``: options and printing."""

from __future__ import annotations

import typer

from keras2torch_birnn.cli.console import errors_as_lines, print_json, print_line, print_message
from keras2torch_birnn.cli.options import ConfigPath, Debug, Json, ModelPath, Plugins
from keras2torch_birnn.torch_import import loading_torch

plugin_commands = typer.Typer(
    help="Begin a plugin for layers that k2t has no converter for.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@plugin_commands.callback()
def _root() -> None:
    """Keep ``new`` a command of its own, though it is the only one."""


@plugin_commands.command()
def new(
    model: ModelPath,
    config: ConfigPath = None,
    plugin: Plugins = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Print a plugin with a stub for each class in MODEL without a converter.

    The stubs have the options and the names of the weights in MODEL. --plugin: of classes that
    have a converter already.

    Example: k2t plugin new model.h5 > my_layers.py
    """
    with errors_as_lines(debug):
        with loading_torch():
            from keras2torch_birnn.plugins.stubs import write_plugin

        made = write_plugin(model, config=config, plugins=plugin or ())
        for note in made.notes:
            print_message("note", note)
        if as_json:
            print_json({"plugin": made.text, "names": made.names, "notes": made.notes})
        else:
            print_line(made.text.removesuffix("\n"))
