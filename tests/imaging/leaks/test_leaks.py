"""The planted corpus through the folder engine: nothing leaks under any preset, and what research needs is still there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from leak_corpus import corpus, kept
from leak_corpus.carriers import CAPTURE
from leak_corpus.judge import Verdict, judge

from medsynth.config.deidentify import Deidentify
from medsynth.config.load import load_section
from medsynth.imaging.deidentify import SecretKey
from medsynth.imaging.deidentify.folder import FolderReport, deidentify_folder

PRESETS = ("strict", "longitudinal", "research")
EVERYTHING_KEPT = Deidentify(
    options=(
        *("retain_full_dates", "retain_patient_characteristics", "retain_device_identity"),
        *("retain_institution_identity", "retain_safe_private", "clean_descriptors", "clean_structured_content"),
        "clean_graphics",
    )
)
SETTINGS = {"everything": EVERYTHING_KEPT, "UIDs": Deidentify(options=("retain_uids",))}
PLACES_ASKED_FOR = 80
KEY = SecretKey(bytes(range(32)))


@dataclass(frozen=True)
class Planted:
    folder: Path
    files: list[corpus.File]


@dataclass(frozen=True)
class Run:
    out: Path
    report: FolderReport
    verdict: Verdict
    options: frozenset[str]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    folder = tmp_path_factory.mktemp("corpus") / "source"
    return Planted(folder, [*corpus.write(folder, together=True), *kept.write(folder)])


@pytest.fixture(scope="module", params=[*PRESETS, *SETTINGS])
def run(request: pytest.FixtureRequest, planted: Planted, tmp_path_factory: pytest.TempPathFactory) -> Run:
    name = request.param
    settings = SETTINGS.get(name) or load_section(Deidentify, "deidentify", name, [])
    settings = settings.model_copy(update={"ocr": "off"})  # half a second for each secondary capture
    out = tmp_path_factory.mktemp("out") / name
    report = deidentify_folder(planted.folder, out, KEY, settings)
    return Run(out, report, judge(planted.files, out), frozenset(settings.options))


def test_the_corpus_is_what_it_claims(planted: Planted) -> None:
    assert len({(place.group, place.name) for place in corpus.all_places()}) == len(corpus.all_places())
    assert len(corpus.all_places()) >= PLACES_ASKED_FOR
    for file in planted.files:
        assert corpus.found_in(file) == list(file.planted)


def test_the_corpus_is_the_same_every_time() -> None:
    first, second = (next(iter(corpus.files(together=True))) for _ in range(2))
    assert first.data == second.data
    assert [one.secret for one in first.planted] == [one.secret for one in second.planted]


def test_the_judge_finds_every_secret_where_nothing_was_done(planted: Planted) -> None:
    """The originals themselves, taken for results: all leaked, nothing lost."""
    verdict = judge(planted.files, planted.folder)
    assert len(verdict.leaked) == sum(len(file.planted) for file in planted.files)
    assert not {name for name, where in verdict.lost.items() if not _refusable(planted.files, where)}


def _refusable(files: list[corpus.File], names: list[str]) -> bool:
    """Whether all of these files may be refused: two of them hold no readable image."""
    return {file.name for file in files if file.refusable} >= set(names)


def test_nothing_leaks(run: Run) -> None:
    against = [one.name for one in run.verdict.leaked if not one.place.allowed & run.options]
    assert against == []


def test_what_may_be_written_is_written(run: Run) -> None:
    missing = [file.name for file in run.verdict.missing if file.kind != CAPTURE and not file.refusable]
    assert missing == []
    assert run.verdict.unreadable == 0


def test_what_research_needs_is_intact(run: Run) -> None:
    absent = {file.name for file in run.verdict.missing}
    lost = {name: [file for file in where if file not in absent] for name, where in run.verdict.lost.items()}
    assert {name: where for name, where in lost.items() if where} == {}


def test_what_an_option_promises_is_kept_and_nothing_else(run: Run) -> None:
    found = kept.look(run.out)
    broken = [
        f"{option}: {name}" for option in run.options & found.keys() for name, held in found[option].items() if not held
    ]
    assert broken == []
    identities = {"retain_full_dates", "retain_institution_identity", "retain_uids", "retain_device_identity"}
    for option in identities - run.options:
        assert not any(held for name, held in found[option].items() if not name.endswith("Time")), option


def test_no_message_holds_a_secret(run: Run, planted: Planted) -> None:
    said = "\n".join([*(entry.reason for entry in run.report.left_out), run.report.audit.read_text()]).lower().encode()
    found = [
        one.name for file in planted.files for one in file.planted for needle in one.secret.needles() if needle in said
    ]
    assert found == []
