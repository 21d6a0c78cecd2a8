"""MedMNIST 3D files come in with their own split; anything else is refused with the remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medsynth.cohort.medmnist import read_medmnist
from medsynth.config.cohort import CategoryCondition, MedmnistCohort, NumberCondition
from medsynth.errors import CohortError, UnreadableError

BINARY = {"label": CategoryCondition(kind="category", values=("0", "1"))}


def arrays(size: int = 28) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {
        f"{part}_{kind}": generator.integers(0, 256, (count, size, size, size), np.uint8)
        if kind == "images"
        else (np.arange(count, dtype=np.uint8) % 2)[:, None]
        for part, count in (("train", 5), ("val", 3), ("test", 2))
        for kind in ("images", "labels")
    }


def settings(path: Path, content: dict[str, np.ndarray] | None = None) -> MedmnistCohort:
    if content is not None:
        np.savez_compressed(path, **content)
    return MedmnistCohort(kind="medmnist", npz=str(path))


@pytest.mark.parametrize("size", [28, 64])
def test_volumes_labels_and_split(tmp_path: Path, size: int) -> None:
    content = arrays(size)
    cases = list(read_medmnist(settings(tmp_path / "n.npz", content), BINARY))
    assert [case.row for case in cases] == list(range(1, 11))
    assert [case.split for case in cases] == ["train"] * 5 + ["validation"] * 3 + ["test"] * 2
    assert len({case.patient for case in cases}) == 10
    assert [case.label for case in cases[:5]] == ["0", "1", "0", "1", "0"]
    np.testing.assert_array_equal(cases[5].voxels, content["val_images"][0])
    assert cases[9].voxels.dtype == np.uint8


def refused(tmp_path: Path, match: str, conditions: Any = None, **changes: Any) -> None:
    content = {name: array for name, array in (arrays() | changes).items() if array is not None}
    with pytest.raises(CohortError, match=match):
        read_medmnist(settings(tmp_path / "n.npz", content), conditions)  # before anything is asked for


def test_what_is_not_medmnist_3d_is_refused(tmp_path: Path) -> None:
    flat = {f"{part}_images": arrays()[f"{part}_images"][..., 0] for part in ("train", "val", "test")}
    refused(tmp_path, r"\[N, X, Y, Z\], found 5 x 28 x 28; take one of the 3D files", **flat)
    colour = {f"{part}_images": arrays()[f"{part}_images"][..., :3] for part in ("train", "val", "test")}
    refused(tmp_path, "5 x 28 x 28 x 3; take one of the 3D files", **colour)
    refused(tmp_path, "bytes", train_images=arrays()["train_images"].astype(np.float32))
    refused(tmp_path, "differ in size", test_images=np.zeros((2, 28, 28, 27), np.uint8))
    refused(tmp_path, "expected the array val_labels, found test_images", val_labels=None)
    refused(tmp_path, "one label per volume", train_labels=np.zeros((5, 14), np.uint8))
    refused(tmp_path, "one label per volume", train_labels=np.zeros((4, 1), np.uint8))
    single = {f"{part}_labels": np.zeros_like(arrays()[f"{part}_labels"]) for part in ("train", "val", "test")}
    refused(tmp_path, "all volumes hold the same label", **single)


def test_labels_must_be_the_declared_ones(tmp_path: Path) -> None:
    for values in (("0", "1", "2"), ("benign", "malignant"), ("0",)):
        refused(
            tmp_path, "list exactly the file's labels", {"label": CategoryCondition(kind="category", values=values)}
        )
    refused(tmp_path, "declare it as kind: category", {"label": NumberCondition(kind="number", range=(0.0, 1.0))})


def test_pickles_damage_and_absence_are_unreadable(tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match="found nothing there"):
        read_medmnist(settings(tmp_path / "none.npz"))
    (tmp_path / "text.npz").write_text("not an archive")
    with pytest.raises(UnreadableError, match="damaged or different"):
        read_medmnist(settings(tmp_path / "text.npz"))
    whole = tmp_path / "whole.npz"
    np.savez(whole, **arrays())
    (tmp_path / "cut.npz").write_bytes(whole.read_bytes()[:-1000])
    with pytest.raises(UnreadableError, match="damaged or different"):
        read_medmnist(settings(tmp_path / "cut.npz"))
    labels = np.array([{"a": 1}] * 5, dtype=object)
    np.savez(tmp_path / "pickle.npz", **(arrays() | {"train_labels": labels}))
    with pytest.raises(CohortError, match="train_labels: expected one whole number"):
        read_medmnist(settings(tmp_path / "pickle.npz"))
