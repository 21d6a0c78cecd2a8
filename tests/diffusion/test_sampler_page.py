"""docs/samplers.md: every scheduler of the installed diffusers is offered or told why not, and the figures are true."""

import math
import pkgutil
import re
from pathlib import Path

import diffusers.schedulers
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddim_cogvideox import CogVideoXDDIMScheduler
from diffusers.schedulers.scheduling_ddim_parallel import DDIMParallelScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_ddpm_parallel import DDPMParallelScheduler
from diffusers.schedulers.scheduling_flow_match_lcm import FlowMatchLCMScheduler
from diffusers.schedulers.scheduling_lcm import LCMScheduler
from diffusers.schedulers.scheduling_tcd import TCDScheduler
from gaussian import STD, exact, generators, law, law_of

from medsynth.diffusion.angle import everywhere, from_alpha_bar, from_flow_time
from medsynth.diffusion.samplers import SAMPLERS, STOCHASTIC, TWO_PER_STEP
from medsynth.diffusion.scheduler_door import CLASSES
from medsynth.diffusion.schedulers import make_scheduler
from medsynth.seeding import torch_generator

PAGE = (Path(__file__).parents[2] / "docs" / "samplers.md").read_text(encoding="utf-8")
CELLS = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("| `")]
OFFERED = {cells[0].strip("`"): cells[1:] for cells in CELLS if len(cells) == 10}
REFUSED = [name for cells in CELLS if len(cells) == 2 for name in re.findall(r"`(\w+)`", cells[0])]
COUNTS = (8, 15, 30, 60)


def schedulers_of_diffusers():
    """Names of the classes in its source, whether or not what they need is installed."""
    found = set()
    for module in pkgutil.walk_packages(diffusers.schedulers.__path__, "diffusers.schedulers."):
        file = Path(module.module_finder.path) / f"{module.name.rpartition('.')[2]}.py"
        if file.is_file() and "flax" not in file.name:
            found |= set(re.findall(r"^class (\w+Scheduler)\(", file.read_text(encoding="utf-8"), re.MULTILINE))
    return found


def test_every_scheduler_is_offered_or_told_why_not():
    offered = {name for cells in OFFERED.values() for name in re.findall(r"`(\w+)`", cells[0])}
    known = schedulers_of_diffusers()
    assert len(known) > 40
    assert not offered & set(REFUSED)
    assert len(REFUSED) == len(set(REFUSED))
    assert known == offered | set(REFUSED)
    assert offered == {one.__name__ for classes in CLASSES.values() for one in classes}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_the_page_says_of_a_sampler(sampler):
    scheduler, calls, noise, *told = OFFERED[sampler]
    own = sampler.startswith("angle")
    assert scheduler == ("own" if own else f"`{type(make_scheduler(sampler, 4)).__name__}`")
    assert calls == ("2" if sampler in TWO_PER_STEP else "1")
    assert noise == ("yes" if sampler in STOCHASTIC else "no")
    *white, fine, large = told
    for text, std in ((fine, 0.1), (large, 10.0)):
        assert float(text) == pytest.approx(100 * (law(sampler, 30, 2.0, std)[1] / std - 1), abs=0.06), std
    for text, evaluations in zip(white, COUNTS, strict=True):
        assert float(text) == pytest.approx(100 * (law(sampler, evaluations)[1] / STD - 1), abs=0.06), evaluations


def test_the_page_has_no_other_sampler():
    assert list(OFFERED) == list(SAMPLERS)


def native(scheduler, times):
    """A run of a scheduler's own loop on the ideal denoiser; `times`: its flow times, or None for alphas_cumprod."""

    def run(x, made):
        for place, timestep in enumerate(scheduler.timesteps):
            if times is None:
                angle = float(from_alpha_bar(scheduler.alphas_cumprod[int(timestep)].double()))
                answer = exact(x, everywhere(angle, x))
            else:
                angle = float(from_flow_time(times[place].double()))
                house = x * (math.cos(angle) + math.sin(angle))
                answer = (x - exact(house, everywhere(angle, x))) / times[place]
            x = scheduler.step(answer, timestep, x, generator=made, return_dict=False)[0]
        return x

    return run


@pytest.mark.parametrize("steps", [50, 200])
def test_consistency_samplers_lose_half_the_variance_of_an_ordinary_model(steps):
    flow = FlowMatchLCMScheduler(num_train_timesteps=steps)
    flow.set_timesteps(steps)
    classic = LCMScheduler(prediction_type="sample", original_inference_steps=1000)
    classic.set_timesteps(steps)
    for run in (native(flow, flow.sigmas), native(classic, None)):
        assert 0.65 < law_of(run, steps)[1] / STD < math.sqrt(0.5)


def test_trajectory_jumps_do_not_converge_on_an_ordinary_model():
    found = []
    for steps in (100, 400):
        scheduler = TCDScheduler(prediction_type="sample", original_inference_steps=1000)
        scheduler.set_timesteps(steps)
        found.append(law_of(native(scheduler, None), steps)[1] / STD)
    assert 0.9 < found[0] < found[1] < 0.95
    assert abs(law("ddim", 400)[1] / STD - 1) < 0.005


@pytest.mark.parametrize(
    ("kind", "like"),
    [
        (DDPMParallelScheduler, DDPMScheduler),
        (DDIMParallelScheduler, DDIMScheduler),
        (CogVideoXDDIMScheduler, DDIMScheduler),
    ],
)
def test_twins_take_the_same_step(kind, like):
    x, clean = torch.randn(2, 1, 2, 3, 4, 5, generator=torch_generator(1, "noise"))
    betas = torch.linspace(1e-4, 2e-2, 1000).tolist()
    options = {"trained_betas": betas, "prediction_type": "sample", "clip_sample": False, "timestep_spacing": "leading"}
    if kind is CogVideoXDDIMScheduler:
        options["snr_shift_scale"] = 1.0
    stepped = []
    for one in (kind, like):
        scheduler = one(**{name: value for name, value in options.items() if one is kind or name != "snr_shift_scale"})
        scheduler.set_timesteps(20)
        for timestep in scheduler.timesteps[[0, 9]]:
            stepped.append(scheduler.step(clean, timestep, x, generator=generators(1)[0], return_dict=False)[0])
    torch.testing.assert_close(stepped[0], stepped[2])
    torch.testing.assert_close(stepped[1], stepped[3])
