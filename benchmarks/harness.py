"""What the benchmarks share: each case in a process of its own, honest clocks, a record of the machine."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import platform
import re
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medsynth.memory import keep_freed_memory

RESULTS = Path(__file__).parent / "results"
SLOW_SECONDS = 15.0
"""Work that takes longer than this is timed once, its first run included."""

Works = dict[str, Callable[[], Any]]


def alone(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """What `function` returns, run in a fresh process: its peak of memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def costs(
    prepare: Callable[..., tuple[dict[str, Any], Works]],
    arguments: tuple[Any, ...],
    device: str,
    *,
    most: int = 5,
    peaks: Sequence[str] | None = None,
) -> dict[str, Any]:
    """What `prepare(*arguments)` says of itself, and the seconds and the peak of memory of each work that it names.

    `peaks` names the works whose memory is measured, all unless given; for none, the second process is spared.

    Two fresh processes: one for the time, and one for the memory whose allocator gives back at once what is freed. Else
    the peak of a process on a CPU would be that of glibc's heap, which grows with the order in which sizes are asked for.
    """
    timed = alone(_seconds, prepare, arguments, device, most)
    if peaks is not None and not peaks:
        return timed
    with _memory_given_back():
        return timed | alone(_peaks, prepare, arguments, device, peaks)


def _seconds(
    prepare: Callable[..., tuple[dict[str, Any], Works]], arguments: tuple[Any, ...], device: str, most: int
) -> dict[str, Any]:
    keep_freed_memory()  # for both sides
    facts, works = prepare(*arguments)
    return facts | {f"{name}_seconds": best_seconds(work, device, most=most) for name, work in works.items()}


def _peaks(
    prepare: Callable[..., tuple[dict[str, Any], Works]],
    arguments: tuple[Any, ...],
    device: str,
    names: Sequence[str] | None,
) -> dict[str, Any]:
    _, works = prepare(*arguments)
    chosen = works if names is None else names
    return {f"{name}_peak_mib": peak_above(works[name], device) for name in chosen}


@contextmanager
def _memory_given_back() -> Iterator[None]:
    """Processes that start meanwhile return every freed block of 64 KiB and more to the system."""
    before = os.environ.get("MALLOC_MMAP_THRESHOLD_")
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**16)
    try:
        yield
    finally:
        del os.environ["MALLOC_MMAP_THRESHOLD_"]
        if before is not None:
            os.environ["MALLOC_MMAP_THRESHOLD_"] = before


def peak_above(work: Callable[[], Any], device: str) -> float:
    """Peak of memory while `work` runs, above what was in use before, in MiB."""
    gc.collect()
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 2**20
        work()
        torch.cuda.synchronize()
        return peak_mib(device) - before
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not reset.exists():  # not Linux: peaks of before may hide this one
        before = peak_mib(device)
        work()
        return peak_mib(device) - before

    def kib(name: str) -> int:
        found = re.search(rf"^{name}:\s+(\d+)", status.read_text(), re.MULTILINE)
        return int(found[1]) if found else 0

    reset.write_text("5")  # the peak so far is forgotten (proc(5))
    used = kib("VmRSS")
    work()
    return (kib("VmHWM") - used) / 2**10


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
    """The shortest of a few runs of `work`; the first is not counted, unless it is slow, and then it is the only one."""
    import torch

    now = clock(device)

    def once() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        begin = now()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        return now() - begin

    first = once()
    if first >= SLOW_SECONDS:
        return first
    seconds: list[float] = []
    while not seconds or (sum(seconds) < enough and len(seconds) < most):
        seconds.append(once())
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
