"""What counts as gone wrong, and what does not."""

import math

import pytest
import torch

from medsynth.errors import DivergenceError, InterruptedRun
from medsynth.training.guard import FLOOR, MULTIPLE, PATIENCE, Guard


@pytest.mark.parametrize(("loss", "norm", "what"), [(math.nan, 1.0, "loss"), (1.0, math.inf, "gradient")])
def test_names_the_step_that_is_not_finite(loss, norm, what):
    guard = Guard(500, 1e-3)
    guard.check(1, 1.0, 1.0)
    with pytest.raises(DivergenceError, match=f"step 2 of 500: expected a finite {what}.*\n.*learning_rate"):
        guard.check(2, loss, norm)
    assert issubclass(DivergenceError, InterruptedRun)


def test_an_explosion_is_found_and_named():
    guard = Guard(5000, 1e-3)
    with pytest.raises(DivergenceError) as error:
        for step in range(1, 5000):
            guard.check(step, 0.1 if step < 1000 else 5.0, 1.0)
    found = int(str(error.value).split("step ")[1].split(" ")[0])
    assert 1000 + PATIENCE <= found < 1000 + PATIENCE + 60


def test_noise_plateaus_and_losses_near_zero_are_no_alarm():
    generator = torch.Generator().manual_seed(0)
    heavy = (torch.randn(3000, generator=generator) * 1.2).exp()  # single losses up to 50 times the median
    guard = Guard(9000, 1e-3)
    for step, factor in enumerate(heavy.tolist(), 1):
        guard.check(step, 0.3 * factor, 1.0)
    guard = Guard(9000, 1e-3)
    for step in range(1, 3000):  # memorised to nothing, then back to a hundredth of the start
        guard.check(step, 1.0 if step < 50 else (1e-9 if step < 2000 else FLOOR * (MULTIPLE - 1)), 1.0)


def test_one_bad_batch_is_no_divergence_and_a_lasting_one_is():
    guard = Guard(5000, 1e-3)
    for step in range(1, 2000):
        guard.check(step, 3000.0 if step == 1000 else 1.0, 1.0)
        assert guard.alarmed == (step == 1000)
    with pytest.raises(DivergenceError):
        for step in range(2000, 2000 + 2 * PATIENCE):
            guard.check(step, 3000.0, 1.0)


def test_goes_on_where_it_stopped():
    whole, first = Guard(100, 1e-3), Guard(100, 1e-3)
    losses = [1.0, 0.5, 0.7, 0.2, 3.0] * 10
    for step, loss in enumerate(losses, 1):
        whole.check(step, loss, 1.0)
    for step, loss in enumerate(losses[:22], 1):
        first.check(step, loss, 1.0)
    second = Guard(100, 1e-3)
    second.load(first.state())
    for step, loss in enumerate(losses[22:], 23):
        second.check(step, loss, 1.0)
    assert second.state() == whole.state()
    fresh = Guard(100, 1e-3)
    fresh.load(Guard(100, 1e-3).state())
    assert fresh.state() == Guard(100, 1e-3).state()
