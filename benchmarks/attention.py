"""Time and memory of attention over the voxels of a volume: linear against PyTorch's softmax attention (SDPA).

    python -m benchmarks.attention                      # 16^3, 32^3 and 64^3 tokens; softmax up to 32^3
    python -m benchmarks.attention --device cuda --dtype bfloat16 --softmax-up-to 64

One forward and one backward pass with 8 heads of 32 channels, each case in a process of its own, so that its peak of
memory is its own. On a CPU the clock counts the process's own seconds over all threads, which other work on the
machine does not stretch; on a GPU it is the wall's. The exponent is the slope of log time over log tokens since the
size before.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from benchmarks.harness import alone, clock, machine, peak_mib, write

HEADS = 8
HEAD_CHANNELS = 32
ENOUGH_SECONDS = 2.0
MOST_REPEATS = 10


def measure(kind: str, side: int, device: str, dtype: str, threads: int) -> dict[str, Any]:
    """Best seconds of a forward and backward pass, and the peak of memory above what the inputs take, in MiB."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    from medsynth.models.attention import linear_attention, rms_norm
    from medsynth.seeding import torch_generator

    torch.set_num_threads(threads)
    shape = (1, HEADS, side**3, HEAD_CHANNELS)
    generator = torch_generator(0, "attention benchmark")
    now = clock(device)
    draws = [torch.randn(shape, generator=generator).to(device, getattr(torch, dtype)) for _ in range(4)]
    q, k, v, upstream = draws[0].requires_grad_(), draws[1].requires_grad_(), draws[2].requires_grad_(), draws[3]
    gain = torch.ones(HEAD_CHANNELS, device=device)

    def once(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, upstream: torch.Tensor) -> float:
        begin = now()
        if kind == "linear":
            out = linear_attention(rms_norm(q, gain).relu(), rms_norm(k, gain).relu(), v)
        else:
            out = scaled_dot_product_attention(rms_norm(q, gain).to(v.dtype), rms_norm(k, gain).to(v.dtype), v)
        torch.autograd.grad(out, (q, k, v), upstream)
        if device == "cuda":
            torch.cuda.synchronize()
        return now() - begin

    once(*(x[:, :, :64].detach().requires_grad_() for x in draws))  # what the first call sets up is not counted
    before = peak_mib(device)
    seconds = [once(q, k, v, upstream)]
    peak = peak_mib(device)
    while sum(seconds) < ENOUGH_SECONDS and len(seconds) < MOST_REPEATS:
        seconds.append(once(q, k, v, upstream))
    return {"kind": kind, "tokens": side**3, "seconds": min(seconds), "peak_mib": peak - before}


def with_exponents(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, each with the growth of time since the smaller size of the same kind."""
    last: dict[str, dict[str, Any]] = {}
    result = []
    for row in rows:
        smaller = last.get(row["kind"])
        exponent = None
        if smaller is not None:
            exponent = math.log(row["seconds"] / smaller["seconds"]) / math.log(row["tokens"] / smaller["tokens"])
        result.append({**row, "exponent": exponent})
        last[row["kind"]] = row
    return result


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as lines of text."""
    lines = [f"{'kind':<10}{'tokens':>9}{'seconds':>11}{'peak MiB':>11}{'exponent':>10}"]
    for row in rows:
        exponent = "" if row["exponent"] is None else f"{row['exponent']:.2f}"
        lines.append(
            f"{row['kind']:<10}{row['tokens']:>9}{row['seconds']:>11.4f}{row['peak_mib']:>11.1f}{exponent:>10}"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[16, 32, 64], help="voxels per axis")
    parser.add_argument("--softmax-up-to", type=int, default=32, help="largest side that softmax attention is given")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=None, help="JSON file; benchmarks/results/ unless given")
    options = parser.parse_args(arguments)
    cases = [("linear", side) for side in sorted(options.sides)]
    cases += [("softmax", side) for side in sorted(options.sides) if side <= options.softmax_up_to]
    rows = []
    for kind, side in cases:
        rows.append(alone(measure, kind, side, options.device, options.dtype, options.threads))
    rows = with_exponents(rows)
    print(table(rows))
    import torch

    record = {
        "heads": HEADS,
        "head_channels": HEAD_CHANNELS,
        "device": machine(options.device),
        "threads": options.threads,
        "dtype": options.dtype,
        "torch": torch.__version__,
        "rows": rows,
    }
    write(f"attention-{options.device}-{options.dtype}", record, options.out)


if __name__ == "__main__":
    main()
