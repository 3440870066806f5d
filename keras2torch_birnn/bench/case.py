"""Cases to time: a stack of Bidirectional layers with random weights, or a model from a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from keras2torch_birnn.merge_modes import MERGE_MODES
from keras2torch_birnn.schema import CELL_GATES, REQUIRED, SCHEMA
from keras2torch_birnn.spec import Array, Cut, Generation, LayerSpec, cut_at

# --rnn -> Keras' class
CLASSES: Mapping[str, str] = {"lstm": "LSTM", "gru": "GRU", "rnn": "SimpleRNN"}
MERGES = tuple(MERGE_MODES)
GATES = ("sigmoid", "hard_sigmoid_0.2", "hard_sigmoid_1/6")
RATE = 1.0
GENERATION = Generation("keras3", "3.15.1")


@dataclass(frozen=True)
class Stack:
    """Layers of one Bidirectional cell, merged alike, and the sizes of the input they get.

    ``masked``: rows are padded behind, to half of the steps on average. ``training``: not a call is
    timed but a step of training: forward, backward, and gradient descent by ``RATE`` on the mean of
    the squared outputs. ``dropout``: the rate of dropout of the input and of the state inside every
    layer, in training.
    """

    rnn: str
    merge: str
    layers: int
    batch: int
    time: int
    features: int
    units: int
    recurrent_activation: str = "sigmoid"
    reset_after: bool = True
    masked: bool = False
    training: bool = False
    dropout: float = 0.0

    @property
    def label(self) -> str:
        """Name of the case in the table."""
        gate = "" if self.recurrent_activation == "sigmoid" else f" {self.recurrent_activation}"
        before = " before" if self.rnn == "gru" and not self.reset_after else ""
        mask = " masked" if self.masked else ""
        size = f"{self.batch}x{self.time}x{self.features}x{self.units}"
        step = " training" if self.training else ""
        dropout = f" dropout {self.dropout}" if self.dropout else ""
        return f"{self.rnn}{before}{gate} {self.merge}{mask} {size}{step}{dropout}"

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of one forward call without a mask."""
        width, total = self.features, 0
        for _ in range(self.layers):
            total += 2 * CELL_GATES[CLASSES[self.rnn]] * self.units * (width + self.units)
            width = self.units * (2 if self.merge == "concat" else 1)
        return total * self.batch * self.time


@dataclass(frozen=True)
class Model:
    """A Keras file. ``package``: the Keras of today that computes what the file's own did.

    ``first``, ``last``: the layers at which it is cut, see ``spec.Cut``.
    """

    path: str
    config: str | None = None
    package: str = "keras"
    batch: int = 1
    time: int = 50
    first: Sequence[str] = ()
    last: Sequence[str] = ()

    @property
    def cut(self) -> Cut:
        """Where the file's model is cut."""
        return cut_at(self.first, self.last)

    def convert(self) -> Any:
        """Convert the file's model, a ``torch.nn.Module``."""
        from keras2torch_birnn.conversion import convert

        return convert(self.path, config=self.config, from_layer=self.first, to_layer=self.last)

    @property
    def label(self) -> str:
        """Name of the case in the table."""
        return " ".join(
            filter(None, (Path(self.path).name, self.cut.options, f"batch {self.batch}"))
        )


Case = Stack | Model


def half(stack: Stack, features: int, rng: np.random.Generator, *, back: bool) -> LayerSpec:
    """Make one direction with random weights, biases included."""
    class_name = CLASSES[stack.rnn]
    width = CELL_GATES[class_name] * stack.units
    config: dict[str, Any] = {
        k: o.default for k, o in SCHEMA[class_name].options.items() if o.default is not REQUIRED
    }
    config |= {"units": stack.units, "activation": "tanh", "return_sequences": True}
    config["go_backwards"] = back
    config["dropout"] = config["recurrent_dropout"] = stack.dropout
    if class_name != "SimpleRNN":
        config["recurrent_activation"] = stack.recurrent_activation
    two = class_name == "GRU" and stack.reset_after
    if class_name == "GRU":
        config["reset_after"] = stack.reset_after
    shapes = {
        "kernel": (features, width),
        "recurrent_kernel": (stack.units, width),
        "bias": (2, width) if two else (width,),
    }
    scale = stack.units**-0.5
    weights = {n: (rng.normal(size=s) * scale).astype("f4") for n, s in shapes.items()}
    name, semantics = "backward" if back else "forward", {"masked_output": "zeros"}
    return LayerSpec(class_name, name, config, weights, semantics=semantics)


