"""One training loop for every network: it steps, and yields a record now and then.

The loop owns placement, precision, processes, accumulation, clipping, the learning rate, the average of the weights,
validation, checkpoints and stopping. What is trained, on what and by which loss is a `Task`.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from medsynth.config.training import NEUTRAL, Training
from medsynth.errors import InterruptedRun
from medsynth.training.batches import Ahead, Batch
from medsynth.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from medsynth.training.devices import open_accelerator, require_compiler, rows_of_process
from medsynth.training.ema import Average
from medsynth.training.guard import Guard
from medsynth.training.learner import Learner
from medsynth.training.records import Record
from medsynth.training.replay import Losses, Replay
from medsynth.training.schedule import learning_rate, planned_steps, share_done
from medsynth.training.signals import StopRequest
from medsynth.training.window import Window

AGREE_EVERY = 10
"""Steps between two looks at the losses on a GPU, and between two talks of several processes: both stall the device."""

Clock = Callable[[], float]


class Task(nn.Module, ABC):
    """What a loop trains: a module that maps a batch to its losses."""

    network: nn.Module
    """The part whose weights are trained, averaged and saved."""
    opponent: nn.Module | None
    """A part that is trained in the same steps on a loss of its own, called `opponent`; it is neither averaged nor kept.
    The gradient of `opponent` must not reach the network, nor that of `loss` the opponent."""
    selected_by: str | None = None
    """Figure of `validate` whose smallest value picks the weights that are kept; None keeps the last average."""
    look_every = 0
    """Validations from one `look` to the next; 0: none."""

    @property
    def replayable(self) -> bool:
        """Whether the losses depend on nothing but the batch and the weights, so that a step can be recorded."""
        return self.opponent is None

    def __init__(self) -> None:
        super().__init__()
        self.opponent = None

    def settle(self, device: torch.device) -> None:
        """Told once, before the first batch, which device this process trains on."""

    @abstractmethod
    def draw(self, number: int, rows: slice) -> Batch:
        """`rows` of the global batch `number`, on the CPU or the device: a function of the seed and these two alone."""

    def begin_step(self, share: float) -> None:
        """Told before every step how much of the run lies behind, 0 to 1."""

    @abstractmethod
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Scalar means over the batch, the same ones at every step; `loss` is what is minimised."""

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """Figures on the validation split, with the weights that the network holds now. The same on every process."""

    def look(self) -> dict[str, float]:
        """Further figures, too costly for every validation. The same on every process."""
        return {}


def train(
    task: Task,
    settings: Training,
    *,
    folder: Path,
    identity: Mapping[str, Any],
    device: torch.device,
    clock: Clock = time.monotonic,
) -> Iterator[Record]:
    """Train `task.network`; when the iterator ends, it holds the averaged weights (the best, see `Task.selected_by`).

    Checkpoints go to `folder`. `identity` says what makes a run this one (seed, data, network); together with
    `settings` it decides whether a checkpoint found there is gone on from. Without `max_minutes`, in fp32 on a CPU, a
    run that was interrupted and gone on with equals an uninterrupted one bit for bit; the records of before come first.
    `batch_size` is that of all processes together, and several processes agree with one within rounding.

    Raises InterruptedRun after SIGTERM or SIGINT, once the step at hand is saved; DivergenceError, naming the step;
    ConfigError for a batch that the processes cannot share; UnreadableError for a damaged checkpoint.
    """
    run = _Run(task, settings, folder, identity, device, clock)
    yield from run.records
    with StopRequest() as stop, Ahead(run.draw, run.step * settings.accumulate, run.accelerator.device) as batches:
        while not run.finished:
            record = run.advance(batches, stop)
            if record is not None:
                yield record
        if stop.name is not None:
            raise run.interrupted(stop)
    run.give_final_weights()


