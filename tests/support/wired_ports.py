"""Ports whose mistakes lie between the layers, or in layers without recurrence.

Each takes the names of the mistakes that it makes.
"""

from __future__ import annotations

import torch
from specs import FIXTURES
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv1d, layer_norm, leaky_relu, max_pool2d, relu
from whole_ports import Flat

_FOLDER = FIXTURES / "tf.keras-2.15.0"


class Wired(Flat):
    """A flat module with recurrent layers by torch, loaded from the converted model."""

    def bidirectional(self, kind: type[nn.RNNBase], name: str) -> nn.RNNBase:
        """Return a module of torch's with the tensors of a layer of this name."""
        start = f"{name}."
        some = {
            key.replace("__", ".").removeprefix(start): value
            for key, value in self.named_parameters()
            if key.replace("__", ".").startswith(start)
        }
        gates = {nn.LSTM: 4, nn.GRU: 3}.get(kind, 1)
        rows, features = some["weight_ih_l0"].shape
        layer = kind(features, rows // gates, batch_first=True, bidirectional=True)
        layer.load_state_dict(some, strict=False)
        with torch.no_grad():
            for missing in layer.state_dict().keys() - some.keys():
                layer.get_parameter(missing).zero_()
        return layer

    def normalized(self, name: str, x: Tensor) -> Tensor:
        """Normalize the last axis, with the formula written out."""
        scale = (self.of(f"{name}.running_var") + 1e-3).sqrt()
        x = (x - self.of(f"{name}.running_mean")) / scale
        return x * self.of(f"{name}.weight") + self.of(f"{name}.bias")


class Residual(Wired):
    """A tagger with an addition around its second BiLSTM, then a normalization."""

    source = _FOLDER / "arch_residual_batch_norm.h5"

    def forward(self, ids: Tensor) -> Tensor:
        x, mask = self.of("embedding.weight")[ids], ids != 0
        outputs = []
        for name in ("bidirectional", "bidirectional_1"):
            read = mask
            if "padding at the end" in self.mistakes:
                read = torch.arange(mask.shape[1]) < mask.sum(1, keepdim=True)
            if "second reads padding backward" in self.mistakes and outputs:
                ahead, back = self.lstm(name, x, read)[0], self.lstm(name, x, back=True)[0]
                x = torch.cat([ahead, back], -1) * mask[..., None]
            else:
                x = self.both(name, x, read) * mask[..., None]
            x = relu(x) if "relu between" in self.mistakes and not outputs else x
            outputs.append(x)
            x = relu(x) if "relu before the second" in self.mistakes else x
        first, second = outputs
        if "normalized before" in self.mistakes:
            y = first + self.normalized("batch_normalization", second)
        else:
            both = second if "no skip" in self.mistakes else first + second
            y = self.normalized("batch_normalization", both)
        return self.dense("time_distributed", y).softmax(-1)


class Sounds(Wired):
    """Convolutions in torch's layout, then two BiGRU merged by products."""

    source = _FOLDER / "arch_sound_events.keras"

    def __init__(self, *mistakes: str) -> None:
        super().__init__(*mistakes)
        names = ("bidirectional", "bidirectional_1")
        self.grus = nn.ModuleList(self.bidirectional(nn.GRU, name) for name in names)
        self.conv = nn.Conv2d(2, 3, 3, padding="same")
        kernel = self.of("conv2d.weight").data
        self.conv.weight.data = kernel.mT if "kernel turned" in mistakes else kernel
        self.conv.bias = self.of("conv2d.bias")

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 3, 1, 2)
        x = self.conv(x)
        x = relu(x) if "relu first" in self.mistakes else x
        x = self.normalized("batch_normalization", x.movedim(1, -1)).movedim(-1, 1)
        x = x if "relu first" in self.mistakes else relu(x)
        x = (avg_pool2d if "average" in self.mistakes else max_pool2d)(x, (1, 5))
        x = x.permute(0, 2, 1, 3) if "channels first" in self.mistakes else x.permute(0, 2, 3, 1)
        x = x.reshape(len(x), 7, 6)
        for gru in self.grus:
            forward, backward = gru(x)[0].chunk(2, -1)
            backward = backward.flip(1) if "not turned" in self.mistakes else backward
            x = forward * (forward if "forward half twice" in self.mistakes else backward)
            x = relu(x) if "relu between" in self.mistakes else x
        return self.dense("time_distributed_1", self.dense("time_distributed", x)).sigmoid()


class Comments(Wired):
    """A BiGRU, a convolution and both pools over its steps."""

    source = _FOLDER / "arch_toxic.keras"

    def __init__(self, *mistakes: str) -> None:
        super().__init__(*mistakes)
        self.gru = self.bidirectional(nn.GRU, "bidirectional")

    def forward(self, ids: Tensor) -> Tensor:
        ids = (ids - 1).clamp(min=0) if "ids too low" in self.mistakes else ids
        x = self.gru(self.of("embedding.weight")[ids])[0]
        kernel = self.of("conv1d.weight")
        kernel = kernel.flip(-1) if "kernel reversed" in self.mistakes else kernel
        x = conv1d(x.mT, kernel, self.of("conv1d.bias"))
        x = leaky_relu(x) if "leaky" in self.mistakes else x
        mean = x.sum(-1) if "sum" in self.mistakes else x.mean(-1)
        return self.dense("dense", torch.cat([mean, x.amax(-1)], -1)).sigmoid()


class Connected(Wired):
    """Two BiLSTM, whose outputs stand beside their input; the largest step of all."""

    source = FIXTURES / "keras-3.15.1/arch_dense_connections.keras"

    def forward(self, ids: Tensor) -> Tensor:
        x = self.of("embedding.weight")[ids]
        one = self.bidirectional(nn.LSTM, "bidirectional")(x)[0]
        two = self.bidirectional(nn.LSTM, "bidirectional_1")(one)[0]
        parts = [one, x, two] if "second first" in self.mistakes else [x, one, two]
        joint = torch.cat(parts, -1)
        pooled = joint[:, -1] if "last step" in self.mistakes else joint.amax(1)
        return self.dense("dense", pooled).softmax(-1)


class Normalized(Wired):
    """A BiLSTM, a normalization and a SimpleRNN's last state."""

    source = _FOLDER / "chain.h5"

    def forward(self, x: Tensor) -> Tensor:
        y = self.both("bidirectional", x)
        y = layer_norm(y, (10,)) if "layer norm" in self.mistakes else y
        normed = self.normalized("batch_normalization", y)
        y = normed + y if "input added" in self.mistakes else normed
        h = y.new_zeros(len(y), 11)
        w, u = self.of("simple_rnn.weight_ih_l0"), self.of("simple_rnn.weight_hh_l0")
        for step in y.roll(1, 1).unbind(1) if "rnn one step late" in self.mistakes else y.unbind(1):
            h = torch.tanh(step @ w.mT + h @ u.mT + self.of("simple_rnn.bias_ih_l0"))
        return h
