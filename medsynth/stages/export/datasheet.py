"""A datasheet for a dataset (Gebru 2021, arXiv 1803.09010), filled from what the manifest and the evidence say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from medsynth import __version__
from medsynth.stages.export.collect import Dataset, Entry, entries_of, labels_of
from medsynth.stages.files import read_json

TITLES = {"nnunet": "nnU-Net raw dataset", "bids": "BIDS derivative", "croissant": "Croissant dataset"}


def datasheet(datasets: Sequence[Dataset], layout: str, notes: Sequence[str]) -> str:
    """The README of an export. `notes`: what the layout has to say of itself."""
    entries = entries_of(datasets)
    synthetic = [entry for entry in entries if entry.synthetic]
    real = [entry for entry in entries if not entry.synthetic]
    title = (
        "SYNTHETIC AND REAL SCANS" if synthetic and real else "SYNTHETIC - NOT A PATIENT" if synthetic else "REAL SCANS"
    )
    lines = [f"# {title}: {TITLES[layout]}", "", *_which(synthetic, real), "", "## Motivation", ""]
    lines += [
        "Training of models for research, where scans of patients are few or one-sided.",
        "",
        "## Composition",
        "",
    ]
    lines += [f"- {line}" for group in (synthetic, real) if group for line in _composition(group)]
    if labels := labels_of(datasets):
        lines.append(f"- Mask labels: {', '.join(f'{name} ({value})' for name, value in labels.items())}.")
    lines += ["", "## Collection", "", *_collection(synthetic, real), "", "## Layout", "", *notes, "", "## Uses", ""]
    lines += [
        "- For research, not for diagnosis.",
        "- Synthetic scans are for training alone. Never validate or test on them, and never report a figure that was.",
        "- Do not remove the marks that say what is synthetic.",
        "",
        "## Evidence and limits",
        "",
        *(_evidence(datasets) if synthetic else ["- None: no synthetic scans are here."]),
        "",
        "## Distribution and maintenance",
        "",
        "- Licence, contact and version are for whoever passes the dataset on to state.",
        f"- Written by medsynth {__version__}.",
        "",
    ]
    return "\n".join(lines)


def _which(synthetic: Sequence[Entry], real: Sequence[Entry]) -> list[str]:
    lines = []
    if synthetic:
        lines.append(f"{len(synthetic)} scans are synthetic and were taken of nobody; their names say `synthetic`.")
    if real:
        lines.append(
            f"{len(real)} scans are of real patients, under pseudonyms. A pseudonym does not make a scan anybody's to pass on."
        )
    return lines


def _composition(entries: Sequence[Entry]) -> list[str]:
    origin, first = entries[0].case.origin, entries[0].case
    splits = Counter(entry.case.split for entry in entries)
    lines = [
        f"{len(entries)} {origin} scans of modality {first.modality or 'not stated'}, for example "
        f"{'x'.join(map(str, first.shape))} voxels of {'x'.join(f'{step:g}' for step in first.spacing_mm)} mm; "
        f"{sum(entry.mask is not None for entry in entries)} with a mask.",
        f"Split, {origin}: {', '.join(f'{name} {count}' for name, count in sorted(splits.items()))}.",
    ]
    for name in first.conditions:
        values = [entry.case.conditions.get(name) for entry in entries]
        numbers = [value for value in values if isinstance(value, float)]
        unknown = values.count(None)
        if numbers:
            told = f"{min(numbers):g} to {max(numbers):g}"
        else:
            told = ", ".join(f"{value} {count}" for value, count in sorted(Counter(filter(None, values)).items()))
        lines.append(f"{name}, {origin}: {told or 'none'}{f'; unknown {unknown}' if unknown else ''}.")
    return lines


def _collection(synthetic: Sequence[Entry], real: Sequence[Entry]) -> list[str]:
    lines = []
    if synthetic:
        for key in ("model", "sampler", "evaluations", "guidance", "precision"):
            found = sorted({entry.case.generation.get(key, "not said") for entry in synthetic})
            lines.append(f"- Synthetic, {key}: {', '.join(found)}.")
        lines.append("- The conditions are what was asked for, not what somebody found in the scans.")
    if real:
        patients = len({entry.case.patient for entry in real})
        lines.append(f"- Real: {patients} patients, de-identified and brought to one grid by `medsynth prepare`.")
    return lines


def _evidence(datasets: Sequence[Dataset]) -> list[str]:
    """What was measured on this very dataset, where its workspace still says so."""
    place = datasets[0].folder.parent / "evaluation" / "evidence.json"
    if not place.is_file():
        return [
            "- No evaluation lies beside this dataset: what it is worth, and how close it is to patients, is not known."
        ]
    found: dict[str, Any] = read_json(place)
    lines = []
    privacy = found.get("privacy") or {}
    if verdict := (found.get("benefit") or {}).get("verdict"):
        lines.append(f"- Benefit for training: {verdict['outcome']}. {verdict['reasons'][0]}")
    for space in privacy.get("spaces", []):
        closer = space["closer"]
        lines.append(
            f"- Privacy, {space['space']}: {closer['value']:.1%} (interval {closer['low']:.1%} to {closer['high']:.1%}) of the "
            f"synthetic scans lie closer to a training scan than the threshold, where {space['nominal']:.1%} of fresh real ones do."
        )
    if masks := privacy.get("masks"):
        lines.append(
            f"- Privacy, masks: {masks['closer']['value']:.1%} of the masks lie closer to a training patient's than the "
            f"threshold, where {masks['nominal']:.1%} of fresh ones do."
        )
    lines.append("- Distances are no proof of privacy: read the report before passing the dataset on.")
    return lines
