"""Following a training loop: its history, its warnings told once, the weights that were kept."""

import json
from types import SimpleNamespace

import pytest

from medsynth.config.training import Training
from medsynth.progress import Silent
from medsynth.stages.training import follow, kept_validation, waiting_share
from medsynth.training.records import Record

HEALTHY = {"ms_ssim": 0.6, "ms_ssim_real": 0.6, "ms_ssim_p": 0.5, "copies": 0.0, "copies_p": 1.0,
           "training_loss": 1.0, "validation_loss": 1.0, "gap_p": 0.5,
           "ms_ssim_least": 0.0001, "copies_least": 0.0001, "gap_least": 0.0001}  # fmt: skip
COPYING = {**HEALTHY, "copies": 0.5, "copies_p": 0.0001}


def record(step, watch=None, loss=None, level=1.0):
    validation = None if loss is None else {"loss": loss}
    return Record(step, 50, 2.0 * step, {"loss": level}, 1e-3, validation, 0.25 if step <= 20 else 0.75, watch=watch)


def followed(records, folder, selected_by=None):
    said, events, metrics = [], [], {}
    context = SimpleNamespace(
        progress=Silent(),
        say=said.append,
        tracker=SimpleNamespace(metrics=lambda values, step: metrics.update({step: values})),
        workspace=SimpleNamespace(event=lambda kind, **facts: events.append((kind, facts["about"]))),
    )
    history = follow(context, "training", Training(steps=50), iter(records), folder, selected_by)
    return history, said, events, metrics


def test_a_warning_is_told_when_it_arises_and_again_only_after_it_was_gone(tmp_path):
    looks = [HEALTHY, COPYING, None, COPYING, HEALTHY, COPYING]
    records = [record(10 * (i + 1), watch) for i, watch in enumerate(looks)]
    history, said, events, metrics = followed(records, tmp_path)
    assert [line[:17] for line in said if line.startswith("warning")] == ["warning: step 20:", "warning: step 60:"]
    assert events == [("warning", "copies")] * 2
    assert [len(line["warnings"]) for line in history] == [0, 1, 1, 1, 0, 1]
    assert json.loads((tmp_path / "history.json").read_text()) == history
    assert metrics[20]["watch/copies"] == 0.5
    assert metrics[30]["waiting"] == 0.75


def test_the_share_of_waiting_is_that_of_the_whole_run(tmp_path):
    history, said, *_ = followed([record(10), record(20), record(40)], tmp_path)
    assert waiting_share(history) == pytest.approx(0.5)  # a quarter of 40 seconds and three quarters of 40
    assert said == ["training: 50.0 % of the time went by waiting for data"]


def test_what_was_kept_is_the_first_lowest_or_the_last(tmp_path):
    records = [record(10 * (i + 1), loss=loss) for i, loss in enumerate([3.0, None, 1.0, 1.0, 2.0])]
    lowest, *_ = followed(records, tmp_path, "loss")
    newest, *_ = followed(records, tmp_path)
    none, *_ = followed(records[1:2], tmp_path, "loss")
    assert kept_validation(lowest) == {"kept_step": 30, "loss": 1.0}
    assert kept_validation(newest) == {"kept_step": 50, "loss": 2.0}
    assert kept_validation(none) == {}


def test_what_so_few_patients_cannot_tell_is_said_once(tmp_path):
    unsure = {**HEALTHY, "gap_least": 0.004}
    history, said, *_ = followed([record(10), record(20, unsure), record(30, unsure)], tmp_path)
    told = [line for line in said if "cannot be told" in line]
    assert len(told) == 1
    assert told[0].startswith("whether training scans are learned by heart")
    assert [line.get("unanswered") for line in history] == [None] + 2 * [
        ["whether training scans are learned by heart"]
    ]


def test_a_loss_that_goes_back_up_is_warned_of_without_any_look(tmp_path):
    falling = [record(step, level=max(0.3, 1.6 - step / 400)) for step in range(10, 1000, 10)]
    noisy = [record(step, level=0.3 + 0.2 * (step % 20 == 0)) for step in range(1000, 2000, 10)]
    lost = [record(step, level=1.5) for step in range(2000, 2200, 10)]
    _, quiet, *_ = followed([*falling, *noisy], tmp_path)
    assert not any(line.startswith("warning") for line in quiet)
    history, said, events, _ = followed([*falling, *noisy, *lost], tmp_path)
    assert events == [("warning", "divergence")]
    assert "gone back up to" in said[0]
    assert [bool(line["warnings"]) for line in history[-3:]] == [True] * 3
    explodes = [record(step, level=0.01 if step < 990 else 2400.0) for step in range(10, 1010, 10)]
    assert followed(explodes, tmp_path)[2] == [("warning", "divergence")]
    assert followed([record(0, loss=1.0)], tmp_path)[2] == []
