"""The loop: what it yields, when it stops, what it keeps."""

import math
import os
import shutil
import signal
import threading
from itertools import pairwise

import pytest
import torch
from toy_task import ToyTask, settings

from medsynth import precision
from medsynth.errors import ConfigError, DivergenceError, InterruptedRun
from medsynth.precision import computes_bf16
from medsynth.training.devices import open_accelerator, resolve_precision, rows_of_process
from medsynth.training.loop import train
from medsynth.training.records import Record
from medsynth.training.schedule import learning_rate

CPU = torch.device("cpu")


def run(task, plan, folder, **changes):
    return train(task, plan, folder=folder, identity={"kind": "toy"}, device=CPU, **changes)


def weights(task):
    return {name: weight.detach().clone() for name, weight in task.network.named_parameters()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def without_times(records):
    """What must be the same on every run: all but clocks."""
    return [(r.step, r.total, r.losses, r.learning_rate, r.validation, r.gradient_norm) for r in records]


def test_learns_and_reports(tmp_path):
    task, plan = ToyTask(8), settings(steps=202)
    before = task.validate()["loss"]
    records = list(run(task, plan, tmp_path))
    assert [r.step for r in records] == sorted({*range(4, 202, 4), *range(10, 202, 10), 202})
    assert [r.step for r in records if r.validation] == [*range(10, 202, 10), 202]
    assert records[-1].validation["loss"] < 0.05 * before
    assert records[0].learning_rate == learning_rate(plan, 3, 3 / 202)
    assert all(b.seconds > a.seconds for a, b in pairwise(records))
    assert all(0 <= r.waiting <= 1 and r.total == 202 and r.gradient_norm > 0 for r in records)
    assert set(records[0].losses) == {"loss", "absolute"}
    assert Record.from_json(records[-1].to_json()) == records[-1]
    assert task.validate()["loss"] == records[-1].validation["loss"]  # the network holds what was validated last
    assert not task.network.training


def test_a_record_is_the_mean_over_its_steps(tmp_path):
    single = list(run(ToyTask(8), settings(steps=12, log_every=1), tmp_path / "a"))
    grouped = list(run(ToyTask(8), settings(steps=12, log_every=6, validate_every=100), tmp_path / "b"))
    for i, record in enumerate(grouped):
        part = single[6 * i : 6 * i + 6]
        assert record.losses["loss"] == pytest.approx(sum(r.losses["loss"] for r in part) / 6)
        assert record.gradient_norm == pytest.approx(sum(r.gradient_norm for r in part) / 6)


def test_the_best_validation_is_kept_where_asked_for(tmp_path):
    class Worsening(ToyTask):
        def validate(self):
            return {"loss": abs(len(self.validations) - 1) + super().validate()["loss"]}

    kept = {}
    task = Worsening(8, selected_by="loss")
    for record in run(task, settings(), tmp_path / "a"):
        if record.step == 20:
            kept = {"loss": task.validations[-1]}
    assert ToyTask.validate(task)["loss"] == kept["loss"]  # that of the second validation, not of the last


def test_accumulation_equals_the_larger_batch(tmp_path):
    # one batch of 8 is two of 4: the same cases, and here the same jitter
    class Still(ToyTask):
        def draw(self, number, rows):
            return {"inputs": self.inputs[self.order.batch(number)][rows]}

    whole, parts = Still(8), Still(4)
    list(run(whole, settings(steps=20), tmp_path / "a"))
    list(run(parts, settings(steps=20, batch_size=4, accumulate=2), tmp_path / "b"))
    for name, weight in weights(whole).items():
        torch.testing.assert_close(weights(parts)[name], weight, rtol=1e-4, atol=1e-5)


def test_clipping_bounds_the_step(tmp_path):
    plan = settings(steps=1, optimiser="adamw", clip_norm=1e-9, warmup_steps=0, weight_decay=0.0, ema_decay=0.0)
    task = ToyTask(8)
    before = weights(task)
    record = next(run(task, plan, tmp_path))
    assert record.gradient_norm > 1e-3  # reported as it was before clipping
    moved = max(float((weights(task)[n] - w).abs().max()) for n, w in before.items())
    assert moved < plan.learning_rate * 0.2  # Adam's step is small only where the gradient is as small as its epsilon


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_saves_and_the_same_call_goes_on_to_the_same_end(tmp_path, name):
    plan = settings(steps=40)
    whole = ToyTask(8, selected_by="loss")
    expected = list(run(whole, plan, tmp_path / "whole"))

    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    stopped, seen = ToyTask(8, selected_by="loss"), []
    with pytest.raises(InterruptedRun, match=f"{name} after step 13.*\n?.*same command"):
        for record in run(stopped, plan, tmp_path / "parts"):
            seen.append(record)
            if record.step == 12:
                os.kill(os.getpid(), getattr(signal, name))
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == handlers

    resumed = ToyTask(8, selected_by="loss")
    records = list(run(resumed, plan, tmp_path / "parts"))
    assert records[: len(seen)] == seen
    assert without_times(records) == without_times(expected)
    assert equal(weights(resumed), weights(whole))
    assert records[len(seen)].seconds > seen[-1].seconds

    again = ToyTask(8, selected_by="loss")  # a finished run is not trained further
    assert list(run(again, plan, tmp_path / "parts")) == records
    assert equal(weights(again), weights(whole))


def test_a_signal_at_the_very_end_is_not_swallowed(tmp_path):
    whole, plan = ToyTask(8), settings(steps=8)
    list(run(whole, plan, tmp_path / "whole"))
    with pytest.raises(InterruptedRun, match="after step 8"):
        for record in run(ToyTask(8), plan, tmp_path / "parts"):
            if record.step == 8:
                os.kill(os.getpid(), signal.SIGTERM)
    again = ToyTask(8)
    again.poisoned_batch = 0
    assert list(run(again, plan, tmp_path / "parts"))[-1].step == 8
    assert equal(weights(again), weights(whole))


def test_compiling_without_a_compiler_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match=r"training.compile: expected a C\+\+ compiler"):
        list(run(ToyTask(8), settings(compile=True), tmp_path))


