"""Measure what the synthetic scans are worth, and write the report. The only stage that opens the test split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medsynth.cohort.manifest import Manifest
from medsynth.cohort.volumes import VolumeSet
from medsynth.config.base import plain
from medsynth.config.cohort import CategoryCondition
from medsynth.evaluation.audit import collect_evidence
from medsynth.evaluation.evidence import Evidence
from medsynth.evaluation.gates import check_gates
from medsynth.evaluation.volumes import LabelledVolumes
from medsynth.reporting.report import write_report
from medsynth.stages.base import Context, Stage, StageResult
from medsynth.stages.files import read_json, write_json
from medsynth.stages.pictures import Shown, draw_pictures
from medsynth.stages.training import load_together, pick_device, prepared, reproducible


def run(context: Context, folder: Path) -> StageResult:
    """Write evidence.json and report.html. An interrupted run measures again: half an evidence is none."""
    pipeline = context.pipeline
    reproducible(pipeline)
    manifest, _ = prepared(context)
    real = {split: load_together(context, manifest.split(split)) for split in ("train", "validation", "test")}
    dataset = Manifest.read(context.workspace.stage("generate") / "manifest.csv", pipeline.conditions)
    synthetic = load_together(context, dataset)
    label = pipeline.category(pipeline.evaluate.benefit.label)
    classes = _classes(context, label)
    labelled = {name: LabelledVolumes.from_volume_set(part, label, classes) for name, part in real.items()}
    evidence = collect_evidence(
        labelled["train"],
        labelled["validation"],
        labelled["test"],
        LabelledVolumes.from_volume_set(synthetic, label, classes),
        pipeline.evaluate,
        seed=pipeline.seed,
        device=pick_device(pipeline.compute.device),
        progress=context.progress,
    )
    write_json(folder / "evidence.json", evidence.to_json())
    _report(context, folder, evidence, real, synthetic)
    context.tracker.artifact(folder / "evidence.json")
    context.tracker.artifact(folder / "report.html")
    context.tracker.artifact(folder / "pictures")
    summary = _summary(evidence)
    for line in summary.pop("lines"):
        context.say(line)
    return StageResult(summary)


def _classes(context: Context, label: str | None) -> tuple[str, ...]:
    if label is None:
        return ()
    condition = context.pipeline.conditions[label]
    return condition.values if isinstance(condition, CategoryCondition) else ()


def _report(
    context: Context, folder: Path, evidence: Evidence, real: dict[str, VolumeSet], synthetic: VolumeSet
) -> None:
    pipeline, workspace = context.pipeline, context.workspace
    _, rule = prepared(context)
    shown = Shown(real, synthetic, rule, pipeline, evidence)
    pictures = draw_pictures(shown, workspace.stage("autoencoder") / "reconstructions.npy", folder / "pictures")
    facts = {
        "title": pipeline.name,
        "cohort": _cohort_facts(context, real, synthetic),
        "model": read_json(workspace.stage("denoiser") / "model" / "provenance.json"),
        "settings": plain(pipeline.evaluate),
        "sampling": plain(pipeline.generate.sampling),
        "history": {
            name: read_json(workspace.stage(stage) / "history.json")
            for name, stage in (("autoencoder", "autoencoder"), ("denoiser", "denoiser"))
        },
        "gates": [vars(result) for result in check_gates(evidence, pipeline.register_.gates)],
    }
    write_report(evidence, pictures, facts, folder / "report.html")


def _cohort_facts(context: Context, real: dict[str, VolumeSet], synthetic: VolumeSet) -> list[dict[str, Any]]:
    """One row per split: scans, patients and how many of each category."""
    rows = []
    for name, part in (*real.items(), ("synthetic", synthetic)):
        row: dict[str, Any] = {"split": name, "scans": len(part.cases)}
        row["patients"] = len({case.patient for case in part.cases}) if name != "synthetic" else 0
        for key, condition in context.pipeline.conditions.items():
            if isinstance(condition, CategoryCondition):
                found = [case.conditions.get(key) for case in part.cases]
                row[key] = ", ".join(f"{value} {found.count(value)}" for value in condition.values)
        rows.append(row)
    return rows


def _summary(evidence: Evidence) -> dict[str, Any]:
    summary: dict[str, Any] = {"lines": []}
    if evidence.benefit is not None:
        summary["verdict"] = evidence.benefit.verdict.outcome
        summary["lines"] = [f"verdict: {evidence.benefit.verdict.outcome}", *evidence.benefit.verdict.reasons]
    for section, why in evidence.absent.items():
        summary["lines"].append(f"{section}: not measured: {why}")
    if evidence.fidelity is not None:
        for space in evidence.fidelity.spaces:
            for metric in space.metrics:
                summary[f"{space.space}/{metric.name}"] = metric.synthetic.value
                summary[f"{space.space}/{metric.name}/real"] = metric.real.value
    if evidence.privacy is not None:
        for audit in evidence.privacy.spaces:
            summary[f"closer_than_real/{audit.space}"] = audit.closer.value
        if evidence.privacy.masks is not None:
            summary["masks_closer_than_real"] = evidence.privacy.masks.closer.value
    if evidence.condition is not None and evidence.condition.on_synthetic is not None:
        summary["condition_auc"] = evidence.condition.on_synthetic.auc.value
    if evidence.condition is not None and evidence.condition.masks is not None:
        summary["mask_dice"] = evidence.condition.masks.on_synthetic.value
        summary["mask_dice/real"] = evidence.condition.masks.on_real.value
    return summary


STAGE = Stage(
    name="evaluate",
    needs=("prepare", "autoencoder", "denoiser", "generate"),
    settings=lambda pipeline: plain(pipeline.evaluate),
    run=run,
)
