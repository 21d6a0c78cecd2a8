"""Masks that nobody has: the shapes of several patients mixed, or one mask turned and bent; with as many voxels as before."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from medsynth.config.generate import FEWEST_MIXED

Floats = NDArray[np.float64]
Labels = NDArray[np.uint8]
Depths = NDArray[np.float32]

WAVES = 24
"""Waves that a field of displacements is summed from."""
LENGTH = 1.5
"""Over which displacements agree, in radii of a ball of the mask's volume."""
SLACK = 1.5
"""How much farther than the mask's own voxels one beside it may have come, at the most."""
REACH = 0.5
"""Radii beyond a body's surface from where on all places are as far from it as any other."""
WHOLE = 0.9
"""Share of a body's voxels that its largest piece holds, at the least."""
NEIGHBOURS = np.ones((3, 3, 3))
"""Of a voxel: those that touch it, if only at a corner."""
SLAB_VOXELS = 2**18


@dataclass(frozen=True)
class Variation:
    """What is drawn at random for one mask. Lengths are in radii of a ball of the mask's volume."""

    draws: Floats
    """[K] standard normal numbers, one for each mask that may be mixed, the mask itself first; none: no mixing."""
    rotation: Floats
    """[3, 3]."""
    bend: float
    """Standard deviation of displacements."""
    waves: Floats
    """[K, 3] wave vectors."""
    phases: Floats
    """[K]."""
    amplitudes: Floats
    """[K, 3]."""

    def shares(self, count: int) -> Floats:
        """Of `count` shapes in the mixture: in random directions, their sum and the sum of their squares 1.

        Mixed so, independent draws from any distribution have its mean (the sum) and its covariance (the squares). Some
        shares are negative; a share of one alone is the only such pair of shares, so that two shapes do not mix.
        """
        across = self.draws[:count] - self.draws[:count].mean()
        return np.asarray(1 / count + across / np.linalg.norm(across) * math.sqrt(1 - 1 / count))

    def sources(self, places: Floats) -> Floats:
        """Where what comes to `places` [N, 3] was: about the mask's centre, before the mask's drift is taken off."""
        return places @ self.rotation.T + self.displacements(places)

    def displacements(self, places: Floats) -> Floats:
        """[N, 3] at `places` [N, 3]: a Gaussian field by random Fourier features (Rahimi 2007, algorithm 1)."""
        angles = places.astype(np.float32) @ self.waves.T.astype(np.float32) + self.phases.astype(np.float32)
        return np.asarray(self.bend * math.sqrt(2 / len(self.waves)) * np.cos(angles) @ self.amplitudes)


def draw_variation(generator: np.random.Generator, mix: int, rotate_degrees: float, bend: float) -> Variation:
    """`mix`: masks to mix, at most.  `rotate_degrees`: standard deviation of the angle about each axis.  `bend`: that of
    displacements."""
    return Variation(
        rotation=Rotation.from_rotvec(np.deg2rad(rotate_degrees) * generator.standard_normal(3)).as_matrix(),
        bend=bend,
        waves=generator.standard_normal((WAVES, 3)) / LENGTH,
        phases=generator.uniform(0, 2 * np.pi, WAVES),
        amplitudes=generator.standard_normal((WAVES, 3)),
        draws=generator.standard_normal(mix),
    )


