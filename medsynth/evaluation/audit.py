"""The whole evidence about one synthetic set: sections in order, each with its own seed, absent only with a reason."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from medsynth.config.evidence import Evaluate
from medsynth.evaluation import benefit, condition, degradation, fidelity, privacy
from medsynth.evaluation.classifiers import fit_classifier
from medsynth.evaluation.evidence import Benefit, Condition, Evidence, Fidelity, Privacy
from medsynth.evaluation.features import extract
from medsynth.evaluation.statistics import Resampling
from medsynth.evaluation.volumes import LabelledVolumes, join
from medsynth.progress import Progress, Silent
from medsynth.seeding import derive

Floats = NDArray[np.float64]
Features = dict[str, dict[str, Floats]]

LADDER_SCANS = 64
"""Most held-out scans that are damaged, and most training scans that are planted, for the instrument checks."""


def collect_evidence(
    train: LabelledVolumes,
    validation: LabelledVolumes,
    test: LabelledVolumes,
    synthetic: LabelledVolumes,
    settings: Evaluate,
    *,
    seed: int,
    device: torch.device,
    progress: Progress | None = None,
) -> Evidence:
    """Fidelity, privacy, condition and benefit of `synthetic`, beside what real scans reach against real scans.

    Held-out real scans are validation and test together; classifiers are scored on the test split alone. A section that
    cannot be measured is None, and `absent` says why. Raises DataError where grids or classes differ between the sets.
    """
    held_out = join(validation, test)
    for other in (held_out, synthetic):
        join(train.take([]), other.take([]))
    audit = _Audit(
        train=train,
        held_out=held_out,
        test=test,
        synthetic=synthetic,
        settings=settings,
        seed=seed,
        device=device,
        progress=progress or Silent(),
    )
    absent: dict[str, str] = {}
    found_fidelity: Fidelity | None = None
    found_privacy: Privacy | None = None
    reason = audit.too_few()
    if reason is None:
        planted = degradation.planted_copies(train, min(len(held_out), LADDER_SCANS), derive(seed, "planted"))
        features = audit.features(planted)
        found_fidelity = audit.fidelity(features)
        found_privacy = audit.privacy(features, planted)
    else:
        absent["fidelity"] = absent["privacy"] = reason
    arms = audit.arms()
    if isinstance(arms, str):
        absent["benefit"] = arms
    found_condition = audit.condition(arms)
    if found_condition.on_synthetic is None and found_condition.masks is None:
        absent["condition"] = " ".join(dict.fromkeys(found_condition.absent.values()))
    return Evidence(
        counts={"train": len(train), "validation": len(validation), "test": len(test), "synthetic": len(synthetic)},
        confidence=settings.confidence,
        bootstrap=settings.bootstrap,
        seed=seed,
        fidelity=found_fidelity,
        privacy=found_privacy,
        condition=None if "condition" in absent else found_condition,
        benefit=None if isinstance(arms, str) else arms.benefit,
        absent=absent,
    )


@dataclass(frozen=True)
class _Arms:
    """The benefit, and the real arm's probabilities [S, N, C] on real test scans and on synthetic ones."""

    benefit: Benefit
    on_test: Floats
    on_synthetic: Floats


