"""The order of cases and the noise are functions of seed and position; fetching ahead changes nothing."""

import time

import pytest
import torch

from medsynth.training.batches import Ahead, GridOrder, Order, noise

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


COUNTS = (24, 5, 11)


def test_every_case_of_every_grid_comes_once_per_round_of_its_grid():
    order = GridOrder(COUNTS, 4, 3)
    streams: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for number in range(3 * sum(COUNTS)):
        grid, cases = order.batch(number)
        assert len(cases) == 4
        streams[grid] += cases.tolist()
    for grid, count in enumerate(COUNTS):
        stream = streams[grid]
        assert len(stream) == 3 * count * 4  # over whole cycles every case of every grid as often
        for start in range(0, len(stream), count):
            assert sorted(stream[start : start + count]) == list(range(count))


def test_grids_come_in_proportion_at_every_moment():
    for seed in range(5):
        order = GridOrder(COUNTS, 4, seed)
        seen = [0, 0, 0]
        for number in range(2 * sum(COUNTS)):
            seen[order.batch(number)[0]] += 1
            for found, count in zip(seen, COUNTS, strict=True):
                assert abs(found - (number + 1) * count / sum(COUNTS)) <= len(COUNTS)


def test_order_of_grids_depends_on_seed_and_position_alone():
    order = GridOrder(COUNTS, 4, 3)
    later, again = order.batch(57), GridOrder(COUNTS, 4, 3).batch(57)
    assert later[0] == again[0] and torch.equal(later[1], again[1])
    grids = [[GridOrder(COUNTS, 4, seed).batch(k)[0] for k in range(sum(COUNTS))] for seed in (3, 4)]
    assert grids[0] != grids[1]
    assert grids[0] != [order.batch(sum(COUNTS) + k)[0] for k in range(sum(COUNTS))]  # another order in each cycle


def test_one_grid_has_the_plain_order():
    for number in range(20):
        grid, cases = GridOrder((7,), 4, 3).batch(number)
        assert grid == 0
        assert torch.equal(cases, Order(7, 4, 3).batch(number))


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


@pytest.mark.gpu
def test_batches_on_a_gpu_are_those_of_the_processor_in_order():
    def draw(number):
        return {"noise": noise((3, 8, 8, 8), 0, "noise", number, range(4)), "number": torch.full((4,), number)}

    with Ahead(draw, 5, torch.device("cuda")) as batches:
        for number in range(5, 45):
            batch = batches.next()
            assert batch["noise"].is_cuda
            assert (batch["number"] == number).all()
            assert torch.equal(batch["noise"].cpu(), draw(number)["noise"])
