"""Where the pipelines and presets that come with medsynth are: in a checkout, or inside the installed wheel."""

from __future__ import annotations

import shutil
from pathlib import Path

from medsynth.errors import UsageError

_PACKAGE = Path(__file__).resolve().parents[1]


def shipped(folder: str) -> Path:
    """The folder `pipelines` or `configs`."""
    inside = _PACKAGE / "_shipped" / folder
    return inside if inside.is_dir() else _PACKAGE.parent / folder


def pipelines() -> list[str]:
    """Names of the pipelines that come with medsynth."""
    return sorted(path.stem for path in shipped("pipelines").glob("*.yaml"))


def presets(section: str) -> dict[str, Path]:
    """Name -> file of the presets for one section of a pipeline."""
    return {path.stem: path for path in sorted((shipped("configs") / section).glob("*.yaml"))}


def copy_out(target: Path) -> list[Path]:
    """Copy pipelines and presets into `target`. Raises UsageError rather than overwrite a file."""
    if target.exists() and not target.is_dir():
        raise UsageError(f"expected a folder, or a new name for one, found the file {target}; choose another")
    sources = [(path, target / folder / path.relative_to(shipped(folder)))
               for folder in ("pipelines", "configs") for path in sorted(shipped(folder).rglob("*.yaml"))]  # fmt: skip
    taken = [str(to) for _, to in sources if to.exists()]
    if taken:
        raise UsageError(
            f"expected no earlier copy in {target}, found {taken[0]}; choose another folder or move it away"
        )
    for source, to in sources:
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, to)
    return [to for _, to in sources]
