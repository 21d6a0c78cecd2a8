"""Quality of autoencoders on held-out real scans: medsynth's against the network of MAISI, trained on the same crops.

    MEDSYNTH_DATA=FOLDER python -m benchmarks.autoencoder_quality                      # 20 CPU minutes a training, 3 seeds
    MEDSYNTH_DATA=FOLDER python -m benchmarks.autoencoder_quality --minutes 2 --seeds 1 --cohorts nodules --out FILE

Both take one channel to 4 channels at 4x per axis and start from random weights; MAISI's is MONAI's `AutoencoderKlMaisi`
of the published sizes. Both go through medsynth's training loop, in bf16 where the processor has it, and are judged with
the averaged weights of the last step, through the mean of the posterior. Trainings, for each cohort and seed:

- `maisi`: the peer with L1 and KL, for `--minutes` of CPU time, one crop a step; `maisi-our-losses`: with our losses.
- `medsynth`: ours for the same time, four crops a step.
- `medsynth-same-samples`: ours for as many samples as the peer saw, one crop a step like the peer.
- `small-crops`: network and losses of the preset of that name (2x per axis to 8 channels: a latent 16 times as large), for
  the same time.

PSNR and SSIM are means over held-out crops, one per patient or per block; intervals are bootstraps over those. Each training
is written as it is done, and one that stands in the file is not done again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.autoencoder_data import COHORTS, data_folder
from benchmarks.harness import RESULTS, setting

MAISI, MAISI_OURS = "maisi", "maisi-our-losses"
TIMED, SAMPLED, SMALL = "medsynth", "medsynth-same-samples", "small-crops"
ARMS = (MAISI, MAISI_OURS, TIMED, SAMPLED, SMALL)
RESAMPLES, CONFIDENCE = 2000, 0.95
NO_LIMIT = 10**7


def peer() -> Any:
    """MAISI's network behind the contract of ours: reconstruction and posterior."""
    import torch
    from torch import Tensor, nn

    from benchmarks.autoencoder import maisi
    from medsynth.models.autoencoder import Posterior

    class Peer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = maisi(frugal=False)
            self.config = {"downsampling": 4, "latent_channels": 4}

        def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Posterior]:
            mean, deviation = self.inner.encode(x)
            posterior = Posterior(mean, 2 * torch.log(deviation))
            return self.inner.decode(mean if noise is None else posterior.draw(noise)), posterior

    return Peer()


def network_of(arm: str, seed: int) -> Any:
    """The network of an arm, with the random weights of a seed."""
    import torch

    from medsynth.models.autoencoder import KLAutoencoder
    from medsynth.seeding import derive

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "autoencoder quality"))
        if arm in (MAISI, MAISI_OURS):
            return peer()
        if arm == SMALL:
            return KLAutoencoder(downsampling=2, latent_channels=8, width=32, blocks=2)
        return KLAutoencoder(downsampling=4, latent_channels=4, width=48, blocks=2)


def run(
    arm: str, cohort: str, seed: int, side: int, minutes: float, samples: int | None, ways: dict[str, tuple[str, float]]
) -> dict[str, Any]:
    """One training and its figures on every held-out crop."""
    import torch

    from medsynth.config.autoencoder import Autoencoder, AutoencoderLoss
    from medsynth.config.training import Training
    from medsynth.training.autoencoder import AutoencoderTask
    from medsynth.training.loop import train
    from medsynth.training.losses import peak_signal_to_noise, structural_similarity

    torch.set_num_threads(1)
    training, held_out = COHORTS[cohort](data_folder(), side)
    batch = 4 if arm in (TIMED, SMALL) else 1
    peer = arm in (MAISI, MAISI_OURS)
    losses = {MAISI: AutoencoderLoss(structural=0, gradient=0), SMALL: AutoencoderLoss(frequency=0.5)}
    settings = Autoencoder(
        loss=losses.get(arm, AutoencoderLoss()),
        training=Training(
            steps=NO_LIMIT if samples is None else samples,
            max_minutes=minutes if samples is None else None,
            batch_size=batch,
            optimiser=ways["peer" if peer else "ours"][0],
            learning_rate=ways["peer" if peer else "ours"][1],
            warmup_steps=10,
            ema_decay=0.98,
            validate_every=NO_LIMIT,
            checkpoint_minutes=1e6,
        ),
    )
    network = network_of(arm, seed)
    task = AutoencoderTask(network, training, held_out[:1], settings, seed)
    with tempfile.TemporaryDirectory() as folder:
        records = list(
            train(
                task,
                settings.training,
                folder=Path(folder),
                identity={"arm": arm},
                device=torch.device("cpu"),
                clock=time.process_time,
            )
        )
    figures: dict[str, list[float]] = {"psnr": [], "ssim": []}
    with torch.no_grad():
        for volume in held_out.split(1):
            reconstruction = network(volume)[0].clamp(-1, 1)
            figures["psnr"].append(float(peak_signal_to_noise(reconstruction, volume)))
            figures["ssim"].append(float(structural_similarity(reconstruction, volume)))
    steps = records[-1].step
    facts = {"arm": arm, "cohort": cohort, "seed": seed, "side": side, "training_crops": len(training)}
    facts |= {"device": setting("cpu", 1, "auto")["device"], "held_out_crops": len(held_out)}
    facts |= {
        "parameters": sum(weight.numel() for weight in network.parameters()),
        "learning_rate": settings.training.learning_rate,
        "optimiser": settings.training.optimiser,
    }
    return {**facts, "steps": steps, "samples": steps * batch, "cpu_seconds": records[-1].seconds, **figures}


