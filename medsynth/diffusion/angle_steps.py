"""Samplers of the house, in its own coordinate: functions of `denoise(x, angle)` and of the angles to walk.

`angles` fall from where the noise x is taken to lie (pi/2: pure noise, exactly) to 0 (data). They know no model, scheduler
or device, and compute in the type of x.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

from torch import Tensor

from medsynth.diffusion.angle import NOISE, Denoise, everywhere


def heun(denoise: Denoise, x: Tensor, angles: Sequence[float]) -> Tensor:
    """Heun's second-order steps (Karras 2022, algorithm 1) with s(t) = cos(t) and sigma(t) = tan(t).

    That choice makes the derivative the velocity v = cos noise - sin x0 (Salimans 2022), finite from pure noise to data.
    Two calls per step and one in the last. x: [B, ...]; returns the same.
    """
    for now, then in itertools.pairwise(angles):
        v = _velocity(denoise, x, now)
        ahead = x + (then - now) * v
        x = x + (then - now) * (v + _velocity(denoise, ahead, then)) / 2 if then > 0 else ahead
    return x


def _velocity(denoise: Denoise, x: Tensor, angle: float) -> Tensor:
    """dx/dphi = (cos x - x0) / sin, of the clean latent that is expected."""
    return (math.cos(angle) * x - denoise(x, everywhere(angle, x))) / math.sin(angle)


def dpm_solver_sde(denoise: Denoise, x: Tensor, angles: Sequence[float], fresh: Callable[[], Tensor]) -> Tensor:
    """SDE-DPM-Solver++(2M) (Lu 2022b, appendix A): two steps' clean latents, and as much new noise as was taken away.

    With h the step of log cot(phi), half the log signal-to-noise ratio:

        x <- e^-h (sin' / sin) x + cos' (1 - e^-2h) (D + (h / 2 h_before) (D - D_before)) + sin' sqrt(1 - e^-2h) noise

    The first and the last step are infinite in h: there the formula's limits hold, without the difference of D. One call per
    step. `fresh()` gives standard normal noise in the shape and type of x. x: [B, ...]; returns the same.
    """
    before, h_before = x, math.inf
    for now, then in itertools.pairwise(angles):
        clean = denoise(x, everywhere(now, x))
        if then == 0:
            return clean
        h = _log_cot(then) - _log_cot(now)
        toward = clean + h / (2 * h_before) * (clean - before) if h_before < math.inf else clean
        kept, taken = math.exp(-h) * math.sin(then) / math.sin(now), -math.expm1(-2 * h)
        x = kept * x + math.cos(then) * taken * toward + math.sin(then) * math.sqrt(taken) * fresh()
        before, h_before = clean, h
    return x


def _log_cot(angle: float) -> float:
    return -math.log(math.tan(angle)) if angle < NOISE else -math.inf
