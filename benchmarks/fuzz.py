"""Mutated DICOM and NIfTI files through index, read and de-identify: no crash, no hang, bounded memory, no identifier.

    python -m benchmarks.fuzz                            # 20 000 mutants, two processes
    python -m benchmarks.fuzz --mutants 500 --first 7000

Every mutant is made from its number (tests/imaging/fuzzing.py). A worker process takes one after the other; its address space
is limited, and where it dies or takes too long over one mutant, that is noted and a fresh worker goes on with the next.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from benchmarks import harness

STAGES = ("index", "read", "deidentify")
ROOM = 2 << 30
"""Bytes of address space on top of what the libraries take."""
PIXELS = b"\xe0\x7f\x10\x00"
ADDRESS_SPACE_FILE = Path("/proc/self/statm")


def work(first: int, last: int, step: int, results: Connection) -> None:
    """Send `(number, what was done, stage, outcome, seconds)` for each stage of each mutant, then None."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "imaging"))
    from fuzzing import mutant

    stages = _stages()
    taken = int(ADDRESS_SPACE_FILE.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, taken + ROOM))
    with tempfile.TemporaryDirectory() as name:
        for number in range(first, last, step):
            folder = Path(name) / "mutant"
            path, done = mutant(number, folder)
            for stage in STAGES:
                results.send((number, done, stage, "begun", 0.0))
                begin = time.perf_counter()
                outcome = _outcome(stages[stage], folder, path)
                results.send((number, done, stage, outcome, time.perf_counter() - begin))
            shutil.rmtree(folder)
    results.send((-1, "", "", f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}", 0.0))
    results.send(None)


def _stages() -> dict[str, Callable[[Path, Path], str]]:
    """Stage -> a function of the mutant's folder and path that returns all it said."""
    from medsynth.config.deidentify import Deidentify
    from medsynth.imaging.deidentify import Deidentifier, SecretKey
    from medsynth.imaging.deidentify.folder import deidentify_folder
    from medsynth.imaging.index import index_folder, write_index
    from medsynth.imaging.read import read_scan

    home = Path(tempfile.mkdtemp())
    home.chmod(0o700)
    key = SecretKey.load_or_create(home / "key")
    deidentifier = Deidentifier(key, Deidentify(ocr="off"))

    def index(folder: Path, path: Path) -> str:
        write_index(index_folder(folder, deidentifier=deidentifier), home / "cohort.csv")
        return (home / "cohort.csv").read_text()

    def read(folder: Path, path: Path) -> str:
        return repr(dict(read_scan(path, deidentifier=deidentifier).meta))

    def deidentify(folder: Path, path: Path) -> str:
        out = home / "out"
        try:
            report = deidentify_folder(folder, out, key, Deidentify(ocr="off"))
            # Up to the pixels: there a mutation may have put a name, where no reader would show it.
            files = [file.read_bytes() for file in out.rglob("*") if file.is_file()]
            return "".join([repr(report.left_out), *(raw.partition(PIXELS)[0].decode("latin-1") for raw in files)])
        finally:
            shutil.rmtree(out, ignore_errors=True)

    return {"index": index, "read": read, "deidentify": deidentify}


def _outcome(stage: Callable[[Path, Path], str], folder: Path, path: Path) -> str:
    """`result`, the kind of our error, `LEAK`, or `CRASH` with where."""
    from fuzzing import NAMES

    from medsynth.errors import MedsynthError

    try:
        said, outcome = stage(folder, path), "result"
    except MedsynthError as error:
        said, outcome = str(error), type(error).__name__
    except BaseException as error:  # noqa: BLE001  whatever it is, it is what is looked for
        place = traceback.extract_tb(error.__traceback__)[-1]
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if "medsynth" in frame.filename]
        where = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""
        return f"CRASH {type(error).__name__} {where} {Path(place.filename).name}:{place.lineno}"
    return "LEAK" if any(name in said for name in NAMES) else outcome