def difference(ours: list[list[float]], theirs: list[list[float]]) -> tuple[float, float, float]:
    """Mean over seeds and crops of ours minus theirs, both [seeds][crops], and its bootstrap interval over crops."""
    from medsynth.evaluation.statistics import interval
    from medsynth.seeding import numpy_generator

    gaps = np.mean(ours, axis=0) - np.mean(theirs, axis=0)
    drawn = numpy_generator(0, "autoencoder quality").integers(len(gaps), size=(RESAMPLES, len(gaps)))
    return (float(gaps.mean()), *interval(gaps[drawn].mean(1), CONFIDENCE))


def table(cells: list[dict[str, Any]]) -> str:
    """Means of each arm, and the difference to `maisi` with its interval."""
    lines = [f"{'cohort':<13}{'arm':<23}{'seeds':>6}{'samples':>9}{'CPU s':>8}{'PSNR dB':>9}{'SSIM':>8}   minus maisi"]
    for cohort in dict.fromkeys(cell["cohort"] for cell in cells):
        of_cohort = [cell for cell in cells if cell["cohort"] == cohort]
        base = {cell["seed"]: cell for cell in of_cohort if cell["arm"] == MAISI}
        for arm in dict.fromkeys(cell["arm"] for cell in of_cohort):
            chosen = [cell for cell in of_cohort if cell["arm"] == arm]
            mean = {name: float(np.mean([cell[name] for cell in chosen])) for name in ("samples", "cpu_seconds")}
            mean |= {name: float(np.mean([np.mean(cell[name]) for cell in chosen])) for name in ("psnr", "ssim")}
            line = f"{cohort:<13}{arm:<23}{len(chosen):>6}{mean['samples']:>9.0f}{mean['cpu_seconds']:>8.0f}"
            line += f"{mean['psnr']:>9.2f}{mean['ssim']:>8.3f}"
            if arm != MAISI and all(cell["seed"] in base for cell in chosen):
                for name, digits in (("psnr", 2), ("ssim", 3)):
                    peers = [base[cell["seed"]][name] for cell in chosen]
                    value, low, high = difference([cell[name] for cell in chosen], peers)
                    line += f"   {name} {value:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
            lines.append(line)
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Train what the file does not hold yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohorts", nargs="+", default=list(COHORTS), choices=COHORTS)
    parser.add_argument("--arms", nargs="+", default=ARMS, choices=ARMS)
    parser.add_argument("--minutes", type=float, default=20.0, help="CPU minutes of a training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--side", type=int, default=32, help="voxels per axis of a crop")
    parser.add_argument("--optimiser", choices=("muon", "adamw"), default="muon")
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--peer-optimiser", choices=("muon", "adamw"), default="adamw")
    parser.add_argument("--peer-learning-rate", type=float, default=3e-4)
    parser.add_argument("--out", type=Path, default=RESULTS / "autoencoder-quality-cpu.json")
    options = parser.parse_args(arguments)
    record: dict[str, Any] = {"cells": []}
    ways = {
        "ours": (options.optimiser, options.learning_rate),
        "peer": (options.peer_optimiser, options.peer_learning_rate),
    }
    asked = {"minutes": options.minutes, "side": options.side, **{name: list(way) for name, way in ways.items()}}
    if options.out.exists():
        record = json.loads(options.out.read_text(encoding="utf-8"))
        if {name: record.get(name) for name in asked} != asked:
            raise SystemExit(f"{options.out}: expected results of {asked}; name another file with --out")
    record = {**record, **setting("cpu", 1, "auto"), **asked}
    for seed in range(1, options.seeds + 1):
        for cohort in options.cohorts:
            for arm in options.arms:
                done = {(cell["cohort"], cell["arm"], cell["seed"]): cell for cell in record["cells"]}
                if (cohort, arm, seed) in done:
                    continue
                samples = done[cohort, MAISI, seed]["samples"] if arm == SAMPLED else None
                record["cells"].append(run(arm, cohort, seed, options.side, options.minutes, samples, ways))
                options.out.parent.mkdir(parents=True, exist_ok=True)
                partial = options.out.with_suffix(".partial")
                partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
                partial.replace(options.out)
                print(table(record["cells"]).splitlines()[-1], flush=True)
    print(table(record["cells"]))


if __name__ == "__main__":
    main()
