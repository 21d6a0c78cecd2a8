"""Time and memory of encoding and decoding a volume: medsynth's autoencoder against the network of MAISI.

    python -m benchmarks.autoencoder                           # 64^3 and 128^3 voxels, one thread
    python -m benchmarks.autoencoder --device cuda --dtype float16 --sides 64 128 256 512

Both take one channel to 4 channels at 4x per axis. MAISI's is MONAI's `AutoencoderKlMaisi` with the sizes of its published
configuration (64, 128 and 256 channels, two blocks per level, no attention) and random weights; ours has those of
`--width` and `--blocks`. From `--tiled-from` voxels per axis on ours works in tiles, and on a GPU of 256 also without.
Batch of one, no gradients.

With `--dtype float16` ours runs as the pipeline decodes on a GPU (`bfloat16` is ours as a training computes it), and MAISI's
as its own inference does on 80 GB: autocast and group norms in float16, convolutions on two halves of a volume, one after the
other (`norm_float16` of config_maisi3d-rflow.json, `autoencoder_tp_num_splits` of config_infer_80g_512x512x512.json, in
generation/maisi/configs of github.com/Project-MONAI/tutorials at 210a063d). What is larger than 80^3 latent voxels is decoded
in windows of that size that share 0.4 of their length, as that file and `ldm_conditional_sample_one_image` of scripts/sample.py
have it, and put together on the CPU. From 500 voxels per axis on its layers send whole activations through the host's memory
(`MaisiGroupNorm3D._cat_inputs`), which takes minutes; there it is measured in windows alone, decoding.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.harness import Works, cell, costs, limit_threads, millions, noise, over, setting, write

OURS, PEER = "medsynth", "monai-maisi"
WINDOW, SHARED = 80, 0.4
"""Latent voxels along each axis of MAISI's windows, and the share of them that neighbours share."""
PEER_WHOLE_BELOW = 500
WARM = 64
"""Voxels per axis of what warms a network up; less cannot be halved for MAISI's convolutions."""
UNTILED_SIDE = 256
FIGURES = ("encode_seconds", "decode_seconds", "peak_mib")


def build(name: str, width: int, blocks: int, dtype: str) -> Any:
    """The network in evaluation mode."""
    if name == OURS:
        from medsynth.models.autoencoder import KLAutoencoder

        return KLAutoencoder(downsampling=4, latent_channels=4, width=width, blocks=blocks).eval()
    return maisi(frugal=dtype != "float32").eval()


def maisi(*, frugal: bool, save_mem: bool = True) -> Any:
    """MAISI's network; `frugal` as its inference sets it, `save_mem` (MONAI's default) gives memory back after each layer."""
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
        norm_float16=frugal,
        num_splits=2 if frugal else 1,
        dim_split=1,
        print_info=False,
        save_mem=save_mem,
    )


def decode_in_windows(decode: Callable[[Any], Any], z: Any, window: int = WINDOW) -> Any:
    """MAISI's way to decode z [1, C, x, y, z]: whole where it is smaller than a window, else window by window.

    The windows' volumes are weighted by a Gaussian and added up on the CPU (`dynamic_infer` of its scripts/utils.py).
    """
    import torch
    from monai.inferers.inferer import SlidingWindowInferer

    if z[0, 0].numel() < window**3:
        return decode(z)
    inferer = SlidingWindowInferer(
        roi_size=[window] * 3,
        sw_batch_size=1,
        mode="gaussian",
        overlap=SHARED,
        sw_device=z.device,
        device=torch.device("cpu"),
    )
    return inferer(network=decode, inputs=z)


