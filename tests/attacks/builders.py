"""Hostile copies of honest models, in both containers."""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Callable, Iterable
from itertools import cycle, product
from pathlib import Path
from typing import Any

import h5py
from commands import (
    STACK_H5,
    STACK_KERAS,
    changed_config,
    changed_h5,
    changed_keras,
    layer,
)
from harness import COMMANDS
from hdf5_files import datasets
from sampling import rest_thorough

Model = dict[str, Any]
Build = Callable[[Path], Path]
CONTAINERS = {".h5": STACK_H5, ".keras": STACK_KERAS}


def by_commands(attacks: Iterable[str]) -> list[tuple[str, str]]:
    """Return each attack with one of the commands in turn: both read a model by the same code."""
    return list(zip(attacks, cycle(COMMANDS), strict=False))


def in_containers(attacks: Iterable[str]) -> list[Any]:
    """Return each attack in each container with a command in turn; ``make test``: in one."""
    rows = [
        (place, turn, (name, (suffix, COMMANDS[(place + turn) % 2])))
        for place, name in enumerate(attacks)
        for turn, suffix in enumerate(CONTAINERS)
    ]
    kept = [row for place, turn, row in rows if turn == place % 2]
    return rest_thorough([row for *_, row in rows], kept)


def in_one_container(attacks: Iterable[str]) -> list[Any]:
    """Return each attack in one container with one of the commands; ``make test``: every second.

    What both containers hold as the same text is read by the same code.
    """
    ways = [*product(CONTAINERS, COMMANDS)]
    rows = [(name, ways[place % 4]) for place, name in enumerate(attacks)]
    return rest_thorough(rows, rows[::2])


def kernel_of(file: h5py.File) -> str:
    """The path of a kernel of shape (3, 20)."""
    arrays = datasets(file).items()
    return next(name for name, one in arrays if one.shape == (3, 20) and "opt" not in name)


def with_weights(suffix: str, change: Callable[[h5py.File, str], object]) -> Build:
    """A model whose HDF5 data ``change(file, path of a kernel)`` has edited."""

    def edit(file: h5py.File) -> None:
        change(file, kernel_of(file))

    def build(folder: Path) -> Path:
        target = folder / f"model{suffix}"
        if suffix == ".h5":
            return changed_h5(STACK_H5, target, edit)
        return changed_keras(STACK_KERAS, target, lambda _, file: edit(file))

    return build


def instead(make: Callable[[h5py.Group, str], object]) -> Callable[[h5py.File, str], None]:
    """``make(group, name)`` puts something in the place of the kernel."""

    def change(file: h5py.File, path: str) -> None:
        group, name = file[path].parent, path.rpartition("/")[2]
        del group[name]
        make(group, name)

    return change


def with_dense(suffix: str, change: Callable[[Model], object]) -> Build:
    """A model in which ``change`` has edited the entry of the layer ``dense``."""
    source = CONTAINERS[suffix]
    return lambda folder: changed_config(
        source, folder / f"model{suffix}", lambda model: change(layer(model, "dense"))
    )


def zip_link(name: str) -> zipfile.ZipInfo:
    """A member that says it is a symbolic link; its content is where it leads."""
    entry = zipfile.ZipInfo(name)
    entry.create_system, entry.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return entry
