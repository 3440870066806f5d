"""``k2t plugin new``: options and printing."""

from __future__ import annotations

import typer

from keras2torch_birnn.cli.console import Output
from keras2torch_birnn.cli.options import ConfigPath, ModelPath, Plugins, with_common_options
from keras2torch_birnn.torch_import import loading_torch


def new(
    output: Output, model: ModelPath, config: ConfigPath = None, plugin: Plugins = None
) -> None:
    """Print a plugin with a stub for each class without a converter.

    The stubs have the options and the names of the weights in MODEL. --plugin: of classes that
    have a converter already.

    Example: k2t plugin new model.h5 > my_layers.py
    """
    with loading_torch():
        from keras2torch_birnn.plugins.stubs import write_plugin

    made = write_plugin(model, config=config, plugins=plugin or ())
    output.print_notes(made.notes)
    data = {"plugin": made.text, "names": made.names, "notes": made.notes}
    output.print_result(data, made.text.removesuffix("\n").split("\n"))


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


plugin_commands.command()(with_common_options(new))
