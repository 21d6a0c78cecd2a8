"""The command line: what each verb prints, where, and how it ends."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pydicom
import pytest
import torch
import yaml

from medsynth import verbs
from medsynth.cohort.phantom import write_phantom_cohort

SERIES, SLICES = 2, 6


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms") / "source"
    write_phantom_cohort(folder, 2, seed=5)
    return folder


@pytest.fixture
def archive(phantoms: Path, tmp_path: Path) -> Path:
    """Two DICOM series of a few slices under their patients' names, and a text file."""
    folder = tmp_path / "archive"
    for number in range(SERIES):
        place = folder / f"KOWALCZYK_{number}"
        place.mkdir(parents=True)
        for path in sorted((phantoms / "series" / f"{number:05d}").iterdir())[:SLICES]:
            shutil.copy(path, place)
    (folder / "readme.txt").write_text("the scans of KOWALCZYK")
    return folder


def identities(folder: Path) -> set[str]:
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in folder.rglob("*.dcm")]
    names = {part for header in headers for part in str(header.PatientName).split("^") if len(part) > 4}
    return names | {str(header.PatientID) for header in headers} | {"KOWALCZYK"}


def tree(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


# --- help and mistakes -------------------------------------------------------------------------------------------------

VERBS = ["run", "demo", "prepare", "autoencoder", "encode", "denoiser", "generate", "evaluate", "register"]
OTHERS = ["index", "deidentify", "samplers", "init", "doctor"]


def test_help_of_every_verb_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from medsynth.cli import app\n"
        f"for verb in {VERBS + OTHERS!r}:\n"
        "    app(args=[verb, '--help'], standalone_mode=False)\n"
        "heavy = {'torch', 'monai', 'diffusers', 'mlflow', 'numpy', 'pydicom', 'rich'} & set(sys.modules)\n"
        "sys.exit(' '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_every_pipeline_verb_has_the_common_options(medsynth: Any) -> None:
    for verb in VERBS:
        shown = medsynth(verb, "--help").out
        for option in (
            "--workspace",
            "--set",
            "--seed",
            "--device",
            "--dry-run",
            "--force",
            "--json",
            "--verbose",
            "-q",
        ):
            assert option in shown, (verb, option)


def test_version(medsynth: Any) -> None:
    assert medsynth("--version").out.startswith("medsynth ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["prepair", "demo"],
        ["run"],
        ["run", "demo", "--workspce", "x"],
        ["run", "demo", "--seed", "many"],
        ["run", "no-such-pipeline"],
        ["generate"],
        ["generate", "demo", "--model", "x"],
        ["generate", "--model", "x"],
        ["index", "no-such-folder"],
        ["deidentify", "no-such-folder", "--out", "x"],
        ["config", "show", "dmo"],
        ["run", "demo", "--seed", "-1"],
        ["run", "demo", "--device", "gpu"],
        ["evaluate", "demo", "--workspace", "mistyped"],
        ["generate", "demo"],
    ],
    ids=" ".join,
)
def test_usage_mistakes_end_with_2_and_a_line(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, medsynth: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = medsynth(*arguments)
    assert outcome.code == 2, outcome.err
    assert outcome.out == ""
    assert 1 <= len(outcome.err.splitlines()) <= 2
    assert outcome.errors == outcome.err.splitlines()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("setting", "hint"),
    [
        ("generate.cuont=3", "count"),
        ("generate.count=many", "generate.count"),
        ("generate.count=0", "generate.count"),
        ("generate.count", "KEY.PATH=VALUE"),
        ("generat.count=3", "generate"),
        ("denoiser.objective.kind=flw", "flow"),
    ],
)
def test_a_typo_in_set(setting: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, medsynth: Any) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = medsynth("run", "demo", "--set", setting)
    assert outcome.code == 2
    assert len(outcome.err.splitlines()) == 1
    assert "--set" in outcome.err
    assert hint in outcome.err
    assert not list(tmp_path.iterdir())


def test_all_mistakes_of_a_pipeline_come_at_once(tmp_path: Path, medsynth: Any) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text("name: x\ncohort: {kind: phantom, patients: 2}\ngenerate:\n  cuont: 3\nseed: many\n")
    outcome = medsynth("run", path, "--workspace", tmp_path / "w")
    assert outcome.code == 2
    lines = outcome.err.splitlines()
    assert len(lines) == 3
    assert all(f"{path}:" in line for line in lines)
    assert not (tmp_path / "w").exists()


