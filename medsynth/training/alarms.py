"""Warnings from the looks at a training run, in words."""

from __future__ import annotations

from collections.abc import Sequence

from medsynth.training.records import Record

SIGNIFICANT = 0.001
"""A warning whose cause is chance stands in at most so many looks."""


def alarms(records: Sequence[Record]) -> dict[str, str]:
    """Kind -> sentence of the warnings that stand at the newest look, from the records so far; {} before the first."""
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
            "begins to memorise; stop earlier, take a smaller network or more patients"
        )
    if seen["gap_p"] < SIGNIFICANT and _parting(records, [look["training_loss"] for _, look in looks]):
        standing["gap"] = (
            f"the loss on validation cases rises ({seen['validation_loss']:.4g}) while that on training cases still falls "
            f"({seen['training_loss']:.4g}): from here on the denoiser learns its training scans by heart"
        )
    return {kind: f"step {record.step}: {sentence}" for kind, sentence in standing.items()}


def _parting(records: Sequence[Record], training: Sequence[float]) -> bool:
    """Whether validation has been better before while training has not."""
    validation = [record.validation["loss"] for record in records if record.validation]
    return len(training) > 1 and training[-1] < min(training[:-1]) and validation[-1] > min(validation)
