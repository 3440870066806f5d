"""Further ports written by hand, in other styles: packed sequences, cells in a loop, einsum.

Each takes the names of the mistakes that it makes. Nothing comes from the package but the arrays.
"""

from __future__ import annotations

from typing import Any

import torch
from hand_ports import Arrays, arrays_of, load_rnn, tensor
from specs import FIXTURES
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

TAGGER = FIXTURES / "tf.keras-2.15.0/mask_stack_bi_dense.h5"
MASKED_LAST = FIXTURES / "tf.keras-2.15.0/mask_bi_lstm_last.keras"
MULTIPLIED = FIXTURES / "tf.keras-2.15.0/bi_gru_after_mul_seq.h5"


def flip_valid(x: Tensor, valid: Tensor) -> Tensor:
    """Reverse the steps of each row that count; padding stays at the end."""
    found = x.clone()
    for row, flags in enumerate(valid):
        found[row, flags] = x[row, flags].flip(0)
    return found


# ---- einsum, in Keras' own layout of the weights -------------------------------------------------


class Einsum(nn.Module):
    """A recurrent layer by einsum over Keras' arrays; ``kind``: lstm, gru (after) or gru_before."""

    def __init__(self, kind: str, arrays: Arrays, mistakes: frozenset[str]) -> None:
        super().__init__()
        self.kind, self.mistakes = kind, mistakes
        for name, array in arrays.items():
            setattr(self, name, nn.Parameter(tensor(array)))

    def step(self, x: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        h, wrong = states[0], self.mistakes
        if self.kind == "lstm":
            a = torch.einsum("bf,fg->bg", x, self.kernel)
            a = a + torch.einsum("bh,hg->bg", h, self.recurrent_kernel) + self.bias
            i, f, g, o = a.chunk(4, dim=-1)
            if "f and g exchanged" in wrong:
                f, g = g, f
            if "forget bias again" in wrong:
                f = f + 1
            old = torch.zeros_like(h) if "c not carried" in wrong else states[1]
            g = g if "no tanh of g" in wrong else torch.tanh(g)
            c = torch.sigmoid(f) * old + torch.sigmoid(i) * g
            out = torch.sigmoid(o) * (c if "no tanh of c" in wrong else torch.tanh(c))
            return out, c
        z_x, r_x, n_x = torch.einsum("bf,fg->bg", x, self.kernel).chunk(3, dim=-1)
        z_h, r_h, n_h = self.recurrent_kernel.chunk(3, dim=-1)
        if self.kind == "gru":
            z_b, r_b, n_b = self.bias[0].chunk(3)
            z_c, r_c, n_c = self.bias[1].chunk(3)
        else:
            z_b, r_b, n_b = self.bias.chunk(3)
            z_c = r_c = n_c = torch.zeros_like(z_b)
        z = torch.sigmoid(z_x + z_b + h @ z_h + z_c)
        r = torch.sigmoid(r_x + r_b + h @ r_h + r_c)
        after = (self.kind == "gru") != ("other reset" in wrong)
        inner = r * (h @ n_h + n_c) if after else (r * h) @ n_h + n_c
        n = torch.tanh(n_x + n_b + inner)
        if "1 - z" in wrong:
            z = 1 - z
        return (z * h + (1 - z) * n,)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """Return all steps (B, T, H), zeros at padding."""
        units = self.recurrent_kernel.shape[0]
        states = tuple(x.new_zeros(len(x), units) for _ in range(1 + (self.kind == "lstm")))
        found = []
        for t in range(x.shape[1]):
            new = self.step(x[:, t], states)
            keep = valid[:, t, None]
            if "mask kept from c" in self.mistakes and len(new) == 2:
                states = torch.where(keep, new[0], states[0]), new[1]
            else:
                states = tuple(torch.where(keep, a, b) for a, b in zip(new, states, strict=True))
            found.append(states[0] * keep)
        return torch.stack(found, dim=1)


class Tagger(nn.Module):
    """Embedding with mask, BiLSTM (concat), BiGRU before (sum), Dense for each step; by einsum."""

    source = TAGGER

    def __init__(self, *mistakes: str) -> None:
        super().__init__()
        self.mistakes = frozenset(mistakes)
        arrays = arrays_of(self.source)
        lstm = frozenset(m.removeprefix("lstm ") for m in mistakes)
        gru = frozenset(m.removeprefix("gru ") for m in mistakes)
        self.table = nn.Parameter(tensor(arrays["embedding"]["embeddings"]))
        self.one = Einsum("lstm", arrays["bidirectional/forward"], lstm)
        self.two = Einsum("lstm", arrays["bidirectional/backward"], lstm)
        self.three = Einsum("gru_before", arrays["bidirectional_1/forward"], gru)
        self.four = Einsum("gru_before", arrays["bidirectional_1/backward"], gru)
        if "one value" in mistakes:
            self.four.bias.data[5] = 0
        self.w = nn.Parameter(tensor(arrays["dense"]["kernel"]))
        self.b = nn.Parameter(tensor(arrays["dense"]["bias"]))

    def valid(self, ids: Tensor) -> Tensor:
        wrong, valid = self.mistakes, ids != 0
        if "id 3 is left out, too" in wrong:
            valid = valid & (ids != 3)
        return valid

    def both(self, one: Einsum, two: Einsum, x: Tensor, valid: Tensor, name: str) -> Any:
        wrong = self.mistakes
        forward = one(x, valid)
        if f"{name} flips padding, too" in wrong:
            return forward, two(x.flip(1), valid).flip(1)
        if f"{name} flips padding, too, unmasked" in wrong:
            return forward, two(x.flip(1), torch.ones_like(valid)).flip(1)
        if f"{name} is turned with padding" in wrong:
            return forward, two(flip_valid(x, valid), valid).flip(1)
        return forward, two(x.flip(1), valid.flip(1)).flip(1)

    def forward(self, ids: Tensor) -> Tensor:
        wrong, valid = self.mistakes, self.valid(ids)
        x = torch.einsum("btv,ve->bte", nn.functional.one_hot(ids, 17).to(self.table), self.table)
        f, b = self.both(self.one, self.two, x, valid, "lstm")
        y = torch.cat([f, b], -1)
        if "units take turns" in wrong:
            y = torch.stack([f, b], -1).flatten(-2)
        f, b = self.both(self.three, self.four, y, valid, "gru")
        merge = torch.maximum if "maximum" in wrong else torch.add
        merged = f if "forward half alone" in wrong else merge(f, b)
        out = torch.einsum("bth,hk->btk", merged, self.w)
        return out if "no bias at the end" in wrong else out + self.b


# ---- nn.LSTM and packed sequences ----------------------------------------------------------------


class PackedLast(nn.Module):
    """Embedding with mask, BiLSTM that adds its last states: two nn.LSTM, packed sequences."""

    source = MASKED_LAST

    def __init__(self, *mistakes: str) -> None:
        super().__init__()
        self.mistakes = frozenset(mistakes)
        arrays = arrays_of(self.source)
        table = arrays["embedding"]["embeddings"]
        self.table = nn.Embedding(*table.shape, _weight=tensor(table))
        forward, backward = (arrays[f"bidirectional/{half}"] for half in ("forward", "backward"))
        sizes = forward["kernel"].shape[0], forward["recurrent_kernel"].shape[0]
        self.ahead = nn.LSTM(*sizes, batch_first=True)
        self.back = nn.LSTM(*sizes, batch_first=True)
        load_rnn(self.ahead, forward, None, self.mistakes)
        load_rnn(self.back, backward, None, self.mistakes)

    def forward(self, ids: Tensor) -> Tensor:
        wrong, valid, x = self.mistakes, ids != 0, self.table(ids)
        if "id 5 is left out, too" in wrong:
            valid = valid & (ids != 5)
        front = torch.argsort((~valid).to(torch.int8), dim=1, stable=True)
        x = x.gather(1, front[..., None].expand_as(x))  # valid steps first
        lengths = valid.sum(1).clamp(min=1)
        ahead, _ = self.run(self.ahead, x, lengths)
        counted = torch.arange(x.shape[1])[None] < lengths[:, None]
        turned = x.flip(1) if "flips padding" in wrong else flip_valid(x, counted)
        back, (_, c) = self.run(self.back, turned, lengths)
        rows = torch.arange(len(x))
        first = ahead[rows, lengths - 1]
        if "ahead [:, -1]" in wrong:
            first = ahead[:, -1]
        second = back[rows, lengths - 1]
        if "back c" in wrong:
            second = c[0]
        if "h of the forward half twice" in wrong:
            second = first
        return (first + second) / 2 if "mean" in wrong else first + second

    def run(self, module: nn.LSTM, x: Tensor, lengths: Tensor) -> Any:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        out, states = module(packed)
        return pad_packed_sequence(out, batch_first=True, total_length=x.shape[1])[0], states


# ---- cells in a loop -----------------------------------------------------------------------------


class Cells(nn.Module):
    """A BiGRU whose halves are multiplied, by two nn.GRUCell in a loop over the steps."""

    source = MULTIPLIED

    def __init__(self, *mistakes: str) -> None:
        super().__init__()
        self.mistakes = frozenset(mistakes)
        arrays = arrays_of(self.source)
        name = next(name for name in arrays if name.endswith("/forward")).partition("/")[0]
        self.cells = nn.ModuleList()
        for half in ("forward", "backward"):
            own = arrays[f"{name}/{half}"]
            whole = nn.GRU(own["kernel"].shape[0], own["recurrent_kernel"].shape[0])
            load_rnn(whole, own, None, self.mistakes)
            cell = nn.GRUCell(whole.input_size, whole.hidden_size)
            cell.load_state_dict(
                {key.removesuffix("_l0"): value for key, value in whole.state_dict().items()}
            )
            self.cells.append(cell)

    def forward(self, x: Tensor) -> Tensor:
        wrong, count = self.mistakes, x.shape[1]
        halves = []
        for number, cell in enumerate(self.cells):
            h = x.new_zeros(len(x), cell.hidden_size)
            if "starts with ones" in wrong:
                h = torch.ones_like(h)
            steps = range(count - 1, -1, -1) if number else range(count)
            found = {}
            for t in steps:
                late = number and "backward one step late" in wrong
                found[t] = h if late else cell(x[:, t], h)
                h = cell(x[:, t], h)
            order = steps if "not turned" in wrong else range(count)
            halves.append(torch.stack([found[t] for t in order], 1))
        f, b = halves
        return f + b if "sum" in wrong else f * b
