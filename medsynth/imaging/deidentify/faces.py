"""Faces removed from whole series by a command of the site: a skull-stripping or defacing program.

The command gets a NIfTI and writes one on the same grid. Only the voxels that it changed are written back, through each
slice's own rescale; all others keep their stored bits. What the command prints is thrown away: such programs repeat
names of files and headers.
"""

from __future__ import annotations

import copy
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items

import medsynth
from medsynth.errors import DataError, GeometryError, PrivacyError, UsageError
from medsynth.imaging.deidentify.elements import DAMAGE
from medsynth.imaging.deidentify.stored import put_stored_values, replace, stored_values
from medsynth.imaging.nifti import read_nifti, write_nifti
from medsynth.imaging.planes import Plane, planes_of
from medsynth.imaging.quiet import quiet_pydicom
from medsynth.imaging.scan import Scan, affine_of, grid_distance_mm, make_scan, same_grid
from medsynth.imaging.stack import stack_planes
from medsynth.imaging.words import ARBITRARY, HU

TIME_LIMIT_S = 3600.0
GRID_TOLERANCE_MM = 0.01
LEAST_CHANGED_SHARE = 1e-3
"""A face takes up far more of a head scan than a thousandth."""
ROUNDING = 1e-5
"""Share of the largest value by which voxels that a program only copied may differ: it computed in float32."""
METHOD_CODE, METHOD_MEANING = "113102", "Clean Recognizable Visual Features Option"


def deface_scan(scan: Scan, command: Sequence[str], *, time_limit_s: float = TIME_LIMIT_S) -> Scan:
    """The scan [1, x, y, z] with the voxels that the command changed; all others are the same bits as before.

    `{input}` and `{output}` in the command stand for NIfTI files in a folder that nobody else can read and that is
    deleted afterwards. Raises UsageError where the program cannot be started, PrivacyError where it fails, takes too long or
    changes next to nothing, GeometryError where its result is on another grid, DataError where it is no volume.
    """
    folder = Path(tempfile.mkdtemp(prefix="medsynth-face-"))
    try:
        before, after = folder / "scan.nii.gz", folder / "without-face.nii.gz"
        write_nifti(scan, before)
        names = {"{input}": str(before), "{output}": str(after)}
        _run([_filled(word, names) for word in command], folder, time_limit_s)
        if not after.is_file():
            raise PrivacyError(
                "expected the face_command to write a scan without a face, found no file at {output}; check the command"
            )
        result = read_nifti(after)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return _merged(scan, result)


def _filled(word: str, names: dict[str, str]) -> str:
    for mark, name in names.items():
        word = word.replace(mark, name)
    return word


