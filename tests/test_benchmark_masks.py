"""The benchmark of varied masks tells shapes apart, and not sizes or places."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.masks import _distance, _shape

SPACING = (1.0, 1.0, 2.0)


def ellipsoid(axes: tuple[float, float, float], centre: tuple[float, float, float]) -> NDArray[np.uint8]:
    """With half axes in mm and its lower half labelled 2."""
    places = (np.indices((48, 48, 24)).transpose(1, 2, 3, 0) - centre) * SPACING
    inside = ((places / axes) ** 2).sum(-1) <= 1
    return np.asarray(np.where(inside, np.where(places[..., 2] > 0, 1, 2), 0), np.uint8)


def test_a_shape_is_the_same_in_every_size_and_place() -> None:
    one, other = ellipsoid((20, 12, 8), (24, 24, 12)), ellipsoid((15, 9, 6), (20, 27, 12))
    assert _shape(one, SPACING) == pytest.approx(_shape(other, SPACING), abs=0.05)
    length, width = _shape(one, SPACING)[:2]
    assert length == pytest.approx(12 / 20, rel=0.03) and width == pytest.approx(8 / 12, rel=0.06)
    assert _shape(one, SPACING)[4:7] == pytest.approx([1, 0, 0], abs=0.01)  # along the first axis


def test_a_ball_is_as_thick_as_its_radius_and_has_the_faces_of_its_voxels() -> None:
    _, _, faces, thickest = _shape(ellipsoid((20, 20, 20), (24, 24, 12)), SPACING)[:4]
    assert thickest == pytest.approx(1, abs=0.1)
    assert faces == pytest.approx(6 * np.pi, rel=0.05)  # three pairs of discs


def test_other_shapes_are_far_and_the_same_ones_near() -> None:
    generator = np.random.default_rng(7)

    def drawn(axes: tuple[float, float, float], count: int) -> list[NDArray[np.uint8]]:
        stretched = axes * np.exp(0.08 * generator.standard_normal((count, 3)))
        return [ellipsoid(tuple(each), (24, 24, 12)) for each in stretched]

    known = np.stack([_shape(mask, SPACING) for mask in drawn((18, 12, 9), 40)])
    near, far = (_distance(known, drawn(axes, 40), SPACING) for axes in ((18, 12, 9), (12, 18, 9)))
    assert near < 3 < 20 < far
