"""Time and memory of the denoising networks: medsynth's against MONAI's U-Net of about as many parameters.

    python -m benchmarks.denoiser                              # latents of 16^3, 32^3 and 64^3, one thread
    python -m benchmarks.denoiser --device cuda --dtype bfloat16 --group-width 64 --every-level-up-to 64

Side by side, batch of one, 4 latent channels: medsynth's U-Net with linear attention at every level, also with
`checkpointing`; its transformer, in patches of 2^3; MONAI's `DiffusionModelUNet` (a) as its 3D latent diffusion tutorial lays
it out, with attention on the two coarser of three levels; and (b) with attention at every level, like ours. MONAI's attention
uses PyTorch's fused kernels. Width or depth of the others are what brings their parameters nearest to those of our U-Net. A
training step is forward, backward and AdamW; its memory holds gradients and AdamW's moments. Ratios are over our U-Net.

On a GPU both are also recorded as a CUDA graph and replayed, forward and backward of a step as medsynth's training does it, for
every network alike: MONAI's are not recorded by themselves.
"""

from __future__ import annotations

import argparse
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.harness import Works, adamw, cell, costs, limit_threads, millions, noise, over, setting, write

CHANNELS = 4
HEAD_CHANNELS = 32
TRANSFORMER_WIDTH, TRANSFORMER_PATCH = 384, 2
OURS, CHECKPOINTED, TRANSFORMER = "medsynth", "medsynth-checkpoint", "medsynth-transformer"
TUTORIAL, EVERY_LEVEL = "monai-tutorial", "monai-every-level"
NETWORKS = (OURS, CHECKPOINTED, TRANSFORMER, TUTORIAL, EVERY_LEVEL)
MONAI = (TUTORIAL, EVERY_LEVEL)
FIGURES = {"step_seconds": "step s", "forward_seconds": "forward s", "step_peak_mib": "peak MiB"}
RECORDED = {"recorded_step_seconds": "recorded step s", "recorded_forward_seconds": "recorded fwd s"}
"""What is measured on a GPU as well."""


def build(name: str, widths: tuple[int, ...], group_width: int | None = None) -> Any:
    """The network, in float32 on the CPU."""
    if name in (OURS, CHECKPOINTED):
        return _ours(widths, group_width, checkpointing=name == CHECKPOINTED)
    return _other(name, _size(name, widths, group_width), group_width)


def _ours(widths: tuple[int, ...], group_width: int | None, *, checkpointing: bool) -> Any:
    from medsynth.models.unet import LatentUNet

    return LatentUNet(
        latent_channels=CHANNELS,
        downsampling=4,
        widths=widths,
        blocks=2,
        attention=("linear",),
        head_channels=HEAD_CHANNELS,
        checkpointing=checkpointing,
        **_groups(group_width),
    )


def _other(name: str, size: int, group_width: int | None) -> Any:
    from medsynth.models.transformer import LatentTransformer

    if name == TRANSFORMER:
        return LatentTransformer(CHANNELS, 4, TRANSFORMER_WIDTH, size, TRANSFORMER_PATCH, **_groups(group_width))
    return _monai(name, size)


def _groups(group_width: int | None) -> dict[str, Any]:
    return {} if group_width is None else {"group_width": group_width}


@cache
def _size(name: str, widths: tuple[int, ...], group_width: int | None) -> int:
    """Depth or width of the other network that brings its parameters nearest to those of ours."""
    import torch

    with torch.device("meta"):  # counted without taking memory
        target = parameters(_ours(widths, group_width, checkpointing=False))
        sizes = range(1, 13) if name == TRANSFORMER else range(32, 257, 32)
        return min(sizes, key=lambda size: abs(parameters(_other(name, size, group_width)) - target))


def _monai(name: str, width: int) -> Any:
    from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet

    everywhere = name == EVERY_LEVEL
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


