"""Command line: ``main`` runs it, ``app`` is the typer application."""

from keras2torch_birnn.cli.commands import app, main

__all__ = ["app", "main"]
