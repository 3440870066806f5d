"""Ports of whole models, each direction as a loop over the steps on the converted weights.

Each takes the names of the mistakes that it makes. The weights are parameters of one flat module,
named as in the converted model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import torch
from specs import FIXTURES
from torch import Tensor, nn
from torch.nn.functional import conv2d, max_pool2d

import keras2torch_birnn as k2t

_FOLDER = FIXTURES / "tf.keras-2.15.0"


@cache
def tensors_of(source: Path) -> Mapping[str, Tensor]:
    """Return the tensors of a converted model."""
    tensors: Mapping[str, Tensor] = k2t.convert(source).state_dict()
    return tensors


class Flat(nn.Module):
    """A module that holds the tensors of a converted model, and computes layers by their names."""

    source = _FOLDER / "none"

    def __init__(self, *mistakes: str) -> None:
        super().__init__()
        self.mistakes = frozenset(mistakes)
        for name, value in tensors_of(self.source).items():
            if value.is_floating_point():  # (a counter of batches is not)
                self.register_parameter(name.replace(".", "__"), nn.Parameter(value.clone()))

    def of(self, name: str) -> Tensor:
        return self.get_parameter(name.replace(".", "__"))

    def dense(self, name: str, x: Tensor) -> Tensor:
        return x @ self.of(f"{name}.weight").mT + self.of(f"{name}.bias")

    def lstm(
        self,
        name: str,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        back: bool = False,
        start: tuple[Tensor, Tensor] | None = None,
        gate: Callable[[Tensor], Tensor] = torch.sigmoid,
        repeats: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return all steps (B, T, H) in the order of x, and h and c.

        At padding a step is zero, or the state that it repeats.
        """
        wrong, end = self.mistakes, "_l0_reverse" if back else "_l0"
        parts = ("weight_ih", "weight_hh", "bias_ih")
        w, u, bias = (self.of(f"{name}.{one}{end}") for one in parts)
        zeros = x.new_zeros(len(x), u.shape[1])
        h, c = start or (zeros, zeros)
        counts = x.new_ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
        repeats = repeats or "steps repeated" in wrong
        found = {}
        for t in reversed(range(x.shape[1])) if back else range(x.shape[1]):
            i, f, g, o = (x[:, t] @ w.mT + h @ u.mT + bias).chunk(4, -1)
            if "peephole" in wrong:
                i = i + c
            if "f and g exchanged" in wrong:
                f, g = g, f
            new = gate(f) * c + gate(i) * torch.tanh(g)
            kept = counts[:, t, None]
            c = torch.where(kept, new, c)
            h = torch.where(kept, gate(o) * torch.tanh(new), h)
            found[t] = h if repeats else h * kept
        return torch.stack([found[t] for t in range(x.shape[1])], 1), h, c

    def both(self, name: str, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return all steps of both directions (B, T, 2 H)."""
        halves = [self.lstm(name, x, mask, back=back)[0] for back in (False, True)]
        return torch.cat(halves, -1)


class Joint(Flat):
    """Slots of each word by a BiLSTM, and the intent of the sentence by its last states."""

    source = _FOLDER / "arch_joint.h5"

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        x, mask = self.of("embedding.weight")[ids], ids != 0
        f, fh, _ = self.lstm("bidirectional", x, mask)
        b, bh, _ = self.lstm("bidirectional", x, mask, back=True)
        ends = torch.cat([fh, bh], -1)
        intent = self.dense("intent", torch.relu(self.dense("dense_1", ends)))
        return intent.softmax(-1), self.dense("slots", torch.cat([f, b], -1)).softmax(-1)


class Translation(Flat):
    """A BiLSTM reads; an LSTM that starts with its states writes, and attends by dot products."""

    source = _FOLDER / "arch_seq2seq_luong.h5"
    masks_decoder = True

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        x = self.of("embedding.weight")[source]
        f, fh, fc = self.lstm("bidirectional", x, source != 0)
        b, bh, bc = self.lstm("bidirectional", x, source != 0, back=True)
        b = b.flip(1) if "not turned" in self.mistakes else b
        read, h, c = (torch.cat(pair, -1) for pair in ((f, b), (fh, bh), (fc, bc)))
        start = (c, h) if "h and c exchanged" in self.mistakes else (h, c)
        words = self.of("embedding_1.weight")[target]
        written, _, _ = self.lstm(
            "lstm_1",
            words,
            target != 0 if self.masks_decoder else None,
            start=None if "no start" in self.mistakes else start,
        )
        scores = written @ read.mT
        if "scaled" in self.mistakes:
            scores = scores / written.shape[-1] ** 0.5
        if "padding masked" in self.mistakes:
            scores = scores.masked_fill((source == 0)[:, None], -1e9)
        weights = scores.softmax(1 if "softmax over words" in self.mistakes else -1)
        both = torch.cat([weights @ read, written], -1)
        return self.dense(
            "time_distributed_1", torch.tanh(self.dense("time_distributed", both))
        ).softmax(-1)


class TranslationByKeras3(Translation):
    """The same by Keras 3, whose decoder ignores the mask of its words, as it is given states."""

    source = FIXTURES / "keras-3.15.1/arch_seq2seq_luong.h5"
    masks_decoder = False


class Attending(Flat):
    """A BiLSTM whose steps are added up, weighted by a softmax over all of them."""

    source = FIXTURES / "keras-3.15.1/arch_attention_by_hand.keras"

    def forward(self, ids: Tensor) -> Tensor:
        wrong, mask = self.mistakes, ids != 0
        x = self.of("embedding.weight")[ids]
        read = torch.ones_like(mask) if "no mask" in wrong else mask
        y = self.both("bidirectional", x, read)
        scores = self.dense("dense", y).tanh()
        if "softmax of words" in wrong:
            scores = scores.masked_fill(~mask[..., None], -torch.inf)
        scores = scores**3 if "cubes" in wrong else scores
        weighted = scores.softmax(-1 if "softmax of one" in wrong else 1) * y
        weighted = y if "weights unused" in wrong else weighted
        both = weighted.mean(1) if "mean" in wrong else weighted.sum(1)
        return self.dense("dense_1", both).softmax(-1)


class Picture(Flat):
    """Text in a picture: convolutions whose rows become steps, and two BiLSTM."""

    source = _FOLDER / "arch_crnn_ocr.keras"

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 3, 1, 2)
        for name in ("conv2d", "conv2d_1"):
            kernel, bias = self.of(f"{name}.weight"), self.of(f"{name}.bias")
            x = max_pool2d(torch.relu(conv2d(x, kernel, bias, padding=1)), 2)
        if "height and width exchanged" in self.mistakes:
            x = x.permute(0, 3, 2, 1)
        elif "channels first" not in self.mistakes:
            x = x.permute(0, 2, 3, 1)
        x = torch.relu(self.dense("dense", x.reshape(len(x), 5, 15)))
        for name in ("bidirectional", "bidirectional_1"):
            x = self.both(name, x)
        x = x.cos() if "cosine" in self.mistakes else x
        return self.dense("dense_1", x).softmax(-1)


class LastStep(Flat):
    """The last step of a BiGRU's output, and the mean over its steps."""

    source = _FOLDER / "arch_last_step.h5"

    def __init__(self, *mistakes: str) -> None:
        super().__init__(*mistakes)
        self.gru = nn.GRU(3, 5, bidirectional=True, batch_first=True)
        given = tensors_of(self.source)
        start = "bidirectional."
        self.gru.load_state_dict(
            {key.removeprefix(start): v for key, v in given.items() if key.startswith(start)}
        )

    def forward(self, x: Tensor) -> Tensor:
        y, ends = self.gru(x)
        last = torch.cat([ends[0], ends[1]], -1) if "h_n" in self.mistakes else y[:, -1]
        return self.dense("dense", torch.cat([last, y.mean(1)], -1))
