"""The learning rate's shape, and what a time budget does to it."""

import pytest
from toy_task import settings

from medsynth.training.schedule import learning_rate, planned_steps, share_done


def test_warms_up_in_a_line_and_falls_to_nothing():
    plan = settings(steps=1000, warmup_steps=10, learning_rate=0.5)
    rates = [learning_rate(plan, k, share_done(plan, k, 0.0)) for k in range(1001)]
    assert rates[0] == pytest.approx(0.05)
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[500] == pytest.approx(0.25, rel=1e-6)  # half-way, half the rate
    assert rates[1000] == pytest.approx(0.0, abs=1e-12)


def test_time_decides_where_it_runs_out_first():
    plan = settings(steps=1000, max_minutes=2.0)
    assert share_done(plan, 100, 60.0) == pytest.approx(0.5)
    assert share_done(plan, 900, 60.0) == pytest.approx(0.9)
    assert share_done(plan, 100, 500.0) == 1.0
    assert planned_steps(plan, 100, share_done(plan, 100, 60.0)) == 200
    assert planned_steps(plan, 900, share_done(plan, 900, 60.0)) == 1000
    assert planned_steps(plan, 0, 0.0) == 1000


def test_without_a_budget_time_plays_no_part():
    plan = settings(steps=1000)
    assert share_done(plan, 10, 1e9) == share_done(plan, 10, 0.0) == 0.01
