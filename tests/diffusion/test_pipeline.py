"""The generator as users call it."""

import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor

from medsynth.diffusion.pipeline import LatentVolumePipeline
from medsynth.diffusion.samplers import SAMPLERS
from medsynth.errors import ConfigError, DataError, ModelFolderError

FAST = {"sampler": "flow_euler", "evaluations": 3}
BOX = (16, 24, 16)
OTHER_BOX = torch.zeros(1, 1, 16, 16, 16, dtype=torch.uint8)


def test_a_scan_has_the_unit_the_grid_and_nothing_else(pipeline):
    out = pipeline({"diagnosis": "malignant"}, count=2, seeds=[1, 2], **FAST)
    assert out.seeds == [1, 2]
    assert out.masks == [None, None]
    assert out.latents.shape == (2, 3, 4, 6, 4)
    scan = out.scans[0]
    assert isinstance(scan, MetaTensor)
    assert tuple(scan.shape) == (1, *BOX)
    assert scan.dtype == torch.int16
    assert -1000 <= scan.min() < scan.max() <= 400
    assert scan.meta["modality"] == "CT"
    assert scan.meta["unit"] == "HU"
    affine = scan.affine.numpy()
    np.testing.assert_allclose(np.diag(affine)[:3], [0.5, 0.75, 2.0])
    centre = affine @ [*(np.array(BOX) - 1) / 2, 1]
    np.testing.assert_allclose(centre[:3], 0, atol=1e-9)


