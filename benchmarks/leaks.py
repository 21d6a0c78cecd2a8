"""What de-identification tools leave of planted secrets, and of the values that research needs.

    python -m benchmarks.leaks --peers-python PEERS/bin/python      # the table, and benchmarks/results/leaks.json
    python -m benchmarks.leaks --only medsynth                      # medsynth alone

The peers live in an environment of their own (`pip install -r benchmarks/peers-deidentify.txt`), named by
`--peers-python` or MEDSYNTH_PEERS. Each is used as its documentation tells for de-identification, and once more in its
strictest form that needs no configuration written by hand.

A file that a tool refuses or that makes it fail counts as no leak, because nothing of it left the house; all of its kept
side counts as lost, because research gets nothing, so that refusing everything does not pay. Secrets are planted one to a
CT file, and by groups in the other kinds of images. "By an option" are values that an option of PS3.15 Annex E would let
stay, such as the age or the scanner's serial number: a tool whose choice that is does no wrong by keeping them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "leaks.json"
RUNNER = HERE / "leaks_peers.py"
sys.path.insert(0, str(HERE.parent / "tests" / "imaging" / "leaks"))

from leak_corpus import corpus, kept  # noqa: E402 - the corpus lives beside the tests that use it
from leak_corpus.judge import judge  # noqa: E402

KEY = "6d656473796e7468" * 4
PEERS = {
    "dicom-anonymizer": "anonymize_dicom_file with its defaults (table 2023, private tags deleted)",
    "dicom-anonymizer, newest table": "the same with its table of 2026c",
    "deid": "replace_identifiers with the recipe deid.dicom and remove_private, after get_identifiers",
    "deid, sequences stripped": "the same with strip_sequences",
    "dicognito": "one Anonymizer for all files, as in its README",
}
PROFILES = {
    "medsynth strict": ("strict",),
    "medsynth longitudinal": ("longitudinal",),
    "medsynth research": ("research",),
}
PEER_SECONDS = 1800


def run_medsynth(profile: str, source: Path, out: Path, work: Path) -> dict[str, Any]:
    """`medsynth deidentify` with a preset, as its users call it."""
    key = work / "secret" / "project.key"
    if not key.exists():
        key.parent.mkdir(mode=0o700)
        key.write_text(KEY + "\n", encoding="ascii")
        key.chmod(0o600)
    command = [sys.executable, "-m", "medsynth", "deidentify", str(source), "--out", str(out), "--key-file", str(key)]
    done = subprocess.run(
        [*command, "--profile", profile, "--workers", "1"], capture_output=True, text=True, check=False
    )
    if done.returncode not in (0, 4):
        raise SystemExit(f"medsynth ended with {done.returncode}: {done.stderr[-500:]}")
    reasons = [line.split("left out: ", 1)[1] for line in done.stderr.splitlines() if "left out: " in line]
    return {"exit_code": done.returncode, "left_out": dict(Counter(reasons).most_common())}


def run_peer(name: str, python: str, source: Path, out: Path) -> dict[str, Any]:
    """One peer in its own interpreter."""
    command = [python, str(RUNNER), name, str(source), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PEER_SECONDS)
    if done.returncode:
        raise SystemExit(f"{name} ended with {done.returncode}: {done.stderr[-800:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(name: str, options: Sequence[str], files: list[corpus.File], out: Path) -> dict[str, Any]:
    """Leaks and losses of one tool in what it wrote to `out`."""
    verdict = judge(files, out)
    planted = [one for file in files for one in file.planted]
    chosen = set(options)
    against = [one for one in verdict.leaked if not one.place.allowed & chosen]
    by_option = [one for one in against if one.place.allowed]
    by_group: dict[str, dict[str, str]] = {}
    for one in against:
        kinds = by_group.setdefault(one.place.group, {})
        kinds[one.place.name] = ", ".join(filter(None, [kinds.get(one.place.name), one.kind]))
    places = {(one.place.group, one.place.name) for one in against}
    expected = kept.look(out)
    return {
        "tool": name,
        "files": len(files),
        "written": verdict.written,
        "unreadable": verdict.unreadable,
        "planted": len(planted),
        "leaked": len(against),
        "leaked_by_an_option": len(by_option),
        "places": len({(one.place.group, one.place.name) for one in planted}),
        "places_leaked": len(places),
        "leaks": by_group,
        "lost": {name: len(where) for name, where in sorted(verdict.lost.items())},
        "lost_in_written_files": _lost_in_written(verdict),
        "kept_by_option": expected,
    }


def _lost_in_written(verdict: Any) -> dict[str, int]:
    """Values lost although their file was written."""
    absent = {file.name for file in verdict.missing}
    counts = {name: sum(file not in absent for file in where) for name, where in sorted(verdict.lost.items())}
    return {name: count for name, count in counts.items() if count}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers-python", default=os.environ.get("MEDSYNTH_PEERS"))
    parser.add_argument("--only", action="append", help="tools whose names begin so; repeatable")
    parser.add_argument("--results", type=Path, default=RESULTS)
    chosen = parser.parse_args(arguments)
    wanted = [name for name in (*PROFILES, *PEERS) if _is_wanted(name, chosen.only)]
    if any(name in PEERS for name in wanted) and not chosen.peers_python:
        parser.error("expected --peers-python or MEDSYNTH_PEERS; make it from benchmarks/peers-deidentify.txt")
    earlier = json.loads(chosen.results.read_text())["tools"] if chosen.only and chosen.results.exists() else []
    rows = {row["tool"]: row for row in earlier}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        source = work / "source"
        files = [*corpus.write(source), *kept.write(source)]
        for number, name in enumerate(wanted):
            out = work / f"out{number}"
            if name in PEERS:
                out.mkdir()
                facts = run_peer(name, chosen.peers_python, source, out)
                facts["settings"], options = PEERS[name], ()
            else:
                facts = run_medsynth(PROFILES[name][0], source, out, work)
                facts["settings"], options = _settings(PROFILES[name][0])
            rows[name] = {**measure(name, options, files, out), **facts}
    ordered = [rows[name] for name in (*PROFILES, *PEERS) if name in rows]
    chosen.results.parent.mkdir(exist_ok=True)
    result = {"python": platform.python_version(), "tools": ordered}
    chosen.results.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(table(ordered))


def _is_wanted(name: str, only: Sequence[str] | None) -> bool:
    return not only or any(name.startswith(begin) for begin in only)


def _settings(profile: str) -> tuple[str, tuple[str, ...]]:
    from medsynth import __version__
    from medsynth.config.deidentify import Deidentify
    from medsynth.config.load import load_section

    options = load_section(Deidentify, "deidentify", profile, []).options
    return f"medsynth {__version__} deidentify --profile {profile}: {', '.join(options) or 'no option'}", options


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows for a terminal."""
    lines = [
        f"{'tool':<32}{'written':>13}{'leaked':>13}{'by option':>11}{'places':>11}{'values lost':>13}{'options kept':>14}"
    ]
    for row in rows:
        held = sum(sum(found.values()) for found in row["kept_by_option"].values())
        total = sum(len(found) for found in row["kept_by_option"].values())
        lines.append(
            f"{row['tool']:<32}{row['written']:>7}/{row['files']:<5}{row['leaked']:>8}/{row['planted']:<4}"
            f"{row['leaked_by_an_option']:>10}{row['places_leaked']:>8}/{row['places']:<4}"
            f"{sum(row['lost_in_written_files'].values()):>11}{held:>11}/{total}"
        )
    lines.append(
        "written: files out of the corpus. leaked: secrets found again, of them by option: an option of PS3.15 would let "
        "them stay. places: distinct places that leaked in any kind of image. values lost: technical values missing or "
        "changed in files that were written. options kept: values that some option keeps and that are there."
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
