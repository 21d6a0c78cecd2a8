"""Time and memory of attention over the voxels of a volume: linear against PyTorch's softmax attention (SDPA).

    python -m benchmarks.attention                      # 4^3 to 64^3 tokens; softmax up to 32^3
    python -m benchmarks.attention --device cuda --dtype bfloat16      # softmax up to 64^3 as well

One forward and one backward pass with 8 heads of 32 channels, from queries and keys before their norm, as in the networks;
each case in processes of its own, or alone on the GPU. On a CPU the clock counts the process's own seconds over all threads,
which other work on the machine does not stretch; on a GPU it is the wall's. Exponents are slopes of log time over log tokens:
since the size before, and over all sizes from `--fit-from` on. The crossover is the number of tokens from which linear is
faster.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.growth import crossover, exponent, steps
from benchmarks.harness import Works, cell, costs, limit_threads, noise, setting, write

HEADS = 8
HEAD_CHANNELS = 32


def prepare(kind: str, side: int, device: str, dtype: str, threads: int) -> tuple[dict[str, Any], Works]:
    """A forward and backward pass of one kind over side^3 tokens."""
    import torch

    from medsynth.models.attention import softmax_attention
    from medsynth.models.linear_attention import linear_attention

    limit_threads(threads, device)
    shape = (1, HEADS, side**3, HEAD_CHANNELS)
    draws = [noise(shape, device, "attention benchmark", i).to(getattr(torch, dtype)) for i in range(4)]
    gains = (torch.ones(HEAD_CHANNELS, device=device), torch.ones(HEAD_CHANNELS, device=device))
    attention = linear_attention if kind == "linear" else softmax_attention

    def once(tokens: int) -> None:
        q, k, v, upstream = (x[:, :, :tokens] for x in draws)
        q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
        torch.autograd.grad(attention(q, k, v, None, gains), (q, k, v), upstream)

    once(64)  # what the first call sets up is not counted
    return {}, {"pass": lambda: once(side**3)}


def summary(rows: list[dict[str, Any]], fit_from: int) -> dict[str, Any]:
    """Growth of time and memory of each kind over all sizes of at least `fit_from` tokens, and the crossover."""
    rows = [row for row in rows if "pass_seconds" in row]
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
        timed = [row for row in of_kind if "pass_seconds" in row]
        slopes = steps([row["tokens"] for row in timed], [row["pass_seconds"] for row in timed])
        found = {row["tokens"]: slope for row, slope in zip(timed, slopes, strict=True)}
        result += [{**row, "exponent": found.get(row["tokens"])} for row in of_kind]
    return result


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as lines of text."""
    lines = [f"{'kind':<10}{'tokens':>9}{'seconds':>15}{'peak MiB':>15}{'exponent':>10}"]
    for row in rows:
        slope = "" if row["exponent"] is None else f"{row['exponent']:.2f}"
        cells = f"{cell(row, 'pass_seconds', 15, 4)}{cell(row, 'pass_peak_mib', 15, 1)}{slope:>10}"
        lines.append(f"{row['kind']:<10}{row['tokens']:>9}{cells}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Measure, write it as JSON after each case, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[4, 6, 8, 16, 32, 64], help="voxels per axis")
    parser.add_argument(
        "--softmax-up-to", type=int, default=None, help="largest side for softmax attention: 32 on a CPU, 64 on a GPU"
    )
    parser.add_argument("--memory-up-to", type=int, default=64, help="largest side whose memory is measured")
    parser.add_argument("--fit-from", type=int, default=16, help="smallest side that the exponents are fitted to")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=None, help="JSON file; benchmarks/results/ unless given")
    options = parser.parse_args(arguments)
    softmax_up_to = options.softmax_up_to or (64 if options.device == "cuda" else 32)
    record = {**setting(options.device, options.threads, options.dtype), "heads": HEADS, "head_channels": HEAD_CHANNELS}
    rows: list[dict[str, Any]] = []
    for side in sorted(options.sides):
        for kind in ("linear", "softmax"):
            if kind == "linear" or side <= softmax_up_to:
                case = (kind, side, options.device, options.dtype, options.threads)
                peaks = None if side <= options.memory_up_to else ()
                found = costs(prepare, case, options.device, most=20, peaks=peaks)
                rows.append({"kind": kind, "tokens": side**3, **found})
                record |= {**summary(rows, options.fit_from**3), "rows": with_exponents(rows)}
                write(f"attention-{options.device}-{options.dtype}", record, options.out)
    print(table(with_exponents(rows)))
    for name, value in summary(rows, options.fit_from**3).items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