def test_intensities_are_the_rule_undone(build):
    percentiles = {"kind": "percentiles", "low": 0.5, "high": 99.5, "unit": "a.u.", "reference": [10.0, 210.0]}
    geometry = {"spacing_mm": [1, 1, 1], "box": [16, 16, 16], "modality": "MR", "unit": "a.u.", "orientation": "RAS"}
    pipeline = build(conditions={}, intensity=percentiles, geometry=geometry)
    out = pipeline(seeds=[3], **FAST)
    scan = out.scans[0].as_tensor()
    assert scan.dtype == torch.float32
    with torch.no_grad():
        decoded = pipeline.autoencoder.decode_latent(out.latents).clamp(-1, 1)[0]
    torch.testing.assert_close(scan, 110 + 100 * decoded, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_volume_depends_on_its_seed_and_not_on_the_rest_of_the_call(pipeline, sampler):
    rows = [{"diagnosis": "malignant"}, {"diagnosis": "benign", "diameter_mm": 12.0}, {}]
    together = pipeline(rows, seeds=[5, 6, 7], sampler=sampler, evaluations=4, batch_size=3, guidance=2.0)
    for i in (0, 2):
        alone = pipeline(rows[i], seeds=[5 + i], sampler=sampler, evaluations=4, batch_size=1, guidance=2.0)
        assert torch.equal(alone.latents[0], together.latents[i])
        assert torch.equal(alone.scans[0].as_tensor(), together.scans[i].as_tensor())
    assert not torch.equal(together.latents[0], together.latents[1])


def test_every_condition_steers(pipeline):
    mask = torch.zeros(1, 1, *BOX, dtype=torch.uint8)
    mask[..., 4:12, 4:12, 4:12] = 1
    plain = pipeline(seeds=[1], **FAST).latents
    for conditions, masks in (({"diagnosis": "benign"}, None), ({"diameter_mm": 30}, None), ({}, mask)):
        assert not torch.allclose(pipeline(conditions, masks=masks, seeds=[1], **FAST).latents, plain, atol=1e-4)
    everything = {"diagnosis": None, "diameter_mm": None}
    assert torch.equal(pipeline(everything, seeds=[1], **FAST).latents, plain)


def test_guidance_reaches_the_network(pipeline):
    asked = {"diagnosis": "benign", "diameter_mm": 30.0}
    draw = lambda guidance: pipeline(asked, seeds=[1], guidance=guidance, **FAST).latents  # noqa: E731
    assert torch.equal(draw(1.0), draw({"diagnosis": 1.0}))
    assert not torch.allclose(draw(1.0), draw({"diagnosis": 4.0}), atol=1e-4)
    assert not torch.allclose(draw({"diameter_mm": 4.0}), draw({"diagnosis": 4.0}), atol=1e-4)
    torch.testing.assert_close(draw(0.0), pipeline(seeds=[1], **FAST).latents, rtol=1e-4, atol=1e-5)
    assert torch.equal(draw(1.0), draw({"nodule": 7.0})), "no mask was given, so there is nothing to guide by"


def test_interval_and_rescaling_reach_the_network(pipeline):
    draw = lambda **how: pipeline({"diagnosis": "benign"}, seeds=[1], **how, **FAST).latents  # noqa: E731
    levels = (1.0, 0.8, 0.5)  # flow times of three Euler steps, shifted by 2: 2 t / (1 + t)
    assert torch.equal(draw(guidance=4.0, guidance_interval=(0.6, 0.7)), draw()), "between the levels"
    every = draw(guidance=4.0)
    assert torch.equal(draw(guidance=4.0, guidance_interval=(levels[2] - 0.1, 1.0)), every)
    assert not torch.allclose(draw(guidance=4.0, guidance_interval=(levels[1] - 0.1, 1.0)), every, atol=1e-4)
    assert not torch.allclose(draw(guidance=4.0, guidance_rescale=0.7), every, atol=1e-4)


def test_masks_come_back_on_the_grid_of_their_scans(pipeline):
    masks = torch.zeros(3, 1, *BOX, dtype=torch.int64)
    masks[0, ..., 2:9, 3:9, 4:9] = 1
    masks[1] = 255
    out = pipeline(masks=masks, seeds=[1, 2, 3], **FAST)
    assert out.masks[1] is None
    for index in (0, 2):
        found = out.masks[index]
        assert torch.equal(found.as_tensor(), masks[index].to(torch.uint8))
        assert torch.equal(found.affine, out.scans[index].affine)
    alone = pipeline(seeds=[2], **FAST)
    assert torch.equal(alone.latents[0], out.latents[1]), "a null mask is no mask"
    shared = pipeline(masks=masks[:1], count=2, seeds=[1, 9], **FAST)
    assert torch.equal(shared.latents[0], out.latents[0])
    assert shared.masks[1] is not None


def test_numbers_of_volumes(pipeline):
    assert len(pipeline({}, **FAST).scans) == 1
    assert len(pipeline({}, seeds=[1, 2, 3], **FAST).scans) == 3
    assert len(pipeline([{}, {"diagnosis": "benign"}], **FAST).scans) == 2
    fresh = pipeline({}, count=2, **FAST)
    assert len(set(fresh.seeds)) == 2
    again = pipeline({}, seeds=fresh.seeds, **FAST)
    assert torch.equal(again.latents, fresh.latents)


def test_progress_counts_every_evaluation_of_every_volume(pipeline):
    from contextlib import contextmanager

    class Counting:
        done = 0

        @contextmanager
        def task(self, label, total):
            self.total = total

            def advance(n):
                self.done += n

            yield advance

    progress = Counting()
    pipeline({}, count=3, sampler="flow_heun", evaluations=6, guidance=2.0, progress=progress)
    assert progress.done == progress.total == 3 * 5


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ([{"diagnosis": "malign"}], {}, ConfigError, "diagnosis: expected one of benign, malignant.*malignant"),
        ([{"diagnosys": "benign"}], {}, ConfigError, "diagnosys.*diagnosis"),
        ([{"diameter_mm": 60.0}], {}, ConfigError, "from 3 to 40 mm"),
        ([{}], {"guidance": {"diagnosys": 2.0}}, ConfigError, "did you mean diagnosis"),
        ([{}], {"guidance_interval": (0.7, 0.2)}, ConfigError, "guidance_interval: expected two rising"),
        ([{}], {"guidance_rescale": -0.1}, ConfigError, "guidance_rescale: expected a number from 0 to 1"),
        ([{}], {"sampler": "flow_eular"}, ConfigError, "did you mean flow_euler"),
        ([{}], {"evaluations": 1}, ConfigError, "at least 2"),
        ([{}], {"count": 0}, ConfigError, "at least 1 volume"),
        ([{}], {"batch_size": 0}, ConfigError, "batch_size"),
        ([{}], {"count": 2, "seeds": [1]}, ConfigError, "count 2, seeds 1"),
        ([[{}, {}]], {"seeds": [1, 2, 3]}, ConfigError, "seeds 3, conditions 2"),
        ([{}], {"masks": OTHER_BOX}, DataError, r"expected integer masks \[N, 1, 16, 24, 16\]"),
        ([{}], {"masks": torch.zeros(1, 1, *BOX)}, DataError, "expected integer masks"),
        ([{}], {"masks": torch.full((1, 1, *BOX), 3)}, ConfigError, r"found \[3\]"),
    ],
)
def test_what_the_model_does_not_know_is_refused(pipeline, arguments, options, error, message):
    with pytest.raises(error, match=message):
        pipeline(*arguments, **{**FAST, **options})


