"""What was measured, as frozen records that go to JSON and come back the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from medsynth.errors import DataError

FORMAT_VERSION = 2


@dataclass(frozen=True)
class Estimate:
    """A measured value and its interval at the evidence's confidence."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Metric:
    """One figure of the synthetic scans beside the same figure of held-out real scans, at the same sample sizes."""

    name: str
    better: Literal["lower", "higher", "like real"]
    synthetic: Estimate
    real: Estimate


@dataclass(frozen=True)
class SpaceFidelity:
    """Fidelity in one feature space. `components`: dimensions kept by the PCA under the Frechet distance."""

    space: str
    features: int
    components: int
    metrics: tuple[Metric, ...]


@dataclass(frozen=True)
class Rung:
    """Held-out real scans, damaged on purpose, measured like synthetic ones: what each metric does when it should."""

    damage: str
    space: str
    metric: str
    undamaged: float
    damaged: float
    as_expected: bool


@dataclass(frozen=True)
class Fidelity:
    """How alike the distributions are. `reference` says in words which scans are compared with which."""

    reference: str
    training: int
    compared: int
    spaces: tuple[SpaceFidelity, ...]
    diversity: Metric
    ladder: tuple[Rung, ...]


@dataclass(frozen=True)
class NeighbourAudit:
    """Nearest training neighbours in one space.

    threshold: distance below which the share `nominal` of fresh real scans is expected.  closer: share of synthetic
    scans below it.  relative_threshold, stands_out: the same for the ratio nearest / second nearest.
    membership: AUC of telling training scans from held-out real ones by their distance to the nearest synthetic scan;
    0.5 is a blind guess.  planted_found: share found of held-out scans replaced by disturbed training scans.
    """

    space: str
    nominal: float
    threshold: float
    closer: Estimate
    relative_threshold: float
    stands_out: Estimate
    membership: Estimate
    planted_found: float
    distances: tuple[float, ...]
    ratios: tuple[float, ...]
    held_out_distances: tuple[float, ...]
    held_out_ratios: tuple[float, ...]


@dataclass(frozen=True)
class ClosePair:
    """A synthetic scan and its nearest training scan; indices count within the synthetic and the training set."""

    synthetic: int
    synthetic_case: str
    training: int
    training_case: str
    space: str
    distance: float
    threshold: float
    ratio: float


@dataclass(frozen=True)
class Privacy:
    """Signs of copying. `closest` begins with the pair that is nearest for its space.

    masks: the same of the outlines that scans were asked for with, not of the scans; None where there are none.
    """

    training: int
    held_out: int
    synthetic: int
    spaces: tuple[NeighbourAudit, ...]
    closest: tuple[ClosePair, ...]
    masks: NeighbourAudit | None = None


@dataclass(frozen=True)
class Scores:
    """A classifier's scores; AUC is macro one-versus-rest where there are more than two classes."""

    auc: Estimate
    balanced_accuracy: Estimate
    scans: int


@dataclass(frozen=True)
class MaskOverlap:
    """Dice of a segmenter trained on real training scans: against held-out masks, and against the masks asked for."""

    on_real: Estimate
    on_synthetic: Estimate
    steps: int


@dataclass(frozen=True)
class Condition:
    """Whether synthetic scans are what they were asked to be. `absent`: part -> why it was not measured."""

    classes: tuple[str, ...]
    on_real: Scores | None
    on_synthetic: Scores | None
    masks: MaskOverlap | None
    absent: Mapping[str, str]


@dataclass(frozen=True)
class Arm:
    """One way of training the classifier, scored on real test scans; `ratio` is 0 where nothing is added."""

    name: str
    kind: Literal["real", "classical", "duplicated", "synthetic_added", "synthetic_only"]
    ratio: float
    real: int
    added: int
    auc: Estimate
    balanced_accuracy: Estimate
    auc_per_seed: tuple[float, ...]


@dataclass(frozen=True)
class Difference:
    """`arm` minus `against`, patients paired.

    corrected: interval at the level that Holm's procedure gives this comparison in its family.  p_value, p_holm:
    two-sided, before and after Holm's correction within `family`.
    """

    arm: str
    against: str
    measure: Literal["auc", "balanced_accuracy"]
    family: Literal["primary", "secondary"]
    difference: Estimate
    corrected: Estimate
    p_value: float
    p_holm: float


@dataclass(frozen=True)
class Baseline:
    """Logistic regression on simple features: what a network must beat to be worth its trouble."""

    name: str
    trained_on: str
    scores: Scores


@dataclass(frozen=True)
class Verdict:
    """The plain answer and, in one or two sentences, why."""

    outcome: Literal["benefit", "no benefit", "inconclusive"]
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Benefit:
    """What adding synthetic scans does. `primary` names the arm that was chosen before looking."""

    classes: tuple[str, ...]
    steps: int
    seeds: int
    margin: float
    test_scans: int
    test_patients: int
    primary: str
    arms: tuple[Arm, ...]
    differences: tuple[Difference, ...]
    baselines: tuple[Baseline, ...]
    verdict: Verdict
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evidence:
    """Everything measured about one synthetic set. `absent`: section -> why it could not be measured."""

    counts: Mapping[str, int]
    confidence: float
    bootstrap: int
    seed: int
    fidelity: Fidelity | None = None
    privacy: Privacy | None = None
    condition: Condition | None = None
    benefit: Benefit | None = None
    absent: Mapping[str, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def to_json(self) -> dict[str, Any]:
        """JSON types only; `from_json` gives back an equal record."""
        plain = _plain(self)
        assert isinstance(plain, dict)
        return plain

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Evidence:
        """Raises DataError for another format version, and for missing or unknown keys."""
        if data.get("format_version") != FORMAT_VERSION:
            raise DataError(
                f"evidence: expected format version {FORMAT_VERSION}, found {data.get('format_version')}; evaluate again"
            )
        evidence = _build(cls, data, "evidence")
        assert isinstance(evidence, cls)
        return evidence


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _build(kind: Any, value: Any, where: str) -> Any:
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        if value is None:
            return None
        (kind,) = (option for option in get_args(kind) if option is not type(None))
        return _build(kind, value, where)
    if is_dataclass(kind) and isinstance(kind, type):
        hints = get_type_hints(kind)
        names = {f.name for f in fields(kind)}
        if not isinstance(value, Mapping) or set(value) != names:
            found = sorted(value) if isinstance(value, Mapping) else type(value).__name__
            raise DataError(f"{where}: expected {sorted(names)}, found {found}; evaluate again")
        return kind(**{name: _build(hints[name], value[name], f"{where}.{name}") for name in names})
    if origin is tuple:
        item = get_args(kind)[0]
        return tuple(_build(item, entry, where) for entry in value)
    if origin is Mapping or (isinstance(origin, type) and issubclass(origin, Mapping)):
        item = get_args(kind)[1]
        return {key: _build(item, entry, f"{where}.{key}") for key, entry in value.items()}
    if kind is float:
        return float(value)
    return value
