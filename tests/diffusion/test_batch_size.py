"""How many volumes go through the network at once: trial, memory, running out of memory, and what must not change."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from medsynth.diffusion.batch_size import MOST_BY_TRIAL, BatchSizes, unless_out_of_memory
from medsynth.diffusion.geometry import grids_of
from medsynth.diffusion.guidance import Guidance
from medsynth.errors import ConfigError, UsageError

FAST = {"sampler": "flow_euler", "evaluations": 3}
ROWS = [{"diagnosis": "malignant"}, {"diagnosis": "benign", "diameter_mm": 12.0}, {}, {"diameter_mm": 30.0}, {}]
SEEDS = [5, 6, 7, 8, 9]


class Memory:
    """A device that holds so many volumes; `sizes` are the calls it was asked for."""

    def __init__(self, holds: int) -> None:
        self.holds = holds
        self.sizes: list[int] = []

    def __call__(self, size: int) -> None:
        self.sizes.append(size)
        if size > self.holds:
            raise torch.OutOfMemoryError


@pytest.mark.parametrize(
    ("holds", "most", "found", "tried"),
    [
        (10, 64, 8, [1, 2, 4, 8, 16]),
        (1, 64, 1, [1, 2]),
        (1000, 24, 24, [1, 2, 4, 8, 16, 24]),
        (16, 16, 16, [1, 2, 4, 8, 16]),
    ],
)
def test_a_size_is_doubled_until_memory_runs_out(holds, most, found, tried):
    sizes, memory = BatchSizes(), Memory(holds)
    assert sizes.find("kind", most, memory) == found
    assert memory.sizes == tried


def test_what_was_found_is_remembered_for_its_kind_alone():
    sizes, memory = BatchSizes(), Memory(10)
    assert [sizes.find("a", most, memory) for most in (4, 64, 64, 3)] == [4, 8, 8, 3]
    assert memory.sizes == [1, 2, 4, 8, 16], (
        "nothing is tried twice, and a larger wish goes on where a smaller one ended"
    )
    assert sizes.find("b", 2, memory) == 2
    assert memory.sizes[5:] == [1, 2]


def test_half_of_what_ran_out_of_memory_is_the_most_from_then_on():
    sizes, memory = BatchSizes(), Memory(10)
    sizes.find("a", 64, memory)
    assert sizes.halve("a", 8) == 4
    assert sizes.find("a", 64, memory) == 4
    assert sizes.limited("a", 100) == 4
    assert sizes.limited("b", 100) == 100
    assert memory.sizes == [1, 2, 4, 8, 16]


def test_a_device_too_small_for_one_volume_is_told():
    with pytest.raises(UsageError, match=r"one volume.*--device cpu"):
        BatchSizes().find("a", 64, Memory(0))
    with pytest.raises(UsageError, match="one volume"):
        BatchSizes().halve("a", 1)


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    def broken() -> None:
        raise RuntimeError("of another kind")

    with pytest.raises(RuntimeError, match="of another kind"):
        unless_out_of_memory(broken)


@pytest.fixture
def device(pipeline, monkeypatch):
    """The tiny generator on a device that computes batches, and holds three volumes unless told otherwise."""
    memory = Memory(3)
    network = pipeline.denoiser.forward

    def forward(x, *arguments, **options):
        memory(len(x))
        return network(x, *arguments, **options)

    monkeypatch.setattr(pipeline.denoiser, "forward", forward)
    monkeypatch.setattr(type(pipeline), "fills_a_device", property(lambda self: True))
    return memory


def latents(pipeline, **options):
    return pipeline(ROWS, seeds=SEEDS, **{**FAST, **options}).latents


def test_a_batch_is_found_by_one_call_and_filled_up(pipeline, device):
    latents(pipeline)
    assert device.sizes[:3] == [1, 2, 4]
    assert device.sizes[3:] == [2] * 3 * 3, "three batches of two for five volumes, three calls each"
    device.sizes.clear()
    latents(pipeline)
    assert device.sizes == [2] * 9, "no trial for the same kind of call"
    device.sizes.clear()
    latents(pipeline, guidance=2.0)
    assert device.sizes[:2] == [2, 4], "a guided volume is two of the network's"


def test_memory_that_runs_out_after_all_loses_nothing(pipeline, device):
    expected = latents(pipeline, batch_size=1)
    device.sizes.clear()
    ticks = []

    class Listening:
        @contextmanager
        def task(self, label, total):
            self.total = total
            yield ticks.append

    progress = Listening()
    found = latents(pipeline, batch_size=5, progress=progress)
    assert device.sizes == [5] + [2] * 9
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert sum(ticks) == progress.total

    device.holds = 1
    device.sizes.clear()
    ticks.clear()
    pipeline(ROWS, seeds=SEEDS, **FAST, batch_size=5, progress=progress)
    assert device.sizes == [2] + [1] * 15, "the limit found before holds, and is lowered once more"
    assert sum(ticks) == progress.total


def test_it_may_run_out_in_the_middle_of_a_walk(pipeline, device):
    expected = latents(pipeline, batch_size=2)
    calls, check = [], type(device).__call__

    class Filling(Memory):
        def __call__(self, size: int) -> None:
            calls.append(size)
            if len(calls) == 3:
                raise torch.OutOfMemoryError
            check(self, size)

    ticks = []

    class Listening:
        @contextmanager
        def task(self, label, total):
            yield ticks.append

    device.__class__ = Filling
    found = latents(pipeline, batch_size=2, progress=Listening())
    assert calls == [2, 2, 2] + [1] * 15
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert sum(ticks) == 5 * 3


def test_a_volume_is_the_same_within_rounding_whoever_shares_its_batch(pipeline, device):
    """Not bit for bit: a processor's vector instructions treat the last few numbers of an array in another way."""
    together = latents(pipeline, batch_size=2)
    backwards = pipeline(ROWS[::-1], seeds=SEEDS[::-1], batch_size=3, **FAST).latents.flip(0)
    torch.testing.assert_close(together, backwards, rtol=1e-4, atol=1e-4)
    assert (together[0] - together[1]).abs().max() > 0.1