def prepare(
    name: str, side: int, width: int, blocks: int, tiled: bool, device: str, dtype: str, threads: int
) -> tuple[dict[str, Any], Works]:
    """Encoding side^3 voxels to the mean of the posterior, and decoding; `tiled` is in windows for MAISI's."""
    import torch

    limit_threads(threads, device)
    network = build(name, width, blocks, dtype).to(device)
    x = noise((1, 1, side, side, side), device, "autoencoder benchmark", "voxels")
    z = noise((1, 4, *(side // 4,) * 3), device, "autoencoder benchmark", "latent")
    if name == OURS:
        encode = network.encode_tiled if tiled else network.encode_latent
        decode = network.decode_tiled if tiled else network.decode_latent
    else:
        encode, decode = network.encode, network.decode

    half = torch.bfloat16 if name == OURS and dtype == "bfloat16" else torch.float16

    def quietly(function: Callable[..., Any], *given: Any) -> None:
        with torch.no_grad(), torch.autocast(device, half, enabled=dtype != "float32"):
            function(*given)

    facts = {"parameters": sum(parameter.numel() for parameter in network.parameters())}
    if name == PEER and tiled:
        quietly(decode, z[..., :WINDOW, :WINDOW, :WINDOW])  # what the first call sets up is not counted
        return facts, {"decode": lambda: quietly(decode_in_windows, decode, z)}
    quietly(encode, x[..., :WARM, :WARM, :WARM])
    quietly(decode, z[..., : WARM // 4, : WARM // 4, : WARM // 4])
    return facts, {"encode": lambda: quietly(encode, x), "decode": lambda: quietly(decode, z)}


def ways(side: int, device: str, tiled_from: int, peer_up_to: int) -> list[tuple[str, bool]]:
    """What is measured at a size, as networks and whether they work in parts; the first is ours as it comes."""
    tiled = side >= tiled_from
    untiled = [(OURS, False)] if tiled and device == "cuda" and side == UNTILED_SIDE else []
    return [(OURS, tiled), *untiled, *([(PEER, side >= PEER_WHOLE_BELOW)] if side <= peer_up_to else [])]


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as lines of text, the peer's with its ratio to ours."""
    heads = "".join(f"{name:>15}" for name in ("encode s", "decode s", "peak MiB"))
    lines = [f"{'network':<22}{'side':>5}{'Mparam':>8}{heads}"]
    ours = {row["side"]: _with_peak(row) for row in reversed(rows) if row["network"] == OURS}  # the first of each size
    for row in map(_with_peak, rows):
        named = row["network"] + (", in parts" if row["tiled"] else "")
        figures = zip(FIGURES, (3, 3, 0), strict=True)
        cells = "".join(cell(row, figure, 15, digits) for figure, digits in figures)
        lines.append(f"{named:<22}{row['side']:>5}{millions(row, 'parameters', 8)}{cells}")
        if row["network"] == PEER:
            base = ours[row["side"]]
            ratios = [over(row[key], base[key]) if key in row and key in base else "-" for key in FIGURES]
            lines.append(f"{'  over ours':<35}" + "".join(f"{ratio:>15}" for ratio in ratios))
    return "\n".join(lines)


def _with_peak(row: dict[str, Any]) -> dict[str, Any]:
    peaks = [row[key] for key in ("encode_peak_mib", "decode_peak_mib") if key in row]
    return row | ({"peak_mib": max(peaks)} if peaks else {})


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table and write it as JSON, after each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[64, 128], help="voxels per axis")
    parser.add_argument("--peer-up-to", type=int, default=512, help="largest side that MAISI's network is given")
    parser.add_argument("--tiled-from", type=int, default=256, help="side from which on ours works in tiles")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=None, help="JSON file; benchmarks/results/ unless given")
    options = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    record = {**setting(options.device, options.threads, options.dtype), "rows": rows}
    for side in sorted(options.sides):
        for name, tiled in ways(side, options.device, options.tiled_from, options.peer_up_to):
            shared = (options.width, options.blocks, tiled, options.device, options.dtype, options.threads)
            found = costs(prepare, (name, side, *shared), options.device, most=3)
            rows.append({"network": name, "side": side, "tiled": tiled, **found})
            print(table(rows).splitlines()[-1], flush=True)
            write(f"autoencoder-{options.device}-{options.dtype}", record, options.out)
    print(table(rows))


if __name__ == "__main__":
    main()
