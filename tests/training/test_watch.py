"""Early warnings: planted collapse and memorisation are told, an ideal sampler is not, and chance decides as often as stated."""

import dataclasses
import os
import signal

import numpy as np
import pytest
import torch
from small_generator import CPU, denoiser_records, denoiser_settings, new_autoencoder, new_denoiser, stores, weights

from medsynth.config.denoiser import FlowObjective, Watch
from medsynth.diffusion.angle import mix, per_sample
from medsynth.diffusion.objective import Denoiser, Objective
from medsynth.errors import InterruptedRun
from medsynth.evaluation.structure import multiscale_ssim
from medsynth.seeding import torch_generator
from medsynth.training import watch
from medsynth.training.alarms import QUESTIONS, alarms, unanswered
from medsynth.training.denoiser import DenoiserTask, train_denoiser
from medsynth.training.latents import LatentCase, LatentStatistics, LatentStore
from medsynth.training.pool import Pool
from medsynth.training.records import Record
from medsynth.training.watch import Eyes, Watcher

SHAPE = (2, 8, 8, 8)
PLAIN = LatentStatistics(torch.zeros(2), torch.ones(2))
EYES = Eyes(lambda latents: latents[:, :1].clamp(-3, 3) / 3, multiscale_ssim)


def gaussian(count, seed):
    return torch.randn(count, *SHAPE, generator=torch_generator(seed, "latents"))


def new_store(count, split, seed=0, scans=1, shape=SHAPE):
    """`scans` scans of each of `count` patients, which resemble one another."""
    cases = tuple(LatentCase(f"{split}{i}", f"{split}{shape}{i // scans}", split, "") for i in range(scans * count))
    own = torch.randn(count, *shape, generator=torch_generator(2 * seed + (split == "train"), "latents"))
    latents = own.repeat_interleave(scans, 0).numpy()
    return LatentStore(latents, None, ({},) * (scans * count), cases, "")


def new_pool(*sizes, **options):
    return Pool(new_store(*sizes, **options), {}, PLAIN)


class Fixed(Denoiser):
    """A denoiser given as a function (x, angle) -> clean latent."""

    def __init__(self, function):
        super().__init__(torch.nn.Identity(), Objective(FlowObjective(kind="flow")))
        self.function = function

    def clean(self, x, angle, conditions):
        return self.function(x, angle)


def losses(denoiser, pool, cases):
    """Of these cases at one angle, the noise the same for every pool."""
    x0, _ = pool.take(cases)
    count = len(cases)
    angle = torch.full((count,), 0.7)
    return (denoiser.clean(mix(x0, gaussian(count, 99), angle), angle, {}) - x0).square().flatten(1).mean(1)


def look(function, seed=0):
    training, validation = new_pool(48, "train", seed), new_pool(32, "validation", seed)
    watcher = Watcher(training, validation, Watch(), EYES, seed)
    denoiser = Fixed(function(training))
    samples = watcher.samples(denoiser, CPU, 3)
    known, held_out = watcher.pairs
    return samples, watcher.look(samples, losses(denoiser, training, known), losses(denoiser, validation, held_out))


def ideal(training):
    """The posterior mean of what the training latents were drawn from."""
    return lambda x, angle: torch.cos(per_sample(angle, x)) * x


def stuck(training):
    """Always the same training latent."""
    return lambda x, angle: training.take(torch.tensor([5]))[0].expand_as(x)


def memorised(training):
    """The posterior mean of the training latents themselves."""
    known, _ = training.take(torch.arange(len(training)))

    def denoise(x, angle):
        cos, sin = torch.cos(angle)[:, None], torch.sin(angle)[:, None].clamp_min(1e-3)
        distance = (x.flatten(1)[:, None] - cos[..., None] * known.flatten(1)).square().sum(2)  # [B, known]
        share = torch.softmax(-distance / (2 * sin**2), 1)
        return (share @ known.flatten(1)).view_as(x)

    return denoise


def told(figures, before=None):
    """Kinds of the warnings after this look; `before`: validation and training loss of an earlier one."""
    records = [] if before is None else [record(1, before[0], {**figures, "training_loss": before[1]})]
    return set(alarms([*records, record(2, figures["validation_loss"], figures)]))


