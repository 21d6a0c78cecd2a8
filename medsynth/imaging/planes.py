"""The images of a DICOM object: where each one lies, what tells it from its neighbours, and what its values mean.

Positions, directions and spacings follow PS3.3 section C.7.6.2 (Image Plane) and, for multi-frame objects, the
functional groups of section C.7.6.16; values follow the Modality LUT of section C.11.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from pydicom import Dataset

from medsynth.errors import DataError, GeometryError, UnreadableError
from medsynth.imaging.fields import items, numbers, plain_words, text, whole
from medsynth.imaging.tables import Table, table_of

Numbers = tuple[float, ...]


ROWS, COLUMNS, FRAMES, PHOTOMETRIC = 0x00280010, 0x00280011, 0x00280008, 0x00280004
SHARED, PER_FRAME = 0x52009229, 0x52009230
POSITION_IN, POSITION = 0x00209113, 0x00200032
DIRECTIONS_IN, DIRECTIONS = 0x00209116, 0x00200037
SPACING_IN, SPACING = 0x00289110, 0x00280030
VALUES_IN, SLOPE, INTERCEPT, TABLE = 0x00289145, 0x00281053, 0x00281052, 0x00283000
IMAGE_TYPE, ACQUISITION_TIME = 0x00080008, 0x00080032
ECHO_IN, ECHO = 0x00189114, (0x00180081, 0x00189082, 0x00180086)
CONTENT_IN, TIME, ACQUISITION = 0x00209111, (0x00200100, 0x00209128), (0x00200012, 0x00209156)
DIFFUSION_IN, B_VALUE, GRADIENT_IN, GRADIENT = 0x00189117, 0x00189087, 0x00189076, 0x00189089
FRAME_TYPE_IN, FRAME_TYPE = (0x00189226, 0x00189329), 0x00089007

GEOMETRY_TAGS = frozenset(
    {
        *(
            ROWS,
            COLUMNS,
            FRAMES,
            PHOTOMETRIC,
            SHARED,
            PER_FRAME,
            POSITION,
            DIRECTIONS,
            SPACING,
            SLOPE,
            INTERCEPT,
            TABLE,
        ),
        *(0x00280100, 0x00280101, 0x00280103),  # bits allocated, bits stored, pixel representation
    }
)
TRAIT_TAGS = frozenset({IMAGE_TYPE, ACQUISITION_TIME, *ECHO, *TIME, *ACQUISITION, B_VALUE, GRADIENT})
PLANE_TAGS = GEOMETRY_TAGS | TRAIT_TAGS


class Traits(NamedTuple):
    """What may tell images at one position apart; empty where the header does not say."""

    echo: Numbers
    time: Numbers
    acquisition: Numbers
    clock: bytes
    kind: bytes
    """ImageType or FrameType."""
    diffusion: Numbers
    """b-value, and the gradient's direction."""


@dataclass(frozen=True, slots=True)
class Plane:
    """One image: where it lies (LPS mm) and how its stored values become physical ones."""

    position: Numbers
    """Centre of the first pixel."""
    directions: Numbers
    """Unit vectors along a row (toward growing column) and down a column: six numbers."""
    spacing: Numbers
    """Between rows, between columns."""
    rows: int
    columns: int
    slope: float
    intercept: float
    rescaled: bool
    """Whether slope and intercept were in the header."""
    inverted: bool
    """MONOCHROME1: the lowest stored value is the brightest."""
    table: Table | None
    """Modality lookup table in place of slope and intercept."""
    traits: Traits


def planes_of(dataset: Dataset) -> list[Plane]:
    """The images of a dataset: one, or one per frame of a multi-frame object.

    Raises UnreadableError where the header is cut short, GeometryError where it does not say where an image lies,
    DataError where its values have no meaning.
    """
    try:
        rows, columns = whole(dataset, ROWS, 0), whole(dataset, COLUMNS, 0)
    except UnreadableError:
        rows = columns = 0
    if rows <= 0 or columns <= 0:
        raise UnreadableError(
            "the header does not say how many rows and columns the image has; the file may be cut short"
        )
    inverted = text(dataset, PHOTOMETRIC) == "MONOCHROME1"
    shared = items(dataset, SHARED)
    frames = items(dataset, PER_FRAME)
    try:
        declared = whole(dataset, FRAMES, 1)
    except UnreadableError:
        raise UnreadableError("NumberOfFrames is not a number; export the series again") from None
    if frames and declared != len(frames):
        raise UnreadableError(
            f"expected the geometry of {declared} frames, found that of {len(frames)}; export it again"
        )
    if declared > 1 and not frames:
        raise GeometryError(
            f"the {declared} frames do not say where they lie; export the series as enhanced or single-frame"
        )
    sources = [[frame, *shared, dataset] for frame in frames] or [[*shared, dataset]]
    return [_plane(source, rows, columns, inverted) for source in sources]