class Watch:
    """Worker processes over the mutants, each with its share; dead and slow ones are replaced."""

    def __init__(self, first: int, mutants: int, workers: int, limit_s: float) -> None:
        self._last, self._step, self._limit_s = first + mutants, workers, limit_s
        self._context = multiprocessing.get_context("spawn")
        self._running: dict[Connection, dict[str, Any]] = {}
        self.counts: Counter[tuple[str, str]] = Counter()
        self.bad: list[dict[str, Any]] = []
        self.slowest = (0.0, -1, "")
        self.peak_kib = 0
        for at in range(workers):
            self._start(first + at)

    def _start(self, number: int) -> None:
        if number >= self._last:
            return
        mine, theirs = self._context.Pipe(duplex=False)
        process = self._context.Process(target=work, args=(number, self._last, self._step, theirs), daemon=True)
        process.start()
        theirs.close()
        self._running[mine] = {"process": process, "at": (number, "starting", "index"), "since": time.monotonic() + 60}

    def run(self) -> None:
        """Until every mutant has been through every stage."""
        while self._running:
            for ready in wait(list(self._running), timeout=1.0):
                assert isinstance(ready, Connection)
                try:
                    self._take(ready, ready.recv())
                except EOFError:
                    self._lost(ready, "DIED")
            for connection, state in list(self._running.items()):
                if time.monotonic() - state["since"] > self._limit_s:
                    state["process"].kill()
                    self._lost(connection, "HANG")

    def _take(self, connection: Connection, message: Any) -> None:
        if message is None:
            self._running.pop(connection)["process"].join()
            return
        number, done, stage, outcome, seconds = message
        if number < 0:
            self.peak_kib = max(self.peak_kib, int(outcome))
            return
        self._running[connection].update(at=(number, done, stage), since=time.monotonic())
        if outcome != "begun":
            self._note(number, done, stage, outcome)
            self.slowest = max(self.slowest, (seconds, number, stage))

    def _lost(self, connection: Connection, outcome: str) -> None:
        state = self._running.pop(connection)
        state["process"].join()
        self._note(*state["at"], outcome)
        self._start(state["at"][0] + self._step)

    def _note(self, number: int, done: str, stage: str, outcome: str) -> None:
        self.counts[stage, outcome.split()[0]] += 1
        if outcome.split()[0] in ("CRASH", "DIED", "HANG", "LEAK"):
            self.bad.append({"mutant": number, "done": done, "stage": stage, "outcome": outcome})


def table(counts: Counter[tuple[str, str]]) -> str:
    """Outcomes as lines, stages as columns."""
    outcomes = sorted({outcome for _, outcome in counts})
    lines = [f"{'':<18}" + "".join(f"{stage:>12}" for stage in STAGES)]
    lines += [f"{outcome:<18}" + "".join(f"{counts[stage, outcome]:>12}" for stage in STAGES) for outcome in outcomes]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Run, print the table and what went wrong, and write both as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first mutant")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--limit", type=float, default=20.0, help="seconds for one stage of one mutant")
    parser.add_argument("--out", type=Path, default=None, help="JSON file; benchmarks/results/ unless given")
    options = parser.parse_args(arguments)
    begin = time.monotonic()
    watch = Watch(options.first, options.mutants, options.workers, options.limit)
    watch.run()
    seconds, number, stage = watch.slowest
    sys.stdout.write(table(watch.counts) + "\n")
    sys.stdout.write(
        f"slowest: {seconds:.2f} s ({stage} of mutant {number}); peak {watch.peak_kib >> 10} MiB resident\n"
    )
    for one in watch.bad:
        sys.stdout.write(f"mutant {one['mutant']} ({one['done']}), {one['stage']}: {one['outcome']}\n")
    record = {
        "mutants": options.mutants,
        "first": options.first,
        "minutes": round((time.monotonic() - begin) / 60, 1),
        "room_gib": ROOM >> 30,
        "peak_resident_mib": watch.peak_kib >> 10,
        "slowest_seconds": round(seconds, 2),
        "outcomes": {stage: {o: n for (s, o), n in sorted(watch.counts.items()) if s == stage} for stage in STAGES},
        "bad": watch.bad,
    }
    harness.write("fuzz", record, options.out)
    sys.exit(1 if watch.bad else 0)


if __name__ == "__main__":
    main()