def record(step, validation_loss, figures=None):
    return Record(step, 9, 1.0, {"loss": 1.0}, 1e-3, {"loss": validation_loss}, 0.0, watch=figures)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_an_ideal_sampler_raises_no_warning(seed):
    samples, figures = look(ideal, seed)
    assert float(samples.std()) == pytest.approx(1.0, abs=0.15)
    assert told(figures, before=(0.0, 99.0)) == set()
    assert figures["nearest"] == pytest.approx(figures["nearest_real"], rel=0.1)
    assert figures["ms_ssim"] == pytest.approx(figures["ms_ssim_real"], abs=0.05)
    assert figures["training_loss"] == pytest.approx(figures["validation_loss"], rel=0.05)


def test_a_denoiser_that_is_stuck_at_a_training_scan_raises_both():
    _, figures = look(stuck)
    assert told(figures) == {"diversity", "copies"}
    assert figures["ms_ssim"] == pytest.approx(1.0, abs=1e-4)
    assert figures["copies"] == 1.0
    assert figures["nearest"] < 0.01 * figures["nearest_real"]


def test_a_memorised_training_split_is_told_though_its_samples_differ():
    samples, figures = look(memorised)
    assert len(torch.cdist(samples.flatten(1), samples.flatten(1)).round(decimals=1).unique()) > 2
    assert told(figures) == {"copies"}
    assert figures["gap_p"] < 0.001
    assert figures["training_loss"] < 0.1 * figures["validation_loss"]
    lower, higher = 0.9 * figures["validation_loss"], figures["training_loss"] + 1
    assert told(figures, before=(lower, higher)) == {"copies", "gap"}  # validation rose, training fell
    assert told(figures, before=(2 * lower, higher)) == {"copies"}  # both fell: it still learns
    assert told(figures, before=(lower, -1.0)) == {"copies"}  # both rose


def test_fresh_scans_are_taken_for_copies_or_collapsed_as_often_as_stated(monkeypatch):
    monkeypatch.setattr(watch, "PERMUTATIONS", 199)
    quick = Eyes(lambda latents: latents[:, :1, :2, :2, :2], lambda a, b: (a * b).flatten(1).mean(1))
    below = {"ms_ssim_p": 0, "copies_p": 0, "gap_p": 0}
    rounds = 150
    for seed in range(rounds):
        pools = new_pool(20, "train", seed + 10), new_pool(12, "validation", seed + 10)
        watcher = Watcher(*pools, Watch(samples=4), quick, seed)
        values = torch.randn(2, 24, generator=torch_generator(seed, "losses"))
        figures = watcher.look(gaussian(4, 1000 + seed), *values)
        for name in below:
            below[name] += figures[name] < 0.05
    spare = 3 * (0.05 * 0.95 / rounds) ** 0.5
    assert all(count / rounds < 0.05 + spare for count in below.values()), below
    assert below["ms_ssim_p"] > 0  # the exact tests do fire at times
    assert below["gap_p"] > 0


def test_a_mirrored_copy_counts_as_its_patients_own():
    training, validation = new_pool(20, "train"), new_pool(20, "validation")
    scans = training.grids[0].store
    latents = np.concatenate([scans.latents, scans.latents + 1e-3])  # variants that resemble the scan
    cases = (*scans.cases, *(dataclasses.replace(case, mirrored="x") for case in scans.cases))
    doubled = Pool(LatentStore(latents, None, ({},) * 40, cases, ""), {}, PLAIN)
    watcher = Watcher(doubled, validation, Watch(), EYES, 0)
    copies = doubled.take(torch.arange(8))[0] + 0.01 * gaussian(8, 5)
    figures = watcher.look(copies, torch.ones(20), torch.ones(20))
    assert figures["copies"] == 1.0
    assert figures["copies_p"] < 0.001


