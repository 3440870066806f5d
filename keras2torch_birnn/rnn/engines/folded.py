"""The engine "folded": a bidirectional stack in one call of torch's kernel, merges in the weights.

A merge that adds the directions up can be done by the next layer's input weights:
W (f + b) = [W W] [f; b] and W (f + b) / 2 = [W/2 W/2] [f; b]. "concat" is what torch's kernel does;
only a product cannot be had this way. f, b: the directions' outputs (B, T, H).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from keras2torch_birnn.merge_modes import MERGE_MODES
from keras2torch_birnn.rnn.call import RnnCall, RnnResult, State
from keras2torch_birnn.rnn.engines.engine import (
    Engine,
    can_pack,
    is_exporting,
    run_no_steps,
)
from keras2torch_birnn.rnn.engines.loop import run_directions
from keras2torch_birnn.rnn.engines.torch_kernel import run_kernel
from keras2torch_birnn.rnn.layer import RnnLayer, Weights

# Merge mode -> factor of the next layer's input weights for each direction; None: they are wide
# already. Other modes cannot be folded.
FACTORS: Mapping[str | None, float | None] = {
    name: mode.fold_factor
    for name, mode in MERGE_MODES.items()
    if name == "concat" or mode.fold_factor is not None
}


def widen(layer: RnnLayer, mode: str | None) -> RnnLayer:
    """Fold a merge into the next layer's weights: it then reads both directions side by side."""
    factor = FACTORS[mode]
    if factor is None:
        return layer
    # Written out: torch.compile of torch 2.6 traces neither _replace nor a part of a named tuple.
    wide = [
        Weights(torch.cat((w.ih, w.ih), dim=1) * factor, w.hh, w.bias_ih, w.bias_hh)
        for w in layer.get_weights()
    ]
    return RnnLayer(
        layer.cell,
        list(chain.from_iterable(wide)),
        layer.kernel,
        layer.native,
        layer.dropout,
        layer.training,
        layer.engine,
    )


class RnnStack(NamedTuple):
    """Consecutive layers, the merge mode of each, and the rate of dropout between them."""

    layers: Sequence[RnnLayer]
    merge_modes: Sequence[str | None]
    dropout: float = 0.0


class Folded(Engine):
    """Torch's kernel for all layers of a stack at once."""

    def why_not(self, layer: RnnLayer, call: RnnCall) -> str:
        """Return that it needs a stack."""
        return "a layer that stands alone"

    def reason(self, layer: RnnLayer, call: RnnCall) -> str:
        """Return that all layers run at once."""
        return "torch's own kernel, all layers in one call"

    def run(self, layer: RnnLayer, call: RnnCall) -> RnnResult:
        """Run a stack of one layer."""
        return self.run_stack(RnnStack((layer,), (call.merge,)), call)

    def why_not_stack(self, stack: RnnStack) -> str:
        """Return why these layers cannot be one call."""
        first = stack.layers[0]
        if first.kernel is None:
            return "torch has no kernel for this cell"
        for mode in stack.merge_modes[:-1]:
            if mode not in FACTORS:
                return f"merge_mode={mode!r} cannot be folded into the next layer's weights"
        if first.training and stack.dropout and len(stack.layers) > 1:
            return "dropout between the layers"
        return ""

    def why_skip_stack(self, stack: RnnStack, x: Tensor, *, masked: bool) -> str:
        """Return why the layers are better run one by one. x: on the device of the input."""
        if not x.is_cuda:
            return "it does not pay on a CPU"
        if is_exporting() or (masked and not can_pack(x)):
            return "a graph, or tensors without values to pack by"
        # As nn.LSTM runs its layers. Merges that take wider weights were never measured there.
        if set(stack.merge_modes[:-1]) != {"concat"}:
            return "torch's own layers merge by concat"
        return ""

    def run_stack(self, stack: RnnStack, call: RnnCall) -> RnnResult:
        """Call torch's kernel; initial and final states are those of all layers in turn."""
        layers = stack.layers
        if call.x.shape[1] == 0:
            return run_no_steps(layers, call)
        later = zip(layers[1:], stack.merge_modes[:-1], strict=True)
        wide = (layers[0], *(widen(layer, mode) for layer, mode in later))
        if call.lengths is not None and not can_pack(call.x, call.lengths):
            return _run_loops(wide, call)
        return run_kernel(wide, call.outside_inference())


def _run_loops(layers: Sequence[RnnLayer], call: RnnCall) -> RnnResult:
    """Run folded layers, whose inputs are both directions side by side, with the loop engine.

    The loop takes masks as they are: nothing is packed.
    """
    outputs: tuple[Tensor, ...] = (call.x,)
    states: list[State] = []
    for index, layer in enumerate(layers):
        initial = call.initial_state and call.initial_state[2 * index : 2 * index + 2]
        merge = "concat" if index < len(layers) - 1 else call.merge
        outputs, found = run_directions(layer, RnnCall(outputs[0], call.lengths, initial, merge))
        states += found
    return outputs, tuple(states)


ENGINE = Folded()
