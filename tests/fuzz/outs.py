"""Mutants of OUT, and everything that k2t does with one: load, check, export, write back, compare.

Honest files of many families of layers are changed where a stranger could change them: in the JSON
of the spec, the tensors, the golden vectors, the texts beside them, and the bytes. Into texts goes
code that makes a file, the canary, if anything runs it.
"""

from __future__ import annotations

import copy
import io
import json
import runpy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import safetensors.torch
import torch
from commands import FIXTURES
from torch import Tensor, nn

import keras2torch_birnn as birnn
from fuzz.mutants import as_text, changed_tree, damaged, list_places
from fuzz.targets import Tally, attempt
from keras2torch_birnn.errors import K2TError
from keras2torch_birnn.exporting import exporter, find_target
from keras2torch_birnn.exporting.runtime_child import shown
from keras2torch_birnn.golden import origin
from keras2torch_birnn.saving.content import make_content, name_golden
from keras2torch_birnn.spec import Array

# Honest models: every family of layers, of all generations.
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
)
PLUGIN = FIXTURES / "plugins" / "tf.keras-2.15.0" / "center.h5"
EXPORTS = (".py", ".pt2", ".onnx")
# One mutant in so many goes through all steps if it is loaded, and through all exports. An export
# may take half a minute.
USED, EXPORTED, EXPORT_SECONDS = 4, 400, 120.0


@dataclass(frozen=True)
class Honest:
    """An OUT that k2t wrote, taken apart; ``source``: its Keras file."""

    source: Path
    spec: Any
    state: Mapping[str, Tensor]
    golden: Mapping[str, Any]


@dataclass(frozen=True)
class Mutant:
    """A changed file: its suffix and its bytes."""

    suffix: str
    data: bytes


def _copy(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    kind = torch.contiguous_format
    return {name: tensor.detach().clone(memory_format=kind) for name, tensor in tensors.items()}


def _take_apart(source: Path) -> Honest:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = birnn.convert(source)
    facts = origin(model)
    tensors = _copy({**model.state_dict(), **name_golden(facts.golden)})
    content = make_content(facts.spec_text, tensors, facts.golden, {})
    return Honest(source, json.loads(facts.spec_text), content["state_dict"], content["golden"])


@cache
def honest() -> tuple[Honest, ...]:
    """All of them; a plugin supplies a layer of the last one."""
    from plugin_files import USERS

    from keras2torch_birnn.plugins import load_plugins

    load_plugins([USERS])
    return tuple(_take_apart(path) for path in (*(FIXTURES / name for name in MODELS), PLUGIN))


# ---- changes ------------------------------------------------------------------------------------


def write_code(canary: Path, random: Random) -> str:
    """Write code that makes the canary, as it could stand in generated source."""
    touch = f"__import__('pathlib').Path({str(canary)!r}).touch()"
    forms = (
        "{}",
        "{} or x",
        "x; {}",
        "x\n{}\n",
        "x)\n        {}\n        (x",
        "'+{}+'",
        '"+{}+"',
        '"""\n{}\n"""',
        "{{{}}}",
        "mask={} #",
        "x={}, y",
        "f\\{}",
    )
    return random.choice(forms).replace("{}", touch)


def _put_code(spec: Any, code: str, random: Random) -> None:
    """Put code into the place of a text, of a key, or of any other leaf."""
    slots = list_places(spec)
    texts = [(owner, key) for owner, key in slots if isinstance(owner[key], str)]
    keys = [(owner, key) for owner, key in slots if isinstance(owner, dict)]
    match random.randrange(4):
        case 0 | 1:
            owner, key = random.choice(texts)
            owner[key] = code
        case 2:
            owner, key = random.choice(keys)
            owner[code] = owner.pop(key)
        case _:
            owner, key = random.choice(slots)
            owner[key] = random.choice((code, [code], {"name": code}, {code: 1}))


def _graphs(layer: Any) -> Iterator[Any]:
    if layer.get("graph"):
        yield layer["graph"]
        for inner in layer["graph"]["layers"]:
            yield from _graphs(inner)
    for part in layer.get("parts", {}).values():
        yield from _graphs(part)


_WORDS = "mask training initial_state keep_mask ignore_mask use_causal_mask class self x inputs"


def _change_call(spec: Any, code: str, random: Random) -> None:
    """Change a call: one more argument or keyword, another one, none, or one of another call."""
    calls = [call for graph in _graphs(spec["root"]) for call in graph["calls"]]
    one, other = random.choice(calls), random.choice(calls)
    ref = {"tensor": [other["layer"], random.choice((0, 0, 1, -1, 9)), random.choice((0, 0, 1, 7))]}
    values: tuple[Any, ...] = (
        *(None, True, 0, 7, 1.5, float("nan"), code, "x", [], {}),
        *(ref, [ref], [ref, None], {"x": ref}, {"tensor": ref}, {"tensor": [code, 0, 0]}),
        {"constant": [1, 2], "shape": [2], "kind": "int32"},
        {"constant": [code], "shape": [1], "kind": None},
        {"constant": [1], "shape": [10**9, 10**9], "kind": "float"},
    )
    value = copy.deepcopy(random.choice(values))
    match random.randrange(7):
        case 0:
            one["args"].append(value)
        case 1 if one["args"]:
            one["args"][random.randrange(len(one["args"]))] = value
        case 2:
            one["args"] = [value] * random.randint(0, 4)
        case 3 | 4:
            one["kwargs"][random.choice([*_WORDS.split(), code])] = value
        case 5:
            one["args"], other["args"] = other["args"], one["args"]
        case _:
            one["layer"], one["index"] = other["layer"], random.choice((0, 1, 2, -1, 10**12))


def _swap_layers(spec: Any, random: Random) -> None:
    """Exchange a part of one layer with that of another."""
    layers = [layer for graph in _graphs(spec["root"]) for layer in graph["layers"]]
    one, other = random.choice(layers), random.choice(layers)
    key = random.choice([key for key in one if key != "name"])
    one[key], other[key] = copy.deepcopy(other.get(key)), copy.deepcopy(one[key])


def _resize(spec: Any, random: Random) -> None:
    """Replace a number by a large or a small one, alone or at all its places."""
    slots = [(owner, key) for owner, key in list_places(spec) if type(owner[key]) is int]
    if not slots:
        return
    owner, key = random.choice(slots)
    old, new = owner[key], random.choice((0, 1, 2, 2**31 - 1, 10**6, 20_000_000, 10**18, 2**31))
    for place, name in slots if random.random() < 0.3 else [(owner, key)]:
        if place[name] == old:
            place[name] = new


_DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool),
)


