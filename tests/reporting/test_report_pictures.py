"""Pictures show the right place, the right way round, to scale, and the same every time."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from report_examples import SPACING, WINDOW, scan

from medsynth.errors import DataError
from medsynth.reporting.montage import LABEL_COLOURS, Row, Tile, draw
from medsynth.reporting.pictures import Pair, View, closest_pairs, reconstructions, side_by_side, three_planes
from medsynth.reporting.planes import PLANES, centre, cut


@pytest.mark.parametrize(
    ("plane", "bright", "corner"),
    [
        # The voxel in the patient's right, front and top corner (high x, y and z in RAS).
        ("axial", (4, 5, 3), (0, 0)),  # right of the patient on the left, front on top
        ("coronal", (4, 5, 3), (0, 0)),  # right of the patient on the left, top on top
        ("sagittal", (4, 5, 3), (0, 0)),  # front on the left, top on top
        # And in the left, back and bottom corner.
        ("axial", (0, 0, 0), (-1, -1)),
        ("coronal", (0, 0, 0), (-1, -1)),
        ("sagittal", (0, 0, 0), (-1, -1)),
    ],
)
def test_a_cut_follows_the_radiological_convention(plane, bright, corner):
    voxels = np.zeros((5, 6, 4))
    voxels[bright] = 1
    shown = cut(voxels, (1.0, 1.0, 1.0), plane, bright)
    assert shown.pixels[corner] == 1
    assert shown.pixels.sum() == 1


def test_a_cut_has_the_size_of_the_body_part():
    shown = {plane: cut(np.zeros((10, 20, 30)), (1.0, 2.0, 3.0), plane, (0, 0, 0)) for plane in PLANES}
    assert [(c.width_mm, c.height_mm) for c in shown.values()] == [(10, 40), (10, 90), (40, 90)]


def test_the_cut_goes_through_the_middle_of_the_mask():
    mask = np.zeros((10, 12, 14), np.uint8)
    mask[2:5, 7:8, 9:12] = 3
    assert centre(np.zeros(mask.shape), mask) == (3, 7, 10)
    assert centre(np.zeros(mask.shape), np.zeros_like(mask)) == (5, 6, 7)
    assert centre(np.zeros(mask.shape)) == (5, 6, 7)


def test_lengths_compare_across_a_picture_and_anisotropic_voxels_are_not_squeezed():
    """A cube of 20 mm is drawn as a square of one size in every plane, whatever the voxels are."""
    voxels = np.zeros((40, 20, 10))
    spacing = (1.0, 2.0, 4.0)
    voxels[10:30, 5:15, 3:8] = 1  # 20 mm along each axis
    tiles = tuple(Tile(cut(voxels, spacing, plane, (20, 10, 5)), 0, 1) for plane in PLANES)
    png, width, _ = draw([Row("", tiles)], PLANES, group=3, width=900)
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("L")).astype(int)[60:]
    bright = pixels > 128
    sides = []
    for part in np.array_split(bright, 3, axis=1):
        rows, columns = np.where(part.sum(1) > 20)[0], np.where(part.sum(0) > 20)[0]
        sides += [np.ptp(rows), np.ptp(columns)]
    assert width == 900
    assert max(sides) - min(sides) <= 0.05 * max(sides)


def test_the_window_decides_what_is_black_and_what_is_white():
    flat = np.full((8, 8, 8), 400.0)
    flat[:4] = -1000.0
    picture = three_planes([View(flat)], ["scan"], (1.0, 1.0, 1.0), WINDOW)
    values = np.asarray(Image.open(io.BytesIO(picture.png)).convert("L"))
    assert values.max() == 255
    assert values.min() == 0
    assert "-1000 to 400 HU" in picture.caption


def test_mask_outlines_have_the_colour_of_their_label():
    view = scan(6, 0)
    with_outline = three_planes([view], ["scan"], SPACING, WINDOW, {"nodule": 1})
    without = three_planes([View(view.voxels)], ["scan"], SPACING, WINDOW)
    wanted = np.array([int(LABEL_COLOURS[0][i : i + 2], 16) for i in (1, 3, 5)])

    def coloured(picture):
        pixels = np.asarray(Image.open(io.BytesIO(picture.png)).convert("RGB")).astype(int)
        return (np.abs(pixels - wanted).max(-1) < 40).sum()

    assert coloured(with_outline) > 50
    assert coloured(without) == 0
    assert "nodule blue" in with_outline.caption


def test_a_perfect_reconstruction_has_no_colour_and_a_brighter_one_is_red():
    original = scan(5, 0)
    same = reconstructions([Pair(original, original, "same")], SPACING, WINDOW)
    brighter = reconstructions([Pair(original, View(original.voxels + 300), "brighter")], SPACING, WINDOW)

    def redness(picture):
        pixels = np.asarray(Image.open(io.BytesIO(picture.png)).convert("RGB")).astype(int)
        return int((pixels[..., 0] - pixels[..., 2] > 60).sum())

    assert redness(same) == 0
    assert redness(brighter) > 10_000


def test_the_same_scans_give_the_same_bytes():
    pairs = [Pair(scan(4, 1), scan(5, 2), "malignant")]
    assert side_by_side(pairs, SPACING, WINDOW).png == side_by_side(pairs, SPACING, WINDOW).png


def test_twenty_pairs_are_told_in_words_too_and_stay_small():
    pairs = [Pair(scan(3 + i % 3, i), scan(4, i), f"rank {i}") for i in range(20)]
    picture = closest_pairs(pairs, SPACING, WINDOW)
    assert all(f"{i + 1}. rank {i}" in picture.alt for i in range(20))
    assert len(picture.png) < 2_000_000


def test_what_is_no_volume_is_refused():
    with pytest.raises(DataError, match="expected a volume"):
        cut(np.zeros((4, 4)), (1.0, 1.0, 1.0), "axial", (0, 0, 0))
    with pytest.raises(DataError, match="expected a mask"):
        cut(np.zeros((4, 4, 4)), (1.0, 1.0, 1.0), "axial", (0, 0, 0), np.zeros((4, 4, 5)))
    with pytest.raises(DataError, match="at least one pair"):
        side_by_side([], SPACING, WINDOW)