@dataclass(frozen=True, kw_only=True)
class _Audit:
    """What every section needs; one method per section."""

    train: LabelledVolumes
    held_out: LabelledVolumes
    test: LabelledVolumes
    synthetic: LabelledVolumes
    settings: Evaluate
    seed: int
    device: torch.device
    progress: Progress

    @property
    def resampling(self) -> Resampling:
        return Resampling(self.settings.bootstrap, self.settings.confidence)

    @property
    def with_lesions(self) -> bool:
        return all(v.masks is not None for v in (self.train, self.held_out, self.synthetic))

    def too_few(self) -> str | None:
        """Why distributions cannot be compared; None where they can."""
        for name, volumes in (("training", self.train), ("held-out", self.held_out), ("synthetic", self.synthetic)):
            if len(volumes) < fidelity.MINIMUM:
                return f"Comparing takes at least {fidelity.MINIMUM} {name} scans; there are {len(volumes)}."
        return None

    def features(self, planted: LabelledVolumes) -> Features:
        """Raw features per space and set."""
        sets = {"train": self.train, "held out": self.held_out, "synthetic": self.synthetic, "planted": planted}
        with self.progress.task("Features", 2 * sum(len(volumes) for volumes in sets.values())) as advance:
            return extract(sets, self.device, advance, self.with_lesions)

    def fidelity(self, features: Features) -> Fidelity:
        seed = derive(self.seed, "fidelity")
        training, synthetic, held_out = (
            {space: sets[name] for space, sets in features.items()} for name in ("train", "synthetic", "held out")
        )
        plan = fidelity.Plan(min(len(self.held_out), len(self.synthetic)), self.resampling, seed)
        with self.progress.task("Fidelity", 2 * len(features)) as advance:
            spaces = fidelity.compare_spaces(training, synthetic, held_out, plan, advance)
        pairs = fidelity.pair_count(len(self.synthetic)) + fidelity.pair_count(len(self.train))
        with self.progress.task("Diversity", pairs) as advance:
            diversity = fidelity.diversity(self.synthetic.voxels, self.train.voxels, plan, self.device, advance)
        some = np.arange(min(len(self.held_out), LADDER_SCANS))
        with self.progress.task("Instrument check", 2 * len(some) * len(degradation.DAMAGES)) as advance:
            rungs = degradation.ladder(
                self.held_out.take(some),
                training,
                {space: raw[some] for space, raw in held_out.items()},
                with_lesions=self.with_lesions,
                seed=seed,
                device=self.device,
                advance=advance,
            )
        return Fidelity(
            reference=fidelity.reference_sentence(len(self.train), plan.compared),
            training=len(self.train),
            compared=plan.compared,
            spaces=spaces,
            diversity=diversity,
            ladder=rungs,
        )

    def privacy(self, features: Features, planted: LabelledVolumes) -> Privacy:
        seed = derive(self.seed, "privacy")
        sets = {"train": self.train, "held out": self.held_out, "synthetic": self.synthetic, "planted": planted}
        views = privacy.views_of(features, sets)
        if (outlines := privacy.View.of_masks(sets)) is not None:
            views[privacy.MASKS] = outlines
        patients = self.train.patients + self.held_out.patients
        found = {}
        with self.progress.task("Nearest neighbours", len(views)) as advance:
            for space, view in views.items():
                found[space] = privacy.audit_space(space, view, patients, self.resampling, seed=derive(seed, space))
                advance(1)
        masks, _ = found.pop(privacy.MASKS, (None, None))
        scans = list(found.values())
        return Privacy(
            training=len(self.train),
            held_out=len(self.held_out),
            synthetic=len(self.synthetic),
            spaces=tuple(audit for audit, _ in scans),
            closest=privacy.closest_pairs(scans, self.synthetic, self.train, self.settings.closest_pairs),
            masks=masks,
        )

    def arms(self) -> _Arms | str:
        """Every arm, trained and scored; or why that cannot be done."""
        seed = derive(self.seed, "benefit")
        train, test, synthetic = self.train.labelled(), self.test.labelled(), self.synthetic.labelled()
        if train is None or test is None or synthetic is None:
            lacking = "training" if train is None else "test" if test is None else "synthetic"
            return f"The {lacking} scans have no category to predict."
        for name, volumes in (("training", train), ("test", test)):
            if len(np.unique(volumes.label_array())) < 2:
                return f"The {name} scans are all of one class, so there is nothing to tell apart."
        plans, primary, notes = benefit.plan_arms(
            len(train), synthetic.label_array(), self.settings.benefit.ratios, seed
        )
        seeds = self.settings.benefit.seeds
        with self.progress.task("Benefit", len(plans) * seeds) as advance:
            trained = benefit.run_arms(
                plans, train, test, synthetic, self._fit, seeds=seeds, seed=seed, advance=advance
            )
        measured = benefit.measure_benefit(
            plans, primary, notes, trained, train, test, synthetic, self.settings, seed=derive(seed, "measure")
        )
        real = trained[benefit.REAL]
        return _Arms(measured, real.on_test, real.on_synthetic)

    def _fit(self, volumes: LabelledVolumes, seed: int, augment: bool) -> benefit.Predict:
        return fit_classifier(volumes, self.settings.benefit, seed=seed, device=self.device, augment=augment)

    def condition(self, arms: _Arms | str) -> Condition:
        seed = derive(self.seed, "condition")
        absent: dict[str, str] = {}
        on_real = on_synthetic = None
        test, synthetic = self.test.labelled(), self.synthetic.labelled()
        if isinstance(arms, str) or test is None or synthetic is None:
            absent["classifier"] = arms if isinstance(arms, str) else "There is no category to predict."
        else:
            on_real = condition.classifier_scores(arms.on_test, test, self.resampling, seed=seed, name="real")
            if len(np.unique(synthetic.label_array())) > 1:
                on_synthetic = condition.classifier_scores(
                    arms.on_synthetic, synthetic, self.resampling, seed=seed, name="synthetic"
                )
            else:
                absent["classifier"] = "The synthetic scans were all asked to be of one class; an AUC needs two."
        masks = None
        reason = condition.no_masks(self.train, self.held_out, self.synthetic)
        if reason is None:
            steps = self.settings.benefit.steps
            with self.progress.task("Mask overlap", steps) as advance:
                segmenter = condition.Segmenter.trained(
                    self.train, steps=steps, seed=seed, device=self.device, advance=advance
                )
                masks = condition.mask_overlap(segmenter, self.held_out, self.synthetic, self.resampling, seed=seed)
        else:
            absent["masks"] = reason
        return Condition(self.synthetic.classes, on_real, on_synthetic, masks, absent)