def changed_tensor(tensor: Tensor, random: Random) -> Tensor:
    """Return another tensor: of other values, dtype, shape or size."""
    match random.randrange(8):
        case 0:
            return tensor.to(random.choice(_DTYPES))
        case 1:
            return tensor.reshape(-1)
        case 2:
            return tensor.unsqueeze(random.randint(0, tensor.dim())).contiguous()
        case 3 if tensor.dim():
            return tensor[: random.randrange(len(tensor) + 1)].clone()
        case 4 if tensor.dim() > 1:
            return tensor.transpose(0, 1).contiguous()
        case 5 if tensor.is_floating_point():
            return torch.full_like(tensor, random.choice((float("nan"), float("inf"), 1e38, 0.0)))
        case 6 if not tensor.is_floating_point() and tensor.dtype is not torch.bool:
            return torch.full_like(tensor, random.choice((-1, 10**6, 0, 127)))
        case _:
            return torch.zeros(random.choice(((), (0,), (3, 0), (2, 3), (1,) * 9)))


def _change_tensors(state: dict[str, Tensor], code: str, random: Random) -> None:
    name = random.choice(list(state)) if state else "x"
    match random.randrange(5):
        case 0 if state:
            del state[name]
        case 1 if state:
            state[random.choice((name + "_", name.upper(), code, "", "a.b.c"))] = state.pop(name)
        case 2:
            state[random.choice((code, name + ".x", "x"))] = torch.zeros(3)
        case _ if state:
            state[name] = changed_tensor(state[name], random)
        case _:
            state[code] = torch.zeros(())


def _change_golden(golden: dict[str, Any], code: str, random: Random) -> None:
    nan, inf = float("nan"), float("inf")
    values: tuple[Any, ...] = (None, True, 7, -1.0, nan, inf, code, [], [1.0], {}, "model")
    match random.randrange(4):
        case 0:
            golden[random.choice(("made_by", "rounding", "roundings", "x"))] = random.choice(values)
        case 1:
            kind = random.choice(("inputs", "outputs"))
            golden[kind] = random.choice((golden[kind][1:], golden[kind] * 2, []))
        case _:
            kind = random.choice(("inputs", "inputs", "outputs"))
            at = random.randrange(len(golden[kind]))
            golden[kind][at] = changed_tensor(golden[kind][at], random)


def mutant(one: Honest, canary: Path, random: Random) -> Mutant:
    """Change an honest OUT, and write it in either format."""
    code = write_code(canary, random)
    spec, state = copy.deepcopy(one.spec), dict(one.state)
    golden = {key: list(v) if isinstance(v, list) else v for key, v in one.golden.items()}
    requires_grad: Any = {}
    kind = random.random()
    if kind < 0.30:
        spec = changed_tree(spec, random)
    elif kind < 0.45:
        _put_code(spec, code, random)
    elif kind < 0.60:
        _change_call(spec, code, random)
    elif kind < 0.66:
        _swap_layers(spec, random)
    elif kind < 0.72:
        _resize(spec, random)
    elif kind < 0.80:
        _change_tensors(state, code, random)
    elif kind < 0.88:
        _change_golden(golden, code, random)
    elif kind < 0.90:
        name = random.choice(list(state)) if state else code
        requires_grad = {random.choice((name, code)): random.choice((False, True, 1, None, code))}
    text = as_text(spec, random) if kind < 0.72 else json.dumps(spec)
    suffix = random.choice((".pt", ".safetensors"))
    data = _write(suffix, text, state, golden, requires_grad)
    return Mutant(suffix, damaged(data, random) if kind >= 0.90 else data)


