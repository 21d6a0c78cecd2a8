"""Calls that are recorded and replayed are the calls themselves. Recording needs a GPU; what surrounds it does not."""

from __future__ import annotations

import pytest
import torch

from medsynth.diffusion import device_denoiser
from medsynth.diffusion.device_denoiser import DeviceDenoiser
from medsynth.diffusion.objective import Denoiser, Objective
from medsynth.kernels.recording import NotRecordable, Recorder
from medsynth.models.conditions import encode
from medsynth.seeding import torch_generator

ROWS = [{"diagnosis": "malignant", "diameter_mm": 12.0}, {"diagnosis": "benign"}, {"diameter_mm": 30.0}]
MASKS = torch.ones(3, 1, 16, 24, 16, dtype=torch.uint8)
WAYS = [
    {"sampler": "flow_heun", "evaluations": 15},
    {"sampler": "dpm_solver++", "evaluations": 12, "guidance": 2.0},
    {"sampler": "dpm_solver++_sde", "evaluations": 12, "guidance": {"diagnosis": 3.0}, "guidance_interval": (0.2, 0.8)},
    {"sampler": "unipc", "evaluations": 12, "guidance": 1.5, "guidance_rescale": 0.5},
]


class Overwriting:
    """As a recorder, without recording: its result lives in one place."""

    fails: type[BaseException] | None = None

    def __init__(self, function, warm):
        self.function, self.calls, self.place = function, 0, None

    def __call__(self, inputs):
        self.calls += 1
        if self.fails is not None:
            raise self.fails
        if self.place is None:
            self.place = torch.empty_like(inputs["x"])
        return self.place.copy_(self.function(dict(inputs)))


@pytest.fixture
def recording(pipeline, monkeypatch):
    """The tiny generator's denoiser, on a processor that takes itself for a device that records."""
    monkeypatch.setattr(device_denoiser, "Recorder", Overwriting)
    denoiser = DeviceDenoiser(pipeline.denoiser, Objective(pipeline.objective), "fp32", torch.device("cpu"))
    denoiser._recorder = Overwriting(denoiser._named, 0)
    return denoiser


def inputs(pipeline):
    conditions = encode(pipeline.condition_declaration, ROWS, MASKS)
    x = torch.randn(3, 3, 4, 6, 4, generator=torch_generator(1, "device"))
    return x, torch.tensor([0.3, 0.9, 1.5]), conditions


@torch.no_grad()
def test_a_recorded_call_is_the_call_itself(pipeline, recording):
    x, angle, conditions = inputs(pipeline)
    plain = Denoiser(pipeline.denoiser, Objective(pipeline.objective))
    first, second = recording.clean(x, angle, conditions), recording.clean(-x, angle, {})
    assert torch.equal(first, plain.clean(x, angle, conditions)), "and the second did not overwrite it"
    assert torch.equal(second, plain.clean(-x, angle, {}))


@pytest.mark.parametrize("error", [NotRecordable, torch.OutOfMemoryError])
@torch.no_grad()
def test_what_cannot_be_recorded_runs_as_usual(pipeline, recording, monkeypatch, error):
    x, angle, conditions = inputs(pipeline)
    recorder = recording._recorder
    monkeypatch.setattr(Overwriting, "fails", error)
    found = [recording.clean(x, angle, conditions) for _ in range(3)]
    plain = Denoiser(pipeline.denoiser, Objective(pipeline.objective)).clean(x, angle, conditions)
    assert all(torch.equal(each, plain) for each in found)
    assert recorder.calls == 1, "it is not asked again"


def test_recordings_are_given_up_before_tiles_shrink(pipeline, recording, monkeypatch):
    """Memory that decoding lacks is taken from what is only convenient first."""
    tiles = []
    decode = pipeline.autoencoder.decode_tiled

    def scarce(latent, tile):
        tiles.append(tile)
        if recording._recorder is not None:
            raise torch.OutOfMemoryError
        return decode(latent, tile)

    monkeypatch.setattr(pipeline.autoencoder, "decode_tiled", scarce)
    monkeypatch.setattr(type(pipeline), "_on_device", lambda self: recording)
    pipeline(seeds=[1], sampler="flow_euler", evaluations=2)
    assert tiles == [16 * 24 * 16] * 2