def _plane(source: Sequence[Dataset], rows: int, columns: int, inverted: bool) -> Plane:
    position = _first(source, POSITION_IN, POSITION, 3)
    directions = _first(source, DIRECTIONS_IN, DIRECTIONS, 6)
    spacing = _first(source, SPACING_IN, SPACING, 2)
    if position is None or directions is None or spacing is None:
        raise GeometryError("an image does not say its position, orientation and pixel spacing; leave the series out")
    if min(spacing) <= 0:
        raise GeometryError("an image has a pixel spacing of zero; leave the series out")
    if max(map(abs, position)) > FARTHEST_MM or max(spacing) > FARTHEST_MM:
        raise GeometryError("an image lies farther away than any scanner is large; export the series again")
    if not _are_directions(directions):
        raise GeometryError("the directions of an image's rows and columns are not perpendicular unit vectors")
    slope = _first(source, VALUES_IN, SLOPE, 1)
    intercept = _first(source, VALUES_IN, INTERCEPT, 1)
    tables = [holder for dataset in source for holder in (*items(dataset, VALUES_IN), dataset) if TABLE in holder]
    if tables and (slope is not None or intercept is not None):
        raise DataError("stored values have two meanings, a lookup table and a rescale; leave the series out")
    if slope is not None and slope[0] == 0:
        raise DataError("the rescale slope is zero, so every voxel would be the same; leave the series out")
    return Plane(
        position=position,
        directions=directions,
        spacing=spacing,
        rows=_same(rows),
        columns=_same(columns),
        slope=1.0 if slope is None else slope[0],
        intercept=0.0 if intercept is None else intercept[0],
        rescaled=slope is not None and intercept is not None,
        inverted=inverted,
        table=table_of(tables[0], source[-1]) if tables else None,
        traits=_traits(source),
    )


FARTHEST_MM = 1e5
"""A hundred metres: beyond it a number of the header is damaged, and rounding would eat the geometry."""


@lru_cache(256)
def _are_directions(directions: Numbers) -> bool:
    row, column = directions[:3], directions[3:]
    skew = abs(sum(a * b for a, b in zip(row, column, strict=True)))
    return abs(math.hypot(*row) - 1) <= 1e-3 and abs(math.hypot(*column) - 1) <= 1e-3 and skew <= 1e-3


@lru_cache(256)
def _same(number: int) -> int:
    """One object for equal numbers, because a cohort has as many of them as files."""
    return number


@lru_cache(1024)
def _traits_once(traits: Traits) -> Traits:
    return traits


def _traits(source: Sequence[Dataset]) -> Traits:
    """What tells this image from others at its position; a value that cannot be read tells nothing."""
    dataset = source[-1]
    kind, clock = plain_words(dataset, IMAGE_TYPE, ACQUISITION_TIME)
    if len(source) == 1:
        echo, time, acquisition = (_quiet_first(source, None, tags) for tags in (ECHO, TIME, ACQUISITION))
        diffusion = _quiet(dataset, B_VALUE, 1) + _quiet(dataset, GRADIENT, 3)
    else:
        echo = _quiet_first(source, ECHO_IN, ECHO)
        time, acquisition = (_quiet_first(source, CONTENT_IN, tags) for tags in (TIME, ACQUISITION))
        diffusion = ()
        for holder in source:
            for item in _quiet_items(holder, DIFFUSION_IN):
                directions = [_quiet(one, GRADIENT, 3) for one in _quiet_items(item, GRADIENT_IN)]
                diffusion = diffusion or _quiet(item, B_VALUE, 1) + (directions[0] if directions else ())
            for tag in FRAME_TYPE_IN:
                for item in _quiet_items(holder, tag):
                    kind = plain_words(item, FRAME_TYPE)[0] or kind
        clock = b""  # of the whole object, so it tells no frame from another
    return _traits_once(Traits(echo, time, acquisition, clock, kind.upper(), diffusion))


def _quiet_first(source: Sequence[Dataset], sequence: int | None, tags: Sequence[int]) -> Numbers:
    for dataset in source:
        for holder in (*(_quiet_items(dataset, sequence) if sequence else ()), dataset):
            for tag in tags:
                if found := _quiet(holder, tag, 1):
                    return found
    return ()


def _quiet(dataset: Dataset, tag: int, count: int) -> Numbers:
    try:
        return numbers(dataset, tag, count) or ()
    except UnreadableError:
        return ()


def _quiet_items(dataset: Dataset, tag: int) -> list[Dataset]:
    try:
        return items(dataset, tag)
    except UnreadableError:
        return []


def _first(source: Sequence[Dataset], sequence: int, tag: int, count: int) -> Numbers | None:
    """`count` finite numbers from the first dataset that has them, itself or in its item of `sequence`."""
    for dataset in source:
        for holder in (*(items(dataset, sequence) if len(source) > 1 else ()), dataset):
            found = numbers(holder, tag, count)
            if found is not None:
                return found
    return None