def test_a_processor_computes_one_at_a_time_whatever_is_asked_for(pipeline):
    sizes = []
    pipeline.denoiser.register_forward_pre_hook(lambda module, arguments: sizes.append(len(arguments[0])))
    results = [latents(pipeline, batch_size=size) for size in (1, 4, "auto")]
    assert sizes == [1] * 3 * 15, "nothing is tried either"
    assert all(torch.equal(results[0], other) for other in results[1:])
    with pytest.raises(ConfigError, match="batch_size: expected at least 1"):
        pipeline(**FAST, batch_size=0)


def test_decoding_goes_on_in_smaller_tiles(build, monkeypatch):
    pipeline = build(geometry={"spacing_mm": [1, 1, 1], "box": [128, 16, 16], "modality": "CT", "unit": "HU"})
    whole = pipeline(seeds=[1], **FAST)
    decode, sizes = pipeline.autoencoder.decode_latent, []

    def small(latent):
        sizes.append(latent.shape[2])
        if latent.shape[2] > 30:
            raise torch.OutOfMemoryError
        return decode(latent)

    monkeypatch.setattr(pipeline.autoencoder, "decode_latent", small)
    tiled = pipeline(seeds=[1], **FAST)
    assert sizes[0] == 32
    assert max(sizes[1:]) <= 16
    difference = (tiled.scans[0].as_tensor().int() - whole.scans[0].as_tensor().int()).abs()
    assert difference.max() <= 1, "rounding, in HU"


def test_volumes_come_one_after_another(pipeline):
    calls = []
    pipeline.denoiser.register_forward_pre_hook(lambda *_: calls.append(1))
    stream = pipeline.stream(ROWS, seeds=SEEDS, **FAST)
    assert calls == []
    first = next(stream)
    assert len(calls) == 3
    assert first.seed == 5
    assert torch.equal(torch.stack([first.latent, *(v.latent for v in stream)]), latents(pipeline))


def test_the_largest_batch_of_a_trial_has_an_end_and_batches_are_even(pipeline, device):
    device.holds = 10**6
    (grid,) = grids_of(pipeline.geometry)
    size = lambda count: pipeline.batch_size_for("auto", count, grid=grid, guidance=Guidance(), masked=False)  # noqa: E731
    assert [size(1), size(12), size(MOST_BY_TRIAL + 1), size(1000)] == [1, 12, 33, 63]
    assert max(device.sizes) == MOST_BY_TRIAL
    device.sizes.clear()
    assert pipeline.batch_size_for("auto", 4, grid=grid, guidance=Guidance(), masked=True) == 4
    assert device.sizes == [1, 2, 4], "a mask takes memory, too"
