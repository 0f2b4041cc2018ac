"""CUDA graphs for few views: one launch starts the hundreds of small kernels of an encoder."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mmblocks.ops.choice import AUTO, OPS, find_requested_backend
from mmblocks.reprs import format_by_shape

log = logging.getLogger(__name__)
BUCKETS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 24, 32)
WASTE = 0.12
"""Launches limit speed up to about four views; with more, arithmetic does, and padding costs as much as real rows."""
WARM_UPS = 3

T = TypeVar("T")
Replay = Callable[[], Tensor]
"""Computes its function again from the tensor that it was captured with; the next call overwrites the result."""
Capture = Callable[[Callable[[Tensor], Tensor], Tensor], Replay]


class CUDAGraphed:
    """A module of one tensor, whose rows do not see each other, replayed from CUDA graphs where that can pay.

    Graphs serve up to `buckets[-1]` rows on CUDA without gradients: gradients are off, or neither the weights nor the
    input require any. Otherwise the module runs as it is: while compiling, for weights gathered at every call (FSDP),
    for more rows, and for a number of rows that the next bucket would make more than `waste` larger. A module that
    cannot be captured runs as it is from then on; the cause is logged once.

    There is one graph per bucket, shape, dtype and device of the input, autocast, training mode and choice of backends;
    the `keep` used last are kept. Graphs read weights in place, so they see training and loading in place; all graphs
    are dropped when a weight or buffer has moved. Hooks inside the module run while it is captured, not at a replay.
    Calls from several threads are served one after another.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        buckets: tuple[int, ...] = BUCKETS,
        waste: float = WASTE,
        keep: int = 16,
        capture: Capture | None = None,
        device_type: str = "cuda",
    ) -> None:
        self.module = module
        self._settings: dict[str, Any] = {"buckets": buckets, "waste": waste, "keep": keep, "device_type": device_type}
        self._buckets = tuple(sorted(buckets))
        self._waste = waste
        self._keep = keep
        self._given_capture = capture
        self._capture: Capture = capture or CudaCapture()
        self._device_type = device_type
        self._graphs: OrderedDict[Hashable, _Graph] = OrderedDict()
        self._storages: tuple[Hashable, ...] = ()
        self._refusal = ""
        self._done: Any = None
        self._lock = threading.Lock()

    def __call__(self, x: Tensor) -> Tensor:
        """The module's output for (rows, ...); from a graph, a copy that later calls do not overwrite."""
        if self._find_input_fault(x):
            return self.module(x)
        tensors = _list_tensors(self.module)
        if self._find_weights_fault(x, tensors):
            return self.module(x)
        with self._lock, self._wait_for_last_call(x.device):
            graph = self._get_or_capture_graph(x, tensors)
            if graph is not None:
                return graph(x)
        return self.module(x)

    def reasons_against(self, x: Tensor) -> list[str]:
        """Why these rows are not computed by a graph; empty where they are."""
        reason = self._find_input_fault(x) or self._find_weights_fault(x, _list_tensors(self.module))
        return [reason] if reason else []

    def find_bucket(self, rows: int) -> int | None:
        """How many rows are computed for this many; None where they are computed without a graph."""
        fitting = next((size for size in self._buckets if size >= rows), None)
        return fitting if rows and fitting and fitting - rows <= self._waste * rows else None

    def drop_graphs(self) -> None:
        """Drop all graphs and the memory they hold."""
        with self._lock:
            self._graphs.clear()

    def __reduce__(self) -> tuple[Callable[..., CUDAGraphed], tuple[object, ...]]:
        """Copies and pickles start without graphs: graphs read the weights of this module."""
        return _rebuild_graphed, (type(self), self.module, self._settings, self._given_capture)

    def _find_input_fault(self, x: Tensor) -> str:
        if self._refusal:
            return self._refusal
        if torch.compiler.is_compiling():
            return "the module is being compiled"
        if x.device.type != self._device_type:
            return f"the input is on {x.device.type}, and graphs are for {self._device_type}"
        if x.is_cuda and torch.cuda.is_current_stream_capturing():
            return "it is part of a graph that is being captured"
        if self.find_bucket(len(x)) is None:
            return f"no bucket of {', '.join(map(str, self._buckets))} is close enough to {len(x)} rows"
        return ""

    def _find_weights_fault(self, x: Tensor, tensors: list[Tensor]) -> str:
        if torch.is_grad_enabled() and (x.requires_grad or any(t.requires_grad for t in tensors)):
            return "gradients are wanted"
        other = next((type(t).__name__ for t in tensors if type(t) not in (Tensor, nn.Parameter)), None)
        return "" if other is None else f"a weight is a {other}, which a graph would not gather again"

    @contextmanager
    def _wait_for_last_call(self, device: torch.device) -> Iterator[None]:
        """Wait on the device for the last call: graphs share memory, and threads may use streams of their own."""
        if self._done is not None:
            torch.cuda.current_stream(device).wait_event(self._done)
        yield
        if device.type == "cuda":
            self._done = torch.cuda.current_stream(device).record_event()

    def _get_or_capture_graph(self, x: Tensor, tensors: list[Tensor]) -> _Graph | None:
        storages = tuple((t.data_ptr(), t.dtype) for t in tensors)
        if storages != self._storages:
            self._graphs.clear()
            self._storages = storages
        kind = x.device.type
        autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        backends = tuple((op, name) for op in sorted(OPS) if (name := find_requested_backend(op)) != AUTO)
        key = (self.find_bucket(len(x)), x.shape[1:], x.dtype, x.device, autocast, self.module.training, backends)
        if key not in self._graphs:
            try:
                self._graphs[key] = self._capture_graph(x)
            except RuntimeError as cause:
                self._refusal = f"it could not be captured: {cause}"
                log.warning("%s runs without CUDA graphs: %s", type(self.module).__name__, self._refusal)
                return None
        self._graphs.move_to_end(key)
        while len(self._graphs) > self._keep:
            self._graphs.popitem(last=False)
        return self._graphs[key]

    def _capture_graph(self, x: Tensor) -> _Graph:
        """A graph for as many rows as the bucket of `x` holds, which later calls in any gradient mode may use."""
        kind = x.device.type
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            torch.autocast(
                kind,
                dtype=torch.get_autocast_dtype(kind),
                enabled=torch.is_autocast_enabled(kind),
                cache_enabled=False,  # a cached cast of a weight would lie in the graph's memory
            ),
        ):
            static = torch.zeros(self.find_bucket(len(x)) or 0, *x.shape[1:], dtype=x.dtype, device=x.device)
            return _Graph(static, self._capture(self.module, static))


