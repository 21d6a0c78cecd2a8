"""Time and memory of the denoising networks: medsynth's against MONAI's U-Net of about as many parameters.

    python -m benchmarks.denoiser                              # latents of 16^3 and 32^3, one thread
    python -m benchmarks.denoiser --device cuda --dtype bfloat16 --sides 16 32 64

Three networks side by side, batch of one, 4 latent channels: medsynth's U-Net with linear attention at every level; MONAI's
`DiffusionModelUNet` (a) as its 3D latent diffusion tutorial lays it out, with attention on the two coarser of three levels;
and (b) with attention at every level, like ours. MONAI's attention uses PyTorch's fused kernels. Channels of MONAI's network
are the multiple of 32 that brings its parameters nearest to ours. A training step is forward, backward and AdamW.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.harness import alone, best_seconds, over, peak_mib, setting, write

CHANNELS = 4
HEAD_CHANNELS = 32
OURS = "medsynth"
NETWORKS = (OURS, "monai-tutorial", "monai-every-level")


def build(name: str, widths: tuple[int, ...]) -> Any:
    """The network, in float32 on the CPU."""
    import torch

    from medsynth.models.unet import LatentUNet

    def ours() -> Any:
        return LatentUNet(CHANNELS, 4, widths, 2, ("linear",), HEAD_CHANNELS, 16, None)

    if name == OURS:
        return ours()
    with torch.device("meta"):  # counted without taking memory
        target = parameters(ours())
        width = min(range(32, 257, 32), key=lambda width: abs(parameters(_monai(name, width)) - target))
    return _monai(name, width)


def _monai(name: str, width: int) -> Any:
    from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet

    everywhere = name == "monai-every-level"
    return DiffusionModelUNet(
        spatial_dims=3,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_res_blocks=1,
        channels=(width, 2 * width, 2 * width),
        attention_levels=(everywhere, True, True),
        num_head_channels=(HEAD_CHANNELS if everywhere else 0, HEAD_CHANNELS, HEAD_CHANNELS),
        norm_num_groups=32,
        use_flash_attention=True,
    )


def parameters(network: Any) -> int:
    """How many numbers a network learns."""
    return sum(parameter.numel() for parameter in network.parameters())


def measure(name: str, side: int, widths: tuple[int, ...], device: str, dtype: str, threads: int) -> dict[str, Any]:
    """Seconds of a forward pass and of a training step, and the peak of memory above that of the network, in MiB."""
    import torch

    from medsynth.seeding import torch_generator

    torch.set_num_threads(threads)
    network = build(name, widths).to(device)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4)
    x = torch.randn(1, CHANNELS, side, side, side, generator=torch_generator(0, "denoiser benchmark")).to(device)
    level = torch.tensor([0.5], device=device)
    mixed = torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16")

    def forward() -> Any:
        with mixed:
            return network(x, level, {}) if name == OURS else network(x, timesteps=level * 1000)

    def step() -> None:
        optimiser.zero_grad()
        (forward().float() - x).square().mean().backward()
        optimiser.step()

    before = peak_mib(device)
    seconds = best_seconds(step, device)
    peak = peak_mib(device) - before
    network.eval()
    with torch.no_grad():
        forward_seconds = best_seconds(forward, device)
    return {
        "network": name,
        "side": side,
        "parameters": parameters(network),
        "step_seconds": seconds,
        "forward_seconds": forward_seconds,
        "step_peak_mib": peak,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as lines of text, with each figure over that of medsynth at the same size."""
    heads = [
        f"{'network':<20}{'side':>5}{'Mparam':>8}",
        *(f"{name:>11}{'ratio':>7}" for name in ("step s", "forward s", "peak MiB")),
    ]
    lines = ["".join(heads)]
    ours = {row["side"]: row for row in rows if row["network"] == OURS}
    for row in rows:
        base = ours[row["side"]]
        ratios = [over(row[key], base[key]) for key in ("step_seconds", "forward_seconds", "step_peak_mib")]
        lines.append(
            f"{row['network']:<20}{row['side']:>5}{row['parameters'] / 1e6:>8.2f}{row['step_seconds']:>11.3f}{ratios[0]:>7}"
            f"{row['forward_seconds']:>11.3f}{ratios[1]:>7}{row['step_peak_mib']:>11.0f}{ratios[2]:>7}"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[16, 32], help="latent voxels per axis")
    parser.add_argument(
        "--every-level-up-to", type=int, default=32, help="largest side for softmax attention everywhere"
    )
    parser.add_argument("--widths", type=int, nargs="+", default=[128, 256, 384], help="channels per level of ours")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=None, help="JSON file; benchmarks/results/ unless given")
    options = parser.parse_args(arguments)
    rows = []
    for side in sorted(options.sides):
        for name in NETWORKS:
            if name == NETWORKS[2] and side > options.every_level_up_to:
                continue
            rows.append(
                alone(measure, name, side, tuple(options.widths), options.device, options.dtype, options.threads)
            )
            print(table([row for row in rows if row["side"] == side]).splitlines()[-1], flush=True)
    print(table(rows))
    record = {**setting(options.device, options.threads, options.dtype), "rows": rows}
    write(f"denoiser-{options.device}-{options.dtype}", record, options.out)


if __name__ == "__main__":
    main()
