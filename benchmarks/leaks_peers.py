"""Runs one de-identification tool over a folder, in that tool's own environment; needs nothing of medsynth.

    PEERS/bin/python benchmarks/leaks_peers.py TOOL SOURCE OUT

The last line on standard output is JSON: the tool's version, and how often it failed with which error. A tool that stops
at a file goes on with the next one here, in its favour: used on a whole folder, some of them would end there.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

Work = Callable[[Path, Path], None]


def dicom_anonymizer(newest: bool) -> Work:
    """https://github.com/KitwareMedical/dicom-anonymizer, README: `anonymize_dicom_file(in, out)`."""
    from dicomanonymizer.simpledicomanonymizer import anonymize_dicom_file, initialize_actions

    more = {"base_rules_gen": lambda: initialize_actions("dicomfields_2026c")} if newest else {}
    return lambda source, target: anonymize_dicom_file(str(source), str(target), **more)


def deid(strip: bool) -> Work:
    """https://pydicom.github.io/deid: get identifiers, then put them back with the recipe that comes with it."""
    from deid.config import DeidRecipe
    from deid.dicom import get_identifiers, replace_identifiers

    recipe = DeidRecipe()  # deid.dicom

    def work(source: Path, target: Path) -> None:
        found = get_identifiers([str(source)])
        replace_identifiers(
            dicom_files=[str(source)],
            ids=found,
            deid=recipe,
            save=True,
            output_folder=str(target.parent),
            overwrite=True,
            remove_private=True,
            strip_sequences=strip,
        )

    return work


def dicognito() -> Work:
    """https://github.com/blairconrad/dicognito, README: one Anonymizer; files are named by the new SOP Instance UID."""
    import pydicom
    from dicognito.anonymizer import Anonymizer

    anonymizer = Anonymizer()

    def work(source: Path, target: Path) -> None:
        with pydicom.dcmread(source, force=False) as dataset:
            anonymizer.anonymize(dataset)
            dataset.save_as(target.parent / f"{dataset.SOPInstanceUID}.dcm")

    return work


TOOLS: dict[str, tuple[str, Callable[[], Work], bool]] = {
    "dicom-anonymizer": ("dicom_anonymizer", lambda: dicom_anonymizer(newest=False), True),
    "dicom-anonymizer, newest table": ("dicom_anonymizer", lambda: dicom_anonymizer(newest=True), True),
    "deid": ("deid", lambda: deid(strip=False), True),
    "deid, sequences stripped": ("deid", lambda: deid(strip=True), True),
    "dicognito": ("dicognito", dicognito, False),
}
"""Package, what makes its function, and whether it keeps the names of files and folders."""


def main() -> None:
    name, source, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    package, make, keeps_names = TOOLS[name]
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    work = make()
    failures: Counter[str] = Counter()
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        target = out / path.relative_to(source) if keeps_names else out / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            work(path, target)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever stops a tool is counted, not judged
            target.unlink(missing_ok=True)
            failures[type(error).__name__] += 1
    print(json.dumps({"version": f"{package} {version(package)}", "failures": dict(failures)}))


if __name__ == "__main__":
    main()