@dataclass(slots=True)
class _Graph:
    """A captured computation and the tensor that it reads."""

    static: Tensor
    replay: Replay
    __repr__ = format_by_shape

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        self.static[: len(x)].copy_(x)
        self.static[len(x) :].zero_()
        return self.replay()[: len(x)].clone()


def capture_cuda_graph(run: Callable[[], T], *, warm_ups: int = 0, pool: Any = None) -> tuple[torch.cuda.CUDAGraph, T]:
    """A graph of what `run` starts on the current device, and its result, which a replay overwrites.

    warm_ups: runs before, so that what is set up once is not captured. Other threads, such as a data loader's that pins
    memory, may use CUDA meanwhile.
    """
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(warm_ups):
            run()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        return graph, run()


class CudaCapture:
    """Captures a function into CUDA graphs that share memory, since they are replayed one after another."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, function: Callable[[Tensor], Tensor], static: Tensor) -> Replay:
        with torch.cuda.device(static.device):
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            return _GraphReplay(*capture_cuda_graph(lambda: function(static), warm_ups=WARM_UPS, pool=self._pool))


@dataclass(slots=True)
class _GraphReplay:
    graph: Any
    out: Tensor
    __repr__ = format_by_shape

    def __call__(self) -> Tensor:
        self.graph.replay()
        return self.out


def _rebuild_graphed(
    kind: type[CUDAGraphed], module: nn.Module, settings: dict[str, Any], capture: Capture | None
) -> CUDAGraphed:
    return kind(module, **settings, capture=capture)


def _list_tensors(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers; several times faster than `parameters()`, which at one view would cost what graphs save."""
    tensors: list[Tensor] = []
    modules = [module]
    while modules:
        module = modules.pop()
        tensors.extend(t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None)
        modules.extend(child for child in module._modules.values() if child is not None)
    return tensors
