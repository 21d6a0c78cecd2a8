"""A mask as a DICOM segmentation object (PS3.3 A.51), and back."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from highdicom import AlgorithmIdentificationSequence
from highdicom.seg import Segmentation, SegmentDescription, segread
from highdicom.sr import CodedConcept
from pydicom import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.sr.codedict import codes

from medsynth import __version__
from medsynth.errors import DataError, UnreadableError
from medsynth.imaging.deidentify.elements import DAMAGE
from medsynth.imaging.grid import in_axis_order_of
from medsynth.imaging.quiet import quiet_pydicom
from medsynth.imaging.scan import Scan, make_scan
from medsynth.imaging.synthetic.header import (
    DESCRIPTION,
    LONGEST_NAME,
    NO_DATE,
    NO_TIME,
    Origin,
    Uids,
    mark_synthetic,
)
from medsynth.imaging.synthetic.slices import RAS_TO_LPS, Slices
from medsynth.imaging.words import SYNTHETIC_MANUFACTURER

READ_FAILURES = (InvalidDicomError, *DAMAGE, AttributeError, KeyError, IndexError, RuntimeError)


def segmentation(
    mask: Scan, slices: Slices, sources: Sequence[Dataset], labels: Mapping[str, int], origin: Origin, uids: Uids
) -> Segmentation:
    """The mask [1, X, Y, Z] as one binary segment per label, in the order of the labels' values.

    `sources`: the headers of the image series, slice by slice. Every slice has a frame for every segment, so that the
    object alone holds the whole grid. Nobody says what tissue a label's name means, so each segment is coded as
    `Tissue`, which viewers take for "not specified". Raises DataError for a value in the mask that has no name.
    """
    order = sorted(labels.items(), key=lambda pair: pair[1])
    voxels = slices.cut(mask)
    numbered = np.zeros(voxels.shape, np.uint8)
    for number, (_, value) in enumerate(order, start=1):
        numbered[voxels == value] = number
    if ((voxels != 0) & (numbered == 0)).any():
        raise DataError(
            "expected a mask of labels that have a name, found another value; name it in the mask condition"
        )
    algorithm = AlgorithmIdentificationSequence(
        name="medsynth", family=codes.DCM.ArtificialIntelligence, version=__version__
    )
    tissue = CodedConcept("85756007", "SCT", "Tissue")
    made = Segmentation(
        source_images=list(sources),
        pixel_array=numbered,
        segmentation_type="BINARY",
        segment_descriptions=[
            SegmentDescription(number, name[:LONGEST_NAME], tissue, tissue, "AUTOMATIC", algorithm)
            for number, (name, _) in enumerate(order, start=1)
        ],
        series_instance_uid=uids.make("mask series"),
        series_number=2,
        sop_instance_uid=uids.make("mask", str(order), hashlib.sha256(numbered.tobytes()).hexdigest()),
        instance_number=1,
        manufacturer=SYNTHETIC_MANUFACTURER,
        manufacturer_model_name="medsynth",
        software_versions=__version__,
        device_serial_number=origin.model[:LONGEST_NAME] or "none",
        content_label="SYNTHETIC",
        content_description=DESCRIPTION,
        omit_empty_frames=False,
    )
    _without_chance(made, uids)
    mark_synthetic(made, origin)
    return made


def _without_chance(made: Segmentation, uids: Uids) -> None:
    """The same bytes whenever it is written: no clock and no random UID."""
    for keyword in ("InstanceCreationDate", "InstanceCreationTime"):
        delattr(made, keyword)
    made.ContentDate, made.ContentTime = NO_DATE, NO_TIME
    dimensions = uids.make("dimensions")
    for holder in (*made.DimensionOrganizationSequence, *made.DimensionIndexSequence):
        holder.DimensionOrganizationUID = dimensions


def read_segmentation(path: Path, labels: Mapping[str, int], like: Scan | None = None) -> Scan:
    """The mask [1, X, Y, Z] uint8 that `segmentation` was made from, in the axis order of `like` where given.

    Raises UnreadableError where this is no such object, DataError where its segments are not those of `labels`.
    """
    with quiet_pydicom():
        try:
            found = segread(path)
            volume = found.get_volume(combine_segments=True)
            names = [str(found.get_segment_description(number).segment_label) for number in found.segment_numbers]
        except READ_FAILURES:
            raise UnreadableError("expected a DICOM segmentation with a regular grid; export the mask again") from None
    order = sorted(labels.items(), key=lambda pair: pair[1])
    if names != [name[:LONGEST_NAME] for name, _ in order]:
        raise DataError(
            f"expected the segments {', '.join(name for name, _ in order)}, found others; use its own model"
        )
    values = np.array([0, *(value for _, value in order)], np.uint8)
    affine = RAS_TO_LPS @ np.asarray(volume.affine)
    mask = make_scan(values[np.asarray(volume.array, np.intp)], affine, modality="", unit="label")
    return mask if like is None else in_axis_order_of(mask, like)