class Body:
    """What a mask [X, Y, Z] labels, as distances from surfaces in radii of a ball as large, about its centre."""

    def __init__(self, mask: Labels, spacing_mm: tuple[float, ...]) -> None:
        self.spacing = np.asarray(spacing_mm, np.float64)
        inside = np.argwhere(mask > 0)
        self.voxels = len(inside)
        self.centre = inside.mean(0)
        self.radius_mm = float((3 * self.voxels * self.spacing.prod() / (4 * math.pi)) ** (1 / 3))
        ends = np.stack([inside.min(0), inside.max(0)])
        self.corners = (ends - self.centre) * self.spacing / self.radius_mm
        self._margin = np.ceil(REACH * self.radius_mm / self.spacing).astype(int) + 1
        self._origin, end = ends[0] - self._margin, ends[1] + 1 + self._margin
        cut = tuple(slice(max(0, a), b) for a, b in zip(self._origin, end, strict=True))
        # What reaches beyond the box goes on as at its edge.
        beyond = [(max(0, -a), max(0, b - size)) for a, b, size in zip(self._origin, end, mask.shape, strict=True)]
        self._cut = np.pad(mask[cut], beyond, mode="edge")
        self._fields: dict[int | None, Depths] = {}

    @classmethod
    def of(cls, mask: Labels, spacing_mm: tuple[float, ...]) -> Body | None:
        """None where the mask labels nothing."""
        return cls(mask, spacing_mm) if mask.any() else None

    @cached_property
    def in_one_piece(self) -> bool:
        """Whether mixing it with others makes sense: not of lesions here and there."""
        pieces, _ = ndimage.label(self._cut > 0, NEIGHBOURS)
        return bool(np.bincount(pieces[pieces > 0]).max() >= WHOLE * (pieces > 0).sum())

    def depth(self, places: Floats, label: int | None) -> Depths:
        """How deep `places` [N, 3] lie in a label's body, or in all of it (None); at least -`REACH`."""
        voxels = places * (self.radius_mm / self.spacing) + (self.centre - self._origin)
        found: Depths = ndimage.map_coordinates(
            self._field(label), voxels.T.astype(np.float32), order=1, mode="nearest", output=np.float32
        )
        return found

    def depth_on(self, axes: Sequence[Floats]) -> Depths:
        """How deep the places with these coordinates lie in the body, [X, Y, Z]."""
        found = self._field(None)
        for axis, places in enumerate(axes):
            last = found.shape[axis] - 1
            voxels = places * (self.radius_mm / self.spacing[axis]) + (self.centre - self._origin)[axis]
            voxels = voxels.astype(np.float32).clip(0, last)
            below = np.minimum(voxels.astype(int), last - 1)
            share = (voxels - below).reshape([-1 if each == axis else 1 for each in range(3)])
            found = found.take(below, axis) * (1 - share) + found.take(below + 1, axis) * share
        return found

    def _field(self, label: int | None) -> Depths:
        """Depths of the voxels of the cut: in one label's body, or in all."""
        if label not in self._fields:
            self._fields[label] = self._depth(self._cut > 0 if label is None else self._cut == label)
        return self._fields[label]

    def _depth(self, body: NDArray[np.bool_]) -> Depths:
        """Distance to the body's surface, negative outside."""
        found = np.full(body.shape, -REACH, np.float32)
        for bounds in ndimage.find_objects(body.astype(np.uint8)):
            near = _grown(bounds, self._margin)
            outward = ndimage.distance_transform_edt(~body[near], sampling=self.spacing)
            found[near] = np.maximum(-outward / self.radius_mm, -REACH)
            within = _grown(bounds, np.ones(3, int))
            found[within] += ndimage.distance_transform_edt(body[within], sampling=self.spacing) / self.radius_mm
        return found


def _grown(bounds: tuple[slice, ...], margin: NDArray[np.intp]) -> tuple[slice, ...]:
    return tuple(slice(max(0, each.start - wide), each.stop + wide) for each, wide in zip(bounds, margin, strict=True))


class Shape(Protocol):
    """A new body of a mask's size. Lengths are in radii of a ball of its volume, about its centre."""

    @property
    def corners(self) -> Floats:
        """[2, 3], between which it lies."""

    def depth_on(self, axes: Sequence[Floats]) -> Depths:
        """How deep the places with these coordinates lie in it, [X, Y, Z]."""

    def depth(self, places: Floats, label: int) -> Depths:
        """How deep `places` [N, 3] lie in the body of one label."""


@dataclass(frozen=True)
class Mixture:
    """Of each body a share."""

    bodies: Sequence[Body]
    shares: Floats

    @property
    def corners(self) -> Floats:
        each = np.stack([body.corners for body in self.bodies])
        return np.stack([each[:, 0].min(0) - REACH, each[:, 1].max(0) + REACH])

    def depth_on(self, axes: Sequence[Floats]) -> Depths:
        return self._sum(body.depth_on(axes) for body in self.bodies)

    def depth(self, places: Floats, label: int) -> Depths:
        return self._sum(body.depth(places, label) for body in self.bodies)

    def _sum(self, parts: Iterable[Depths]) -> Depths:
        return np.asarray(sum(np.float32(share) * part for share, part in zip(self.shares, parts, strict=True)))


