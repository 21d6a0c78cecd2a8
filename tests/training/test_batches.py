"""The order of cases and the noise are functions of seed and position; fetching ahead changes nothing."""

import time

import pytest
import torch

from medsynth.training.batches import Ahead, Order, noise

CPU = torch.device("cpu")


@pytest.mark.parametrize(("count", "batch"), [(37, 8), (5, 8), (3, 16), (8, 8), (1, 4)])
def test_every_case_comes_once_per_round(count, batch):
    order = Order(count, batch, 3)
    stream = torch.cat([order.batch(k) for k in range(4 * count)])
    for start in range(0, len(stream) - count + 1, count):
        assert sorted(stream[start : start + count].tolist()) == list(range(count))


def test_order_depends_on_seed_and_position_alone():
    order = Order(37, 8, 3)
    later = order.batch(11)
    assert torch.equal(later, Order(37, 8, 3).batch(11))
    assert not torch.equal(later, Order(37, 8, 4).batch(11))
    assert not torch.equal(order.batch(0), order.batch(1))


def test_noise_of_a_row_does_not_depend_on_its_neighbours():
    whole = noise((2, 3, 3, 3), 7, "noise", 5, slice(0, 6))
    parts = [noise((2, 3, 3, 3), 7, "noise", 5, slice(i, i + 2)) for i in (0, 2, 4)]
    assert torch.equal(whole, torch.cat(parts))
    many = noise((1000,), 7, "noise", 6, slice(0, 50))
    assert abs(float(many.mean())) < 0.02
    assert float(many.std()) == pytest.approx(1.0, abs=0.02)
    assert abs(float(torch.corrcoef(many).fill_diagonal_(0).abs().max())) < 0.2


def test_fetching_ahead_keeps_the_order_and_reports_errors():
    def draw(number: int) -> dict[str, torch.Tensor]:
        if number == 6:
            raise ValueError("no such batch")
        return {"n": torch.tensor([number])}

    with Ahead(draw, 3, CPU) as batches:
        assert [int(batches.next()["n"]) for _ in range(3)] == [3, 4, 5]
        with pytest.raises(ValueError, match="no such batch"):
            batches.next()


def test_waiting_is_measured():
    def slow(number: int) -> dict[str, torch.Tensor]:
        time.sleep(0.05)
        return {"n": torch.zeros(1)}

    with Ahead(slow, 0, CPU) as batches:
        for _ in range(4):
            batches.next()
        assert batches.waited_seconds > 0.15
    with Ahead(slow, 0, CPU) as batches:
        time.sleep(0.2)  # both batches that are fetched ahead are there by now
        batches.next()
        batches.next()
        assert batches.waited_seconds < 0.04
