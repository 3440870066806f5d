"""Name the layer whose window does not fit into an input, instead of torch's message."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType

from torch import Tensor, fx, nn

from keras2torch_birnn.errors import ArgumentValueError, printable
from keras2torch_birnn.layers.convolution import Convolution, TransposedConvolution, extents
from keras2torch_birnn.layers.pooling import Pooling


def find_small_input(model: fx.GraphModule, error: RuntimeError) -> ArgumentValueError | None:
    """Return what is wrong with the model's input if a window caused torch's error, else None.

    Read from the traceback: to run the model again would change its states, and the numbers of
    dropout.
    """
    for module, x in _calls(error.__traceback__):
        needed = _least(module)
        found = x.shape[2:]
        if len(needed) == len(found) and any(a > b for a, b in zip(needed, found, strict=True)):
            where = printable(_path(model, module))
            return ArgumentValueError(_say(needed, found), "give a longer input", place=where)
    return None


def _calls(trace: TracebackType | None) -> Iterator[tuple[nn.Module, Tensor]]:
    """Yield the windows that were running, with their inputs (B, C, T), the inner ones last."""
    while trace is not None:
        inside = trace.tb_frame.f_locals
        module, x = inside.get("self"), inside.get("x")
        if isinstance(module, Convolution | Pooling) and isinstance(x, Tensor):
            yield module, x
        trace = trace.tb_next


def _least(module: nn.Module) -> Sequence[int]:
    """Return the least input of a window without padding, one size for each axis; else none."""
    if isinstance(module, Pooling) and module.padding == "valid":
        return module.size
    if isinstance(module, TransposedConvolution):
        return ()
    if isinstance(module, Convolution) and module.padding == "valid":
        return extents(module.kernel_size, module.dilation)
    return ()


def _say(needed: Sequence[int], sizes: Sequence[int]) -> str:
    if len(needed) == 1:
        return f"its window needs at least {needed[0]} steps, found {sizes[0]}"
    return f"its window needs sizes of at least {tuple(needed)}, found {tuple(sizes)}"


def _path(model: fx.GraphModule, module: nn.Module) -> str:
    """Return the Keras path of a module: of the layer that it is, or is in."""
    target = next((name for name, one in model.named_modules() if one is module), "")
    paths: dict[str, str] = model.meta.get("paths", {})
    for node in model.graph.nodes:
        if node.op == "call_module" and f"{target}.".startswith(f"{node.target}."):
            return paths.get(node.name, target)
    return target
