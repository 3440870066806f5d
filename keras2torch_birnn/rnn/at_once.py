"""All layers of a ``BiLSTM``, ``BiGRU`` or ``BiRNN`` in one call of the native kernel, if possible.

Without gradients and in evaluation mode. B batch, T time, F features, H units, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from keras2torch_birnn.rnn.call import RnnCall, RnnResult, State
from keras2torch_birnn.rnn.engines.native import pays_for_any_rows
from keras2torch_birnn.rnn.engines.native_gradient import native_cell_of
from keras2torch_birnn.rnn.engines.reduced import can_reduce
from keras2torch_birnn.rnn.engines.static import SEVERAL
from keras2torch_birnn.rnn.layer import RnnLayer
from keras2torch_birnn.rnn.masked_run import run_masked
from keras2torch_birnn.rnn.native.codes import ReducedPrecision
from keras2torch_birnn.rnn.native.program import NativeLayer, PreparedCalls
from keras2torch_birnn.rnn.native.stack import PreparedStack, can_read, prepare
from keras2torch_birnn.rnn.tensor_memory import is_plain, is_tracing

# Outputs, merged or a pair, and final states of all layers and directions: h, and an LSTM's c.
Result: TypeAlias = tuple[Any, tuple[Tensor, ...]]


class AtOnce(PreparedCalls):
    """Layers of a module, prepared for the kernel.

    names: of all weights that a layer can have, of which there are ``count``. merges: the merge
    mode of each layer. states: the number of states of a cell.
    """

    def __init__(
        self, names: Iterable[str], count: int, merges: Sequence[str | None], states: int
    ) -> None:
        self._names, self._count = dict.fromkeys(names), count
        self.merges, self._states = merges, states
        self._stack: PreparedStack | None = None

    def _fetch(self, module: Any) -> list[Tensor] | None:
        """Return the weights that a module holds; None if it has others, or computes one anew."""
        own = module._parameters  # nn.Module's attribute access is slow
        found = [own[name] for name in self._names if name in own]
        if len(found) < len(self._names) and not self._names.keys().isdisjoint(module.__dict__):
            return None
        return found if len(found) == self._count else None

    def run(
        self,
        module: Any,
        x: Tensor,
        lengths: Tensor | None,
        mask: Tensor | None,
        initial: Sequence[Sequence[State]] | None,
    ) -> Result | None:
        """Run all layers of a stack; None if another engine has to, or autograd records the call.

        x: (B, T, F). lengths (B,) or mask (B, T): the valid steps. initial: of each layer the
        states of each direction, (B, H).
        """
        layers: Callable[[], Sequence[RnnLayer]] = module.rnn_layers
        precision: ReducedPrecision | None = module.precision
        fetched = self._fetch(module)
        if module.training or is_tracing() or fetched is None:
            return None
        states = [s for layer in initial or () for state in layer for s in state]
        if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *states, *fetched)):
            return None
        counts = [t for t in (lengths, mask) if t is not None]
        if not can_read(x, states) or (counts and not is_plain(counts)):
            return None

        def described() -> list[NativeLayer]:
            return [
                NativeLayer(native_cell_of(layer), layer.parameters, merge)
                for layer, merge in zip(layers(), self.merges, strict=True)
            ]

        stack = self._stack
        if stack is None or not stack.holds(fetched, precision):
            if not can_reduce(layers(), precision):
                return None
            self._stack = stack = prepare(described(), fetched, precision)
        rows, features = x.shape[0], x.shape[2]
        if stack is None or stack.features != features:
            return None
        torch_may_pay = precision is None and rows >= SEVERAL and not counts
        if torch_may_pay and not all(map(pays_for_any_rows, layers())):
            return None
        depth, units = len(stack.units), stack.units[0]
        final = [x.new_empty((2 * depth, rows, units)) for _ in range(self._states)]
        ends, each = [s.data_ptr() for s in final], 2 * rows * units * x.element_size()
        h, c = ends[0], ends[1] if len(ends) > 1 else 0
        at = [(h + i * each, c and c + i * each) for i in range(depth)]

        def run_sequence(call: RnnCall) -> RnnResult:
            return stack.run(described, call.x, call.lengths, call.merge, initial, at), ()

        call = RnnCall(x, lengths, None, self.merges[-1])
        if mask is None:
            outputs, _ = run_sequence(call)
        else:
            outputs, _ = run_masked(run_sequence, call, mask, ("zeros", "zeros"))
        return outputs if call.merge is None else outputs[0], tuple(final)
