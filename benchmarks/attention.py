"""Time and memory of attention over the voxels of a volume: linear against PyTorch's softmax attention (SDPA).

    python -m benchmarks.attention                      # 4^3 to 64^3 tokens; softmax up to 32^3
    python -m benchmarks.attention --device cuda --dtype bfloat16 --softmax-up-to 64

One forward and one backward pass with 8 heads of 32 channels, from queries and keys before their norm, as in the networks;
each case in processes of its own. On a CPU the clock counts the process's own seconds over all threads, which other work
on the machine does not stretch; on a GPU it is the wall's. Exponents are slopes of log time over log tokens: since the
size before, and over all sizes from `--fit-from` on. The crossover is the number of tokens from which linear is faster.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.growth import crossover, exponent, steps
from benchmarks.harness import Works, costs, setting, write

HEADS = 8
HEAD_CHANNELS = 32


def prepare(kind: str, side: int, device: str, dtype: str, threads: int) -> tuple[dict[str, Any], Works]:
    """A forward and backward pass of one kind over side^3 tokens."""
    import torch

    from medsynth.models.attention import softmax_attention
    from medsynth.models.linear_attention import linear_attention
    from medsynth.seeding import torch_generator

    torch.set_num_threads(threads)
    shape = (1, HEADS, side**3, HEAD_CHANNELS)
    generator = torch_generator(0, "attention benchmark")
    draws = [torch.randn(shape, generator=generator).to(device, getattr(torch, dtype)) for _ in range(4)]
    gains = (torch.ones(HEAD_CHANNELS, device=device), torch.ones(HEAD_CHANNELS, device=device))
    attention = linear_attention if kind == "linear" else softmax_attention

    def once(tokens: int) -> None:
        q, k, v, upstream = (x[:, :, :tokens] for x in draws)
        inputs = [x.detach().requires_grad_() for x in (q, k, v)]
        torch.autograd.grad(attention(*inputs, None, gains), inputs, upstream)

    once(64)  # what the first call sets up is not counted
    return {"kind": kind, "tokens": side**3}, {"pass": lambda: once(side**3)}


def summary(rows: list[dict[str, Any]], fit_from: int) -> dict[str, Any]:
    """Growth of time and memory of each kind over all sizes of at least `fit_from` tokens, and the crossover."""
    by_kind = {kind: [row for row in rows if row["kind"] == kind] for kind in ("linear", "softmax")}
    found: dict[str, Any] = {"fit_from_tokens": fit_from}
    for kind, of_kind in by_kind.items():
        large = [row for row in of_kind if row["tokens"] >= fit_from]
        tokens = [row["tokens"] for row in large]
        found[f"{kind}_exponent"] = exponent(tokens, [row["pass_seconds"] for row in large])
    shared = sorted({row["tokens"] for row in by_kind["linear"]} & {row["tokens"] for row in by_kind["softmax"]})
    if shared:
        seconds = [
            [next(row["pass_seconds"] for row in of_kind if row["tokens"] == tokens) for tokens in shared]
            for of_kind in by_kind.values()
        ]
        found["crossover_tokens"] = crossover(shared, seconds[0], seconds[1])
        found["speedup"] = {str(n): b / a for n, a, b in zip(shared, seconds[0], seconds[1], strict=True)}
    return found


def with_exponents(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, each with the growth of time since the smaller size of the same kind."""
    result = []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        of_kind = [row for row in rows if row["kind"] == kind]
        slopes = steps([row["tokens"] for row in of_kind], [row["pass_seconds"] for row in of_kind])
        result += [{**row, "exponent": slope} for row, slope in zip(of_kind, slopes, strict=True)]
    return result


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as lines of text."""
    lines = [f"{'kind':<10}{'tokens':>9}{'seconds':>11}{'peak MiB':>11}{'exponent':>10}"]
    for row in rows:
        slope = "" if row["exponent"] is None else f"{row['exponent']:.2f}"
        peak = f"{row['pass_peak_mib']:.1f}" if "pass_peak_mib" in row else "not seen"
        cells = f"{row['pass_seconds']:>11.4f}{peak:>11}{slope:>10}"
        lines.append(f"{row['kind']:<10}{row['tokens']:>9}{cells}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[4, 6, 8, 16, 32, 64], help="voxels per axis")
    parser.add_argument("--softmax-up-to", type=int, default=32, help="largest side that softmax attention is given")
    parser.add_argument("--memory-up-to", type=int, default=64, help="largest side whose memory is measured")
    parser.add_argument("--fit-from", type=int, default=16, help="smallest side that the exponents are fitted to")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=None, help="JSON file; benchmarks/results/ unless given")
    options = parser.parse_args(arguments)
    rows = []
    for side in sorted(options.sides):
        for kind in ("linear", "softmax"):
            if kind == "linear" or side <= options.softmax_up_to:
                case = (kind, side, options.device, options.dtype, options.threads)
                seen = side <= options.memory_up_to
                rows.append(costs(prepare, case, options.device, most=20, peaks=None if seen else ()))
    rows = with_exponents(rows)
    found = summary(rows, options.fit_from**3)
    print(table(rows))
    for name, value in found.items():
        print(f"{name}: {value}")
    shape = {"heads": HEADS, "head_channels": HEAD_CHANNELS}
    record = {**setting(options.device, options.threads, options.dtype), **shape, **found, "rows": rows}
    write(f"attention-{options.device}-{options.dtype}", record, options.out)


if __name__ == "__main__":
    main()
