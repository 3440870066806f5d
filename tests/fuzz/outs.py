"""Mutants of OUT, and what k2t does with one: load, check, export, write back, compare.

Honest files of many families of layers are changed where a stranger could change them: in texts of
JSON, tensors, golden vectors, names and bytes. Into texts goes code that makes a file, the canary,
if anything runs it.
"""

from __future__ import annotations

import copy
import io
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from fixture_files import FIXTURES
from plugin_files import USERS
from torch import Tensor, nn

import keras2torch_birnn as birnn
from fuzz.changes import EVIL, Json, changed_tree, damaged, list_places, marked, rewired
from fuzz.runs import Mutant, Tally
from fuzz.uses import exporting_here, use, write_code
from keras2torch_birnn.plugins import load_plugins

# Honest models: every family of layers, of all generations; of the last, a plugin has a layer.
MODELS = (
    "keras-1.2.2/mask_bi_gru_before_seq.h5",
    "keras-1.2.2/merge_first_cosine.h5",
    "keras-2.2.4/cells_bi.h5",
    "keras-2.2.4/arch_deep_speech_2d.h5",
    "keras-2.3.1/td_fixed_model.h5",
    "tf.keras-2.15.0/attention_masks.keras",
    "tf.keras-2.15.0/ops_tf_masks.keras",
    "tf.keras-2.15.0/around_normalization_given.h5",
    "tf.keras-2.15.0/heads_masks.keras",
    "tf.keras-2.15.0/conv_lstm_2d_mask_bi.h5",
    "tf.keras-2.15.0/graph_nested_dicts.keras",
    "keras-3.15.1/graph_seq2seq_bi.keras",
    "keras-3.15.1/heads_scores.keras",
    "keras-3.15.1/graph_passed_mask_state.keras",
    "keras-3.15.1/dtypes_input.keras",
    "keras-3.15.1/einsum.keras",
    "keras-3.15.1/cube_video.h5",
    "keras-3.15.1/cells_states.h5",
    "keras-3.15.1/arch_attention_by_hand.keras",
    "keras-3.15.1/conv.keras",
    "plugins/tf.keras-2.15.0/center.h5",
)
SUFFIXES = (".pt", ".safetensors")
# One mutant in so many goes through all steps if it is loaded, and through all exports. An export
# may take half a minute.
USED, EXPORTED, EXPORT_SECONDS = 4, 400, 120.0

# ---- changes ------------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """Turn the content of a file into a tree: tensors are arrays, texts of JSON are ``Json``."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, Tensor):
        return value.detach().float().numpy() if value.dtype is torch.bfloat16 else value.numpy()
    if isinstance(value, str) and value[:1] in ("{", "["):
        return Json(json=json.loads(value))
    return value


def _content(value: Any, random: Random) -> Any:
    """Turn a tree into the content of a file."""
    if isinstance(value, Json):
        return value.text(random)
    if isinstance(value, dict):
        return {key: _content(one, random) for key, one in value.items()}
    if isinstance(value, list):
        return [_content(one, random) for one in value]
    return torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value


def _trees(source: Path, folder: Path) -> dict[str, Any]:
    """Convert a model; the trees of its OUT by suffix."""
    model, trees = birnn.convert(source), {}
    for suffix in SUFFIXES:
        path = folder / f"honest{suffix}"
        birnn.save(model, path, overwrite=True)
        if suffix == ".pt":
            trees[suffix] = _plain(torch.load(path, weights_only=True))
        else:
            with safetensors.safe_open(path, "pt") as file:
                texts = file.metadata()
            tensors = safetensors.torch.load_file(path)
            trees[suffix] = _plain({"texts": texts, "tensors": tensors})
    return trees