def _write(
    suffix: str, text: str, state: Mapping[str, Tensor], golden: dict[str, Any], requires_grad: Any
) -> bytes:
    if suffix == ".pt":
        content: dict[str, Any] = {"format": "keras2torch_birnn/1", "spec": text}
        content |= {"requires_grad": requires_grad} if requires_grad else {}
        sink = io.BytesIO()
        torch.save({**content, "state_dict": dict(state), "golden": golden}, sink)
        return sink.getvalue()
    named = {
        f"golden/{kind}/{i:06d}": tensor
        for kind in ("inputs", "outputs")
        for i, tensor in enumerate(golden[kind])
    }
    beside = {key: value for key, value in golden.items() if key not in ("inputs", "outputs")}
    texts = {"format": "keras2torch_birnn/1", "spec": text, "golden": json.dumps(beside)}
    texts |= {"requires_grad": json.dumps(requires_grad)} if requires_grad else {}
    return bytes(safetensors.torch.save(_copy({**state, **named}), metadata=texts))


# ---- what is done with one ----------------------------------------------------------------------


def run_here(path: Path, batches: Any) -> tuple[tuple[Array, ...] | str, ...]:
    """Run an export in this process, which has imported torch, instead of in a child."""
    target = find_target(path).load()
    try:
        if target.script is not None:
            session = runpy.run_path(str(target.script))["open_module"](path)
        else:
            session = target.open(path)
        return tuple(tuple(session(batch)) for batch in batches)
    except Exception as error:  # as the child does
        return (shown(error),) * len(batches)


def try_out(
    number: int,
    one: Honest,
    folder: Path,
    random: Random,
    tally: Tally,
    label: Mapping[str, Any],
) -> None:
    """Load one mutant, and do with it all that k2t does; what should not happen is a finding.

    See ``USED`` for how many of those that are loaded go on.
    """
    made = mutant(one, folder / "canary", random)
    path = folder / f"out{made.suffix}"
    path.write_bytes(made.data)
    model = attempt(partial(birnn.load, path), tally, label)
    _check_folder(folder, {path}, tally, {**label, "step": "load"})
    if model is not None and number % USED == 0:
        rest = Tally(findings=tally.findings)
        exports = EXPORTS if number % EXPORTED == 0 else EXPORTS[:1]
        with mock.patch.object(exporter, "run_exported", run_here):
            for step, (work, files) in _uses(path, one, model, folder, exports).items():
                about = {**label, "step": step}
                attempt(partial(use, work, files), rest, about, seconds=EXPORT_SECONDS)
                _check_folder(folder, {path, *files}, tally, about)
                for file in files:
                    file.unlink(missing_ok=True)
        tally.compared.update({f"then {outcome}": n for outcome, n in rest.outcomes.items()})
    path.unlink()


def _uses(
    path: Path, one: Honest, model: nn.Module, folder: Path, exports: Sequence[str]
) -> Mapping[str, tuple[Callable[[], object], tuple[Path, ...]]]:
    """List what is done with a file that was loaded: step -> function, files that it may write."""
    new, again = folder / f"new{one.source.suffix}", folder / "again.pt"
    steps: dict[str, tuple[Callable[[], object], tuple[Path, ...]]] = {
        "inspect": (partial(birnn.inspect, path), ()),
        "verify": (partial(birnn.verify, path), ()),
        "write back": (partial(birnn.write_back, model, one.source, new), (new,)),
        "save": (partial(birnn.save, model, again), (again,)),
    }
    for suffix in exports:
        target = folder / f"model{suffix}"
        files = (target, target.with_suffix(".safetensors")) if suffix == ".py" else (target,)
        steps[f"export {suffix}"] = partial(birnn.export, model, target), files
    if len(exports) > 1:
        against = partial(birnn.verify, one.source, path, against="reference")
        steps["verify with MODEL"] = against, ()
        steps["compare"] = partial(birnn.compare, one.source, model), ()
    return steps


def use(work: Callable[[], object], files: tuple[Path, ...] = ()) -> bool:
    """Do one thing; a refusal must leave no file, and not call itself a bug.

    Raises:
        AssertionError: it does.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            work()
    except K2TError as error:
        left = [file.name for file in files if file.exists()]
        assert not left, f"refused, but there is {left}"
        assert error.exit_code != 70, f"exit 70: {error}"
        raise
    return True


def _check_folder(folder: Path, known: set[Path], tally: Tally, label: Mapping[str, Any]) -> None:
    """Make a finding of every file that nobody asked for, the canary first of all."""
    for file in set(folder.iterdir()) - known:
        tally.findings.append({**label, "error": f"made the file {file.name}"})
        file.unlink()
