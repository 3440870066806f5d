"""PyTorch ports of five fixtures, written by hand as people write them, with mistakes to switch on.

Nothing here comes from the package but the arrays of the file: the ports are the other side.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from specs import FIXTURES
from torch import Tensor, nn
from torch.nn import functional

from keras2torch_birnn.readers import read_model
from keras2torch_birnn.spec import LayerSpec

STACK = FIXTURES / "keras-3.15.1/stack_same_class.h5"
HARD = FIXTURES / "keras-2.2.4/hard_sigmoid_stack.h5"
SPEECH = FIXTURES / "tf.keras-2.15.0/arch_deep_speech.keras"
SENTIMENT = FIXTURES / "tf.keras-2.4.0/arch_sentiment.h5"
NORMS = FIXTURES / "keras-3.15.1/layernorm.keras"

Arrays = Mapping[str, np.ndarray[Any, Any]]


@cache
def arrays_of(file: Path) -> dict[str, Arrays]:
    """Return the weights by layer; a direction is ``layer/forward`` or ``layer/backward``."""
    found: dict[str, Arrays] = {}

    def note(name: str, layer: LayerSpec) -> None:
        if layer.weights:
            found[name] = layer.weights
        for part, inner in layer.parts.items():
            note(f"{name}/{part.removesuffix('_layer')}".removesuffix("/layer"), inner)

    for layer in read_model(file).graph.layers:
        note(layer.name, layer)
    return found


def tensor(array: Any) -> Tensor:
    return torch.tensor(np.asarray(array), dtype=torch.float32)


def rows(matrix: Tensor, order: str, usual: str) -> Tensor:
    """Put the blocks of rows, which are the gates ``usual``, into another order."""
    blocks = dict(zip(usual, matrix.chunk(len(usual)), strict=True))
    return torch.cat([blocks[gate] for gate in order])


def fill(parameter: Tensor, values: Tensor) -> None:
    with torch.no_grad():
        parameter.copy_(values)


def load_rnn(
    module: nn.RNNBase,
    forward: Arrays,
    backward: Arrays | None,
    mistakes: frozenset[str] = frozenset(),
) -> None:
    """Load torch's LSTM (gates i f g o), GRU (Keras z r h, torch r z n) or RNN."""
    gates = {nn.LSTM: ("ifgo", "ifgo"), nn.GRU: ("zrn", "rzn")}.get(type(module), ("a", "a"))
    keras, wanted = gates
    for mistake in mistakes:
        if mistake.startswith("gates "):
            wanted = mistake.removeprefix("gates ")
    if "directions exchanged" in mistakes:
        forward, backward = backward or forward, forward
    if "halves alike" in mistakes:
        backward = forward
    for suffix, arrays in (("", forward), ("_reverse", backward)):
        if arrays is None:
            continue

        def put(name: str, values: Tensor, suffix: str = suffix) -> None:
            fill(getattr(module, f"{name}_l0{suffix}"), values)

        kernel, recurrent = tensor(arrays["kernel"]), tensor(arrays["recurrent_kernel"])
        w_ih, w_hh = kernel.T, recurrent.T
        if "reshaped" in mistakes:
            w_ih = kernel.reshape(kernel.T.shape)
        if "recurrent not transposed" in mistakes:
            w_hh = recurrent
        alone = "only hh" in mistakes
        put("weight_ih", rows(w_ih, gates[1] if alone else wanted, keras))
        put("weight_hh", rows(w_hh, wanted, keras))
        bias = tensor(arrays["bias"]).reshape(-1, len(w_hh))
        order = gates[1] if alone else wanted
        first = rows(bias[0], order, keras)
        second = rows(bias[1], order, keras) if len(bias) > 1 else torch.zeros_like(first)
        if "bias missing" in mistakes or (suffix and "backward bias missing" in mistakes):
            first, second = torch.zeros_like(first), torch.zeros_like(second)
        if "bias doubled" in mistakes:
            second = first
        if "bias split" in mistakes:  # the same function
            first, second = first / 2, first / 2  # exact
        if "biases exchanged" in mistakes:
            first, second = second, first
        if "recurrent bias missing" in mistakes:
            second = torch.zeros_like(second)
        if "biases joined" in mistakes:
            first, second = first + second, torch.zeros_like(second)
        put("bias_ih", first)
        put("bias_hh", second)