def _run(words: list[str], folder: Path, time_limit_s: float) -> None:
    """Run a program without a shell, in a process group of its own that does not outlive the limit."""
    try:
        process = subprocess.Popen(
            words,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError:
        raise UsageError(
            "face_command: expected a program that can be started, found none; check its path and permissions"
        ) from None
    try:
        code = process.wait(timeout=time_limit_s)
    except subprocess.TimeoutExpired:
        raise PrivacyError(
            f"expected the face_command to end within {time_limit_s:g} s, found it still running; it was stopped"
        ) from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if code != 0:
        raise PrivacyError(
            f"expected the face_command to end with exit code 0, found {code}; try it by hand on a NIfTI file"
        )


def _merged(scan: Scan, result: Scan) -> Scan:
    if result.shape != scan.shape:
        raise GeometryError(
            f"expected the face_command to keep the grid {tuple(scan.shape[1:])}, found {tuple(result.shape[1:])}; "
            "choose options that do not crop or resample"
        )
    distance = grid_distance_mm(tuple(scan.shape[1:]), affine_of(scan), affine_of(result))
    if distance > GRID_TOLERANCE_MM:
        raise GeometryError(
            f"expected the face_command to keep the grid, found one {distance:.3g} mm off; "
            "choose options that do not move, turn or reorder it"
        )
    before, after = scan.as_tensor().numpy(), result.as_tensor().numpy()
    allowed = ROUNDING * float(np.abs(before).max()) if before.dtype.kind == "f" else 0.5
    changed = np.abs(after.astype(np.float64) - before) > allowed
    if np.count_nonzero(changed) < LEAST_CHANGED_SHARE * changed.size:
        raise PrivacyError(
            "expected the face_command to change the face, found next to no voxel changed; the series was left out"
        )
    kind = before.dtype
    if kind.kind == "i":  # a program may write values between or beyond those of int16
        after = np.clip(np.rint(after), np.iinfo(kind).min, np.iinfo(kind).max)
    return same_grid(scan, np.where(changed, after, before).astype(kind))


def deface_series(
    datasets: list[Dataset], command: Sequence[str], *, time_limit_s: float = TIME_LIMIT_S
) -> list[Dataset]:
    """The de-identified datasets of one series, in their order, with the face removed and marked as such.

    Every dataset becomes native pixel data. The given ones are not changed. Raises what `deface_scan` raises,
    GeometryError where the series is no regular volume, UnreadableError where pixels cannot be decoded.
    """
    with quiet_pydicom():
        decoded = [stored_values(dataset) for dataset in datasets]
        planes = [planes_of(dataset) for dataset in datasets]
        flat = [plane for group in planes for plane in group]
        places = [(which, frame) for which, group in enumerate(planes) for frame in range(len(group))]
        if any(values.shape[0] != len(group) for (values, _), group in zip(decoded, planes, strict=True)):
            raise DataError("expected one position for each frame, found another number; export the series again")
        if any(values.shape[3] != 1 for values, _ in decoded):
            raise DataError("expected grey values, found colour images; leave the series out")
        if any(plane.table is not None for plane in flat):
            raise DataError("expected values with a slope and an intercept, found a lookup table; leave the series out")
        stack = stack_planes(flat)
        volume = np.stack(
            [_physical(decoded[places[k][0]][0][places[k][1], ..., 0], flat[k]) for k in stack.order]
        )  # [slices, rows, columns]
        scan = _as_scan(volume, stack.affine, str(datasets[0].get("Modality") or ""))
        result = deface_scan(scan, command, time_limit_s=time_limit_s).as_tensor().numpy()[0].transpose(2, 1, 0)
        changed = result != scan.as_tensor().numpy()[0].transpose(2, 1, 0)
        values = [array.copy() for array, _ in decoded]
        for level, k in enumerate(stack.order):
            which, frame = places[k]
            limits = _limits(datasets[which])
            back = np.rint((result[level].astype(np.float64) - flat[k].intercept) / flat[k].slope)
            stored = values[which][frame, ..., 0]
            stored[changed[level]] = np.clip(back, *limits)[changed[level]].astype(stored.dtype)
        return [
            _marked(dataset, array, photometric)
            for dataset, array, (_, photometric) in zip(datasets, values, decoded, strict=True)
        ]


def _physical(stored: NDArray, plane: Plane) -> NDArray[np.float64]:
    """output = slope * stored + intercept (PS3.3 C.11.1.1.2)."""
    return stored.astype(np.float64) * plane.slope + plane.intercept


def _as_scan(volume: NDArray[np.float64], affine: NDArray[np.float64], modality: str) -> Scan:
    limits = np.iinfo(np.int16)
    whole = bool((volume == np.rint(volume)).all()) and volume.min() >= limits.min and volume.max() <= limits.max
    voxels = volume.astype(np.int16 if whole else np.float32).transpose(2, 1, 0)
    return make_scan(voxels, affine, modality=modality, unit=HU if modality == "CT" else ARBITRARY)


def _limits(dataset: Dataset) -> tuple[int, int]:
    """The smallest and largest stored value that the dataset's bits can hold."""
    bits = int(dataset.BitsStored)
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if int(dataset.PixelRepresentation) else (0, (1 << bits) - 1)


def _marked(dataset: Dataset, values: NDArray, photometric: str) -> Dataset:
    """A copy with other pixels that says what was done (PS3.15 E.3.2)."""
    try:
        result = Dataset(dict(dataset.items()))
        result.set_original_encoding(*dataset.original_encoding, dataset.original_character_set)
        result.file_meta = copy.deepcopy(dataset.file_meta)
        put_stored_values(result, values, photometric)
        replace(result, "RecognizableVisualFeatures", "NO")
        methods = result.get("DeidentificationMethod") or []
        methods = [methods] if isinstance(methods, str) else list(methods)
        methods.append(f"medsynth {medsynth.__version__}, face removed by a command")
        replace(result, "DeidentificationMethod", methods)
        code = Dataset()
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = METHOD_CODE, "DCM", METHOD_MEANING
        earlier = [
            item for item in result.get("DeidentificationMethodCodeSequence") or () if item.CodeValue != METHOD_CODE
        ]
        replace(result, "DeidentificationMethodCodeSequence", Items([*earlier, code]))
        return result
    except (*DAMAGE, AttributeError, KeyError):
        raise DataError("expected a series that was de-identified here, found one without its markers") from None
