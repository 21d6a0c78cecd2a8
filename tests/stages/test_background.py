"""Files written beside the computing: order, errors at once, and the same files as without."""

from __future__ import annotations

import gc
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from medsynth.config.generate import Sampling
from medsynth.diffusion.model_folder import load_model
from medsynth.errors import StorageError
from medsynth.progress import Silent
from medsynth.stages import dataset as dataset_module
from medsynth.stages.background import WAITING, Background, Watching, ahead
from medsynth.stages.dataset import write_dataset
from medsynth.stages.request import Request
from medsynth.stages.scans import generate_all
from medsynth.stages.synthetic_case import write_case


def test_work_is_done_in_order_beside_the_caller() -> None:
    done: list[tuple[int, str]] = []
    with Background() as background:
        for number in range(10):
            background.do(lambda number=number: done.append((number, threading.current_thread().name)))  # type: ignore[misc]
    assert [number for number, _ in done] == list(range(10))
    assert {name for _, name in done}.isdisjoint({threading.current_thread().name})


def test_no_more_waits_than_memory_holds() -> None:
    started, go_on, given = threading.Event(), threading.Event(), []

    def slow() -> None:
        started.set()
        go_on.wait()

    def feed(background: Background) -> None:
        for number in range(10):
            background.do(slow)
            given.append(number)

    with Background() as background:
        feeder = threading.Thread(target=feed, args=(background,))
        feeder.start()
        started.wait()
        feeder.join(timeout=0.2)
        assert len(given) <= WAITING + 1
        go_on.set()
        feeder.join()
    assert len(given) == 10


def test_an_error_is_raised_at_the_next_look_and_nothing_more_is_begun() -> None:
    done, failed = [], threading.Event()

    def fail() -> None:
        failed.set()
        raise StorageError("as a test wants it")

    def wait_and_look() -> None:
        failed.wait()
        with Watching(background).task("sampling", 1000) as advance:
            for _ in range(10**6):
                advance(1)
        raise AssertionError("never told")

    background = Background()
    with pytest.raises(StorageError), background:
        background.do(fail)
        background.do(lambda: done.append(1))
        wait_and_look()
    with pytest.raises(StorageError), Background() as last:
        last.do(fail)
        last.do(lambda: done.append(2))
    assert done == []


def test_several_threads_work_at_once_and_none_begins_after_a_failure() -> None:
    together, done, failed = threading.Barrier(3, timeout=10), [], threading.Event()

    def meet(number: int) -> None:
        together.wait()
        done.append(number)

    with Background(3) as background:
        for number in range(9):
            background.do(lambda number=number: meet(number))  # type: ignore[misc]
    assert sorted(done) == list(range(9))

    def fail() -> None:
        failed.set()
        raise StorageError("as a test wants it")

    with pytest.raises(StorageError), Background(2) as broken:
        broken.do(lambda: failed.wait(10))
        broken.do(fail)
        failed.wait(10)
        for number in range(9, 30):
            broken.do(lambda number=number: done.append(number))  # type: ignore[misc]
            time.sleep(0.01)
    assert len(done) <= 10


def test_an_error_of_the_caller_waits_for_the_piece_in_hand_and_drops_the_others() -> None:
    started, done = threading.Event(), []

    def piece(number: int) -> None:
        started.set()
        done.append(number)

    with pytest.raises(KeyboardInterrupt), Background() as background:
        background.do(lambda: piece(1))
        started.wait()
        raise KeyboardInterrupt
    assert done == [1]


REQUESTS = 5


def ask(masks: Path) -> list[Request]:
    found = sorted(masks.iterdir())
    return [
        Request(f"S{n:05d}", {"diagnosis": "benign", "diameter_mm": 9.0}, found[n] if n % 3 else None, seed=n)
        for n in range(REQUESTS)
    ]


FAST = Sampling(sampler="flow_euler", evaluations=2)
WAYS: dict[str, Any] = {"model": "m", "progress": Silent(), "form": "nifti"}


