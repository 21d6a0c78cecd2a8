"""What the benchmarks share: each case in a process of its own, honest clocks, a record of the machine."""

from __future__ import annotations

import json
import multiprocessing
import platform
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def alone(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """What `function` returns, run in a fresh process: its peak of memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def clock(device: str) -> Callable[[], float]:
    """Seconds: of the process over all its threads on a CPU, which other work does not stretch; of the wall on a GPU."""
    return time.perf_counter if device == "cuda" else time.process_time


def peak_mib(device: str) -> float:
    """Peak memory so far: of the process on a CPU, of tensors on a GPU."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if platform.system() == "Darwin" else 2**10)


def best_seconds(work: Callable[[], Any], device: str, *, enough: float = 2.0, most: int = 5) -> float:
    """The shortest of a few runs of `work`, after one that is not counted."""
    import torch

    now = clock(device)
    work()
    seconds: list[float] = []
    while not seconds or (sum(seconds) < enough and len(seconds) < most):
        if device == "cuda":
            torch.cuda.synchronize()
        begin = now()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(now() - begin)
    return min(seconds)


def over(value: float, base: float) -> str:
    """A ratio for a table; a dash where the base is too small to have been seen."""
    return f"{value / base:.2f}" if base > 0 else "-"


def machine(device: str) -> str:
    """The name of what was measured on."""
    if device == "cuda":
        import torch

        return str(torch.cuda.get_device_name())
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def setting(device: str, threads: int, dtype: str) -> dict[str, Any]:
    """What a record says of how it was measured."""
    import monai
    import torch

    versions = {"torch": torch.__version__, "monai": monai.__version__}
    return {"device": machine(device), "threads": threads, "dtype": dtype, **versions}


def write(name: str, record: dict[str, Any], out: Path | None = None) -> Path:
    """The record as JSON in `benchmarks/results/`, or where `out` says."""
    path = out or RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return path