def prepare(
    name: str, side: int, widths: tuple[int, ...], group_width: int | None, device: str, dtype: str, threads: int
) -> tuple[dict[str, Any], Works]:
    """A training step and a forward pass of one network on a latent of side^3."""
    import torch

    limit_threads(threads, device)
    network = build(name, widths, group_width).to(device)
    optimiser = adamw(network, device)
    x = noise((1, CHANNELS, side, side, side), device, "denoiser benchmark")
    level = torch.tensor([0.5], device=device)
    mixed = torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16")

    def predict(x: Any) -> Any:
        with mixed:
            return network(x, timesteps=level * 1000) if name in MONAI else network(x, level, {})

    def step() -> None:
        network.train()
        optimiser.zero_grad()
        (predict(x).float() - x).square().mean().backward()
        optimiser.step()

    def forward() -> None:
        network.eval()
        with torch.no_grad():
            predict(x)

    predict(x[..., :8, :8, :8]).float().mean().backward()  # what the first call sets up is not counted
    optimiser.zero_grad()
    works: Works = {"step": step, "forward": forward}
    if device == "cuda":
        from medsynth.kernels.recording import Recorder
        from medsynth.training.replay import Replay

        def losses(batch: dict[str, Any]) -> dict[str, Any]:
            loss = (predict(batch["x"]).float() - batch["x"]).square().mean()
            loss.backward()
            return {"loss": loss}

        replay, recorder = Replay(losses, list(network.parameters())), Recorder(lambda inputs: predict(inputs["x"]))

        def recorded_step() -> None:
            network.train()
            replay({"x": x})
            optimiser.step()

        def recorded_forward() -> None:
            network.eval()
            with torch.no_grad():
                recorder({"x": x})

        works |= {"recorded_step": recorded_step, "recorded_forward": recorded_forward}
    return {"parameters": parameters(network)}, works


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as lines of text, with each figure over that of the first network at the same size."""
    figures = FIGURES | (RECORDED if any(key in row for row in rows for key in RECORDED) else {})
    heads = [f"{'network':<22}{'side':>5}{'Mparam':>8}", *(f"{name:>16}{'ratio':>7}" for name in figures.values())]
    lines = ["".join(heads)]
    ours = {row["side"]: row for row in reversed(rows)}  # the first of each size
    for row in rows:
        base = ours[row["side"]]
        ratios = [over(row[key], base[key]) if key in row and key in base else "" for key in figures]
        cells = [f"{cell(row, key, 16, 3)}{ratio:>7}" for key, ratio in zip(figures, ratios, strict=True)]
        lines.append(f"{row['network']:<22}{row['side']:>5}{millions(row, 'parameters', 8)}{''.join(cells)}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table and write it as JSON, after each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[16, 32, 64], help="latent voxels per axis")
    parser.add_argument(
        "--every-level-up-to", type=int, default=32, help="largest side for softmax attention everywhere"
    )
    parser.add_argument("--every-level-memory-up-to", type=int, default=16, help="the same, for its memory on a CPU")
    parser.add_argument(
        "--networks", nargs="+", default=NETWORKS, choices=NETWORKS, help="the first is the base of ratios"
    )
    parser.add_argument("--widths", type=int, nargs="+", default=[128, 256, 384], help="channels per level of ours")
    parser.add_argument(
        "--group-width",
        type=int,
        default=None,
        help="channels per group of our convolutions; 16, transformer 8, unless given",
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=None, help="JSON file; benchmarks/results/ unless given")
    options = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    sizes = {"widths": options.widths, "group_width": options.group_width}
    record = {**setting(options.device, options.threads, options.dtype), **sizes, "rows": rows}
    for side in sorted(options.sides):
        for name in options.networks:
            if name == EVERY_LEVEL and side > options.every_level_up_to:
                continue
            shared = (tuple(options.widths), options.group_width, options.device, options.dtype, options.threads)
            seen = name != EVERY_LEVEL or options.device == "cuda" or side <= options.every_level_memory_up_to
            found = costs(prepare, (name, side, *shared), options.device, peaks=["step"] if seen else ())
            rows.append({"network": name, "side": side, **found})
            print(table([row for row in rows if row["side"] == side]).splitlines()[-1], flush=True)
            write(f"denoiser-{options.device}-{options.dtype}", record, options.out)
    print(table(rows))


if __name__ == "__main__":
    main()