def test_nothing_is_held_once_all_volumes_are_there(pipeline, recording, monkeypatch):
    monkeypatch.setattr(type(pipeline), "_on_device", lambda self: recording)
    volumes = pipeline.stream(seeds=[1, 2], sampler="flow_euler", evaluations=2)
    next(volumes)
    assert recording._recorder is not None
    assert len(list(volumes)) == 1
    assert recording._recorder is None


def test_calls_that_are_kept_together_share_their_recordings(pipeline, monkeypatch):
    monkeypatch.setattr(device_denoiser, "Recorder", Overwriting)
    made = []

    def make(self):
        denoiser = DeviceDenoiser(self.denoiser, Objective(self.objective), "fp32", torch.device("cpu"))
        denoiser._recorder = Overwriting(denoiser._named, 0)
        made.append(denoiser)
        return denoiser

    def draw(seed):
        return pipeline(seeds=[seed], sampler="flow_euler", evaluations=2).latents

    alone = [draw(seed) for seed in (1, 2)]
    monkeypatch.setattr(type(pipeline), "_on_device", make)
    with pipeline.keeping():
        together = [draw(seed) for seed in (1, 2)]
        assert len(made) == 1 and made[0].records
        made[0].forget()  # as where memory runs out
        draw(3)
        assert len(made) == 2 and made[1].records
    assert not made[1].records, "given back in the end"
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    for seed in (1, 2):
        draw(seed)
    assert len(made) == 4 and not any(denoiser.records for denoiser in made)


@pytest.mark.gpu
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way["sampler"])
def test_volumes_from_recordings_are_those_of_plain_calls(pipeline, way, monkeypatch):
    pipe = pipeline.to("cuda")
    pipe.precision = "fp32"
    made, replays = {}, []
    record = Recorder._record
    monkeypatch.setattr(Recorder, "_timed", lambda self, kind, inputs: self._as_usual(inputs))  # however fast Python is
    monkeypatch.setattr(Recorder, "_record", lambda self, inputs: replays.append(1) or record(self, inputs))
    for recorded in (True, False):
        if not recorded:
            monkeypatch.setattr(Recorder, "__call__", lambda self, inputs: self._function(dict(inputs)))
        made[recorded] = pipe(ROWS, masks=MASKS, seeds=[1, 2, 3], batch_size=2, **way).latents
    assert replays
    torch.testing.assert_close(made[True], made[False], rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
def test_a_call_that_the_device_is_busy_with_is_not_recorded():
    busy = torch.randn(8192, 8192, device="cuda")

    def products(inputs):
        made = inputs["x"]
        for _ in range(20):
            made = made @ busy / 100
        return made

    recorder = Recorder(products, 1)
    for _ in range(3):
        recorder({"x": busy})
    assert not recorder._recordings


@pytest.mark.gpu
def test_a_recording_that_is_forgotten_gives_its_memory_back(pipeline, monkeypatch):
    pipe = pipeline.to("cuda")
    monkeypatch.setattr(Recorder, "_timed", lambda self, kind, inputs: self._as_usual(inputs))
    denoiser = DeviceDenoiser(pipe.denoiser, Objective(pipe.objective), "auto", torch.device("cuda"))
    x, angle = torch.zeros(1, 3, 128, 128, 128, device="cuda"), torch.tensor([0.7], device="cuda")
    with torch.no_grad():
        for _ in range(4):
            denoiser.clean(x, angle, {})
    torch.cuda.empty_cache()
    with_recording = torch.cuda.memory_reserved()
    assert denoiser.forget()
    torch.cuda.empty_cache()
    assert with_recording - torch.cuda.memory_reserved() > 16 * x.numel(), "several of the network's inner tensors"
