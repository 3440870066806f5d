"""Ports with padding inside of words, with two inputs, and with marked steps of real numbers.

Each takes the names of the mistakes that it makes.
"""

from __future__ import annotations

import torch
from specs import FIXTURES
from torch import Tensor
from torch.nn.functional import dropout
from whole_ports import Flat
from wired_ports import Wired


def _gate(x: Tensor) -> Tensor:
    return (0.2 * x + 0.5).clamp(0, 1)


class Letters(Flat):
    """Words and their letters, as Keras 2.2.4 computes them: padded steps repeat the states."""

    source = FIXTURES / "keras-2.2.4/arch_ner_char_lstm.h5"

    def forward(self, words: Tensor, letters: Tensor) -> Tensor:
        wrong, (rows, steps, count) = self.mistakes, letters.shape
        flat = letters.reshape(-1, count)
        x = self.of("time_distributed_1.layer.weight")[flat]
        there = torch.ones_like(flat) if "letters unmasked" in wrong else flat
        _, ends, _ = self.lstm("time_distributed_2.layer", x, there != 0, gate=_gate)
        ends = (
            ends.reshape(steps, rows, -1).transpose(0, 1)
            if "rows and steps mixed" in wrong
            else ends.reshape(rows, steps, -1)
        )
        x = torch.cat([self.of("embedding_1.weight")[words], ends], -1)
        mask = (words != 0) & (letters != 0).any(-1)
        turned = mask.flip(1) if "mask not turned" in wrong else mask
        halves = [
            self.lstm("bidirectional_1", x, read, back=back, gate=_gate, repeats=True)[0]
            for back, read in ((False, mask), (True, turned))
        ]
        x = torch.cat(halves, -1)
        return self.dense("time_distributed_3", x).sigmoid()


class Pair(Wired):
    """Two sentences by one BiLSTM; their states, difference and product are compared."""

    source = FIXTURES / "tf.keras-2.15.0/arch_siamese.h5"

    def state(self, ids: Tensor) -> Tensor:
        x, mask = self.of("embedding.weight")[ids], ids != 0
        ends = [self.lstm("bidirectional", x, mask, back=back)[1] for back in (False, True)]
        return torch.cat(ends, -1)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        wrong = self.mistakes
        a, b = self.state(left), self.state(left if "left twice" in wrong else right)
        square = (a - b).abs() if "absolute" in wrong else (a - b) ** 2
        x = self.normalized("batch_normalization", torch.cat([a, b, square, a * b], -1))
        x = dropout(x, 0.5) if "dropout" in wrong else x
        return self.dense("dense_1", self.dense("dense", x).relu()).sigmoid()


class Marked(Flat):
    """Both directions of a SimpleRNN; steps of 3.5 are padding."""

    source = FIXTURES / "tf.keras-2.15.0/masking_big_bi_simplernn_seq.h5"

    def forward(self, x: Tensor) -> Tensor:
        mask = (x != 3.5).all(-1) if "any feature" in self.mistakes else (x != 3.5).any(-1)
        return torch.cat([self.steps(x, mask, back=back) for back in (False, True)], -1)

    def steps(self, x: Tensor, mask: Tensor, *, back: bool) -> Tensor:
        end = "_l0_reverse" if back else "_l0"
        w, u = self.of(f"bidirectional.weight_ih{end}"), self.of(f"bidirectional.weight_hh{end}")
        h = x.new_zeros(len(x), u.shape[1])
        if "random start" in self.mistakes and back:
            h = torch.randn_like(h)
        found = {}
        for t in reversed(range(x.shape[1])) if back else range(x.shape[1]):
            new = torch.tanh(x[:, t] @ w.mT + h @ u.mT + self.of(f"bidirectional.bias_ih{end}"))
            held = 0 * h if "zero where padded" in self.mistakes else h
            h = torch.where(mask[:, t, None], new, held)
            found[t] = h * mask[:, t, None]
        return torch.stack([found[t] for t in range(x.shape[1])], 1)