class _Run:
    """A training run at one moment."""

    def __init__(
        self,
        task: Task,
        settings: Training,
        folder: Path,
        identity: Mapping[str, Any],
        device: torch.device,
        clock: Clock,
    ) -> None:
        self.task = task
        self.settings = settings
        self.folder = folder
        self.accelerator: Accelerator = open_accelerator(device, settings.precision, settings.accumulate)
        self.rows = rows_of_process(settings.batch_size, self.accelerator)
        self.identity = {**identity, "training": settings.model_dump(mode="json", exclude=set(NEUTRAL))}
        self.network = task.network
        task.to(self.accelerator.device).train()
        task.settle(self.accelerator.device)
        self.learners = {"": Learner("loss", self.network, settings, self.accelerator.device)}
        """By the prefix of their files in a checkpoint."""
        if task.opponent is not None:
            theirs = settings.model_copy(update={"optimiser": "adamw"})
            self.learners["opponent_"] = Learner("opponent", task.opponent, theirs, self.accelerator.device)
        if settings.compile:
            require_compiler()
            task.compile()
        self.model = self.accelerator.prepare(task)
        self.losses_of: Callable[[Batch], Losses] = self._compute
        if self._replays:
            self.losses_of = Replay(self._compute, list(self.learners[""].names))
        self.average = Average(self.network, settings.ema_decay)
        self.best: dict[str, Tensor] = {}
        self.best_value: float | None = None
        self.guard = Guard(settings.steps, settings.learning_rate)
        self.window = Window(self.accelerator)
        self.records: list[Record] = []
        self.step = 0
        self._clock = clock
        self._before = 0.0
        self._resume()
        self._began = clock()
        self.seconds = self._before
        self.share = share_done(settings, self.step, self.seconds)
        self._saved_at = self.seconds

    @property
    def _now(self) -> float:
        """Seconds of training by this process's clock, those before an interruption counted in."""
        return self._before + self._clock() - self._began

    @property
    def _replays(self) -> bool:
        asked = self.settings.replay and self.settings.accumulate == 1
        alone = self.accelerator.num_processes == 1 and self.accelerator.device.type == "cuda"
        return asked and alone and self.task.replayable

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.share >= 1

    def draw(self, number: int) -> Batch:
        """This process's rows of global batch `number`."""
        return self.task.draw(number, self.rows)

    def advance(self, batches: Ahead, stop: StopRequest) -> Record | None:
        """One optimiser step, and whatever is due after it: a record, a checkpoint, the end."""
        rate = learning_rate(self.settings, self.step, self.share)
        self._optimise(rate, batches)
        self.step += 1
        validating = self.step % self.settings.validate_every == 0
        reporting = validating or self.step % self.settings.log_every == 0
        pausing = reporting or self.step % AGREE_EVERY == 0 or self.step >= self.settings.steps
        asked = False
        if pausing or self.accelerator.num_processes == 1:
            asked, self.seconds = self._agree(stop.name is not None)
            self.share = share_done(self.settings, self.step, self.seconds)
        due = self.seconds - self._saved_at >= 60 * self.settings.checkpoint_minutes
        if pausing or due or asked or self.finished or self.accelerator.device.type == "cpu":
            self.window.settle(self.guard)
        # While the loss is out of hand the checkpoint before it stays: going on from a worse one would lose it.
        saving = self.finished or asked or (due and not self.guard.alarmed)
        record = self._report(rate, validating or self.finished, batches) if reporting or self.finished else None
        if saving:
            self._save()
        if asked:
            raise self.interrupted(stop)
        return record

    def interrupted(self, stop: StopRequest) -> InterruptedRun:
        """What to raise once everything is saved."""
        return InterruptedRun(
            f"training stopped by {stop.name or 'another process'} after step {self.step}; everything up to there is "
            "saved: run the same command again to go on"
        )

    def give_final_weights(self) -> None:
        """The weights to keep go into the network, for use."""
        self.average.give(self.best or None)
        self.network.eval()

    def _optimise(self, rate: float, batches: Ahead) -> None:
        for learner in self.learners.values():
            learner.set_rate(rate)
        self.task.begin_step(self.share)
        for _ in range(self.settings.accumulate):
            batch = batches.next()
            with self.accelerator.accumulate(self.model):
                losses = self.losses_of(batch)
                self.window.add_losses(losses)
        norm, *_ = [learner.step() for learner in self.learners.values()]
        self.window.end_step(self.step + 1, norm)
        self.average.update()

    def _compute(self, batch: Batch) -> Losses:
        losses: Losses = self.model(batch)
        self.accelerator.backward(sum(losses[learner.loss] for learner in self.learners.values()))
        return losses

    def _agree(self, asked: bool) -> tuple[bool, float]:
        """Whether any process was asked to stop, and the first one's clock, the same on every process."""
        seconds = self._now
        if self.accelerator.num_processes == 1:
            return asked, seconds
        mine = torch.tensor([float(asked), seconds if self.accelerator.is_main_process else 0.0])
        total = self.accelerator.reduce(mine.to(self.accelerator.device)).tolist()
        return total[0] > 0, total[1]

    def _report(self, rate: float, validating: bool, batches: Ahead) -> Record:
        validation, watch = self._validate() if validating else (None, None)
        losses, norm = self.window.means()
        now = self._now
        since = now - (self.records[-1].seconds if self.records else 0.0)
        waited, batches.waited_seconds = batches.waited_seconds, 0.0
        record = Record(
            step=self.step,
            total=planned_steps(self.settings, self.step, self.share),
            seconds=now,
            losses=losses,
            learning_rate=rate,
            validation=validation,
            waiting=min(1.0, waited / since) if since > 0 else 0.0,
            gradient_norm=norm,
            watch=watch,
        )
        self.records.append(record)
        return record

    def _validate(self) -> tuple[dict[str, float], dict[str, float] | None]:
        number, rest = divmod(self.step, self.settings.validate_every)
        every = self.task.look_every
        looking = every > 0 and (self.finished or (rest == 0 and number % every == 0))
        self.network.eval()
        with self.average.lent(), torch.no_grad(), self.accelerator.autocast():
            figures = self.task.validate()
            watch = self.task.look() if looking else None
        self.network.train()
        if self.task.selected_by is not None:
            value = figures[self.task.selected_by]
            if self.best_value is None or value < self.best_value:
                self.best_value = value
                self.best = {name: weight.cpu().clone() for name, weight in self.average.weights.items()}
        return figures, watch

    def _save(self) -> None:
        self._saved_at = self.seconds
        if self.accelerator.is_main_process:
            tensors = {
                **{k: v for prefix, each in self.learners.items() for k, v in each.tensors(prefix).items()},
                "average": self.average.weights,
            }
            if self.best:
                tensors["best"] = self.best
            counters = {
                "seconds": self._now,  # validating since the last agreement counts too
                "average_updates": self.average.updates,
                "best_value": self.best_value,
                "guard": self.guard.state(),
                "window": self.window.state(),
                "records": [record.to_json() for record in self.records],
            }
            save_checkpoint(self.folder, Checkpoint(self.step, tensors, counters), self.identity)
        self.accelerator.wait_for_everyone()

    def _resume(self) -> None:
        found = load_checkpoint(self.folder, self.identity)
        if found is None:
            return
        counters = found.counters
        self.step = found.step
        for prefix, learner in self.learners.items():
            learner.load(prefix, found.tensors)
        self.average.load(dict(found.tensors["average"]), counters["average_updates"])
        self.best = dict(found.tensors.get("best", {}))
        self.best_value = counters["best_value"]
        self.guard.load(counters["guard"])
        self.window.load(counters["window"])
        self.records = [Record.from_json(record) for record in counters["records"]]
        self._before = counters["seconds"]