def load_linear(module: nn.Linear, arrays: Arrays, *, bias: bool = True) -> None:
    fill(module.weight, tensor(arrays["kernel"]).T)
    fill(module.bias, tensor(arrays["bias"]) if bias else torch.zeros(len(module.bias)))


class Stack(nn.Module):
    """BiLSTM, BiSimpleRNN, Dense, BiSimpleRNN (sum, last), Dense, by torch's modules."""

    source = STACK

    def __init__(self, *mistakes: str) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.mistakes = made = frozenset(mistakes)
        w = arrays_of(STACK)
        first = "batch_first missing" not in made
        self.lstm = nn.LSTM(3, 5, bidirectional=True, batch_first=first)
        self.rnn = nn.RNN(
            10,
            7,
            bidirectional=True,
            batch_first=True,
            nonlinearity="relu" if "rnn relu" in made else "tanh",
        )
        self.mid = nn.Linear(14, 11)
        self.last = nn.RNN(11, 13, bidirectional=True, batch_first=True)
        self.out = nn.Linear(13, 17)
        load_rnn(self.lstm, w["bidirectional/forward"], w["bidirectional/backward"], made)
        own = frozenset(("recurrent not transposed",)) & frozenset(
            m.removeprefix("rnn ") for m in made
        )
        load_rnn(self.rnn, w["bidirectional_1/forward"], w["bidirectional_1/backward"], own)
        load_rnn(self.last, w["bidirectional_2/forward"], w["bidirectional_2/backward"])
        if "mid not loaded" not in made:
            load_linear(self.mid, w["dense"], bias="mid bias missing" not in made)
        load_linear(self.out, w["dense_1"])

    def forward(self, x: Tensor) -> Tensor:
        made = self.mistakes
        x, _ = self.lstm(x)
        x, _ = self.rnn(x)
        x = self.mid(x)
        if "mid relu" in made:
            x = functional.relu(x)
        y, h = self.last(x)
        if "last out[:, -1]" in made:
            one, other = y[:, -1].chunk(2, dim=-1)
        elif "last out[:, 0]" in made:
            one, other = y[:, 0].chunk(2, dim=-1)
        else:
            one, other = h[0], h[1]
        if "merge ave" in made:
            merged = (one + other) / 2
        elif "merge mul" in made:
            merged = one * other
        else:
            merged = one + other
        merged = self.out(merged)
        return merged.softmax(dim=-1) if "softmax at the end" in made else merged


def hard_sigmoid(x: Tensor, *, torchs: bool) -> Tensor:
    return functional.hardsigmoid(x) if torchs else torch.clamp(0.2 * x + 0.5, 0, 1)


class OwnLSTM(nn.Module):
    """One direction with Keras' own layout and gate names."""

    def __init__(self, arrays: Arrays, mistakes: frozenset[str], *, backward: bool) -> None:
        super().__init__()
        self.w = nn.Parameter(tensor(arrays["kernel"]))
        self.u = nn.Parameter(tensor(arrays["recurrent_kernel"]))
        self.b = nn.Parameter(tensor(arrays["bias"]))
        self.mistakes, self.backward = mistakes, backward

    def forward(self, x: Tensor) -> Tensor:
        made = self.mistakes
        h = c = x.new_zeros(len(x), self.u.shape[0])
        outputs = []
        steps = range(x.shape[1])
        for t in reversed(steps) if self.backward else steps:
            z = x[:, t] @ self.w + h @ self.u + self.b
            if "lstm bias doubled" in made:
                z = z + self.b
            i, f, g, o = z.chunk(4, dim=-1)
            if "lstm ifog" in made:
                g, o = o, g
            if "lstm sigmoid" in made:
                i, f, o = i.sigmoid(), f.sigmoid(), o.sigmoid()
            else:
                torchs = "lstm slope" in made
                i, f, o = (hard_sigmoid(gate, torchs=torchs) for gate in (i, f, o))
            c = f * c + i * g.tanh()
            h = o * c.tanh()
            outputs.append(h)
        if self.backward and "not turned" not in made:
            outputs = outputs[::-1]
        return torch.stack(outputs, dim=1)