class Deformation:
    """A body turned and bent."""

    def __init__(self, mask: Labels, own: Body, variation: Variation) -> None:
        self.own, self.variation = own, variation
        inside = (np.argwhere(mask > 0) - own.centre) * own.spacing / own.radius_mm
        sources = variation.sources(inside)
        self.drift = sources.mean(0)
        moved = np.linalg.norm(sources - self.drift - inside, axis=1).max()
        farthest = SLACK * moved + 2 * np.linalg.norm(own.spacing) / own.radius_mm
        self.corners: Floats = own.corners + np.array([[-farthest], [farthest]])

    def depth_on(self, axes: Sequence[Floats]) -> Depths:
        slabs = np.array_split(axes[0], max(1, math.prod(map(len, axes)) // SLAB_VOXELS))
        return np.concatenate([self._slab([slab, *axes[1:]]) for slab in slabs])

    def _slab(self, axes: Sequence[Floats]) -> Depths:
        places = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
        return self.depth(places.reshape(-1, 3), None).reshape(places.shape[:3])

    def depth(self, places: Floats, label: int | None) -> Depths:
        return self.own.depth(self.variation.sources(places) - self.drift, label)


def varied(
    mask: Labels, spacing_mm: tuple[float, ...], variation: Variation, others: Sequence[Body | None] = ()
) -> Labels:
    """The mask [X, Y, Z], with labels 1 and up, in another shape: mixed with the others, or turned and bent.

    A shape is the distance of every place from the surface (Rohlfing 2007), each body brought to the mask's size and
    centre. Bodies in several pieces are not mixed; where fewer than three are left, the mask is turned about its centre
    and bent. As many voxels carry each label as before, so that what was measured on a label's volume stays true: together
    those deepest inside, of them for one label after another, the rarest first, those that are deeper inside it than in
    any other. The centre stays about where it was. Parts far smaller than the whole may break.
    """
    if not mask.any():
        return mask.copy()
    own = Body(mask, spacing_mm)
    bodies = [own, *(body for body in others if body is not None and body.in_one_piece)][: len(variation.draws)]
    if len(bodies) >= FEWEST_MIXED and own.in_one_piece:
        return _filled(mask, own, Mixture(bodies, variation.shares(len(bodies))))
    return _filled(mask, own, Deformation(mask, own, variation))


def _filled(mask: Labels, own: Body, shape: Shape) -> Labels:
    """The new mask: the voxels that lie deepest."""
    ends = shape.corners * own.radius_mm / own.spacing + own.centre
    low = np.maximum(0, np.floor(ends[0])).astype(int)
    high = np.minimum(mask.shape, np.ceil(ends[1]) + 1).astype(int)
    axes = [
        (np.arange(first, end) - own.centre[axis]) * own.spacing[axis] / own.radius_mm
        for axis, (first, end) in enumerate(zip(low, high, strict=True))
    ]
    whole = shape.depth_on(axes)
    deepest = _deepest(whole, own.voxels, own.in_one_piece)
    labels, counts = np.unique(mask[mask > 0], return_counts=True)
    shares = np.zeros(len(deepest), int)
    if len(labels) > 1:
        places = np.stack([axis[at] for axis, at in zip(axes, np.unravel_index(deepest, whole.shape), strict=True)], 1)
        shares = _shared_out(np.stack([shape.depth(places, label) for label in labels]), counts)
    found = np.zeros(whole.shape, mask.dtype)
    found.flat[deepest] = labels[shares]
    result = np.zeros_like(mask)
    result[tuple(map(slice, low, high))] = found
    return result


def _deepest(depths: Depths, count: int, in_one_piece: bool) -> NDArray[np.intp]:
    """Flat indices, in order, of the `count` deepest voxels, of one piece of the deepest if so asked."""
    order = np.argsort(-depths.ravel(), kind="stable")
    taken = count
    while in_one_piece:
        body = np.zeros(depths.size, bool)
        body[order[:taken]] = True
        pieces = ndimage.label(body.reshape(depths.shape), NEIGHBOURS)[0].ravel()
        sizes = np.bincount(pieces[pieces > 0])
        missing = count - int(sizes.max())
        if missing <= 0:
            order = order[pieces[order] == sizes.argmax()]
            break
        taken += missing
    return np.sort(order[:count])


def _shared_out(depths: Depths, counts: NDArray[np.intp]) -> NDArray[np.intp]:
    """Which of L bodies each of N voxels goes to, by its depths in them [L, N]: to body l as many as counts[l]."""
    *rare, last = np.argsort(counts, kind="stable")
    found = np.full(depths.shape[1], last)
    left = np.arange(depths.shape[1])
    for place, body in enumerate(rare):
        others = [*rare[place + 1 :], last]
        margin = depths[body, left] - depths[others][:, left].max(0)
        order = np.argsort(-margin, kind="stable")
        found[left[order[: counts[body]]]] = body
        left = np.sort(left[order[counts[body] :]])
    return found
