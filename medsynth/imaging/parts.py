"""Several images at one position: copies of one another, or volumes of several echoes, times or kinds in one series."""

from __future__ import annotations

import filecmp
import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medsynth.errors import DataError, GeometryError
from medsynth.imaging.decode import read_whole, stored_frames
from medsynth.imaging.headers import Header
from medsynth.imaging.planes import Plane
from medsynth.imaging.stack import SAME_POSITION_MM, check_alike, normal_of

SAME_BYTES = "a byte-equal copy of another file of its series"
SAME_IMAGE = "the same image as another file of its series, with other words in the header"
SAME_PIXELS = "the same pixels as another image at its position"

TRAITS = {"echo": 0, "time": 1, "type": 4, "diffusion": 5, "acquisition": 2, "clock": 3}
"""Name in a part's address -> place in `Traits`, in the order in which they are tried."""
MOST_TRAITS = 2


def without_copies(headers: list[Header]) -> tuple[list[Header], list[tuple[Path, str]]]:
    """The headers of distinct images, and the files left out, each with what it repeats.

    A file repeats another if it is byte-equal under the same SOPInstanceUID, or if both lie at one position with the
    same size, meaning and pixels and no echo, time or kind that tells them apart. Pixels are read only where several
    images of one object or position leave no other way to tell.
    """
    kept, left_out = _without_equal_files(headers)
    rivals: dict[object, list[Header]] = {}
    for header in kept:
        if len(header.planes) == 1:
            plane = header.planes[0]
            place = tuple(round(x / SAME_POSITION_MM) for x in plane.position)
            rivals.setdefault((place, plane.directions, plane.spacing, plane.traits), []).append(header)
    repeated: dict[Path, str] = {}
    for group in rivals.values():
        first: dict[object, Header] = {}
        for header in group if len(group) > 1 else ():
            same = first.setdefault(_pixels(header), header)
            if same is not header:
                is_same_object = header.sop_instance and header.sop_instance == same.sop_instance
                repeated[header.path] = SAME_IMAGE if is_same_object else SAME_PIXELS
    return [header for header in kept if header.path not in repeated], [*left_out, *repeated.items()]


def _without_equal_files(headers: list[Header]) -> tuple[list[Header], list[tuple[Path, str]]]:
    seen: dict[str, list[Header]] = {}
    kept: list[Header] = []
    left_out = []
    for header in headers:
        rivals = seen.setdefault(header.sop_instance, [])
        if header.sop_instance and any(filecmp.cmp(header.path, rival.path, shallow=False) for rival in rivals):
            left_out.append((header.path, SAME_BYTES))
        else:
            rivals.append(header)
            kept.append(header)
    return kept, left_out


def _pixels(header: Header) -> object:
    """What stands for an image's values: a digest; the path itself where they cannot be decoded."""
    plane = header.planes[0]
    try:
        dataset = read_whole(header.path, "a file")
        stored = next(stored_frames(dataset, [0], "a file"))
    except DataError:
        return header.path
    digest = hashlib.sha256(stored.astype(np.int64).tobytes()).digest()
    return digest, stored.shape, plane.slope, plane.intercept, plane.table, plane.inverted


def parts_of(planes: Sequence[Plane]) -> list[tuple[str, tuple[int, ...]]]:
    """The volumes among the images of one series: a name and the places of its images in `planes`.

    One part without a name where every position has one image, or nothing tells its images apart. Otherwise the first
    of echo, time, type, diffusion, acquisition and clock, or the first two of them, under which every part has exactly
    one image at every position: `echo=1`, `echo=2`, ..., numbered in the order of their values.
    """
    everything = [("", tuple(range(len(planes))))]
    if len(planes) < 4:
        return everything
    try:
        check_alike(planes)
    except GeometryError:
        return everything
    positions = _positions(planes)
    count = len(set(positions))
    if count == len(planes) or count < 2 or len(planes) % count:
        return everything
    for used in range(1, MOST_TRAITS + 1):
        for names in itertools.combinations(TRAITS, used):
            values = [tuple(plane.traits[TRAITS[name]] for name in names) for plane in planes]
            groups: dict[tuple[object, ...], list[int]] = {}
            for place, value in enumerate(values):
                groups.setdefault(value, []).append(place)
            if len(groups) * count == len(planes) and all(
                len({positions[place] for place in places}) == len(places) == count for places in groups.values()
            ):
                return _named(names, groups)
    return everything


def _named(names: tuple[str, ...], groups: dict[tuple[object, ...], list[int]]) -> list[tuple[str, tuple[int, ...]]]:
    ranks = []
    for at in range(len(names)):
        ordered = sorted({value[at] for value in groups}, key=lambda one: (one is not None, one))
        ranks.append({value: rank for rank, value in enumerate(ordered, start=1)})
    found = []
    for value, places in groups.items():
        numbers = [rank[one] for rank, one in zip(ranks, value, strict=True)]
        found.append((numbers, ",".join(f"{n}={r}" for n, r in zip(names, numbers, strict=True)), tuple(places)))
    return [(name, places) for _, name, places in sorted(found)]


def _positions(planes: Sequence[Plane]) -> list[int]:
    """For each image the number of its position, counted along the normal."""
    along = np.array([plane.position for plane in planes]) @ normal_of(planes[0])
    order = np.argsort(along, kind="stable")
    numbers = np.empty(len(planes), dtype=np.int64)
    numbers[order] = np.concatenate([[0], np.cumsum(np.diff(along[order]) > SAME_POSITION_MM)])
    return [int(number) for number in numbers]