class OwnGRU(nn.Module):
    """A GRU that resets before the product, by Linear modules of all gates."""

    def __init__(self, arrays: Arrays, mistakes: frozenset[str]) -> None:
        super().__init__()
        kernel, recurrent = tensor(arrays["kernel"]), tensor(arrays["recurrent_kernel"])
        self.units = recurrent.shape[0]
        self.x = nn.Linear(*kernel.shape)
        self.h = nn.Linear(*recurrent.shape, bias=False)
        fill(self.x.weight, kernel.T)
        fill(self.x.bias, tensor(arrays["bias"]))
        fill(self.h.weight, recurrent.T)
        if "gru hh wrong" in mistakes:
            fill(self.h.weight, rows(recurrent.T, "rzn", "zrn"))
        self.mistakes = mistakes

    def forward(self, x: Tensor) -> Tensor:
        made = self.mistakes
        h = x.new_zeros(len(x), self.units)
        u_z, u_r, u_h = self.h.weight.chunk(3)
        out = x.new_zeros(len(x), x.shape[1], self.units)
        for t in range(x.shape[1]):
            z, r, n = self.x(x[:, t]).chunk(3, dim=-1)
            torchs = "gru slope" in made
            z = hard_sigmoid(z + h @ u_z.T, torchs=torchs)
            r = hard_sigmoid(r + h @ u_r.T, torchs=torchs)
            n = n + (r * (h @ u_h.T) if "gru reset after" in made else (r * h) @ u_h.T)
            n = n.relu() if "gru relu" in made else n.tanh()
            h = (1 - z) * h + z * n if "gru z" in made else z * h + (1 - z) * n
            out[:, t] = h
        return out


class Hard(nn.Module):
    """BiLSTM and GRU (reset before) with hard_sigmoid, in loops of one's own."""

    source = HARD

    def __init__(self, *mistakes: str) -> None:
        super().__init__()
        self.mistakes = made = frozenset(mistakes)
        w = arrays_of(HARD)
        self.forwards = OwnLSTM(w["bidirectional_1/forward"], made, backward=False)
        self.backwards = OwnLSTM(w["bidirectional_1/backward"], made, backward=True)
        self.gru = OwnGRU(w["gru_1"], made)
        self.weight = nn.Parameter(tensor(w["dense_1"]["kernel"]))
        self.bias = nn.Parameter(tensor(w["dense_1"]["bias"]))

    def forward(self, x: Tensor) -> Tensor:
        made = self.mistakes
        both = [self.forwards(x), self.backwards(x)]
        if "backward first" in made:
            both = both[::-1]
        x = self.gru(torch.cat(both, dim=-1))
        x = functional.linear(x, self.weight.T, None if "dense bias" in made else self.bias)
        return hard_sigmoid(x, torchs="dense slope" in made)


class Speech(nn.Module):
    """BatchNorm, Conv1d, three BiGRUs by sum, a Dense and a softmax."""

    source = SPEECH

    def __init__(self, *mistakes: str) -> None:
        super().__init__()
        self.mistakes = made = frozenset(mistakes)
        w = arrays_of(SPEECH)
        self.norms = nn.ModuleList()
        for number, size in enumerate((13, 11, 7, 7, 7)):
            arrays = w["batch_normalization" + (f"_{number}" if number else "")]
            norm = nn.BatchNorm1d(size, eps=1e-5 if f"eps {number}" in made else 1e-3)
            names = ["gamma", "beta", "moving_mean", "moving_variance"]
            if f"gamma and beta {number}" in made:
                names[:2] = names[1::-1]
            fill(norm.weight, tensor(arrays[names[0]]))
            fill(norm.bias, tensor(arrays[names[1]]))
            if f"no statistics {number}" not in made:
                fill(norm.running_mean, tensor(arrays[names[2]]))
                fill(norm.running_var, tensor(arrays[names[3]]))
            self.norms.append(norm)
        self.conv = nn.Conv1d(13, 11, 3, stride=2, padding=1 if "conv same" in made else 0)
        kernel = tensor(w["conv1d"]["kernel"]).permute(2, 1, 0)
        fill(self.conv.weight, kernel.flip(2) if "conv reversed" in made else kernel)
        fill(self.conv.bias, tensor(w["conv1d"]["bias"]))
        self.grus = nn.ModuleList()
        names = ["bidirectional", "bidirectional_1", "bidirectional_2"]
        if "layers exchanged" in made:
            names[1:] = names[:0:-1]
        for number, (name, width) in enumerate(zip(names, (11, 7, 7), strict=True)):
            gru = nn.GRU(width, 7, bidirectional=True, batch_first=True)
            own = made if number == 1 else frozenset()
            load_rnn(gru, w[f"{name}/forward"], w[f"{name}/backward"], own)
            self.grus.append(gru)
        self.out = nn.Linear(7, 5)
        load_linear(self.out, w["time_distributed"])

    def norm(self, number: int, x: Tensor) -> Tensor:
        normed: Tensor = self.norms[number](x.transpose(1, 2)).transpose(1, 2)
        return normed

    def forward(self, x: Tensor) -> Tensor:
        made = self.mistakes
        x = self.conv(self.norm(0, x).transpose(1, 2)).transpose(1, 2)
        if not made & {"conv relu missing", "conv relu late"}:
            x = x.relu()
        x = self.norm(1, x)
        x = x.relu() if "conv relu late" in made else x
        for number, gru in enumerate(self.grus):
            one, other = gru(x)[0].chunk(2, dim=-1)
            x = one + other
            if number == 1 and "merge ave" in made:
                x = x / 2
            if not (number == 0 and "norm left out" in made):
                x = self.norm(number + 2, x)
        x = self.out(x)
        if "softmax axis" in made:
            return x.softmax(dim=1)
        if "log softmax" in made:
            return x.log_softmax(dim=-1)
        return x.softmax(dim=-1)


