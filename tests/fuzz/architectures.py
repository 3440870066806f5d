"""Changed architectures, read with the weights of the good model, and now and then built.

A good file is opened once and remembers every answer, so that a mutant is only its text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from fixture_files import FIXTURES

from fuzz.changes import as_text, changed_tree, rewired
from fuzz.forked import install
from fuzz.runs import Mutant, Tally
from keras2torch_birnn import inspection, readers
from keras2torch_birnn.conversion import build_model
from keras2torch_birnn.errors import K2TError, gather
from keras2torch_birnn.readers.containers import open_container

# One mutant in so many is built as well: a torch model takes longer than to read.
BUILT = 10


class _Replayed:
    """The store of a good file, questions remembered, with another text of the architecture."""

    def __init__(self, store: Any) -> None:
        self._store, self.text = store, ""
        self._known: dict[tuple[str, ...], tuple[Any, K2TError | None]] = {}

    def _remembered(self, what: str, *arguments: Any) -> Any:
        key = (what, *map(str, arguments))
        if key not in self._known:
            if len(self._known) > 20_000:
                self._known.clear()
            try:
                self._known[key] = (getattr(self._store, what)(*arguments), None)
            except K2TError as error:
                self._known[key] = (None, error)
        found, refusal = self._known[key]
        if refusal is not None:
            raise refusal
        return found

    def __getattr__(self, what: str) -> Any:
        return partial(self._remembered, what)

    def members(self, group: str) -> Any:
        return dict(self._remembered("members", group))

    def attributes(self, group: str, names: Sequence[str]) -> Any:
        found = dict(self._remembered("attributes", group, names))
        if group == "/" and "model_config" in found:
            found["model_config"] = self.text
        return found


def _survey(container: Any, text: str) -> Any:
    """Read a model as if ``text`` were its architecture, and look at it as ``k2t inspect``."""
    container.store.text = text
    if hasattr(container, "config_text"):
        container.config_text = text
    with mock.patch.object(readers, "opened", lambda _path: nullcontext(container)):
        spec, problems = readers.read_with_problems("mutant")
    inspection.layer_rows(spec, problems, {})
    if problems:
        raise gather(problems)
    return spec


@contextmanager
def opened(_folder: Path, _tally: Tally) -> Iterator[Callable[[Mutant], None]]:
    """Yield what reads one mutant, of small models that together hold every class there is."""
    install(3600)  # good files, open for the whole batch
    torch.set_num_threads(1)
    names = Path(__file__).with_name("architectures.txt").read_text(encoding="utf-8").split()
    models: list[tuple[str, Any, Any]] = []

    def try_one(mutant: Mutant) -> None:
        random = mutant.random
        mutant.about["seed file"], tree, container = random.choice(models)
        change = rewired if random.random() < 0.3 else changed_tree
        text = as_text(change(tree, random), random)

        def work() -> object:
            spec = _survey(container, text)
            return build_model(spec) if mutant.number % BUILT == 0 else spec

        mutant.attempt(work)

    with ExitStack() as closing:
        for name in names:
            container: Any = closing.enter_context(open_container(FIXTURES / name))
            root = container.store.attributes("/", ["model_config"])
            text = getattr(container, "config_text", None) or root["model_config"]
            container.store = _Replayed(container.store)
            models.append((name, json.loads(str(text)), container))
        yield try_one
