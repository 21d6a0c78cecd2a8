"""What pixels may show: burned-in text and faces. Refused, cleaned, or let through by the table below.

Text is suspected from the header (`suspicion.py`). Then, with the option `clean_pixel_data`:

| the header | a rule knows the region | OCR finds text | OCR finds none | no OCR |
|---|---|---|---|---|
| says BurnedInAnnotation YES | blanked | blanked | refused | refused |
| raises another suspicion | blanked | blanked | passes | refused |
| raises none | passes | | | |

Without the option nothing is blanked: where the table says so, the image is refused. After blanking, the region is checked to
be blank, and OCR, where it is allowed and installed, must find nothing more; otherwise the image is refused. What passes
because OCR found nothing keeps its BurnedInAnnotation as it came: nothing was cleaned.

Images whose header raises no suspicion are not read by OCR: at half a second for a slice that would cost hundreds of times
all the rest. One kind is: uncompressed grey images in which many pixels of the highest value form thin
strokes, as letters do that a workstation has drawn. There OCR, if installed, must be sure of its reading.

A head that could show a face (`heads.py`) is refused, unless `accept_faces` lets it through or
`clean_recognizable_visual_features` is set, where a command removes the face from the whole series (`faces.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian

from medsynth.config.deidentify import Deidentify
from medsynth.errors import ConfigError, PrivacyError
from medsynth.imaging.deidentify import ocr
from medsynth.imaging.deidentify.elements import whole_number
from medsynth.imaging.deidentify.heads import could_show_a_face
from medsynth.imaging.deidentify.regions import Region, Rule, read_rules, regions_for, shipped_rules
from medsynth.imaging.deidentify.stored import NATIVE, put_stored_values, replace, stored_values, syntax_of
from medsynth.imaging.deidentify.suspicion import Suspicion, suspected_text

PIXEL_DATA = 0x7FE00010
ROUNDS = 3
"""Text beside large letters is sometimes only found once those are gone."""
LEAST_STROKE_PIXELS = 60
LARGEST_STROKE_SHARE = 0.05
STROKE_WIDTH = 4
THIN_SHARE = 0.8
INSTALL_OCR = "install medsynth-diffusion[ocr] so that text can be looked for"


class PixelGuard:
    """Judges and cleans the pixels of one image after another; holds no image."""

    def __init__(self, settings: Deidentify) -> None:
        """Raises ConfigError for mistakes in the site's rules, and where OCR is required but cannot be had."""
        self._cleans_text = "clean_pixel_data" in settings.options
        self._asks_about_faces = (
            not settings.accept_faces and "clean_recognizable_visual_features" not in settings.options
        )
        own = read_rules(Path(settings.regions)) if settings.regions is not None else ()
        self._rules: tuple[Rule, ...] = (*own, *shipped_rules())
        self._may_read = settings.ocr != "off" and ocr.is_installed()
        if settings.ocr == "require" and _finder() is None:
            raise ConfigError(
                [
                    "ocr: expected a package that finds text, found none that loads; install medsynth-diffusion[ocr] "
                    "(on a bare Debian also libgl1 and libglib2.0-0), or set ocr: auto"
                ]
            )

    def check(self, source: Dataset) -> tuple[Region, ...]:
        """The regions of `source` that must be blanked; none where nothing is to do.

        Raises PrivacyError where text or a face is suspected and nothing allows to go on, UnreadableError where
        suspected pixels cannot be decoded.
        """
        if self._asks_about_faces and self.suspects_face(source):
            raise PrivacyError(
                "expected an image that shows no face, found a head; set face_command to have faces removed, "
                "or accept_faces: true to let them through"
            )
        suspicion = suspected_text(source)
        if suspicion:
            return self._suspected(source, suspicion)
        return self._drawn(source)

    def suspects_face(self, source: Dataset) -> bool:
        """Whether a face could be recognised from the series to which the image belongs."""
        return could_show_a_face(source)

    def clean(self, source: Dataset, clean: Dataset, regions: Iterable[Region]) -> None:
        """Blank `regions` in the pixel data of `clean`, say BurnedInAnnotation NO, and verify both.

        `clean` must have its file meta information already: compressed pixels become Explicit VR Little Endian. Raises
        PrivacyError where text is still found afterwards.
        """
        suspected = bool(suspected_text(source))
        values, photometric = stored_values(clean)
        blanked = blank(values, tuple(regions), photometric)
        put_stored_values(clean, blanked, photometric)
        replace(clean, "BurnedInAnnotation", "NO")
        written, _ = stored_values(clean)
        if not np.array_equal(written, blanked):
            raise PrivacyError("expected blanked regions in the result, found other pixels; leave the image out")
        if self._texts(written, photometric) if suspected else self._drawn_texts(written):
            raise PrivacyError(
                "expected no text after blanking, found some; add its region to the rules in `regions`, "
                "or leave the image out"
            )

    @property
    def _finder(self) -> ocr.TextFinder | None:
        """What finds text, where it is allowed and installed; loaded when the first image needs it."""
        return _finder() if self._may_read else None

    def _suspected(self, source: Dataset, suspicion: Suspicion) -> tuple[Region, ...]:
        why = "; ".join(suspicion.reasons)
        regions = regions_for(source, self._rules) if self._cleans_text else ()
        if self._finder is None:
            if regions:
                return regions
            raise PrivacyError(
                f"expected no burned-in text, found a suspicion of it ({why}); {self._remedy(INSTALL_OCR)}"
            )
        values, photometric = stored_values(source)
        found = self._texts(blank(values, regions, photometric), photometric)
        if found and not self._cleans_text:
            raise PrivacyError(f"expected no burned-in text, found some ({why}); {self._remedy('')}")
        if not found and not regions and suspicion.admitted:
            raise PrivacyError(
                f"expected burned-in text where {why}, found none that could be blanked; {self._remedy('')}"
            )
        return (*regions, *found)

    def _remedy(self, other: str) -> str:
        steps = [
            "" if self._cleans_text else "set the option clean_pixel_data",
            "name the device's regions in `regions`",
            other,
            "leave the image out",
        ]
        return ", or ".join(step for step in steps if step)

    def _texts(self, values: NDArray, photometric: str) -> tuple[Region, ...]:
        """Regions to blank for text in `values` [frames, rows, columns, samples], until none is found any more."""
        if self._finder is None:
            return ()
        regions: list[Region] = []
        for number, stored in enumerate(values):
            frame = stored[None]
            for _ in range(ROUNDS):
                boxes = self._finder.find(frame[0])
                if not any(box.is_text for box in boxes):
                    break
                # Where text stands, whatever looks like text without being legible is taken for text too.
                fresh = tuple(_with_margin(box, frame.shape[1], frame.shape[2], number) for box in boxes)
                regions += fresh
                frame = blank(frame, tuple(Region(r.x, r.y, r.width, r.height) for r in fresh), photometric)
        return tuple(regions)

    def _drawn(self, source: Dataset) -> tuple[Region, ...]:
        """Text that a header does not admit, drawn at the highest value; see the head of this module."""
        if not self._may_read or not _may_hold_strokes(source):
            return ()
        regions = self._drawn_texts(stored_values(source)[0])
        if regions and not self._cleans_text:
            raise PrivacyError(f"expected no burned-in text, found some drawn into the pixels; {self._remedy('')}")
        return regions

    def _drawn_texts(self, values: NDArray) -> tuple[Region, ...]:
        """Regions of sure text that consists of the highest values of its frame."""
        if self._finder is None:
            return ()
        regions: list[Region] = []
        for number, stored in enumerate(values):
            if not has_strokes(stored[..., 0]):
                continue
            peak = stored[..., 0] == stored.max()
            for box in self._finder.find(stored):
                inside = peak[box.y : box.y + box.height, box.x : box.x + box.width]
                if box.is_sure and np.count_nonzero(inside) >= LEAST_STROKE_PIXELS // 2:
                    regions.append(_with_margin(box, stored.shape[0], stored.shape[1], number))
        return tuple(regions)