def test_masks_for_a_model_without_masks_are_refused(build):
    pipeline = build(conditions={})
    with pytest.raises(ConfigError, match="not conditioned on masks"):
        pipeline(masks=torch.zeros(1, 1, *BOX, dtype=torch.uint8), **FAST)


def test_parts_that_do_not_belong_together_are_refused(pipeline, build):
    with pytest.raises(ModelFolderError, match="disagree about its conditions"):
        type(pipeline)(**pipeline.components, **{**pipeline.parameters, "conditions": {}})
    with pytest.raises(ModelFolderError, match="no multiple of 4"):
        build(geometry={**pipeline.geometry, "box": [16, 18, 16]})
    with pytest.raises(ModelFolderError, match="expected objective, conditions"):
        type(pipeline)(**pipeline.components)


def test_decoding_keeps_to_the_voxels_that_were_allowed(build, tmp_path):
    percentiles = {"kind": "percentiles", "low": 0.5, "high": 99.5, "unit": "a.u.", "reference": [0.0, 2.0]}
    geometry = {"spacing_mm": [1, 1, 1], "box": [16, 64, 16], "modality": "MR", "unit": "a.u.", "orientation": "RAS"}
    whole = build(conditions={}, intensity=percentiles, geometry=geometry)
    whole.save_pretrained(tmp_path / "model")
    most = 16 * 40 * 16
    tiled = type(whole).from_pretrained(tmp_path / "model", tile_voxels=most)
    seen = []
    tiled.autoencoder.head.register_forward_hook(lambda layer, given, made: seen.append(made.numel()))
    a, b = (pipe(seeds=[5], **FAST).scans[0].as_tensor() for pipe in (whole, tiled))
    assert len(seen) > 1
    assert max(seen) <= most
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    tiled.tile_voxels = 64
    with pytest.raises(ConfigError, match="tile_voxels: expected at least"):
        tiled(seeds=[5], **FAST)


def test_products_are_of_half_precision_where_asked_for_and_latents_are_not(pipeline):
    seen = []
    pipeline.denoiser.register_forward_pre_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    latents = {}
    for precision in ("auto", "fp32", "bf16"):
        pipeline.precision = precision
        latents[precision] = pipeline(seeds=[3], **FAST).latents
    assert seen == [False] * 6 + [True] * 3
    assert torch.equal(latents["auto"], latents["fp32"])
    assert latents["bf16"].dtype == torch.float32
    assert not torch.equal(latents["bf16"], latents["fp32"])
    torch.testing.assert_close(latents["bf16"], latents["fp32"], rtol=0.05, atol=0.05)


NUMBERS = {"size": {"kind": "number", "range": [1.0, 9.0], "unit": "mm", "dropout": 0.0}}
MASK_ALONE = {"nodule": {"kind": "mask", "labels": {"nodule": 1}, "dropout": 0.1}}


@pytest.mark.parametrize("declared", [{}, MASK_ALONE, NUMBERS], ids=["nothing", "mask", "number"])
@pytest.mark.parametrize("transformer", [False, True], ids=["unet", "transformer"])
def test_weights_may_be_of_half_precision_whatever_is_declared(
    build, build_transformer, transformer, declared, tmp_path
):
    denoiser = build_transformer(declared) if transformer else None
    build(conditions=declared, denoiser=denoiser).save_pretrained(tmp_path)
    coarse = LatentVolumePipeline.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert coarse(seeds=[3], **FAST).latents.isfinite().all()


def test_guidance_by_a_condition_that_was_never_withheld_is_refused(build):
    pipeline = build(conditions=NUMBERS)
    for guidance in (2.0, {"size": 2.0}):
        with pytest.raises(ConfigError, match="size with dropout 0"):
            pipeline(seeds=[3], guidance=guidance, **FAST)
    assert pipeline(seeds=[3], guidance={"size": 1.0}, **FAST).latents.isfinite().all()
