"""What is asked of a generator: one row per synthetic scan, drawn before anything is generated."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medsynth.config.generate import Generate, VaryMasks
from medsynth.config.grid import GRID, Grid, named_grid
from medsynth.errors import ConfigError
from medsynth.imaging.vary import Variation, draw_variation
from medsynth.seeding import derive, numpy_generator

Value = str | float | None
Kind = frozenset[tuple[str, Value]]
"""Categories and grid of a case."""


@dataclass(frozen=True)
class MaskSource:
    """A mask to condition on, with the conditions of the case it was drawn in; its grid among them where there are several."""

    path: Path
    conditions: Mapping[str, Value]
    patient: str | None = None
    """Whose it is, where that is known."""


@dataclass(frozen=True)
class Request:
    """One synthetic scan to make. `seed` and the rest of the row decide every voxel."""

    case: str
    conditions: Mapping[str, Value]
    mask: Path | None
    seed: int
    variation: Variation | None = None
    """How the mask is changed before it is asked for."""
    others: tuple[Path, ...] = ()
    """The masks that it is mixed with."""


def draw_requests(
    settings: Generate,
    declaration: Mapping[str, Mapping[str, Any]],
    profile: Mapping[str, Any],
    masks: Sequence[MaskSource],
    *,
    count: int,
    seed: int,
) -> list[Request]:
    """Rows for `count` scans (or for `settings.counts`), the same for the same arguments. Raises ConfigError."""
    by = settings.by or profile["by"]
    values = _values(settings, declaration, profile, by, count, seed)
    grid = _grid(settings, declaration)
    alike = by_kind(masks)
    requests = []
    for number, value in enumerate(values):
        generator = numpy_generator(seed, "request", number)
        fixed: dict[str, Value] = dict(settings.conditions)
        if by is not None and value is not None:
            fixed.setdefault(by, value)
        if grid is not None:
            fixed[GRID] = grid
        source = _mask_for(masks, fixed, generator)
        drawn = (
            dict(source.conditions)
            if source
            else _draw(profile, declaration, by, fixed.get(by) if by else None, generator)
        )
        conditions = {
            name: fixed.get(name, drawn.get(name)) for name in declaration if declaration[name]["kind"] != "mask"
        }
        variation, others = draw_shape(settings.vary_masks, source, alike, numpy_generator(seed, "variation", number))
        requests.append(
            Request(
                case=f"S{number:05d}",
                conditions={**{k: v for k, v in drawn.items() if k not in declaration}, **conditions},
                mask=source.path if source else None,
                seed=derive(seed, "synthetic", number),
                variation=variation,
                others=others,
            )
        )
    return requests


def _grid(settings: Generate, declaration: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The grid asked for, as the model calls it; None where it is to be drawn, or where there is only one."""
    entry = declaration.get(GRID)
    if settings.grid is None or entry is None or entry["kind"] != "geometry":
        return None
    try:
        return str(named_grid([Grid.parse(text) for text in entry["grids"]], settings.grid))
    except ValueError as error:
        raise ConfigError([f"generate.grid: {error}"]) from None


def _values(
    settings: Generate,
    declaration: Mapping[str, Mapping[str, Any]],
    profile: Mapping[str, Any],
    by: str | None,
    count: int,
    seed: int,
) -> list[str | None]:
    """The balanced category's value for each scan, interleaved so that any first part is balanced too."""
    if by is None:
        return [None] * count
    if by != profile["by"] and declaration.get(by, {}).get("kind") != "category":
        raise ConfigError([f"generate.by: expected a category that the model knows, found {by!r}"])
    known = list(declaration[by]["values"]) if by in declaration else list(profile["values"])
    unknown = sorted(set(settings.counts) - set(known))
    if unknown:
        raise ConfigError([f"generate.counts: expected values of {by} ({', '.join(known)}), found {unknown[0]!r}"])
    if settings.counts:
        left = dict(settings.counts)
        order: list[str | None] = []
        while any(left.values()):
            for value in known:
                if left.get(value, 0):
                    left[value] -= 1
                    order.append(value)
        return order
    if by in settings.conditions:
        return [str(settings.conditions[by])] * count
    shares = {value: share for value in known if (share := sum(_shares(profile, by, value).values())) > 0}
    seen = list(shares)
    if not seen:
        raise ConfigError(
            [f"generate.by: expected a category whose values the training split tells, found {by!r}; choose another"]
        )
    if settings.balance == "even":
        return [seen[number % len(seen)] for number in range(count)]
    weights = np.array(list(shares.values()))
    drawn = numpy_generator(seed, "request values").choice(len(seen), size=count, p=weights / weights.sum())
    return [seen[int(place)] for place in drawn]


