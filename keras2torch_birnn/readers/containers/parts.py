"""Find the whole model that a file is a part of, and the models in a folder. By names alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from keras2torch_birnn.errors import printable
from keras2torch_birnn.limits import MAX_LISTED_FILES

_SAVED_MODEL, _KERAS = "a part of a SavedModel", "a part of an unzipped .keras file"
_BACKUP = "a part of a folder of keras.callbacks.BackupAndRestore"
_HERE, _ABOVE = "give its folder, {here}", "give its folder, {above}"
# Names of a part; the file that makes the whole, from the part's folder; what the part is; what to
# give. ``\\1``: the first part of the name.
_PARTS: tuple[tuple[re.Pattern[str], str, str, str], ...] = tuple(
    (re.compile(pattern), beside, what, advice)
    for pattern, beside, what, advice in (
        (
            r"(variables(\.(index|data-\d{5}-of-\d{5}))?|checkpoint)",
            "../saved_model.pb",
            _SAVED_MODEL,
            _ABOVE,
        ),
        (
            r"variables|assets|(saved_model|keras_metadata|fingerprint)\.pb",
            "saved_model.pb",
            _SAVED_MODEL,
            _HERE,
        ),
        (
            r"(config|metadata)\.json|model(_\d{5})?\.weights\.(h5|json)",
            "metadata.json",
            _KERAS,
            _HERE,
        ),
        (
            r"(.+)_\d{5}\.weights\.h5",
            r"\1.weights.json",
            "one of several shards",
            r"give the index, \1.weights.json",
        ),
        (
            r"group\d+-shard\d+of\d+(\.bin)?|.+\.weights\.bin",
            "model.json",
            "a part of a TF.js model",
            "give model.json",
        ),
        (
            r"training_metadata\.json",
            "latest.weights.h5",
            _BACKUP,
            "give latest.weights.h5, and --config ARCH.json",
        ),
        (
            r"tf_model\.h5",
            "config.json",
            "the weights of a Transformers model, which its own Python code defines",
            "take its arrays with k2t.weights, for a torch model of your own",
        ),
    )
)
_MODEL = re.compile(r"(?i).*\.(keras|h5|hdf5|weights\.json)|model\.json")
_SHARD = re.compile(r"(.+)_\d{5}\.weights\.h5")
_DEPTH = 3  # of the folders that are looked into


def whole_of(path: Path) -> tuple[str, str] | None:
    """Describe a file that is part of a model, with advice; None if it is not."""
    path = path.absolute()
    for pattern, beside, what, advice in _PARTS:
        match = pattern.fullmatch(path.name)
        if match is None or not _is_there(path.parent / match.expand(beside)):
            continue
        advice = match.expand(advice) if "\\" in advice else advice
        here, above = path.parent.name, path.parent.parent.name
        return what, printable(advice.replace("{here}", here).replace("{above}", above))
    return None


def is_shard(path: Path) -> bool:
    """Tell whether a file is one of several beside the index that names them all."""
    match = _SHARD.fullmatch(path.name)
    return match is not None and _is_there(path.with_name(f"{match[1]}.weights.json"))


def _is_there(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def find_models(folder: Path) -> list[str]:
    """Return the names below a folder of what may be models, shortest paths first."""
    return list(_models_below(folder))


def _models_below(top: Path) -> Iterator[str]:
    waiting, left = [top], MAX_LISTED_FILES
    for _ in range(_DEPTH):
        following: list[Path] = []
        for folder in waiting:
            entries = _entries(folder, left)
            left -= len(entries)
            for one in entries:
                name = one.relative_to(top).as_posix()
                if one.is_dir() and not one.is_symlink():
                    whole = ("saved_model.pb", "metadata.json")
                    if any(_is_there(one / member) for member in whole):
                        yield f"{name}/"
                    else:
                        following.append(one)
                elif _MODEL.fullmatch(one.name) and not is_shard(one):
                    yield name
        waiting = following


def _entries(folder: Path, most: int) -> list[Path]:
    try:
        return sorted(islice(folder.iterdir(), most))
    except OSError:
        return []
