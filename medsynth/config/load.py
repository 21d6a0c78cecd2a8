"""From a YAML file, its presets and `--set` to one validated pipeline, or to all mistakes at once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from medsynth.config.base import expand_path
from medsynth.config.explain import annotation_at, explain, is_path, nearest
from medsynth.config.pipeline import Pipeline
from medsynth.config.shipped import pipelines, presets, shipped
from medsynth.config.yaml12 import KeyPath, YamlError, parse
from medsynth.errors import ConfigError

PRESET_SECTIONS = ("deidentify", "prepare", "autoencoder", "denoiser", "generate", "evaluate", "register", "tracking")

S = TypeVar("S", bound=BaseModel)

Origins = dict[KeyPath, str]
"""Key path -> where it was said, as `file:line` or `--set`."""


def find_pipeline(name: str) -> Path:
    """The file that the user means: a path, or the name of a pipeline that comes with medsynth."""
    path = Path(name)
    if path.is_file():
        return path.resolve()
    if path.parent in (Path(), Path("pipelines")):
        inside = shipped("pipelines") / f"{path.stem}.yaml"
        if inside.is_file():
            return inside
    raise ConfigError(
        [
            f"{name}: expected a pipeline file, found none; give a path, or one of {', '.join(pipelines())}"
            f"{nearest(path.stem, pipelines())}"
        ]
    )


def load_pipeline(name: str, overrides: Sequence[str] = ()) -> Pipeline:
    """Read, merge and validate. Raises ConfigError with one line per mistake."""
    path = find_pipeline(name)
    data, origins = _read(path)
    mistakes: list[str] = []
    chosen = [text for text in overrides if _names_preset(text)]
    for text in chosen:
        _override(Pipeline, data, origins, text, mistakes)
    data = _with_presets(data, origins, mistakes)
    for text in overrides:
        if text not in chosen:
            _override(Pipeline, data, origins, text, mistakes)
    return _validate(Pipeline, data, origins, str(path), path.parent, mistakes)


def validated(kind: type[S], data: dict[str, Any], overrides: Sequence[str], *, strip: str) -> S:
    """One group of settings from `data` and `--set`, whose keys may begin with the group's name in a pipeline (`strip`)."""
    mistakes: list[str] = []
    origins: Origins = {}
    for text in overrides:
        _override(kind, data, origins, text.removeprefix(f"{strip}."), mistakes)
    return _validate(kind, data, origins, strip, Path.cwd(), mistakes)


def load_section(kind: type[S], section: str, name: str, overrides: Sequence[str] = ()) -> S:
    """One group of settings from a YAML file or from a preset of its section. Raises ConfigError."""
    known = presets(section)
    path = Path(name) if Path(name).is_file() else known.get(name)
    if path is None:
        raise ConfigError(
            [
                f"{name}: expected a settings file, or one of {', '.join(known)}, found neither{nearest(name, list(known))}"
            ]
        )
    data, origins = _read(path)
    mistakes: list[str] = []
    for text in overrides:
        _override(kind, data, origins, text.removeprefix(f"{section}."), mistakes)
    return _validate(kind, data, origins, str(path), path.parent, mistakes)


def _validate(kind: type[S], data: dict[str, Any], origins: Origins, source: str, base: Path, mistakes: list[str]) -> S:
    try:
        settings = kind.model_validate_json(json.dumps(data), context={"base": base}, by_alias=True, by_name=False)
    except ValidationError as error:
        raise ConfigError(mistakes + explain(error, kind, data, lambda key: _origin(origins, key, source))) from None
    if mistakes:
        raise ConfigError(mistakes)
    return settings


def _read(path: Path) -> tuple[dict[str, Any], Origins]:
    try:
        data, lines = parse(path.read_text(encoding="utf-8"))
    except YamlError as error:
        raise ConfigError([f"{path}:{error.line}: {error}"]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: expected a readable UTF-8 text file, found {type(error).__name__}"]) from None
    if not isinstance(data, dict):
        raise ConfigError([f"{path}:1: expected settings as `key: value`, found {type(data).__name__}"])
    return data, {key: f"{path}:{line}" for key, line in lines.items()}


def _with_presets(data: dict[str, Any], origins: Origins, mistakes: list[str]) -> dict[str, Any]:
    """Each section's `preset: NAME` replaced by the preset's settings, with the section's own laid over them."""
    for section in PRESET_SECTIONS:
        own = data.get(section)
        if not isinstance(own, dict) or "preset" not in own:
            continue
        name, known = own.pop("preset"), presets(section)
        if name not in known:
            where = origins.get((section, "preset"), section)
            mistakes.append(
                f"{where}: {section}.preset: expected one of {', '.join(known) or 'none (this section has no presets)'}, "
                f"found {name!r}{nearest(str(name), list(known))}"
            )
            continue
        base, base_origins = _read(known[name])
        data[section] = _merge(base, own)
        for key, where in base_origins.items():
            origins.setdefault((section, *key), where)
    return data


def _names_preset(text: str) -> bool:
    """Whether `--set` chooses a section's preset, over which the section's other settings are laid."""
    section, _, key = text.partition("=")[0].strip().partition(".")
    return section in PRESET_SECTIONS and key == "preset"


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid over `base`. A mapping that changes its `kind` replaces the other one whole."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        same = (
            isinstance(old, dict) and isinstance(value, dict) and value.get("kind", old.get("kind")) == old.get("kind")
        )
        merged[key] = _merge(old, value) if same and isinstance(old, dict) else value
    return merged


def _override(root: type[BaseModel], data: dict[str, Any], origins: Origins, text: str, mistakes: list[str]) -> None:
    key, equals, raw = text.partition("=")
    path = tuple(key.strip().split("."))
    if not equals or not all(path):
        mistakes.append(f"--set {text}: expected KEY.PATH=VALUE, for example --set generate.count=32")
        return
    try:
        value = parse(raw)[0]
    except YamlError as error:
        mistakes.append(f"--set {text}: {error}")
        return
    kind = annotation_at(root, path, data)
    if isinstance(value, str) and kind is not None and is_path(kind):
        try:
            value = str(expand_path(value, Path.cwd()))
        except ValueError as error:
            mistakes.append(f"--set {text}: {error}")
            return
    place = data
    for part in path[:-1]:
        inner = place.setdefault(part, {})
        if not isinstance(inner, dict):
            mistakes.append(f"--set {text}: {part} is a single value, not a group of settings")
            return
        place = inner
    place.update(_merge(place, {path[-1]: value}))
    for known in [known for known in origins if known[: len(path)] == path]:
        del origins[known]
    origins[path] = "--set"


def _origin(origins: Origins, key: KeyPath, source: str) -> str:
    """Where the key was said: itself or its kind, else something inside it, else the nearest enclosing key."""
    inside = [known for known in origins if len(known) > len(key) and known[: len(key)] == key]
    for known in ((*key, "kind"), key, *inside):
        if known in origins:
            return origins[known]
    for end in range(len(key) - 1, 0, -1):
        if key[:end] in origins:
            return origins[key[:end]]
    return f"{source}:1" if source.endswith((".yaml", ".yml")) else source