def test_a_bug_is_told_without_its_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, medsynth: Any) -> None:
    def broken(*arguments: Any, **options: Any) -> None:
        raise ValueError("KOWALCZYK has no such thing")

    monkeypatch.setattr(verbs, "run_pipeline", broken)
    outcome = medsynth("demo", "--workspace", tmp_path / "w")
    assert outcome.code == 1
    assert len(outcome.err.splitlines()) == 1
    assert "ValueError at test_cli.py:" in outcome.err
    assert "KOWALCZYK" not in outcome.err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (KeyboardInterrupt(), 5),
        (OSError(28, "x"), 5),
        (PermissionError(13, "x"), 2),
        (EOFError(), 1),
        (MemoryError(), 2),
        (torch.OutOfMemoryError("CUDA out of memory"), 2),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"), 2),
        (RuntimeError("mat1 and mat2"), 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_how_errors_end(
    error: BaseException, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, medsynth: Any
) -> None:
    def broken(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(verbs, "run_pipeline", broken)
    outcome = medsynth("demo", "--workspace", tmp_path / "w")
    assert outcome.code == code
    assert len(outcome.errors) == 1
    assert "Traceback" not in outcome.err


# --- plans and settings ------------------------------------------------------------------------------------------------


def test_a_dry_run_tells_everything_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, medsynth: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = medsynth("run", "demo", "--dry-run", "--json")
    assert outcome.code == 0
    plan = json.loads(outcome.out)
    assert list(plan["plan"]) == ["prepare", "autoencoder", "encode", "denoiser", "generate", "evaluate", "register"]
    assert set(plan["plan"].values()) == {"run (not run yet)"}
    assert plan["cases"] > 0
    assert plan["disk_needed_mb"] > 0
    assert plan["disk_free_mb"] > 0
    assert outcome.err == ""
    copies = medsynth("run", "demo", "--dry-run", "--json", "--set", "denoiser.augment.turned_copies=7")
    assert json.loads(copies.out)["disk_needed_mb"] > 3 * plan["disk_needed_mb"]
    shown = medsynth("demo", "--dry-run")
    assert "prepare: run (not run yet)" in shown.out
    assert list(medsynth_keys(medsynth("prepare", "demo", "--dry-run", "--json"))) == ["prepare"]
    assert not list(tmp_path.iterdir())


def medsynth_keys(outcome: Any) -> dict[str, str]:
    plan: dict[str, str] = json.loads(outcome.out)["plan"]
    return plan


def test_config_show_and_schema(medsynth: Any) -> None:
    shown = medsynth("config", "show", "demo", "--set", "generate.count=7")
    assert shown.code == 0
    assert yaml.safe_load(shown.out)["generate"]["count"] == 7
    as_json = json.loads(medsynth("config", "show", "demo", "--set", "generate.count=7", "--json").out)
    assert as_json["generate"]["count"] == 7
    schema = json.loads(medsynth("config", "schema").out)
    assert {"name", "cohort", "prepare", "denoiser", "register"} <= set(schema["properties"])


def test_what_config_show_prints_is_a_pipeline(tmp_path: Path, medsynth: Any) -> None:
    path = tmp_path / "shown.yaml"
    path.write_text(medsynth("config", "show", "demo").out)
    assert medsynth("config", "show", path).out == path.read_text()


def test_init_copies_once(tmp_path: Path, medsynth: Any) -> None:
    place = tmp_path / "new" / "study"
    outcome = medsynth("init", place, "--json")
    assert outcome.code == 0
    assert sorted(json.loads(outcome.out)["written"]) == sorted(str(p) for p in place.rglob("*.yaml"))
    assert medsynth("config", "show", place / "pipelines" / "demo.yaml").code == 0
    again = medsynth("init", place)
    assert again.code == 2
    assert len(again.err.splitlines()) == 1


def test_doctor(tmp_path: Path, medsynth: Any) -> None:
    outcome = medsynth("doctor", "--json", "--workspace", tmp_path / "new")
    assert outcome.code == 0
    found = json.loads(outcome.out)
    assert {"torch", "monai", "mlflow", "pydicom"} <= set(found["packages"])
    assert "missing" not in found["packages"].values()
    assert found["devices"][0].startswith("cpu")
    assert found["disk_free_gb"] > 0
    assert found["memory_free_gb"] > 0
    assert found["workspace_writable"] is True
    assert found["sqlite"]
    assert not (tmp_path / "new").exists()
    assert "workspace file system" in medsynth("doctor").out


# --- scans in ----------------------------------------------------------------------------------------------------------


def test_index(archive: Path, tmp_path: Path, medsynth: Any) -> None:
    table = tmp_path / "cohort.csv"
    outcome = medsynth("index", archive, "--out", table, "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out) == {"rows": SERIES, "usable": SERIES, "written": str(table)}
    with table.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["slices"] for row in rows] == [str(SLICES)] * SERIES
    assert [row["modality"] for row in rows] == ["CT"] * SERIES
    assert [row["patient"] for row in rows] == ["P1", "P2"]
    assert all((tmp_path / row["image"]).is_dir() for row in rows)
    assert "readme" not in table.read_text()

    before = table.read_bytes()
    again = medsynth("index", archive, "--out", table)
    assert again.code == 2
    assert len(again.err.splitlines()) == 1
    assert table.read_bytes() == before


def test_index_says_what_cannot_be_used(archive: Path, tmp_path: Path, medsynth: Any) -> None:
    names = identities(archive)
    sorted((archive / "KOWALCZYK_1").iterdir())[2].unlink()
    (archive / "KOWALCZYK_2.nii.gz").write_bytes(b"no scan")
    outcome = medsynth("index", archive, "--out", tmp_path / "cohort.csv")
    assert outcome.code == 0
    assert "usable: 1" in outcome.out
    assert "expected equal gaps" in outcome.err
    assert len(outcome.err.splitlines()) == 2
    assert not [name for name in names if name in outcome.out + outcome.err]
    quiet = medsynth("index", archive, "--out", tmp_path / "other.csv", "-q")
    assert (quiet.out, quiet.err) == ("", "")


def test_index_of_nothing(tmp_path: Path, archive: Path, medsynth: Any) -> None:
    (tmp_path / "empty").mkdir()
    nothing = medsynth("index", tmp_path / "empty", "--out", tmp_path / "cohort.csv")
    assert nothing.code == 3
    assert len(nothing.err.splitlines()) == 1
    nowhere = medsynth("index", archive, "--out", tmp_path / "no" / "cohort.csv")
    assert nowhere.code == 2
    assert len(nowhere.err.splitlines()) == 1
    assert not (tmp_path / "cohort.csv").exists()


def test_deidentify(archive: Path, tmp_path: Path, medsynth: Any) -> None:
    names = identities(archive)
    safe = tmp_path / "safe"
    safe.mkdir(mode=0o700)
    ask = ("deidentify", archive, "--out", tmp_path / "out", "--key-file", safe / "key", "--workers", 1)
    outcome = medsynth(*ask, "--json")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert (found["files"], found["written"], found["patients"]) == (SERIES * SLICES + 1, SERIES * SLICES, SERIES)
    assert found["left_out"] == {"foreign": {"no DICOM file": 1}}
    written = sorted((tmp_path / "out").rglob("*.dcm"))
    assert len(written) == SERIES * SLICES
    assert all(pydicom.dcmread(path).PatientIdentityRemoved == "YES" for path in written)
    shown = outcome.out + outcome.err + "\n".join(tree(tmp_path / "out"))
    assert not [name for name in names if name in shown.replace(str(archive), "")]
    data = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert not [name for name in names if name.encode() in data]

    before = tree(tmp_path / "out")
    assert medsynth(*ask, "-q").code == 0
    assert tree(tmp_path / "out") == before


def test_deidentify_tells_damage_and_refusals(archive: Path, tmp_path: Path, medsynth: Any) -> None:
    """A line for each; 3 where a file is damaged, 4 where a privacy rule refused one. The others are written."""
    safe = tmp_path / "safe"
    safe.mkdir(mode=0o700)
    damaged = sorted((archive / "KOWALCZYK_0").iterdir())[0]
    damaged.write_bytes(damaged.read_bytes()[:900])
    cut = sorted((archive / "KOWALCZYK_0").iterdir())[1]
    plain = pydicom.dcmread(cut)
    plain.decompress(generate_instance_uid=False)
    plain.save_as(cut)
    cut.write_bytes(cut.read_bytes()[:-100])
    ask = ("--key-file", safe / "key", "--workers", 1)
    outcome = medsynth("deidentify", archive, "--out", tmp_path / "one", *ask)
    assert outcome.code == 3
    assert "files 1 to 2: left out: expected a whole DICOM image, found a file that ends" in outcome.err
    assert len(list((tmp_path / "one").rglob("*.dcm"))) == SERIES * SLICES - 2

    burned = sorted((archive / "KOWALCZYK_1").iterdir())[0]
    dataset = pydicom.dcmread(burned)
    dataset.BurnedInAnnotation = "YES"
    dataset.save_as(burned)
    outcome = medsynth("deidentify", archive, "--out", tmp_path / "two", *ask, "-q")
    assert outcome.code == 4
    assert len(outcome.err.splitlines()) == 1
    assert len(list((tmp_path / "two").rglob("*.dcm"))) == SERIES * SLICES - 3


def test_deidentify_refuses_what_it_must_not_do(archive: Path, tmp_path: Path, medsynth: Any) -> None:
    safe = tmp_path / "safe"
    safe.mkdir(mode=0o700)
    key = ("--key-file", safe / "key", "--workers", 1, "-q")
    inside = medsynth("deidentify", archive, "--out", archive / "out", *key)
    assert (inside.code, len(inside.err.splitlines())) == (2, 1)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").write_text("mine")
    used = medsynth("deidentify", archive, "--out", tmp_path / "used", *key)
    assert (used.code, len(used.err.splitlines())) == (2, 1)
    assert tree(tmp_path / "used") == ["notes.txt"]
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    loose = ("--key-file", tmp_path / "open" / "key", "--workers", 1, "-q")
    unsafe = medsynth("deidentify", archive, "--out", tmp_path / "out", *loose)
    assert (unsafe.code, len(unsafe.err.splitlines())) == (4, 1)
    (tmp_path / "empty").mkdir()
    empty = medsynth("deidentify", tmp_path / "empty", "--out", tmp_path / "other", *key)
    assert (empty.code, len(empty.err.splitlines())) == (3, 1)
