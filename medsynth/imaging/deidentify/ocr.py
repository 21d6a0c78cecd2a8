"""Text in rendered images, found by the optional package `rapidocr_onnxruntime` (extra `ocr`).

Its networks lie inside its wheel, so nothing is ever fetched. What it reads is never stored, logged or returned: only
where text stands.
"""

from __future__ import annotations

import importlib.util
import logging
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

PACKAGE = "rapidocr_onnxruntime"
LEAST_SCORE = 0.5
LEAST_CHARACTERS = 2
"""A single letter is an orientation mark, or anatomy that looks like an O."""
SURE_SCORE, SURE_CHARACTERS = 0.8, 3
SMALLEST_SIDE = 736
"""Images are enlarged to this many pixels before text is looked for."""
NEIGHBOURHOOD = 31
"""Pixels on a side of the square with whose mean and spread each grey value is compared, so that letters which are only a
little brighter than what they stand on show up beside the brightest bone."""
SHOWN_DEVIATIONS = 3.0
SMALLEST_SPREAD = 10.0
"""Grey levels: no detail is made out of even areas."""


class TextBox(NamedTuple):
    """Something that looks like a line of text, in pixels: corners are whole pixels inside the image."""

    x: int
    y: int
    width: int
    height: int
    is_text: bool
    """Whether it reads as at least two letters or digits."""
    is_sure: bool
    """Whether it reads as at least three letters or digits with little doubt."""


def is_installed() -> bool:
    """Whether the package is there; it is not loaded."""
    return importlib.util.find_spec(PACKAGE) is not None


class TextFinder:
    """Finds lines of text; its networks are loaded at the first image, onto one CPU core."""

    @cached_property
    def _engine(self) -> Any:
        from rapidocr_onnxruntime import RapidOCR

        for name in ("RapidOCR", "OrtInferSession"):
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        return RapidOCR(
            intra_op_num_threads=1, inter_op_num_threads=1, det_limit_side_len=SMALLEST_SIDE, text_score=0.0
        )

    def load(self) -> None:
        """Load the networks now. Raises ImportError or OSError where a library is missing."""
        _ = self._engine

    def find(self, frame: NDArray) -> list[TextBox]:
        """Boxes in one frame [rows, columns, 1 or 3]: grey values of any type, or colours of 8 bits."""
        found: list[TextBox] = []
        for image in renderings(frame):
            lines, _ = self._engine(image, use_cls=False)
            found += [_box(line, image.shape) for line in lines or ()]
        return found


def renderings(frame: NDArray) -> list[NDArray[np.uint8]]:
    """`frame` as images of 8 bits [rows, columns, 3]: colours as they are; grey values over their whole range, and by how
    much they differ from their neighbourhood."""
    from scipy.ndimage import uniform_filter  # a fifth of a second, which most processes never need

    if frame.shape[-1] == 3:
        return [_shown(frame, 0, max(255, int(frame.max())))]
    grey = frame[..., 0].astype(np.float32)
    low, high = float(grey.min()), float(grey.max())
    if low == high:
        return []
    mean = uniform_filter(grey, NEIGHBOURHOOD)
    spread = np.sqrt(np.maximum(uniform_filter(grey * grey, NEIGHBOURHOOD) - mean * mean, 0))
    deviation = (grey - mean) / (spread + SMALLEST_SPREAD)
    views = (_shown(grey, low, high), _shown(deviation, -SHOWN_DEVIATIONS, SHOWN_DEVIATIONS))
    return [np.repeat(view[..., None], 3, axis=-1) for view in views]


def _shown(values: NDArray, low: float, high: float) -> NDArray[np.uint8]:
    share = (values.astype(np.float32) - np.float32(low)) / np.float32(high - low)
    return (np.clip(share, 0, 1) * 255).astype(np.uint8)


def _box(line: Any, shape: tuple[int, ...]) -> TextBox:
    corners, text, score = np.asarray(line[0], dtype=np.float64), str(line[1]), float(line[2])
    limit = np.array([shape[1], shape[0]])
    low = np.clip(np.floor(corners.min(axis=0)), 0, limit - 1).astype(int)
    high = np.clip(np.ceil(corners.max(axis=0)) + 1, low + 1, limit).astype(int)
    characters = sum(letter.isalnum() for letter in text)
    return TextBox(
        x=int(low[0]),
        y=int(low[1]),
        width=int(high[0] - low[0]),
        height=int(high[1] - low[1]),
        is_text=score >= LEAST_SCORE and characters >= LEAST_CHARACTERS,
        is_sure=score >= SURE_SCORE and characters >= SURE_CHARACTERS,
    )
