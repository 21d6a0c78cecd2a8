"""A computation on a GPU as one CUDA graph: recorded once for each kind of input, then launched at once.

A network on small latents is thousands of kernels of microseconds each, and Python takes longer to ask for them than
the GPU to run them. A graph asks for all of them in one call.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")

WARM_CALLS = 3
"""Calls of a kind that run as usual first: libraries choose and load their kernels, which no graph can hold."""
MOST_KINDS = 16
"""Graphs that are kept, one for each kind of input; each holds the working memory of a call."""

WORTH_IT = 0.5
"""Least share of a call's time that Python takes to ask for it, for the call to be recorded."""


class NotRecordable(RuntimeError):
    """The device cannot record what was asked of it."""


@dataclass(frozen=True)
class _Recording(Generic[Result]):
    """A recorded call: where its inputs go in, and where the result comes out."""

    graph: torch.cuda.CUDAGraph
    inputs: dict[str, Tensor]
    result: Result


class Recorder(Generic[Result]):
    """`function`, of tensors by name to tensors in any structure, replayed per kind of input (names, shapes and types).

    `function` must depend on nothing but its inputs and on memory that stays where it is, and never wait for the device.
    What it returns is overwritten by the next call. The first `warm` calls of a kind run as usual; where the last of them
    shows that the device takes much longer than asking for its work, nothing would be won, and the kind is never recorded.
    Raises NotRecordable, and OutOfMemoryError.
    """

    def __init__(self, function: Callable[[dict[str, Tensor]], Result], warm: int = WARM_CALLS) -> None:
        self._function = function
        self._warm = warm
        self._calls: dict[Hashable, int] = {}
        self._recordings: dict[Hashable, _Recording[Result]] = {}
        self._not_worth_it: set[Hashable] = set()
        self._pool: Any = None
        self._side = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def __call__(self, inputs: Mapping[str, Tensor]) -> Result:
        """The function's result."""
        kind = tuple((name, tuple(value.shape), value.dtype) for name, value in sorted(inputs.items()))
        recording = self._recordings.get(kind)
        if recording is None:
            calls = self._calls[kind] = self._calls.get(kind, 0) + 1
            if calls == self._warm:
                return self._timed(kind, dict(inputs))
            if calls < self._warm or kind in self._not_worth_it or len(self._recordings) == MOST_KINDS:
                return self._as_usual(dict(inputs))
            recording = self._recordings[kind] = self._record(inputs)
        for name, value in inputs.items():
            recording.inputs[name].copy_(value)
        recording.graph.replay()
        return recording.result

    def _timed(self, kind: Hashable, inputs: dict[str, Tensor]) -> Result:
        torch.cuda.synchronize()
        began = time.perf_counter()
        result = self._as_usual(inputs)
        asked = time.perf_counter() - began
        torch.cuda.synchronize()
        if asked < WORTH_IT * (time.perf_counter() - began):
            self._not_worth_it.add(kind)
        return result

    def _as_usual(self, inputs: dict[str, Tensor]) -> Result:
        # On a stream of its own: what is set up on the stream that everybody uses cannot be recorded later.
        self._side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side):
            result = self._function(inputs)
        torch.cuda.current_stream().wait_stream(self._side)
        return result

    def _record(self, inputs: Mapping[str, Tensor]) -> _Recording[Result]:
        held = {name: value.clone() for name, value in inputs.items()}
        graph = torch.cuda.CUDAGraph()
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        try:
            # Other threads may use the device meanwhile, which is none of this recording's business.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                result = self._function(dict(held))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise NotRecordable(str(error)) from error
        return _Recording(graph, held, result)