def test_the_files_are_those_of_one_scan_after_another(finished: Path, tmp_path: Path) -> None:
    pipeline, requests = load_model(finished / "denoiser" / "model"), ask(finished / "prepare" / "masks")
    written = write_dataset(pipeline, requests, FAST, tmp_path / "out", batch_size="auto", **WAYS)
    (tmp_path / "plain" / "images").mkdir(parents=True)
    (tmp_path / "plain" / "masks").mkdir()
    for request, case in zip(requests, written.cases, strict=True):
        ((_, scan, mask),) = generate_all(pipeline, [request], FAST, 1, in_all=[request], progress=Silent())
        assert (mask is None) == (request.mask is None)
        origin = dataset_module.Origin(request.case, "m", request.seed, "", {})
        files = write_case(tmp_path / "plain", scan, mask, origin, form="nifti", labels={}, limits=(0, 1))
        assert files == {name: getattr(case, name) for name in files}
    names = [
        sorted(p.relative_to(tmp_path / f).as_posix() for p in (tmp_path / f).rglob("*.gz")) for f in ("out", "plain")
    ]
    assert names[0] == names[1]
    for name in names[0]:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


def test_files_are_written_while_the_next_scan_is_computed(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, requests = load_model(finished / "denoiser" / "model"), ask(finished / "prepare" / "masks")
    draw, write, draws, next_begun, waited = type(pipeline)._draw, write_case, [], threading.Event(), []

    def noting(self: Any, *rest: Any) -> torch.Tensor:
        draws.append(1)
        if len(draws) == 2:
            next_begun.set()
        return draw(self, *rest)

    def waiting(*arguments: Any, **options: Any) -> Any:
        waited.append(next_begun.wait(30))
        return write(*arguments, **options)

    monkeypatch.setattr(type(pipeline), "_draw", noting)
    monkeypatch.setattr(dataset_module, "write_case", waiting)
    write_dataset(pipeline, requests[:2], FAST, tmp_path / "out", batch_size="auto", **WAYS)
    assert waited == [True, True]


def test_what_has_a_row_is_not_computed_again(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted while the third scan is written, on a device that computes batches: the first two stay as they are."""
    pipeline, requests = load_model(finished / "denoiser" / "model"), ask(finished / "prepare" / "masks")
    monkeypatch.setattr(type(pipeline), "fills_a_device", property(lambda self: True))
    monkeypatch.setattr(dataset_module, "WRITERS_FOR_A_DEVICE", 1)
    seeds: list[int] = []
    draw = type(pipeline)._draw

    held: list[Any] = []

    def noting(self: Any, order: Any, chosen: list[int], *rest: Any) -> torch.Tensor:
        held.clear()  # what was going on when the error came is only forgotten now, and must take nothing with it
        gc.collect()
        seeds.extend(order.seeds[i] for i in dict.fromkeys(chosen))
        return draw(self, order, chosen, *rest)

    monkeypatch.setattr(type(pipeline), "_draw", noting)
    whole, calls = dataset_module.write_case, []

    def breaking(folder: Path, *arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise StorageError("as a test wants it")
        return whole(folder, *arguments, **options)

    monkeypatch.setattr(dataset_module, "write_case", breaking)
    with pytest.raises(StorageError) as caught:
        write_dataset(pipeline, requests, FAST, tmp_path / "out", batch_size=2, **WAYS)
    held.append(caught)
    del caught
    rows = sorted(path.stem for path in (tmp_path / "out" / "rows").iterdir())
    assert rows == ["S00000", "S00003"]  # those without a mask come first
    seeds.clear()
    written = write_dataset(pipeline, requests, FAST, tmp_path / "out", batch_size=2, **WAYS)
    assert seeds == [1, 2, 4]
    assert len(written.cases) == REQUESTS


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_what_is_made_ahead_comes_in_order_and_an_error_in_its_turn(threads: int) -> None:
    def work(number: int) -> int:
        time.sleep(0.01 * (number % 3))
        if number == 7:
            raise StorageError("seven")
        return number**2

    assert list(ahead(work, range(7), threads)) == [0, 1, 4, 9, 16, 25, 36]
    made = ahead(work, range(20), threads)
    assert [next(made) for _ in range(7)] == [0, 1, 4, 9, 16, 25, 36]
    with pytest.raises(StorageError, match="seven"):
        next(made)


def test_only_so_much_is_made_ahead_and_nothing_after_it_is_closed() -> None:
    begun: list[int] = []
    made = ahead(begun.append, range(100), 2)
    next(made)
    time.sleep(0.05)
    assert len(begun) <= 2 + WAITING
    made.close()
    before = len(begun)
    time.sleep(0.05)
    assert len(begun) == before
    assert not any(thread.name.startswith("medsynth-ahead") for thread in threading.enumerate())


def test_a_machine_without_a_device_makes_nothing_ahead() -> None:
    begun: list[int] = []
    made = ahead(begun.append, range(100), 0)
    next(made)
    assert begun == [0]
