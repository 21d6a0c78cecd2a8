"""Which sampler, and how many evaluations: the kernel distance of each choice to held-out real scans, and a rule.

All choices answer the same requests with the same seeds, and all are resampled together: the same requests and the same
held-out patients are drawn for each. What they have in common then cancels in the difference of two choices, which is
far better known than either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medsynth.evaluation.distances import KernelDistance
from medsynth.evaluation.evidence import Estimate
from medsynth.evaluation.features import Frame
from medsynth.evaluation.statistics import Resampling, patient_weights, recentred_estimate, scan_weights
from medsynth.seeding import numpy_generator

Floats = NDArray[np.float64]

RULE = (
    "A choice is as good as the best where the interval of its KID minus the lowest KID of that feature space ends below the "
    "margin: what the interval of real against real reaches above its value. Recommended is the choice with the fewest network "
    "calls among those as good in every space, of equally cheap ones the one with the lower mean rank; where there is none, the "
    "choice that is nearest to it: whose interval ends at the smallest multiple of the margin in the space where it is worst."
)


@dataclass(frozen=True)
class Cell:
    """What one choice made of all requests.

    `calls`: network evaluations that were used of those allowed. `features`: by space, [N, D], row i of request i.
    """

    sampler: str
    evaluations: int
    calls: int
    seconds_per_volume: float
    features: Mapping[str, Floats]


@dataclass(frozen=True)
class RealFeatures:
    """Features of real scans by space, [N, D], and the N patients they are of."""

    features: Mapping[str, Floats]
    patients: Sequence[str]


@dataclass(frozen=True)
class Judged:
    """One choice in one feature space: its KID, what it is above the lowest one there, and how much that may be."""

    kid: Estimate
    above_best: Estimate
    margin: float

    @property
    def as_good(self) -> bool:
        """Shown to be no more than the margin above the best; that too few scans tell nothing apart is not enough."""
        return self.above_best.high <= self.margin


@dataclass(frozen=True)
class Choice:
    """One row of the table."""

    sampler: str
    evaluations: int
    calls: int
    seconds_per_volume: float
    spaces: Mapping[str, Judged]

    @property
    def falls_short(self) -> float:
        """Where its intervals end, in margins, in the worst space: at most 1 for one that is as good as the best everywhere."""
        return max(judged.above_best.high / max(judged.margin, 1e-12) for judged in self.spaces.values())

    @property
    def short_in(self) -> list[str]:
        """The spaces in which it was not shown to be as good as the best."""
        return [space for space, judged in self.spaces.items() if not judged.as_good]


@dataclass(frozen=True)
class SamplerTable:
    """All choices. `real`: by space, the KID of the real training scans to the held-out ones."""

    choices: tuple[Choice, ...]
    real: Mapping[str, Estimate]
    recommended: Choice


def tabulate(
    cells: Sequence[Cell], training: RealFeatures, held_out: RealFeatures, resampling: Resampling, seed: int
) -> SamplerTable:
    """Judge `cells`, which answer the same requests, against the held-out scans.

    Features are standardised by the real training scans. Held-out patients are resampled whole.
    """
    generator = numpy_generator(seed, "sampler choice")
    drawn_real = patient_weights(held_out.patients, resampling.resamples, generator)
    requests = len(next(iter(cells[0].features.values())))
    drawn = scan_weights(requests, requests, resampling.resamples, generator)
    drawn_training = patient_weights(training.patients, resampling.resamples, generator)
    judged: list[dict[str, Judged]] = [{} for _ in cells]
    real = {}
    for space, raw in training.features.items():
        frame = Frame.fit(raw)
        reference = frame.standardise(held_out.features[space])
        values, draws = [], []
        for cell in cells:
            kernels = KernelDistance.of(frame.standardise(cell.features[space]), reference)
            values.append(float(kernels.value()[0]))
            draws.append(kernels.value(drawn, drawn_real))
        best = int(np.argmin(values))
        kernels = KernelDistance.of(frame.standardise(raw), reference)
        spread = kernels.value(drawn_training, drawn_real)
        real[space] = recentred_estimate(float(kernels.value()[0]), spread, resampling.confidence)
        for number, (value, spread) in enumerate(zip(values, draws, strict=True)):
            judged[number][space] = Judged(
                kid=recentred_estimate(value, spread, resampling.confidence),
                above_best=recentred_estimate(value - values[best], spread - draws[best], resampling.confidence),
                margin=real[space].high - real[space].value,
            )
    choices = tuple(
        Choice(cell.sampler, cell.evaluations, cell.calls, cell.seconds_per_volume, spaces)
        for cell, spaces in zip(cells, judged, strict=True)
    )
    return SamplerTable(choices, real, recommend(choices))


def recommend(choices: Sequence[Choice]) -> Choice:
    """The choice that `RULE` names."""
    ranks = _mean_ranks(choices)
    good = [i for i, choice in enumerate(choices) if not choice.short_in]
    if good:
        return choices[min(good, key=lambda i: (choices[i].calls, ranks[i]))]
    return min(choices, key=lambda choice: (choice.falls_short, choice.calls))


def _mean_ranks(choices: Sequence[Choice]) -> Floats:
    spaces = list(choices[0].spaces)
    kids = np.array([[choice.spaces[space].kid.value for space in spaces] for choice in choices])
    return np.asarray(kids.argsort(0).argsort(0).mean(1))
