"""Generate the pipeline's synthetic dataset."""

from __future__ import annotations

from pathlib import Path

from medsynth.config.base import plain
from medsynth.diffusion.model_folder import load_model
from medsynth.stages.base import Context, Stage, StageResult
from medsynth.stages.dataset import model_identity, write_dataset
from medsynth.stages.files import read_json
from medsynth.stages.request import MaskSource, draw_requests
from medsynth.stages.training import pick_device, prepared, reproducible


def run(context: Context, folder: Path) -> StageResult:
    """Draw the rows, then the scans. Masks come from the training split alone."""
    pipeline, settings = context.pipeline, context.pipeline.generate
    reproducible(pipeline)
    model = context.workspace.stage("denoiser") / "model"
    generator = load_model(model).to(pick_device(pipeline.compute.device))
    generator.tile_voxels = pipeline.compute.tile_voxels
    generator.precision = settings.precision
    manifest, _ = prepared(context)
    training = manifest.split("train")
    steers_by_mask = (mask := pipeline.mask()) is not None and mask[1].steer
    paths = [(training.mask_path(case), case) for case in training.cases if steers_by_mask]
    masks = [MaskSource(path, case.conditions, case.patient) for path, case in paths if path is not None]
    count = settings.count
    if settings.ratio_of_training is not None:
        count = max(1, round(settings.ratio_of_training * len(training.cases)))
    requests = draw_requests(
        settings,
        generator.condition_declaration,
        read_json(model / "provenance.json")["profile"],
        masks,
        count=count,
        seed=pipeline.seed,
    )
    dataset = write_dataset(
        generator,
        requests,
        settings.sampling,
        folder,
        model=model_identity(model),
        batch_size=settings.batch_size,
        progress=context.progress,
        declared=pipeline.conditions,
        form=settings.format,
    )
    context.tracker.artifact(folder / "manifest.csv")
    context.tracker.dataset(f"{pipeline.name}-synthetic", dataset.digest())
    return StageResult({"scans": len(dataset.cases)})


STAGE = Stage(
    name="generate",
    needs=("prepare", "denoiser"),
    # The scans are the same whatever the size of the batches, so that it may be changed after an interruption.
    settings=lambda pipeline: {key: value for key, value in plain(pipeline.generate).items() if key != "batch_size"},
    run=run,
)
