"""Which files of a folder are masks, and of which image, by their names alone.

A file is taken for a mask if its name ends in one of `WORDS` after `_`, `-` or `.`, or if it lies in one of `FOLDERS`.
Its image has the name without that word in the same folder, or the same name beside or under an image folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from medsynth.imaging.formats import SUFFIXES as OTHER_SUFFIXES
from medsynth.imaging.nifti import SUFFIXES as NIFTI_SUFFIXES

WORDS = ("seg", "segmentation", "segmentations", "mask", "masks", "label", "labels", "labelmap", "roi")
FOLDERS = {*WORDS, "rois", "labelstr", "labelsts", "gt"}
_SUFFIX = re.compile(rf"(.+)[_.-](?:{'|'.join(WORDS)})", re.IGNORECASE)
_CHANNEL = re.compile(r"_0000$")
"""nnU-Net's mark of an image's first channel."""


def stem_of(path: Path) -> str:
    """The name of a volume or folder without the suffix of its format."""
    for suffix in sorted((*NIFTI_SUFFIXES, *OTHER_SUFFIXES), key=len, reverse=True):
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.name


def looks_like_mask(path: Path) -> bool:
    """Whether the name of a volume's file, or of its folder, says mask."""
    return path.parent.name.lower() in FOLDERS or _SUFFIX.fullmatch(stem_of(path)) is not None


def images_of(masks: Iterable[Path], images: Iterable[Path]) -> dict[Path, Path | None]:
    """For each mask the one image that its name points to; None where there is none, or more than one."""
    by_stem: dict[str, list[Path]] = {}
    for image in images:
        by_stem.setdefault(_CHANNEL.sub("", stem_of(image)), []).append(image)
    found: dict[Path, Path | None] = {}
    for mask in masks:
        stem = stem_of(mask)
        cut = _SUFFIX.fullmatch(stem)
        candidates = [image for image in by_stem.get(cut[1], []) if image.parent == mask.parent] if cut else []
        if not candidates and mask.parent.name.lower() in FOLDERS:
            above = mask.parent.parent
            names = {stem, *([cut[1]] if cut else [])}
            candidates = [
                image
                for name in names
                for image in by_stem.get(name, [])
                if above in (image.parent, image.parent.parent) and image.parent != mask.parent
            ]
        found[mask] = candidates[0] if len(candidates) == 1 else None
    return found
