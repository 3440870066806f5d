"""CUDA graphs without a GPU: operations are noted while a graph is captured, and done by a replay.

As on a GPU a replay runs no Python of the recorded code: it does the same operations on the same
memory, with the numbers that are there now. Capturing computes nothing that lasts, an operation
whose value the host would have to read cannot be captured, and all graphs share the memory that was
made while they were captured: a replay of one spoils the results of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from keras2torch_birnn.rnn.gpu import graphs
from keras2torch_birnn.rnn.gpu.launcher import Launcher

READS = {"_local_scalar_dense", "equal", "nonzero", "masked_select"}


class FakeGraph:
    """A graph. tape: what a replay does; made: the tensors that were made while it was captured."""

    def __init__(self, device: FakeDevice) -> None:
        self.device = device
        self.tape: list[Callable[[], object]] = []
        self.made: list[Tensor] = []
        self.replays = 0
        self.memory: object = object()
        device.graphs.append(self)

    def pool(self) -> object:
        return self.memory

    def replay(self) -> None:
        self.replays += 1
        for graph in self.device.graphs:
            graph.spoil()
        for operation in self.tape:
            operation()

    def spoil(self) -> None:
        for tensor in self.made:
            tensor.fill_(float("nan") if tensor.is_floating_point() else 0)


class _Recorder(TorchDispatchMode):
    """Note every operation of torch on a graph's tape."""

    def __init__(self, graph: FakeGraph) -> None:
        super().__init__()
        self.graph = graph
        self.paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.paused:
            return func(*args, **kwargs)
        name = func._schema.name.partition("::")[2]
        if name in READS:
            raise RuntimeError(f"{name}: operation not permitted when stream is capturing")
        out = func(*args, **kwargs)
        if any(a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments):
            self.graph.tape.append(lambda: func(*args, **kwargs))
            return out
        if any(r.alias_info is not None for r in func._schema.returns):  # a view
            return out
        made = [one for one in tree_leaves(out) if isinstance(one, Tensor)]
        self.graph.made += made

        def again() -> None:
            for to, value in zip(made, tree_leaves(func(*args, **kwargs)), strict=True):
                to.copy_(value)

        if "empty" not in name:
            self.graph.tape.append(again)
        return out

    def launch(self, kernel: Callable[[], object]) -> None:
        """Note a kernel that is not torch's."""
        self.paused = True
        kernel()
        self.paused = False
        self.graph.tape.append(kernel)


class FakeStream:
    """A stream on which everything is done at once."""

    def __init__(self, priority: int = 0) -> None:
        self.cuda_stream = id(self)

    def wait_stream(self, other: object) -> None:
        pass

    def wait_event(self, event: object) -> None:
        pass


class FakeEvent:
    """An event that has happened."""

    def record(self, stream: object) -> None:
        pass


class FakeDevice:
    """All graphs that were captured; stream: the current one; failure: of the next capture."""

    def __init__(self) -> None:
        self.graphs: list[FakeGraph] = []
        self.stream = FakeStream()
        self.recorder: _Recorder | None = None
        self.failure: Exception | None = None

    def replays(self) -> list[int]:
        return [graph.replays for graph in self.graphs]

    @contextmanager
    def capture(self, graph: FakeGraph, **options: Any) -> Iterator[None]:
        if self.failure is not None:
            raise self.failure
        graph.memory = options.get("pool", graph.memory)
        try:
            with _Recorder(graph) as self.recorder:
                yield
        finally:
            self.recorder = None
            graph.spoil()

    @contextmanager
    def on_stream(self, stream: FakeStream) -> Iterator[None]:
        before, self.stream = self.stream, stream
        try:
            yield
        finally:
            self.stream = before


@contextmanager
def fake_graphs(patching: pytest.MonkeyPatch) -> Iterator[FakeDevice]:
    """Capture graphs without a GPU from now on, and take each for the fastest way."""
    device, launch = FakeDevice(), Launcher.launch

    def noted(self: Launcher, *given: Any, **constants: Any) -> None:
        def kernel() -> None:
            launch(self, *given, **constants)

        if device.recorder is None:
            kernel()
        else:
            device.recorder.launch(kernel)

    fakes: dict[str, Any] = {
        "CUDAGraph": lambda: FakeGraph(device),
        "graph": device.capture,
        "Stream": FakeStream,
        "Event": FakeEvent,
        "stream": device.on_stream,
        "current_stream": lambda *_: device.stream,
        "device": lambda _: nullcontext(),
        "is_current_stream_capturing": lambda: device.recorder is not None,
    }
    for name, fake in fakes.items():
        patching.setattr(torch.cuda, name, fake)
    patching.setattr(Launcher, "launch", noted)
    patching.setattr(graphs, "_stream", lambda _: device.stream.cuda_stream)
    patching.setattr(graphs, "find_fastest", lambda *_: 0)
    graphs._layers.clear()
    graphs._place.cache_clear()
    yield device
    graphs._layers.clear()
    graphs._place.cache_clear()
