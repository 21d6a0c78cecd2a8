"""Faults that `medsynth index` meets: series and volumes that are not what a reader could take them for."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate

from .fault import Build, Fault, absent, rows, unchanged
from .scans import both, changed, document, edited, image, nifti, patched, save, series, volume

INDEX = "medsynth index scans"
DIM, PIXDIM, QFORM = 40, 76, 252
"""Byte offsets of fields in a NIfTI-1 header."""


def faults() -> Iterator[Fault]:
    """All of them."""
    yield from _series()
    yield from _values()
    yield from _grouping()
    yield from _nifti()
    yield from _command()


def _row(name: str, build: Build, says: str, usable: int = 0, unusable: int = 1) -> Fault:
    """A row of the index that is told apart; the command itself goes well."""
    return Fault(name, INDEX, build, 0, says, rows(usable, unusable))


def _series() -> Iterator[Fault]:
    def tilt(dataset: Dataset, place: int) -> None:
        dataset.ImagePositionPatient = [-30.0, 12.0 + 0.6 * place, 100.0 + 2.5 * place]

    def gone(root: Path) -> None:
        series(root / "scans")[3].unlink()

    def uneven(dataset: Dataset, place: int) -> None:
        if place > 3:
            dataset.ImagePositionPatient = [-30.0, 12.0, 101.0 + 2.5 * place]

    def other_pixels(root: Path) -> None:
        series(root / "scans")
        dataset = image(0)
        dataset.SOPInstanceUID = "1.2.826.0.1.3680043.97.1.77"
        dataset.PixelData = image(5).PixelData
        save(dataset, root / "scans" / "ZQFILE077.dcm")

    def echoes(dataset: Dataset, place: int) -> None:
        dataset.ImagePositionPatient = [-30.0, 12.0, 100.0 + 2.5 * (place // 2)]
        dataset.EchoTime = 3.5 + 4.0 * (place % 2)

    def sizes(dataset: Dataset, place: int) -> None:
        if place == 2:
            dataset.Rows, dataset.Columns = dataset.Columns, dataset.Rows

    def orientations(dataset: Dataset, place: int) -> None:
        if place == 2:
            dataset.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]

    yield _row("Gantry tilt", edited(tilt), "found a tilt of 13.5 degrees")
    yield _row("A slice is missing", gone, "expected equal gaps")
    yield _row("Uneven gaps", edited(uneven), "expected equal gaps")
    yield _row(
        "One position, other pixels", other_pixels, "expected one image per position, found 7 images at 6 positions"
    )
    yield _row("Two echoes in one series", edited(echoes, 8, "MR"), "usable: 2", 2, 0)
    yield _row("Mixed sizes", edited(sizes), "expected images of one size, found 2 sizes")
    yield _row("Mixed orientations", edited(orientations), "expected parallel images, found 2 orientations")
    yield _row("A single slice", changed(1), "one image alone is not a volume")


def _values() -> Iterator[Fault]:
    def lookup(entries: int) -> Build:
        def edit(dataset: Dataset, place: int) -> None:
            table = Dataset()
            table.add_new(0x00283002, "US", [4096, 0, 16])
            table.ModalityLUTType = "HU"
            table.add_new(0x00283006, "US", list(range(entries)))
            dataset.ModalityLUTSequence = [table]
            del dataset.RescaleSlope, dataset.RescaleIntercept

        return edited(edit)

    def no_rescale(dataset: Dataset, place: int) -> None:
        del dataset.RescaleSlope, dataset.RescaleIntercept

    def no_position(dataset: Dataset, place: int) -> None:
        del dataset.ImagePositionPatient

    def colour(dataset: Dataset, place: int) -> None:
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
        dataset.PixelData = np.zeros(dataset.Rows * dataset.Columns * 3, np.uint8).tobytes()

    def no_codec(root: Path) -> None:
        for place in range(6):
            dataset = image(place)
            dataset.PixelData = encapsulate([b"\0\0\0\1"])
            dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
            save(dataset, root / "scans" / f"ZQFILE{place}.dcm", "1.2.840.10008.1.2.4.102")

    yield _row("Rescale slope of zero", changed(RescaleSlope=0), "rescale slope is zero")
    yield _row("CT without rescale", edited(no_rescale), "no rescale slope and intercept")
    yield _row(
        "CT in another unit than HU", changed(RescaleType="US_X"), "expected CT values in HU, found another unit"
    )
    yield _row("No position", edited(no_position), "an image does not say its position")
    yield _row("Pixel spacing of zero", changed(PixelSpacing=[0, 0]), "pixel spacing of zero")
    yield _row("Colour images", edited(colour), "expected grey values, found colour images")
    yield _row(
        "Burned-in annotation YES",
        changed(BurnedInAnnotation="YES"),
        "the header says that text is burned into the pixels",
    )
    yield _row(
        "A localizer", changed(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "a localizer (scout) is not a volume"
    )
    yield _row("No decoder for the transfer syntax", no_codec, "no decoder is installed")
    yield _row("A report", document("1.2.840.10008.5.1.4.1.1.88.11"), "expected CT or MR images")
    yield _row("Values by a modality lookup table", lookup(4096), "usable: 1", 1, 0)
    yield _row(
        "A modality lookup table shorter than it says",
        lookup(4000),
        "the modality lookup table contradicts its own descriptor",
    )


def _grouping() -> Iterator[Fault]:
    def two_people(dataset: Dataset, place: int) -> None:
        if place > 2:
            dataset.PatientID, dataset.PatientName = "ZQOTHER88", "Zqother^Eve"

    def copies(root: Path) -> None:
        paths = series(root / "scans")
        (root / "scans" / "ZQFILE_copy.dcm").write_bytes(paths[0].read_bytes())

    def spread(root: Path) -> None:
        paths = series(root / "scans")
        (root / "scans" / "ZQFILE_more").mkdir()
        for path in paths[::2]:
            path.rename(root / "scans" / "ZQFILE_more" / path.name)

    def damaged(root: Path) -> None:
        path = series(root / "scans")[2]
        path.write_bytes(path.read_bytes()[:400])

    directory = both(edited(lambda dataset, place: None), document("1.2.840.10008.1.3.10"))
    yield _row("Two patients in one series", edited(two_people), "patients")
    yield _row("The same slice twice", copies, "usable: 1", 1, 0)
    yield _row("One series across two folders", spread, "usable: 1", 1, 0)
    yield _row("A DICOMDIR beside a series", directory, "usable: 1", 1, 0)
    yield _row("A damaged file beside a series", damaged, "a damaged or empty DICOM file lies in its folder")


def _nifti() -> Iterator[Fault]:
    def shaped(kind: str, shape: tuple[int, ...]) -> Build:
        return nifti(lambda made: nibabel.Nifti1Image(np.zeros(shape, kind), made.affine))

    def colour(made: nibabel.Nifti1Image) -> nibabel.Nifti1Image:
        voxels = np.zeros((4, 4, 4), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
        return nibabel.Nifti1Image(voxels, made.affine)

    def disagree(made: nibabel.Nifti1Image) -> None:
        moved = made.affine.copy()
        moved[:3, 3] += 50
        made.set_qform(moved, code="scanner")

    def sheared(made: nibabel.Nifti1Image) -> None:
        affine = made.affine.copy()
        affine[:2, 1] = 0.9, 1.2  # of the same length as before
        made.set_sform(affine, code="scanner")
        made.header["qform_code"] = 0

    def cut(root: Path) -> None:
        (root / "scans").mkdir()
        path = root / "scans" / "ZQFILE.nii.gz"
        nibabel.save(volume((30, 30, 30)), path)
        path.write_bytes(path.read_bytes()[:200])

    def no_gzip(root: Path) -> None:
        (root / "scans").mkdir()
        (root / "scans" / "ZQFILE.nii.gz").write_bytes(b"Zqfamily" * 80)

    dims = struct.pack("<8h", 3, 30000, 30000, 30000, 1, 1, 1, 1)
    yield _row("NIfTI of four axes", shaped("int16", (4, 4, 4, 3)), "expected one 3-D volume")
    yield _row("NIfTI in colour", nifti(colour), "expected one real number per voxel, found colour voxels")
    yield _row(
        "NIfTI of complex numbers",
        shaped("complex64", (4, 4, 4)),
        "expected one real number per voxel, found complex voxels",
    )
    yield _row("NIfTI without q-form and s-form", patched(QFORM, bytes(4)), "neither sform nor qform")
    yield _row(
        "NIfTI whose q-form and s-form disagree",
        nifti(disagree),
        "sform and qform of the NIfTI header place the volume …apart",
    )
    yield _row("NIfTI that is sheared", nifti(sheared), "expected perpendicular voxel axes, found a shear")
    yield _row("NIfTI with a voxel size of zero", patched(PIXDIM + 8, b"\0\0\0\0"), "voxel size")
    yield _row(
        "NIfTI with negative dimensions", patched(DIM + 2, b"\xff\xff"), "expected voxels, found the shape (-1, 7, 8)"
    )
    yield _row("NIfTI that declares more than it holds", patched(DIM, dims), "found a file too short for them")
    yield _row("NIfTI cut short within gzip", cut, "cut short")
    yield _row("NIfTI that is no gzip file", no_gzip, "not a NIfTI file")


def _command() -> Iterator[Fault]:
    def there(root: Path) -> None:
        series(root / "scans")
        (root / "cohort.csv").write_text("patient,label\nA,1\n")

    def empty(root: Path) -> None:
        (root / "scans").mkdir()

    same = unchanged("cohort.csv", "patient,label\nA,1\n")
    nothing = absent("cohort.csv")
    yield Fault("An index that exists", INDEX, there, 2, "it may hold your labels", same)
    yield Fault("A folder without any scan, to index", INDEX, empty, 3, "found none", nothing)
    nowhere = f"{INDEX} --out nowhere/cohort.csv"
    yield Fault("An index into a folder that is not there", nowhere, there, 2, "expected an existing folder", same)
    yield Fault("No such folder, to index", INDEX, lambda root: None, 2, "expected a folder of scans", nothing)
