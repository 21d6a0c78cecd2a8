"""Put the model into the registry: `candidate` always, `champion` when every gate passes."""

from __future__ import annotations

from pathlib import Path

from medsynth.config.base import plain
from medsynth.evaluation.evidence import Evidence
from medsynth.evaluation.gates import check_gates
from medsynth.stages.base import Context, Stage, StageResult
from medsynth.stages.files import read_json, write_json
from medsynth.tracking.registry import find_registered, register_model, set_alias
from medsynth.tracking.store import tracking_uri


def run(context: Context, folder: Path) -> StageResult:
    """Register the model folder with the evidence in its tags; a version that a killed run registered is kept."""
    pipeline, workspace = context.pipeline, context.workspace
    evidence = Evidence.from_json(read_json(workspace.stage("evaluate") / "evidence.json"))
    results = check_gates(evidence, pipeline.register_.gates)
    passed = all(result.passed for result in results)
    uri = tracking_uri(pipeline.tracking, workspace.path)
    model, name = workspace.stage("denoiser") / "model", pipeline.register_.name or pipeline.name
    tags = _tags(context, evidence, passed)
    registered = find_registered(uri, model, name=name, tags=tags) or register_model(
        uri, model, name=name, tags=tags, run_id=context.tracker.run_id, sampling=pipeline.generate.sampling
    )
    set_alias(uri, registered, "candidate")
    if passed:
        set_alias(uri, registered, "champion")
    for result in results:
        context.say(f"gate {result.name}: {'passed' if result.passed else 'not passed'}: {result.sentence}")
    summary = {
        "model": registered.name,
        "version": registered.version,
        "aliases": "candidate, champion" if passed else "candidate",
        "gates_passed": passed,
    }
    write_json(folder / "registered.json", {**summary, "gates": [vars(result) for result in results]})
    return StageResult(summary)


def _tags(context: Context, evidence: Evidence, passed: bool) -> dict[str, str]:
    digests = {
        f"medsynth.{name}": context.workspace.digest_of(name) or "" for name in ("prepare", "denoiser", "evaluate")
    }
    tags = {**digests, "medsynth.gates_passed": str(passed).lower()}
    if evidence.benefit is not None:
        tags["medsynth.verdict"] = evidence.benefit.verdict.outcome
    if evidence.privacy is not None:
        worst = max(audit.closer.value for audit in evidence.privacy.spaces)
        tags["medsynth.closer_than_real"] = f"{worst:.4f}"
    if evidence.condition is not None and evidence.condition.on_synthetic is not None:
        tags["medsynth.condition_auc"] = f"{evidence.condition.on_synthetic.auc.value:.4f}"
    return tags


STAGE = Stage(
    name="register",
    needs=("denoiser", "evaluate"),
    settings=lambda pipeline: [plain(pipeline.register_), plain(pipeline.tracking)],
    run=run,
    revision=2,
)