def test_patients_with_several_scans_count_once_in_every_test():
    training, validation = new_pool(12, "train", scans=4), new_pool(9, "validation", scans=3)
    watcher = Watcher(training, validation, Watch(samples=32), EYES, 0)
    known, held_out = watcher.pairs
    for pool, cases in ((training, known), (validation, held_out)):
        patients = [pool.grids[0].store.cases[case].patient for case in cases]
        assert len(set(patients)) == len(patients) == 9
    assert watcher.count == 9
    differing = torch.randn(12, 1, generator=torch_generator(0, "patients"))
    figures = watcher.look(gaussian(9, 3), torch.zeros(9), differing[:9, 0])
    assert figures["gap_least"] == pytest.approx(0.5**9, rel=0.1)


def test_losses_are_compared_on_one_grid_alone():
    other = (2, 8, 8, 4)
    training = Pool(
        [new_store(20, "train", shape=other), new_store(3, "train"), new_store(4, "train", shape=(2, 4, 4, 4))],
        {},
        PLAIN,
    )
    validation = Pool([new_store(5, "validation"), new_store(6, "validation", shape=other)], {}, PLAIN)
    known, held_out = Watcher(training, validation, Watch(), EYES, 0).pairs
    assert held_out.tolist()[3:] == [5, 6, 7, 8, 9, 10]
    assert known.tolist()[:3] == [20, 21, 22]
    assert [training.take(case[None])[0].shape for case in known] == [
        validation.take(case[None])[0].shape for case in held_out
    ]


@pytest.mark.parametrize(("patients", "kinds"), [(5, {"gap", "copies"}), (9, {"gap"}), (20, set())])
def test_what_so_few_patients_cannot_tell_is_named_and_no_other_warning_is_missed(patients, kinds):
    training, validation = new_pool(48, "train"), new_pool(patients, "validation")
    watcher = Watcher(training, validation, Watch(), EYES, 0)
    samples = watcher.samples(Fixed(stuck(training)), CPU, 3)
    figures = watcher.look(samples, torch.zeros(patients), torch.ones(patients))
    asked = {QUESTIONS["gap"]: "gap", QUESTIONS["copies"]: "copies", QUESTIONS["ms_ssim"]: "diversity"}
    silent = {asked[question] for question in unanswered(record(1, 1.0, figures))}
    assert silent == kinds
    assert told(figures, before=(0.5, 1.0)) == {"gap", "copies", "diversity"} - silent


def eyes():
    network = new_autoencoder().eval()
    return Eyes(lambda latents: network.decode_latent(latents).clamp(-1, 1), multiscale_ssim)


def records_of(folder, denoiser, stop_at=None):
    train, validation, statistics = stores(folder / "latents", new_autoencoder())
    settings = denoiser_settings(steps=8, validate_every=2, watch={"every": 2, "samples": 3, "evaluations": 3})
    options = {"statistics": statistics, "folder": folder / "checkpoints", "seed": 3, "device": CPU, "eyes": eyes()}
    records = []
    for one in train_denoiser(denoiser, train, validation, settings, **options):
        records.append(one)
        if one.step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
    return records


def test_looks_come_when_they_should_and_leave_the_training_as_it_is(tmp_path):
    watched, resumed, unwatched = new_denoiser(), new_denoiser(), new_denoiser()
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    records = records_of(tmp_path / "whole", watched)
    assert torch.equal(torch.get_rng_state(), state[0])
    assert np.array_equal(np.random.get_state()[1], state[1])
    assert [r.step for r in records if r.watch] == [4, 8]
    with pytest.raises(InterruptedRun):
        records_of(tmp_path / "parts", new_denoiser(), stop_at=5)
    again = records_of(tmp_path / "parts", resumed)
    assert [r.watch for r in again] == [r.watch for r in records]
    denoiser_records(tmp_path / "plain", 8, unwatched, validate_every=2)
    for other in (resumed, unwatched):
        assert all(torch.equal(weights(other.network)[n], w) for n, w in weights(watched.network).items())


def test_too_few_scans_are_not_looked_at(tmp_path):
    train, validation, statistics = stores(tmp_path, new_autoencoder())
    one = dataclasses.replace(validation, latents=validation.latents[:1], masks=validation.masks[:1],
                              rows=validation.rows[:1], cases=validation.cases[:1])  # fmt: skip
    task = DenoiserTask(new_denoiser(), train, one, statistics, denoiser_settings(), 3, eyes())
    assert task.look_every == 0
