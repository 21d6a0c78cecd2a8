"""`medsynth samplers` on a tiny model: files, rule, resuming, and what it refuses."""

from __future__ import annotations

import csv
import io
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from child import Children, Strike
from PIL import Image

from medsynth.config.generate import Sampling
from medsynth.config.load import validated

SMALL = ("--samplers", "flow_euler,flow_heun", "--evaluations", "2,3", "--count", "5")
TIMES = {"seconds_per_volume"}


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> Children:
    return Children(tmp_path_factory.mktemp("streams"))


def command(finished: Path, out: Path) -> list[str]:
    return [
        "samplers",
        "--model",
        str(finished / "denoiser" / "model"),
        "--real",
        str(finished),
        "--out",
        str(out),
        *SMALL,
    ]


def rows(out: Path) -> list[dict[str, str]]:
    found = list(csv.DictReader(io.StringIO((out / "samplers.csv").read_text())))
    return [{key: value for key, value in row.items() if key not in TIMES} for row in found]


@pytest.fixture(scope="module")
def reference(finished: Path, tmp_path_factory: pytest.TempPathFactory, child: Children) -> Path:
    out = tmp_path_factory.mktemp("table") / "out"
    done = child(*command(finished, out), "--json")
    assert done.code == 0, done.err
    (out.parent / "printed.json").write_text(done.out)
    return out


def test_the_table_is_written_and_can_be_pasted(reference: Path) -> None:
    assert sorted(p.name for p in reference.iterdir()) == [
        "samplers.csv", "samplers.json", "samplers.png", "sampling.yaml",
    ]  # fmt: skip
    table = rows(reference)
    assert [(row["sampler"], row["evaluations"], row["network_calls"]) for row in table[::2]] == [
        ("flow_euler", "2", "2"), ("flow_heun", "2", "1"), ("flow_euler", "3", "3"), ("flow_heun", "3", "3"),
    ]  # fmt: skip
    assert {row["space"] for row in table} == {"radiomics", "random networks"}
    for row in table:
        assert float(row["kid_low"]) <= float(row["kid"]) <= float(row["kid_high"])
    for space in {row["space"] for row in table}:
        assert min(float(row["above_best"]) for row in table if row["space"] == space) == 0
    pasted = yaml.safe_load((reference / "sampling.yaml").read_text())
    sampling = validated(Sampling, pasted["generate"]["sampling"], (), strip="sampling")
    (chosen,) = {(row["sampler"], int(row["evaluations"])) for row in table if row["recommended"] == "yes"}
    assert (sampling.sampler, sampling.evaluations) == chosen
    printed = json.loads((reference.parent / "printed.json").read_text())
    assert printed["yaml"] == (reference / "sampling.yaml").read_text()
    assert printed["scans_per_choice"] == 5
    picture = Image.open(reference / "samplers.png")
    assert picture.width > picture.height > 400


def test_killed_it_goes_on_with_the_choices_that_are_left(
    finished: Path, reference: Path, tmp_path: Path, child: Children
) -> None:
    out = tmp_path / "out"
    killed = child(*command(finished, out), strike=Strike("medsynth.stages.samplers:write_cell", 3))
    assert killed.code == -signal.SIGKILL, killed.err
    assert not out.exists()
    assert len(list((tmp_path / ".out.partial" / "cells").iterdir())) == 2
    other = child(*command(finished, out), "--seed", 9)
    assert other.code == 2
    assert "unfinished work for another request" in other.err
    third = Strike("medsynth.stages.samplers:make_cell", 3)
    again = child(*command(finished, out), "-q", strike=third)
    assert again.code == 0, "a third choice was made"
    assert rows(out) == rows(reference)
    assert (out / "samplers.png").read_bytes() == (reference / "samplers.png").read_bytes()


def test_stopped_it_says_so(finished: Path, tmp_path: Path, child: Children) -> None:
    strike = Strike("medsynth.diffusion.pipeline:LatentVolumePipeline._draw", 4, "SIGTERM")
    stopped = child(*command(finished, tmp_path / "out"), "-q", strike=strike)
    assert stopped.code == 5
    assert "run the same command again to go on" in stopped.err


def test_the_test_split_stays_closed(finished: Path, reference: Path, tmp_path: Path, child: Children) -> None:
    """Without a single file of it, everything is as before."""
    copy = tmp_path / "prepare"
    shutil.copytree(finished / "prepare", copy)
    with (copy / "manifest.csv").open(newline="") as stream:
        test = [row for row in csv.DictReader(stream) if row["split"] == "test"]
    assert test
    for row in test:
        (copy / row["image"]).unlink()
        (copy / row["mask"]).unlink()
    out = tmp_path / "out"
    arguments = command(finished, out)
    arguments[arguments.index("--real") + 1] = str(copy)
    assert child(*arguments, "-q").code == 0
    assert rows(out) == rows(reference)


def test_a_plan_and_what_is_refused(finished: Path, tmp_path: Path, medsynth: Any) -> None:
    out = tmp_path / "out"
    plan = json.loads(medsynth(*command(finished, out), "--dry-run", "--json").out)
    assert plan["network_calls"] == 5 * (2 + 1 + 3 + 3)
    again = [*command(finished, out), "--samplers", "unipc", "--evaluations", "4", "--dry-run", "--json"]
    assert [one for one in json.loads(medsynth(*again).out)["choices"] if one not in plan["choices"]] == [
        "unipc 2", "unipc 3", "flow_euler 4", "flow_heun 4", "unipc 4",
    ]  # fmt: skip
    assert not list(tmp_path.iterdir())
    wrong = [
        (["--samplers", "flow_eular"], 2, "did you mean flow_euler"),
        (["--evaluations", "1,8"], 2, "from 2 to 1000"),
        (["--evaluations", "many"], 2, "whole numbers joined by commas"),
        (["--real", str(tmp_path)], 2, "expected a workspace"),
        (["--real", str(finished / "synthetic")], 3, "synthetic"),
        (["--model", str(tmp_path)], 3, "expected"),
        (["--out", str(finished)], 2, "nothing is overwritten"),
    ]
    for more, code, says in wrong:
        outcome = medsynth(*command(finished, out), *more)
        assert outcome.code == code, outcome.err
        assert says in outcome.err
    assert not list(tmp_path.iterdir())