def layers_of(stack: Stack) -> tuple[LayerSpec, ...]:
    """Make the layers, each a Bidirectional; the weights are equal in every process."""
    rng, width, layers = np.random.default_rng(0), stack.features, []
    for index in range(stack.layers):
        forward, backward = (half(stack, width, rng, back=back) for back in (False, True))
        parts = {"forward_layer": forward, "backward_layer": backward}
        layers.append(
            LayerSpec("Bidirectional", f"bi_{index}", {"merge_mode": stack.merge}, {}, parts)
        )
        width = stack.units * (2 if stack.merge == "concat" else 1)
    return tuple(layers)


def lengths_of(stack: Stack) -> Array | None:
    """Return the unmasked steps of each row, half of them on average; None without a mask."""
    if not stack.masked:
        return None
    spaced = stack.time * (0.25 + 0.5 * (np.arange(stack.batch) + 0.5) / stack.batch)
    return np.maximum(1, spaced.round()).astype(np.int64)


def mask_of(stack: Stack) -> Array | None:
    """Return the mask (B, T), true at unmasked steps."""
    lengths = lengths_of(stack)
    return None if lengths is None else np.arange(stack.time) < lengths[:, None]


def input_of(stack: Stack) -> Array:
    """Return the input (B, T, F), zero at masked steps."""
    size = (stack.batch, stack.time, stack.features)
    x: Array = np.random.default_rng(1).normal(size=size).astype("f4")
    mask = mask_of(stack)
    return x if mask is None else np.where(mask[..., None], x, np.float32(0))


def exact(stack: Stack) -> Array:
    """Compute the stack's output in float64 by the reference; zeros at masked steps."""
    from keras2torch_birnn.reference import EQUATIONS
    from keras2torch_birnn.reference.context import Context

    context = Context(GENERATION, np.float64, EQUATIONS, {}, {}, None)
    x, mask = input_of(stack).astype("f8"), mask_of(stack)
    for layer in layers_of(stack):
        x, _ = EQUATIONS["Bidirectional"](layer, x, mask, context)
    return x


@dataclass(frozen=True)
class Prepared:
    """One implementation of a case, ready to be timed.

    ``run``: what is timed. ``outputs``: what it computes, to be compared; of training, what the
    stack gives after one step. ``runs``: names and versions of what runs. ``way``: how the
    recurrent layers run, such as "loop".
    """

    run: Callable[[], Any]
    outputs: Callable[[], Any]
    runs: str
    way: str = ""


# ---- between processes ---------------------------------------------------------------------------


def to_json(case: Case) -> str:
    """Write a case as text."""
    return json.dumps({"kind": type(case).__name__, **asdict(case)})


def from_json(text: str) -> Case:
    """Read a case from text."""
    fields = json.loads(text)
    if fields.pop("kind") == "Stack":
        return Stack(**fields)
    ends = {name: tuple(fields[name]) for name in ("first", "last")}  # JSON has lists only
    return Model(**{**fields, **ends})


def flat(outputs: Any) -> list[Array]:
    """Return the arrays of an output, of any library."""
    if hasattr(outputs, "cpu"):
        outputs = outputs.detach().cpu().numpy()
    if isinstance(outputs, Mapping):
        outputs = list(outputs.values())
    if isinstance(outputs, Sequence):
        return [array for part in outputs for array in flat(part)]
    return [np.asarray(outputs)]
