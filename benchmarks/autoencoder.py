"""Time and memory of encoding and decoding a volume: medsynth's autoencoder against the network of MAISI.

    python -m benchmarks.autoencoder                           # 64^3 and 128^3 voxels, one thread
    python -m benchmarks.autoencoder --device cuda --dtype bfloat16 --sides 64 128 256 512

Both take one channel to 4 channels at 4x per axis. MAISI's is MONAI's `AutoencoderKlMaisi` with the sizes of its published
configuration (64, 128 and 256 channels, two blocks per level, no attention) and random weights; ours has those of
`--width` and `--blocks`. From `--tiled-from` voxels per axis on ours works in tiles. Batch of one, no gradients.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.harness import Works, costs, over, setting, write

OURS, PEER = "medsynth", "monai-maisi"


def build(name: str, width: int, blocks: int) -> Any:
    """The network in evaluation mode."""
    if name == OURS:
        from medsynth.models.autoencoder import KLAutoencoder

        return KLAutoencoder(downsampling=4, latent_channels=4, width=width, blocks=blocks).eval()
    from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi

    return AutoencoderKlMaisi(
        spatial_dims=3,
        in_channels=1,
        out_channels=1,
        latent_channels=4,
        num_channels=[64, 128, 256],
        num_res_blocks=[2, 2, 2],
        norm_num_groups=32,
        norm_eps=1e-6,
        attention_levels=[False, False, False],
        with_encoder_nonlocal_attn=False,
        with_decoder_nonlocal_attn=False,
        use_checkpointing=False,
        use_convtranspose=False,
        norm_float16=False,
        num_splits=1,
        dim_split=1,
        print_info=False,
        save_mem=True,
    ).eval()


def prepare(
    name: str, side: int, width: int, blocks: int, tiled: bool, device: str, dtype: str, threads: int
) -> tuple[dict[str, Any], Works]:
    """Encoding side^3 voxels to the mean of the posterior, and decoding."""
    import torch

    from medsynth.seeding import torch_generator

    torch.set_num_threads(threads)
    network = build(name, width, blocks).to(device)
    x = torch.rand(1, 1, side, side, side, generator=torch_generator(0, "autoencoder benchmark")).to(device)
    z = torch.randn(1, 4, *(side // 4,) * 3, generator=torch_generator(1, "autoencoder benchmark")).to(device)
    if name == OURS:
        encode = network.encode_tiled if tiled else network.encode_latent
        decode = network.decode_tiled if tiled else network.decode_latent
    else:
        encode, decode = network.encode, network.decode

    def quietly(function: Callable[[Any], Any], given: Any) -> None:
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            function(given)

    quietly(encode, x[..., :16, :16, :16])  # what the first call sets up is not counted
    quietly(decode, z[..., :4, :4, :4])
    parameters = sum(parameter.numel() for parameter in network.parameters())
    facts = {"network": name, "side": side, "tiled": tiled, "parameters": parameters}
    return facts, {"encode": lambda: quietly(encode, x), "decode": lambda: quietly(decode, z)}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as lines of text, the peer's with its ratio to ours."""
    lines = [
        f"{'network':<14}{'side':>5}{'Mparam':>8}"
        + "".join(f"{name:>12}" for name in ("encode s", "decode s", "peak MiB"))
    ]
    ours = {row["side"]: row for row in rows if row["network"] == OURS}
    for row in rows:
        peak = max(row["encode_peak_mib"], row["decode_peak_mib"])
        lines.append(
            f"{row['network']:<14}{row['side']:>5}{row['parameters'] / 1e6:>8.2f}"
            f"{row['encode_seconds']:>12.3f}{row['decode_seconds']:>12.3f}{peak:>12.0f}"
        )
        if row["network"] == PEER:
            base = ours[row["side"]]
            small = max(base["encode_peak_mib"], base["decode_peak_mib"])
            ratios = [row["encode_seconds"] / base["encode_seconds"], row["decode_seconds"] / base["decode_seconds"]]
            lines.append(f"{'  over ours':<27}{ratios[0]:>12.1f}{ratios[1]:>12.1f}{over(peak, small):>12}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table and write it as JSON, after each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[64, 128], help="voxels per axis")
    parser.add_argument("--peer-up-to", type=int, default=512, help="largest side that MAISI's network is given")
    parser.add_argument("--tiled-from", type=int, default=256, help="side from which on ours works in tiles")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=None, help="JSON file; benchmarks/results/ unless given")
    options = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    record = {**setting(options.device, options.threads, options.dtype), "rows": rows}
    for side in sorted(options.sides):
        for name in (OURS, PEER):
            if name == PEER and side > options.peer_up_to:
                continue
            tiled = name == OURS and side >= options.tiled_from
            shared = (options.width, options.blocks, tiled, options.device, options.dtype, options.threads)
            rows.append(costs(prepare, (name, side, *shared), options.device, most=3))
            print(table(rows).splitlines()[-1], flush=True)
            write(f"autoencoder-{options.device}-{options.dtype}", record, options.out)
    print(table(rows))


if __name__ == "__main__":
    main()