def test_other_settings_start_anew(tmp_path):
    list(run(ToyTask(8), settings(steps=8), tmp_path))
    other = ToyTask(8)
    records = list(run(other, settings(steps=8, learning_rate=2e-2), tmp_path))
    fresh = ToyTask(8)
    assert without_times(records) == without_times(run(fresh, settings(steps=8, learning_rate=2e-2), tmp_path / "b"))
    assert equal(weights(other), weights(fresh))


def test_settings_that_leave_the_weights_alone_do_not(tmp_path):
    list(run(ToyTask(8), settings(steps=8), tmp_path))
    task = ToyTask(8)
    task.poisoned_batch = 0  # would be noticed if it trained again
    assert list(run(task, settings(steps=8, checkpoint_minutes=1.0, log_every=3), tmp_path))[-1].step == 8


def test_divergence_names_the_step_and_keeps_the_checkpoint(tmp_path):
    ticks = iter(range(10_000))
    task = ToyTask(8)
    task.poisoned_batch = 17
    plan = settings(steps=40, checkpoint_minutes=0.1)
    with pytest.raises(DivergenceError, match="diverged at step 18 of 40: expected a finite loss, found nan"):
        list(run(task, plan, tmp_path, clock=lambda: float(next(ticks))))
    (kept,) = tmp_path.iterdir()
    assert 5 <= int(kept.name.removeprefix("step-")) <= 17
    healthy = ToyTask(8)
    assert list(run(healthy, plan, tmp_path))[-1].step == 40
    assert all(bool(w.isfinite().all()) for w in weights(healthy).values())


def test_what_came_after_a_loss_got_out_of_hand_takes_no_checkpoints_place(tmp_path):
    ticks = iter(range(10_000))
    task = ToyTask(8)
    task.exploding_from = 50
    with pytest.raises(DivergenceError, match="running loss"):
        list(run(task, settings(steps=400, checkpoint_minutes=0.1), tmp_path, clock=lambda: float(next(ticks))))
    (kept,) = tmp_path.iterdir()
    assert 40 <= int(kept.name.removeprefix("step-")) <= 55


def test_a_time_budget_ends_the_run_with_a_rate_near_zero(tmp_path):
    now = [0.0]

    def clock():
        now[0] += 0.5  # seconds per look
        return now[0]

    plan = settings(steps=100_000, max_minutes=1.0, checkpoint_minutes=0.25)
    records = list(run(ToyTask(8), plan, tmp_path, clock=clock))
    last = records[-1]
    assert 60 <= last.seconds < 63
    assert last.step < 130
    assert last.validation is not None
    assert last.total == last.step
    assert last.learning_rate < 0.01 * plan.learning_rate
    middle = min(records, key=lambda r: abs(r.seconds - 30))
    assert middle.learning_rate == pytest.approx(0.5 * plan.learning_rate, rel=0.2)
    assert middle.total == pytest.approx(last.step, rel=0.25)


