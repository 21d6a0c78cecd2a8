"""Warnings from the records of a training run, in words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medsynth.training.records import Record

SIGNIFICANT = 0.001
"""A warning whose cause is chance stands in at most so many looks."""
SMOOTHED = 100
"""Steps whose mean loss is compared with that of others."""
RISEN = 2.0
"""A loss so many times its lowest, and halfway back to where it began, is no longer noise."""

QUESTIONS = {
    "ms_ssim": "whether the samples' diversity collapses",
    "copies": "whether samples copy training scans",
    "gap": "whether training scans are learned by heart",
}
"""Figure of a look -> what it answers."""
REMEDY = "set denoiser.augment.turned_copies (docs/your-own-scans.md)"
"""What lessens memorising."""


def alarms(records: Sequence[Record]) -> dict[str, str]:
    """Kind -> sentence of the warnings that stand now: of the newest look at samples, and of the loss itself."""
    return {**_of_looks(records), **_of_the_loss(records)}


def unanswered(record: Record) -> list[str]:
    """The questions of a look that so few patients cannot answer as surely as a warning must be."""
    seen = record.watch or {}
    return [told for name, told in QUESTIONS.items() if seen.get(f"{name}_least", 0.0) >= SIGNIFICANT]


def _of_looks(records: Sequence[Record]) -> dict[str, str]:
    looks = [(record, record.watch) for record in records if record.watch]
    if not looks:
        return {}
    record, seen = looks[-1]
    standing = {}
    if seen["ms_ssim_p"] < SIGNIFICANT:
        standing["diversity"] = (
            f"samples are more alike than real scans (MS-SSIM {seen['ms_ssim']:.3f}, real {seen['ms_ssim_real']:.3f}): early "
            "in training they are still blurred, later their diversity has collapsed"
        )
    if seen["copies_p"] < SIGNIFICANT:
        standing["copies"] = (
            f"{seen['copies']:.0%} of the samples lie nearer to one training scan than held-out real scans do: the denoiser "
            f"begins to memorise; stop earlier, take a smaller network or more patients, or {REMEDY}"
        )
    if seen["gap_p"] < SIGNIFICANT and _parting(records, [look["training_loss"] for _, look in looks]):
        standing["gap"] = (
            f"the loss on validation cases rises ({seen['validation_loss']:.4g}) while that on training cases still falls "
            f"({seen['training_loss']:.4g}): from here on the denoiser learns its training scans by heart; {REMEDY}"
        )
    return {kind: f"step {record.step}: {sentence}" for kind, sentence in standing.items()}


def _parting(records: Sequence[Record], training: Sequence[float]) -> bool:
    """Whether validation has been better before while training has not."""
    validation = [record.validation["loss"] for record in records if record.validation]
    return len(training) > 1 and training[-1] < min(training[:-1]) and validation[-1] > min(validation)


def _of_the_loss(records: Sequence[Record]) -> dict[str, str]:
    """What `Guard` lets pass: a training loss that goes back up and stays there, or does so at the very end."""
    told = [(record.step, record.losses["loss"]) for record in records if "loss" in record.losses]
    if len(told) < 2:
        return {}
    steps, losses = np.array([0, *(step for step, _ in told)]), np.array([0.0, *(loss for _, loss in told)])
    total = np.cumsum(np.diff(steps, prepend=0) * losses)
    starts = np.searchsorted(steps, steps - SMOOTHED, side="right") - 1
    whole = starts >= 0
    means = (total[whole] - total[starts[whole]]) / (steps[whole] - steps[starts[whole]])
    if len(means) < 2:
        return {}
    first, lowest, now = abs(means[0]), means.min(), means[-1]
    if now <= max(RISEN * lowest, (first + lowest) / 2):
        return {}
    return {
        "divergence": f"step {told[-1][0]}: the training loss has gone back up to {now:.4g} from {lowest:.4g}: the network "
        "loses what it had learned; lower training.learning_rate or raise training.warmup_steps"
    }
