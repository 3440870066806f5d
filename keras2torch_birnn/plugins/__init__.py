"""Load plugins: the users' own files, and shipped ones by name.

A shipped plugin uses the public decorators only, as a user's would, and can be copied as a start.
It is never loaded by default: its class names are not Keras' own, so a file that uses one of them
may mean another class.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import zlib
from collections.abc import Iterable
from contextlib import suppress
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

from keras2torch_birnn.errors import (
    InvalidModelFileError,
    K2TError,
    PluginError,
    escape_controls,
    line_of,
    printable,
)
from keras2torch_birnn.schema.custom_layers import REGISTERED, SHIPPED
from keras2torch_birnn.torch_import import check_room

PluginName = str | os.PathLike[str]
"""Name of a shipped plugin, or path of a file."""

__all__ = ["SHIPPED", "PluginName", "load_plugins", "run_file"]


def load_plugins(names: Iterable[PluginName]) -> None:
    """Load plugins for the rest of the process: shipped ones by name, users' files by path.

    A name in ``SHIPPED`` means the shipped plugin; anything else is a path. A file is run again
    at every call, so that edits take effect.

    Raises:
        InvalidModelFileError: there is no such plugin; PluginError: the plugin fails.
    """
    for name in names:
        if isinstance(name, str) and name in SHIPPED:
            module = re.sub(r"\W", "_", name)
            _load(f"plugin {name}", f"{__name__}.{module}", None)
            REGISTERED.loaded[name] = True
            continue
        path = Path(name)
        if not _is_file(path):
            from keras2torch_birnn.suggestions import did_you_mean, explain_missing

            near = did_you_mean(name, SHIPPED) or explain_missing(path)
            raise InvalidModelFileError(
                f"plugin {escape_controls(name)} is not a file",
                f"name a Python file, or {' or '.join(SHIPPED)}" + (near and f"; {near}"),
            )
        before = REGISTERED.copy_tables()
        _load(f"plugin {escape_controls(name)}", _module_name(path.resolve()), path.resolve())
        shown, filled = os.fspath(name), REGISTERED.copy_tables() != before
        REGISTERED.loaded[shown] = filled or REGISTERED.loaded.get(shown, False)


def run_file(name: PluginName) -> ModuleType:
    """Run a user's file as plugins are run, and return the module that it makes.

    Raises:
        InvalidModelFileError: there is no such file; PluginError: it fails.
    """
    path = Path(name)
    if not _is_file(path):
        from keras2torch_birnn.suggestions import explain_missing

        raise InvalidModelFileError(
            f"{escape_controls(name)} is not a file", explain_missing(path) or "name a Python file"
        )
    module_name = _module_name(path.resolve())
    _load(escape_controls(name), module_name, path.resolve())
    return sys.modules[module_name]


def _is_file(path: Path) -> bool:
    """Tell whether a path is a file; an impossible name raises, as Python 3.14's own does not."""
    with suppress(FileNotFoundError, NotADirectoryError, ValueError):  # of a zero byte
        path.lstat()
    return path.is_file()


def _module_name(path: Path) -> str:
    stem = re.sub(r"\W", "_", path.stem, flags=re.ASCII)
    return f"k2t_plugin_{stem}_{zlib.crc32(os.fsencode(path)):08x}"


class _Loader(SourceFileLoader):
    """Loader that writes no ``__pycache__``."""

    def set_data(self, path: str, data: object, *, _mode: int = 0o666) -> None:
        """Write nothing."""


def _load(shown: str, module_name: str, path: Path | None) -> None:
    check_room()  # most plugins begin with the import of torch
    try:
        if path is None:
            importlib.import_module(module_name)
        else:
            _run(module_name, path)
    except K2TError:
        raise
    except (Exception, SystemExit) as error:
        text, line = str(error), line_of(error)
        if isinstance(error, SyntaxError):  # of binary data no line is known
            text, line = error.msg, f"line {error.lineno}" if error.lineno else "no Python"
        lines = f"{type(error).__name__}: {text}".splitlines()
        raise PluginError(
            f"{shown} fails: {printable(lines[0])} ({line})", "--debug shows the traceback"
        ) from error


def _run(module_name: str, path: Path) -> None:
    """Run a file as a module that stays in sys.modules: its functions look up names there later."""
    loader = _Loader(module_name, str(path))
    spec = spec_from_loader(module_name, loader)
    if spec is None:
        raise ImportError("no Python file")
    module = module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