class MaskedLSTM(nn.Module):
    """Both directions by LSTMCell, with a mask; gives all steps or the last states."""

    def __init__(self, forward: Arrays, backward: Arrays) -> None:
        super().__init__()
        features, units = forward["kernel"].shape[0], forward["recurrent_kernel"].shape[0]
        self.cells = nn.ModuleList(nn.LSTMCell(features, units) for _ in range(2))
        for cell, arrays in zip(self.cells, (forward, backward), strict=True):
            fill(cell.weight_ih, tensor(arrays["kernel"]).T)
            fill(cell.weight_hh, tensor(arrays["recurrent_kernel"]).T)
            fill(cell.bias_ih, tensor(arrays["bias"]))
            fill(cell.bias_hh, torch.zeros(4 * units))
        self.units = units

    def forward(self, x: Tensor, mask: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        sequences, states, cells = [], [], []
        for number, cell in enumerate(self.cells):
            h = c = torch.zeros(len(x), self.units)
            outputs: list[Tensor] = []
            steps = list(range(x.shape[1]))
            for t in steps[::-1] if number else steps:
                new_h, new_c = cell(x[:, t], (h, c))
                valid = mask[:, t, None]
                h, c = torch.where(valid, new_h, h), torch.where(valid, new_c, c)
                outputs.append(torch.where(valid, new_h, 0))
            sequences.append(torch.stack(outputs[::-1] if number else outputs, dim=1))
            states.append(h)
            cells.append(c)
        return sequences, states, cells


class Sentiment(nn.Module):
    """Masked Embedding, BiLSTM of all steps, BiLSTM of the last, Dense relu, Dense sigmoid."""

    source = SENTIMENT

    def __init__(self, *mistakes: str) -> None:
        super().__init__()
        self.mistakes = frozenset(mistakes)
        w = arrays_of(SENTIMENT)
        self.words = nn.Embedding.from_pretrained(tensor(w["embedding"]["embeddings"]))
        self.first = MaskedLSTM(w["bidirectional/forward"], w["bidirectional/backward"])
        self.second = MaskedLSTM(w["bidirectional_1/forward"], w["bidirectional_1/backward"])
        self.hidden = nn.Linear(6, 11)
        self.out = nn.Linear(11, 1)
        load_linear(self.hidden, w["dense"])
        load_linear(self.out, w["dense_1"])

    def forward(self, ids: Tensor) -> Tensor:
        made = self.mistakes
        mask = ids != 0
        if "padding at the end" in made:
            count = mask.sum(dim=1)
            mask = torch.arange(ids.shape[1])[None] < count[:, None]
        if "no mask" in made:
            mask = torch.ones_like(mask)
        x = torch.cat(self.first(self.words(ids), mask)[0], dim=-1)
        if "no mask in the second" in made:
            mask = torch.ones_like(mask)
        both, (one, other), cells = self.second(x, mask)
        if "cell states" in made:
            one, other = cells
        if "last step of both" in made:
            one, other = both[0][:, -1], both[1][:, -1]
        if "mean" in made:
            one, other = both[0].mean(1), both[1].mean(1)
        if "last step of the array" in made:
            one = both[0][:, -1]
        if "view" in made:
            x = torch.stack([one, other]).view(len(ids), -1)
        else:
            x = torch.cat([one, other], dim=-1)
        x = self.hidden(x)
        x = x if "relu missing" in made else x.relu()
        x = self.out(x)
        return x if "sigmoid missing" in made else x.sigmoid()


class Norms(nn.Module):
    """LayerNorms around a BiSimpleRNN."""

    source = NORMS

    def __init__(self, *mistakes: str) -> None:
        super().__init__()
        made = frozenset(mistakes)
        w = arrays_of(NORMS)
        own = {"layer_normalization": 1e-3, "layer_normalization_1": 1e-2}
        self.norms = nn.ModuleList()
        for name, size in (
            ("layer_normalization", 3),
            ("layer_normalization_1", 10),
            ("layer_normalization_2", 10),
        ):
            eps = 1e-5 if f"eps {name}" in made else own.get(name, 1e-3)
            arrays = w.get(name, {})
            norm = nn.LayerNorm(size, eps=eps)
            fill(norm.weight, tensor(arrays.get("gamma", np.ones(size))))
            fill(norm.bias, tensor(arrays.get("beta", np.zeros(size))))
            self.norms.append(norm)
        self.rnn = nn.RNN(3, 5, bidirectional=True, batch_first=True)
        load_rnn(self.rnn, w["bidirectional/forward"], w["bidirectional/backward"], made)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.rnn(self.norms[0](x))
        y: Tensor = self.norms[2](self.norms[1](x))
        return y


# ---- right ports in other styles -----------------------------------------------------------------


class StackApart(nn.Module):
    """A port as ``Stack``: two LSTMs for the directions, time first, biases split, functional."""

    source = STACK

    def __init__(self) -> None:
        super().__init__()
        w = arrays_of(STACK)
        self.there, self.back = nn.LSTM(3, 5), nn.LSTM(3, 5)
        split = frozenset(("bias split",))
        load_rnn(self.there, w["bidirectional/forward"], None, split)
        load_rnn(self.back, w["bidirectional/backward"], None, split)
        self.rnn = nn.RNN(10, 7, bidirectional=True)
        load_rnn(self.rnn, w["bidirectional_1/forward"], w["bidirectional_1/backward"], split)
        self.last = nn.ModuleList(nn.RNNCell(11, 13) for _ in range(2))
        for cell, name in zip(self.last, ("forward", "backward"), strict=True):
            arrays = w[f"bidirectional_2/{name}"]
            fill(cell.weight_ih, tensor(arrays["kernel"]).T)
            fill(cell.weight_hh, tensor(arrays["recurrent_kernel"]).T)
            fill(cell.bias_ih, torch.zeros(13))
            fill(cell.bias_hh, tensor(arrays["bias"]))
        self.mid_w, self.mid_b = (tensor(w["dense"][name]) for name in ("kernel", "bias"))
        self.register_buffer("out_w", tensor(w["dense_1"]["kernel"]))
        self.register_buffer("out_b", tensor(w["dense_1"]["bias"]))

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        x = torch.cat([self.there(x)[0], self.back(x.flip(0))[0].flip(0)], dim=-1)
        x, _ = self.rnn(x)
        x = x @ self.mid_w.to(x.dtype) + self.mid_b.to(x.dtype)
        states = []
        for cell, steps in zip(self.last, (x, x.flip(0)), strict=True):
            h = None
            for step in steps:
                h = cell(step, h)
            states.append(h)
        return functional.linear(states[0] + states[1], self.out_w.T, self.out_b)


class SentimentPacked(nn.Module):
    """A port as ``Sentiment`` by packed sequences: right for rows padded at the end alone."""

    source = SENTIMENT

    def __init__(self) -> None:
        super().__init__()
        w = arrays_of(SENTIMENT)
        self.words = nn.Embedding.from_pretrained(tensor(w["embedding"]["embeddings"]))
        self.first = nn.LSTM(5, 7, bidirectional=True, batch_first=True)
        self.second = nn.LSTM(14, 3, bidirectional=True, batch_first=True)
        load_rnn(self.first, w["bidirectional/forward"], w["bidirectional/backward"])
        load_rnn(self.second, w["bidirectional_1/forward"], w["bidirectional_1/backward"])
        self.hidden, self.out = nn.Linear(6, 11), nn.Linear(11, 1)
        load_linear(self.hidden, w["dense"])
        load_linear(self.out, w["dense_1"])

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(
            self.words(ids), lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        _, (h, _) = self.second(self.first(packed)[0])
        x = self.hidden(torch.cat([h[0], h[1]], dim=-1)).relu()
        y: Tensor = self.out(x).sigmoid()
        return y
