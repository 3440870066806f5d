"""Parts of changed models, cut at any names: refused, or what the whole computes there.

Half of the mutants are files (``Files``): models with text in front or a loss at the end, and small
ones of every generation, with their configuration changed and the weights of the file. The other
half are random graphs (``Graphs``), which nothing refuses, with random weights. Names are those of
layers, sometimes damaged. Where the whole can be computed, a part is fed what the whole computed
where it starts, and must give what the whole computed where it ends.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from cut_fixtures import CUT, ROWS, fed
from graph_specs import inputs_of, model_json, spec_of
from random_graphs import draw_graph
from random_layers import SeededSource

from fuzz import mutants
from fuzz.targets import Architectures, HangError
from keras2torch_birnn.errors import K2TError, gather
from keras2torch_birnn.readers.config.architecture import Parsing, parse_architecture
from keras2torch_birnn.readers.config.generations import generation_of
from keras2torch_birnn.readers.config.parts import take_part
from keras2torch_birnn.readers.weights.slots import layers_by_owner, replace_layers
from keras2torch_birnn.reference import Trace, compute
from keras2torch_birnn.reference.sample_inputs import draw_inputs
from keras2torch_birnn.schema.shape_inference import infer_model
from keras2torch_birnn.spec import Array, Cut, ModelSpec, leaves

VERSIONS = {"2.3.1": "keras2", "2.4.0": "tf_keras", "2.15.0": "tf_keras", "3.15.1": "keras"}
ATOL, RTOL = 1e-6, 1e-5


class WrongPartError(Exception):
    """Error: a part that was accepted computes something else than the whole."""


def files_to_cut() -> list[Path]:
    """Return whole models in one file that must be cut."""
    return [CUT / name for name, row in ROWS.items() if not row["model"] and not row["config"]]


def draw_cut(names: Sequence[str], random: Random) -> Cut:
    """Draw one to three names; one in ten is damaged."""

    def some(count: int) -> tuple[str, ...]:
        return tuple(_damaged(random.choice(names), names, random) for _ in range(count))

    first, last = random.choice(((1, 0), (1, 0), (0, 1), (0, 1), (1, 1), (1, 1), (2, 0), (0, 2)))
    return Cut(some(first), some(last))


def _damaged(name: str, names: Sequence[str], random: Random) -> str:
    if random.random() > 0.1:
        return name
    other = random.choice(names)
    return random.choice(
        (
            name[:-1],
            f"{name}/{other}",
            f"{other}/{name}/{name}",
            f"/{name}",
            f"{name}/",
            name.rpartition("/")[2],
            name.partition("/")[0],
            f"{name}#1",
            "",
            "/",
            "\x00\u202e",
            name * 500,
        )
    )


def paths_in(tree: Any, prefix: str = "") -> list[str]:
    """Return the paths of all layers in a file's description, those of odd forms too."""
    config = tree.get("config") if isinstance(tree, dict) else None
    inner = config.get("layers") if isinstance(config, dict) else config
    found = []
    for one in inner if isinstance(inner, list) else ():
        name = mutants.name_of(one) if isinstance(one, dict) else None
        if isinstance(name, str):
            found += [f"{prefix}{name}", *paths_in(one, f"{prefix}{name}/")]
    return found


@dataclass(frozen=True)
class Files:
    """Files whose configuration is changed, or only cut.

    ``must_be_cut``: how many of them, the last ones, have text in front or a loss at the end.
    """

    models: Architectures
    must_be_cut: int
    compared: Counter[str]

    def run(self, random: Random) -> None:
        """Cut one mutant.

        Raises:
            K2TError: it is refused; WrongPartError: it computes something else.
        """
        last = len(self.models.trees)
        one = random.randrange(random.choice((0, last - self.must_be_cut)), last)
        tree = self.models.trees[one]
        names = paths_in(tree) or ["dense"]
        change = random.choices((None, mutants.rewired, mutants.changed_tree), (5, 3, 2))[0]
        text = mutants.as_text(change(tree, random), random) if change else json.dumps(tree)
        cut = draw_cut(names, random)
        part = self.models.survey(one, text, cut)
        try:
            whole = self.models.survey(one, text)
            inputs = draw_inputs(whole, steps=7, seed=3)
            trace = compute(whole, inputs)
        except (Exception, HangError):  # that of the campaign "architectures", not of this one
            self.compared["the whole is refused"] += 1
            return
        compare(whole, part, inputs, trace, self.compared)


@dataclass(frozen=True)
class Graphs:
    """Random graphs with random weights."""

    compared: Counter[str]

    def run(self, random: Random) -> None:
        """Cut one graph.

        Raises:
            K2TError: it is refused; WrongPartError: it computes something else.
        """
        version = random.choice(sorted(VERSIONS))
        graph = draw_graph(SeededSource(random.choice, VERSIONS[version]))
        tree = model_json(graph, version)
        cut = draw_cut(paths_in(tree), random)
        whole, inputs = spec_of(graph, version), inputs_of(graph)
        part = self._part(tree, version, whole, cut)
        try:
            trace = compute(whole, inputs)
        except ValueError:  # of the whole, not of the cut
            self.compared["the whole is refused"] += 1
            return
        compare(whole, part, inputs, trace, self.compared)

    @staticmethod
    def _part(tree: Any, version: str, whole: ModelSpec, cut: Cut) -> ModelSpec:
        """Parse and cut; the layers get weights and rules of the whole."""
        parsing = Parsing(generation_of(version))
        part, left, about = take_part(parse_architecture(tree, parsing), parsing, cut)
        known = {
            owner: one
            for owner, one in layers_by_owner(whole.root)
            if owner and one.graph is None and not one.class_name.startswith(("ops.", "InputLayer"))
        }
        part = infer_model(replace_layers(part, known), left.problems)
        if left.problems:
            raise gather(left.problems)
        return ModelSpec(part, parsing.generation, cut=about.cut)


def compare(
    whole: ModelSpec,
    part: ModelSpec,
    inputs: Sequence[Array],
    trace: Trace,
    compared: Counter[str],
) -> None:
    """Feed the part what the whole computed, and compare its outputs.

    Raises:
        WrongPartError: they differ.
    """
    given = fed(whole, part.cut, part, inputs, trace)
    if given is None or not all(name in trace.layers for name in part.cut.last):
        compared["what enters is not known"] += 1
        return
    ends = [one for name in part.cut.last for one in leaves(trace.layers[name])]
    wanted = ends if part.cut.last else trace.outputs
    try:
        got = compute(part, given).outputs
    except K2TError as error:
        raise WrongPartError(f"refused when it runs: {error}") from error
    equal = len(got) == len(wanted) and all(
        ours.shape == theirs.shape
        and np.allclose(ours, theirs, atol=ATOL, rtol=RTOL, equal_nan=True)
        for ours, theirs in zip(got, wanted, strict=True)
    )
    compared["equal" if equal else "DIFFERENT"] += 1
    if not equal:
        raise WrongPartError(f"differs: {part.cut.options}")
