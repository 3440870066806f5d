"""Convert live models and the files of the same models, and compare: a child process.

``python live_model_worker.py LABEL NAME...``: builds the cases of these names (or ``every`` one) of
``fixtures/cases`` in the Keras of that label, and prints one JSON report a line. It also runs, by
hand, in an environment of an older Keras that has torch:
``PYTHONPATH=. python tests/support/live_model_worker.py tf.keras-2.15.0 every``.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from specs import describe

sys.path.insert(0, str(Path(__file__).parents[2] / "fixtures"))
import generate
import graphs
import torch
from live import ATOL, RTOL, largest_error

import keras2torch_birnn as k2t
from keras2torch_birnn.golden import origin
from keras2torch_birnn.layers.running import flat

KINDS = ("keras", "h5")


def main(label: str, *names: str) -> None:
    """Report on every case of these names."""
    answers = sys.stdout
    sys.stdout = sys.stderr  # Keras prints
    keras = generate.Keras(label)
    print("ready", file=answers, flush=True)
    cases = [
        case for case in generate.CASES if case["only"] is None or label.startswith(case["only"])
    ]
    for case in {case["name"]: case for case in cases}.values():
        if "every" in names or case["name"] in names:
            try:
                found = report(keras, case)
            except Exception as error:  # of Keras: it has no such layer
                found = {"skipped": generate.first_line(error)}
            print(json.dumps({"case": case["name"], **found}), file=answers, flush=True)


def built(keras: Any, case: dict[str, Any]) -> Any:
    """Build the model of a case, compiled and trained if the case says so; random weights."""
    keras.clear()
    if case["policy"]:
        keras.set_policy(case["policy"])
    try:
        model = keras.build(case)
    finally:
        if case["policy"]:
            keras.set_policy("float32")
    if case["compile"]:
        model.compile(optimizer="adam", loss="categorical_crossentropy")
        value = generate.inputs(case)[0]
        model.train_on_batch(value, np.eye(11, dtype="float32")[: len(value)])
    generate.freeze(model, case["freeze"])
    generate.random_weights(keras, model, case)
    return model


def report(keras: Any, case: dict[str, Any]) -> dict[str, Any]:
    """Convert a model live and from its files; say what differs, and what was left behind."""
    model = built(keras, case)
    values = generate.inputs(case)
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder, "tmp")
        own.mkdir()
        before = list(facts(keras, model))
        tempfile.tempdir = str(own)
        live = converted(model)
        tempfile.tempdir = None
        after = list(facts(keras, model))
        changed = [a for a, b in zip(before, after, strict=True) if a != b]
        found: dict[str, Any] = {
            "left": [path.name for path in own.iterdir()],
            "changed": [str(one)[:200] for one in changed],
            "live": live if isinstance(live, str) else "",
        }
        for kind in keras.kinds(KINDS):
            file = Path(folder, f"model.{kind}")
            try:
                keras.save(model, str(file), kind)
            except Exception as error:
                found[kind] = f"not saved: {generate.first_line(error)}"
                continue
            found[kind] = difference(live, converted(file))
            if kind == "h5":  # which has Keras' names
                found["weights"] = difference_of_weights(k2t.weights(model), k2t.weights(file))
        if not isinstance(live, str):
            found["error"] = error_of(keras, case, model, live, values)
    return found


def converted(source: Any) -> Any:
    """Return the converted model, or the refusal."""
    try:
        return k2t.convert(source)
    except k2t.K2TError as error:
        # Without the name of the source
        problems = (
            f"{type(p).__name__} {p.place}: {p.message}; {p.advice}" for p in error.problems
        )
        return "\n".join(problems)


def difference(one: Any, other: Any) -> str:
    """Say in what two converted models, or two refusals, differ."""
    if isinstance(one, str) or isinstance(other, str):
        return "" if one == other else f"{one!r:.500} against {other!r:.500}"
    ours, theirs = one.state_dict(), other.state_dict()
    if ours.keys() != theirs.keys():
        return f"names {sorted(ours.keys() ^ theirs.keys())}"
    for name, tensor in ours.items():
        again = theirs[name]
        same = tensor.dtype == again.dtype and tensor.shape == again.shape
        if not same or tensor.numpy().tobytes() != again.numpy().tobytes():
            return f"weight {name}"
    frees = [[p.requires_grad for p in model.parameters()] for model in (one, other)]
    if frees[0] != frees[1]:
        return "requires_grad"
    first, second = origin(one), origin(other)
    texts = (describe(first.spec), describe(second.spec))
    if texts[0] != texts[1]:
        return spec_difference(*texts)
    golden = [(*f.golden.inputs, *f.golden.outputs) for f in (first, second)]
    return "" if all(map(torch.equal, *golden)) else "golden vectors"


def difference_of_weights(live: dict[str, Any], stored: dict[str, Any]) -> str:
    """Say in what the arrays by name differ."""
    if live.keys() != stored.keys():
        return f"names {sorted(live.keys() ^ stored.keys())}"
    same = (
        live[n].dtype == x.dtype and live[n].tobytes() == x.tobytes() for n, x in stored.items()
    )
    return "" if all(same) else "values"


def spec_difference(one: str, other: str) -> str:
    at = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), 0)
    return f"spec: {one[max(at - 60, 0) : at + 60]} against {other[max(at - 60, 0) : at + 60]}"


def error_of(keras: Any, case: dict[str, Any], model: Any, live: Any, values: list[Any]) -> float:
    """Return the largest error of the converted model against Keras: 1 is 1e-5 + 1e-4 |y|."""
    if case["cudnn"]:
        return 0.0
    if "stateful" in case["tags"]:
        keras.reset(model)
        k2t.reset_states(live)
    worst = 0.0
    for value in values:
        wanted = keras.run(model, value)
        with torch.no_grad():
            given = [torch.from_numpy(np.asarray(x)) for x in graphs.flat(value)]
            got = [y.numpy() for y in flat(live(*given))]
        worst = max(worst, largest_error(got, wanted, ATOL, RTOL))
    return worst


def facts(keras: Any, model: Any) -> Iterator[Any]:
    """Yield everything about a model that converting it could change."""
    yield sorted(vars(model))
    yield str(model.get_config())
    yield [
        (layer.name, layer.trainable, layer.built, sorted(vars(layer))) for layer in every(model)
    ]
    yield [(str(w.name), bool(w.trainable)) for w in model.weights if hasattr(w, "trainable")]
    yield [np.asarray(value).tobytes() for value in model.get_weights()]
    held = getattr(getattr(model, "optimizer", None), "variables", ())
    yield [numbers(variable) for variable in (held() if callable(held) else held)]
    loss = getattr(model, "compiled_loss", None)
    yield (getattr(model, "compiled", None), getattr(loss, "built", None))
    for layer in every(model):
        yield [
            numbers(v) for v in graphs.flat(getattr(layer, "states", None) or []) if v is not None
        ]
        seed = getattr(layer, "seed_generator", None)
        yield numbers(seed.state) if seed is not None and hasattr(seed, "state") else None
    yield random.getstate()


def every(model: Any) -> list[Any]:
    """Return all layers, those inside others too."""
    if hasattr(model, "_flatten_layers"):
        return list(model._flatten_layers())
    return list(model.layers)


def numbers(variable: Any) -> bytes:
    value = variable.numpy() if hasattr(variable, "numpy") else variable
    return np.asarray(value).tobytes()


if __name__ == "__main__":
    main(*sys.argv[1:])