def _shares(profile: Mapping[str, Any], by: str, value: str) -> dict[str, float]:
    """By the profile's groups, the share of the training split that is in it and has this value of a category."""
    if by == profile["by"]:
        return {name: entry["share"] * (name == value) for name, entry in profile["values"].items()}
    return {name: entry["share"] * entry.get(by, {}).get(value, 0.0) for name, entry in profile["values"].items()}


def _mask_for(
    masks: Sequence[MaskSource], fixed: Mapping[str, Value], generator: np.random.Generator
) -> MaskSource | None:
    """A mask whose case has the conditions that are fixed."""
    if not masks:
        return None
    fitting = [
        source for source in masks if all(source.conditions.get(name, value) == value for name, value in fixed.items())
    ]
    if not fitting:
        wanted = ", ".join(f"{name}={value}" for name, value in fixed.items())
        raise ConfigError([f"generate: expected a mask of a case with {wanted}, found none; relax the conditions"])
    return fitting[int(generator.integers(len(fitting)))]


def by_kind(masks: Sequence[MaskSource]) -> Mapping[Kind, Sequence[MaskSource]]:
    """Those that may be mixed with one another: of the same categories and grid."""
    alike: dict[Kind, list[MaskSource]] = defaultdict(list)
    for mask in masks:
        alike[_kind(mask)].append(mask)
    return alike


def draw_shape(
    settings: VaryMasks,
    source: MaskSource | None,
    alike: Mapping[Kind, Sequence[MaskSource]],
    generator: np.random.Generator,
) -> tuple[Variation | None, tuple[Path, ...]]:
    """How a mask is changed, and masks of other patients to mix it with."""
    if source is None or not settings.any:
        return None, ()
    variation = draw_variation(generator, settings.mix, settings.rotate_degrees, settings.bend)
    others: dict[str, Path] = {}
    same = alike[_kind(source)]
    for place in generator.permutation(len(same)):
        if len(others) >= settings.mix - 1:
            break
        if _owner(same[place]) != _owner(source):
            others.setdefault(_owner(same[place]), same[place].path)
    return variation, tuple(others.values())


def _kind(source: MaskSource) -> Kind:
    return frozenset((name, value) for name, value in source.conditions.items() if not isinstance(value, (int, float)))


def _owner(source: MaskSource) -> str:
    return source.patient or str(source.path)


def _draw(
    profile: Mapping[str, Any],
    declaration: Mapping[str, Mapping[str, Any]],
    by: str | None,
    value: Value,
    generator: np.random.Generator,
) -> dict[str, Value]:
    """Conditions that go with one value of the balanced category, from the training split's shares and quantiles."""
    groups = profile["values"]
    entry = None
    if by is None or by == profile["by"]:
        entry = groups.get(str(value))
    elif (weights := np.array(list(_shares(profile, by, str(value)).values()))).any():
        entry = groups[list(groups)[int(generator.choice(len(groups), p=weights / weights.sum()))]]
    entry = entry or groups[max(groups, key=lambda name: groups[name]["share"])]
    drawn: dict[str, Value] = {}
    for name, stated in entry.items():
        if name == "share" or name not in declaration:
            continue
        if isinstance(stated, Mapping):
            names = list(stated)
            drawn[name] = names[int(generator.choice(len(names), p=np.array(list(stated.values()))))]
        else:
            level = generator.random() * (len(stated) - 1)
            drawn[name] = float(f"{np.interp(level, range(len(stated)), stated):.3g}")
    return drawn