def blank(values: NDArray, regions: tuple[Region, ...], photometric: str) -> NDArray:
    """A copy of `values` [frames, rows, columns, samples] with every region set to what is shown darkest in its frame."""
    result = values.copy()
    for region in regions:
        frames = range(len(result)) if region.frame is None else (region.frame,)
        for frame in frames:
            result[frame, region.y : region.y + region.height, region.x : region.x + region.width] = _darkest(
                values[frame], photometric
            )
    return result


def has_strokes(frame: NDArray) -> bool:
    """Whether the pixels of the highest value [rows, columns] are many, few beside the rest, and mostly in thin strokes."""
    peak = frame == frame.max()
    count = int(np.count_nonzero(peak))
    if not LEAST_STROKE_PIXELS <= count <= LARGEST_STROKE_SHARE * frame.size:
        return False
    wide = np.ones_like(peak)
    for axis in (0, 1):
        run = peak.copy()
        for step in range(1, STROKE_WIDTH + 1):
            run &= np.roll(peak, -step, axis)  # where a run of more than the width begins
        wide &= np.logical_or.reduce([np.roll(run, step, axis) for step in range(STROKE_WIDTH + 1)])
    return int(np.count_nonzero(peak & ~wide)) >= THIN_SHARE * count


def _may_hold_strokes(source: Dataset) -> bool:
    """Whether uncompressed grey values hold a highest value often enough for letters: a look that costs next to nothing."""
    bits = whole_number(source, 0x00280100, 0)
    if PIXEL_DATA not in source or bits not in (8, 16) or whole_number(source, 0x00280002, 1) != 1:
        return False
    value, syntax = source.get_item(PIXEL_DATA).value, syntax_of(source)
    if syntax not in NATIVE or not isinstance(value, bytes):
        return False
    kind = "i" if whole_number(source, 0x00280103, 0) == 1 else "u"
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    stored = np.frombuffer(value[: len(value) // 2 * 2], f"{order}{kind}{bits // 8}")
    count = whole_number(source, 0x00280008, 1)
    frames = stored[: stored.size // count * count].reshape(count, -1) if 0 < count <= stored.size else stored[None]
    return any(
        LEAST_STROKE_PIXELS <= np.count_nonzero(frame == frame.max()) <= LARGEST_STROKE_SHARE * frame.size
        for frame in frames
        if frame.size
    )


def _darkest(frame: NDArray, photometric: str) -> NDArray:
    """One pixel [samples] as dark as any of the frame."""
    if photometric.startswith("YBR"):
        middle = 1 << (8 * frame.dtype.itemsize - 1)
        return np.array([0, middle, middle], dtype=frame.dtype)
    if frame.shape[-1] > 1:
        return np.zeros(frame.shape[-1], dtype=frame.dtype)
    return np.array([frame.max() if photometric == "MONOCHROME1" else frame.min()], dtype=frame.dtype)


def _with_margin(box: ocr.TextBox, rows: int, columns: int, frame: int) -> Region:
    margin = max(3, box.height // 4)
    left, top = max(0, box.x - margin), max(0, box.y - margin)
    right, bottom = min(columns, box.x + box.width + margin), min(rows, box.y + box.height + margin)
    return Region(left, top, right - left, bottom - top, frame)


@cache
def _finder() -> ocr.TextFinder | None:
    """The one finder of this process; None where the package or a library of the system is missing."""
    if not ocr.is_installed():
        return None
    finder = ocr.TextFinder()
    try:
        finder.load()
    except (ImportError, OSError):
        return None
    return finder
