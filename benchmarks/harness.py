"""What the benchmarks share: each case by itself, honest clocks, a record of the machine.

On a CPU a case runs in processes of its own. On a GPU it runs in this one, which starts CUDA and its libraries once, and
leaves the device's memory empty behind it; libraries stay as users find them (`torch.backends.cudnn.benchmark` is False).
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import platform
import re
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from medsynth.memory import keep_freed_memory

RESULTS = Path(__file__).parent / "results"
SLOW_SECONDS = 15.0
"""Work that takes longer than this on a CPU is timed once, its first run included."""
GPU_SLOW_SECONDS = 5.0
"""The same on a GPU: what is this slow there was warmed up on a part of itself."""
ENOUGH_SECONDS = {"cpu": 2.0, "cuda": 1.0}
"""Work is run again until its runs took this long together."""

Works = dict[str, Callable[[], Any]]


def alone(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """What `function` returns, run in a fresh process: its peak of memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def fresh(function: Callable[..., dict[str, Any]], *arguments: Any, device: str) -> dict[str, Any]:
    """What `function` returns: in a fresh process on a CPU; on a GPU in this one, whose device memory is then given back."""
    if device == "cpu":
        return alone(function, *arguments)
    try:
        return function(*arguments)
    finally:
        give_back()


def give_back() -> None:
    """Return the memory of tensors that nothing refers to any more to the GPU."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def if_it_fits(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `work` returns, or that the device's memory ran out."""
    from medsynth.diffusion.batch_size import unless_out_of_memory

    found = unless_out_of_memory(work)
    return {"out_of_memory": True} if found is None else found


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

    On a CPU two fresh processes: one for the time, and one for the memory whose allocator gives back at once what is freed.
    Else the peak would be that of glibc's heap, which grows with the order in which sizes are asked for. On a GPU the peak
    is that of all runs of a work, above what was allocated before the first. Where the GPU's memory runs out, figures are
    missing and `out_of_memory` is true.
    """
    if device == "cuda":
        return fresh(_gpu_costs, prepare, arguments, most, peaks, device=device)
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


def _gpu_costs(
    prepare: Callable[..., tuple[dict[str, Any], Works]],
    arguments: tuple[Any, ...],
    most: int,
    names: Sequence[str] | None,
) -> dict[str, Any]:
    works: Works = {}

    def prepared() -> dict[str, Any]:
        facts, found = prepare(*arguments)
        works.update(found)
        return facts

    row = if_it_fits(prepared)
    for name, work in works.items():
        row |= if_it_fits(partial(_gpu_cost, name, work, most, names is None or name in names))
    return row


def _gpu_cost(name: str, work: Callable[[], Any], most: int, peak_too: bool) -> dict[str, Any]:
    row: dict[str, Any] = {}

    def timed() -> None:
        row[f"{name}_seconds"] = best_seconds(work, "cuda", most=most)

    peak = peak_above(timed, "cuda")
    return row | ({f"{name}_peak_mib": peak} if peak_too else {})


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


def total_peak_gib(work: Callable[[], Any], device: str, *networks: Any) -> float:
    """Peak of memory while `work` runs, in GiB, with what lies there before: all tensors on a GPU, on a CPU the weights."""
    if device == "cuda":
        import torch

        held = torch.cuda.memory_allocated()
    else:
        weights = (weight for network in networks for weight in network.parameters())
        held = sum(weight.numel() * weight.element_size() for weight in weights)
    return held / 2**30 + peak_above(work, device) / 2**10


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


def best_seconds(work: Callable[[], Any], device: str, *, most: int = 5) -> float:
    """The shortest of a few runs of `work`; the first is not counted, unless it is slow, and then it is the only one.

    On a GPU a short second run is not counted either.
    """
    enough = ENOUGH_SECONDS[device]
    first = seconds_of(work, device)
    if first >= (GPU_SLOW_SECONDS if device == "cuda" else SLOW_SECONDS):
        return first
    if device == "cuda" and first < enough:
        seconds_of(work, device)
    seconds: list[float] = []
    while not seconds or (sum(seconds) < enough and len(seconds) < most):
        seconds.append(seconds_of(work, device))
    return min(seconds)


def seconds_of(work: Callable[[], Any], device: str) -> float:
    """How long one run of `work` takes, to its end on the device."""
    import torch

    now = clock(device)
    if device == "cuda":
        torch.cuda.synchronize()
    begin = now()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return now() - begin


def over(value: float, base: float) -> str:
    """A ratio for a table; a dash where the base is too small to have been seen."""
    return f"{value / base:.2f}" if base > 0 else "-"


def cell(row: Mapping[str, Any], key: str, width: int, digits: int) -> str:
    """A figure of a row for a table, or why there is none."""
    if key in row:
        return f"{row[key]:>{width}.{digits}f}"
    return f"{'out of memory' if row.get('out_of_memory') else 'not seen':>{width}}"


def millions(row: Mapping[str, Any], key: str, width: int) -> str:
    """A number of parameters for a table; a dash where the network could not be built."""
    return f"{row[key] / 1e6:>{width}.2f}" if key in row else f"{'-':>{width}}"


def noise(shape: Sequence[int], device: str, *names: str | int) -> Any:
    """Normal draws for the purpose that `names` spell out, made where they are used."""
    import torch

    from medsynth.seeding import derive

    generator = torch.Generator(device).manual_seed(derive(0, *names))
    return torch.randn(tuple(shape), generator=generator, device=device)


def adamw(network: Any, device: str) -> Any:
    """The optimiser of a training step: on a GPU the fused one, for every network alike."""
    import torch

    return torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True if device == "cuda" else None)


def limit_threads(threads: int, device: str) -> None:
    """Compute with so many threads on a CPU; beside a GPU their number stays as users find it."""
    import torch

    if device == "cpu":
        torch.set_num_threads(threads)


def preset(name: str, latent_channels: int, downsampling: int) -> Any:
    """The denoising network that a preset of medsynth's describes, without conditions, freshly initialised."""
    from medsynth.config.base import plain
    from medsynth.config.denoiser import Denoiser
    from medsynth.config.load import load_section
    from medsynth.stages.denoiser import NETWORKS

    settings = plain(load_section(Denoiser, "denoiser", name).network)
    return NETWORKS[settings.pop("kind")](latent_channels=latent_channels, downsampling=downsampling, **settings)


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
    used = threads if device == "cpu" else torch.get_num_threads()
    return {"device": machine(device), "threads": used, "dtype": dtype, **versions}


def write(name: str, record: dict[str, Any], out: Path | None = None) -> Path:
    """The record as JSON in `benchmarks/results/`, or where `out` says."""
    path = out or RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return path