def _changed(tree: Any, folder: Path, random: Random) -> Any:
    """Change the content: anything, its texts of JSON, or code and marks in them."""
    kind = random.random()
    if kind < 0.25:
        return changed_tree(tree, random)
    if kind < 0.6:
        return marked(tree, random.choice((EVIL, write_code(folder, random))), random)
    tree = copy.deepcopy(tree)
    held = [(owner, key) for owner, key in list_places(tree) if isinstance(owner[key], Json)]
    owner, key = random.choice(held)
    change = rewired if kind < 0.7 else changed_tree
    with suppress(AttributeError, TypeError):
        owner[key] = Json(json=change(owner[key]["json"], random))
    return tree


def _written(suffix: str, tree: Any, random: Random) -> bytes:
    """Write the file, or as much of it as the libraries write."""
    content = _content(tree, random)
    if suffix == ".pt":
        sink = io.BytesIO()
        torch.save(content, sink)
        return sink.getvalue()
    content = content if isinstance(content, dict) else {}
    parts = (content.get("texts"), content.get("tensors"))
    texts, tensors = (one if isinstance(one, dict) else {} for one in parts)
    kept = {str(n): one.contiguous() for n, one in tensors.items() if isinstance(one, Tensor)}
    return bytes(safetensors.torch.save(kept, {str(n): str(one) for n, one in texts.items()}))


# ---- what is done with one ----------------------------------------------------------------------


@contextmanager
def opened(folder: Path, _tally: Tally) -> Iterator[Callable[[Mutant], None]]:
    """Yield what loads one mutant, and does with it all that k2t does.

    See ``USED`` for how many of those that are loaded go on.
    """
    torch.set_num_threads(1)
    load_plugins([USERS])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        honest = [(FIXTURES / name, _trees(FIXTURES / name, folder)) for name in MODELS]
    with exporting_here():
        yield partial(_try_one, honest)


def _try_one(honest: list[tuple[Path, dict[str, Any]]], mutant: Mutant) -> None:
    random, folder = mutant.random, mutant.folder
    source, trees = honest[mutant.number % len(honest)]
    mutant.about["seed file"] = "/".join(source.parts[-2:])
    suffix = random.choice(SUFFIXES)
    tree = trees[suffix] if random.random() < 0.1 else _changed(trees[suffix], folder, random)
    data = _written(suffix, tree, random)
    path = folder / f"out{suffix}"
    path.write_bytes(damaged(data, random) if tree is trees[suffix] else data)
    model = mutant.attempt(partial(birnn.load, path))
    _check_folder(mutant, {path})
    if model is None or mutant.number % USED:
        return
    steps = _steps(path, source, model, folder, every=mutant.number % EXPORTED == 0)
    for step, (work, files) in steps.items():
        mutant.attempt(partial(use, work, files), step=step, seconds=EXPORT_SECONDS)
        _check_folder(mutant, {path, *files})
        for file in files:
            file.unlink(missing_ok=True)


def _steps(
    path: Path, source: Path, model: nn.Module, folder: Path, *, every: bool
) -> Mapping[str, tuple[Callable[[], object], tuple[Path, ...]]]:
    """List what is done with a file that was loaded: step -> function, files that it may write."""
    new, again = folder / f"new{source.suffix}", folder / "again.pt"
    steps: dict[str, tuple[Callable[[], object], tuple[Path, ...]]] = {
        "inspect": (partial(birnn.inspect, path), ()),
        "verify": (partial(birnn.verify, path), ()),
        "write back": (partial(birnn.write_back, model, source, new), (new,)),
        "save": (partial(birnn.save, model, again), (again,)),
    }
    for suffix in (".py", ".pt2", ".onnx") if every else (".py",):
        target = folder / f"model{suffix}"
        files = (target, target.with_suffix(".safetensors")) if suffix == ".py" else (target,)
        steps[f"export {suffix}"] = partial(birnn.export, model, target), files
    if every:
        against = partial(birnn.verify, source, path, against="reference")
        steps["verify with MODEL"] = against, ()
        steps["compare"] = partial(birnn.compare, source, model), ()
    return steps


def _check_folder(mutant: Mutant, known: set[Path]) -> None:
    """Make a finding of every file that nobody asked for, the canary first of all."""
    for file in set(mutant.folder.iterdir()) - known:
        mutant.find(f"made the file {file.name}")
        file.unlink()
