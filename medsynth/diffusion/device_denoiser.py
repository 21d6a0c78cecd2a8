"""A denoiser as samplers call it on a device: in the precision that suits it and, on a GPU, recorded and replayed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn

from medsynth.config.training import Precision
from medsynth.diffusion.objective import Denoiser, Objective
from medsynth.kernels.recording import NotRecordable, Recorder
from medsynth.models.conditions import conditions_of, named
from medsynth.precision import sampling_precision

WARM_CALLS = 2
"""The first call loads kernels; the second tells whether Python or the device is what takes the time."""


class DeviceDenoiser(Denoiser):
    """The contract of `Denoiser` for sampling, without gradients; `precision` is that of the network's products.

    Where Python asks for the kernels of a call more slowly than a GPU runs them, calls are recorded (`kernels.recording`).
    A recording reads the weights where they lay when it was made, so an object is good for one series of calls; as a context
    it forgets its recordings in the end.
    """

    def __init__(self, network: nn.Module, objective: Objective, precision: Precision, device: torch.device) -> None:
        super().__init__(network, objective)
        self._device = device
        self._bf16 = sampling_precision(precision, device) == "bf16"
        self._recorder = Recorder(self._named, WARM_CALLS) if device.type == "cuda" else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.forget()

    def clean(self, x: Tensor, angle: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        """As `Denoiser.clean`, of tensors on the device."""
        if self._recorder is not None:
            inputs = {"x": x, "angle": angle, **named(conditions)}
            try:
                return self._recorder(inputs).clone()  # the next call overwrites it, and samplers remember several
            except (NotRecordable, torch.OutOfMemoryError):
                self.forget()
        return self._at_once(x, angle, conditions)

    @property
    def records(self) -> bool:
        """Whether calls are recorded, or would be."""
        return self._recorder is not None

    def forget(self) -> bool:
        """Record nothing any more, and give back what recordings hold. Returns whether there was anything to forget."""
        had, self._recorder = self._recorder is not None, None
        return had

    def _named(self, inputs: dict[str, Tensor]) -> Tensor:
        return self._at_once(inputs["x"], inputs["angle"], conditions_of(inputs))

    def _at_once(self, x: Tensor, angle: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        # Entered anew in each call: weights that autocast has rounded before a recording would not be part of it.
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
            return super().clean(x, angle, conditions)


class Series:
    """The denoiser of one series of calls after another, made by `make` for each; within `kept` they share one.

    Recording takes three calls' time, which a series of one volume hardly wins back.
    """

    def __init__(self, make: Callable[[], DeviceDenoiser]) -> None:
        self._make = make
        self._shared: DeviceDenoiser | None = None
        """Only within `kept`."""

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Weights must stay where they are meanwhile."""
        self._shared = self._make()
        try:
            yield
        finally:
            self._shared.forget()
            self._shared = None

    @contextmanager
    def next(self) -> Iterator[DeviceDenoiser]:
        """For one series. A shared one that had to forget its recordings is made anew."""
        if self._shared is None:
            with self._make() as denoiser:
                yield denoiser
            return
        if not self._shared.records:
            self._shared = self._make()
        yield self._shared