def test_time_spent_validating_is_not_lost_with_an_interruption(tmp_path):
    now = [0.0]

    class Slow(ToyTask):
        def validate(self):
            now[0] += 100.0
            return super().validate()

    records = []
    with pytest.raises(InterruptedRun):
        for record in run(Slow(8), settings(steps=30), tmp_path, clock=lambda: now[0]):
            records.append(record)
            if record.validation:
                os.kill(os.getpid(), signal.SIGTERM)
    again = list(run(Slow(8), settings(steps=30), tmp_path, clock=lambda: now[0]))
    assert [r.seconds for r in again if r.validation] == [100.0, 200.0, 300.0]


def test_checkpoints_come_by_the_clock(tmp_path):
    now, written = [0.0], []

    def clock():
        now[0] += 1.0
        return now[0]

    for _ in run(ToyTask(8), settings(steps=40, checkpoint_minutes=0.2, log_every=1), tmp_path, clock=clock):
        written.append(max((p.name for p in tmp_path.glob("step-*")), default=None))
    assert 3 <= len(set(written) - {None}) <= 8


def test_runs_in_another_thread_without_touching_signals(tmp_path):
    records = []
    worker = threading.Thread(target=lambda: records.extend(run(ToyTask(8), settings(steps=8), tmp_path)))
    worker.start()
    worker.join()
    assert records[-1].step == 8


def test_closing_early_leaves_no_thread_and_no_handler(tmp_path):
    before, handler = threading.active_count(), signal.getsignal(signal.SIGTERM)
    loop = run(ToyTask(8), settings(), tmp_path)
    next(loop)
    loop.close()
    assert threading.active_count() == before
    assert signal.getsignal(signal.SIGTERM) == handler


def test_bf16_is_computed_where_asked_for(tmp_path):
    class Watching(ToyTask):
        seen = None

        def forward(self, batch):
            self.seen = self.network[0](batch["inputs"]).dtype
            return super().forward(batch)

    task = Watching(8)
    records = list(run(task, settings(steps=60, precision="bf16"), tmp_path / "a"))
    assert task.seen == torch.bfloat16
    assert records[-1].losses["loss"] < records[0].losses["loss"]
    assert all(weight.dtype == torch.float32 for weight in task.network.parameters())
    task = Watching(8)  # and a later run of the same process may differ
    list(run(task, settings(steps=2), tmp_path / "b"))
    assert task.seen == torch.float32


def test_auto_precision_takes_native_bf16_only(monkeypatch):
    monkeypatch.setattr(precision, "_cpu_flags", lambda: frozenset({"avx2", "avx512f"}))
    assert not computes_bf16(CPU)
    assert resolve_precision("auto", CPU) == "fp32"
    assert resolve_precision("bf16", CPU) == "bf16"
    monkeypatch.setattr(precision, "_cpu_flags", lambda: frozenset({"avx512f", "avx512_bf16"}))
    assert resolve_precision("auto", CPU) == "bf16"
    assert computes_bf16(CPU)
    assert resolve_precision("fp32", CPU) == "fp32"


def test_a_device_that_is_not_there_is_refused():
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    with pytest.raises(ConfigError, match="expected a device of this machine, found 'cuda'"):
        open_accelerator(torch.device("cuda"), "fp32", 1)


def test_processes_share_a_batch_evenly():
    class Two:
        num_processes, process_index = 2, 1

    assert rows_of_process(8, Two()) == slice(4, 8)
    with pytest.raises(ConfigError, match="multiple of the 2 processes, found 7"):
        rows_of_process(7, Two())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_training_agrees(tmp_path):
    plain, compiled = ToyTask(8), ToyTask(8)
    a = list(run(plain, settings(steps=8), tmp_path / "a"))
    b = list(run(compiled, settings(steps=8, compile=True), tmp_path / "b"))
    for x, y in zip(a, b, strict=True):
        assert math.isclose(x.losses["loss"], y.losses["loss"], rel_tol=1e-4)
    assert set(compiled.network.state_dict()) == set(plain.network.state_dict())
