"""What every group of settings shares: frozen, no unknown keys, no silent conversions."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo

_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


class Settings(BaseModel):
    """A frozen group of settings. Validated strictly from JSON types: a string is never taken for a number."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


def kind_or(default: str) -> Callable[[Any], str]:
    """For a `Discriminator`: the `kind` of settings, or of what is to become settings; `default` where it is not said."""

    def kind(value: Any) -> str:
        if isinstance(value, dict):
            return str(value.get("kind", default))
        if isinstance(value, Settings):
            return str(value.model_dump(include={"kind"})["kind"])
        return default  # and fails as that kind

    return kind


def expand_path(text: str, base: Path) -> Path:
    """`text` with `${NAME}` and `${NAME:-default}` filled in from the environment, absolute from `base`.

    Raises ValueError where a variable is unset and has no default.
    """

    def value(match: re.Match[str]) -> str:
        name, default = match.groups()
        found = os.environ.get(name) or default
        if found is None:
            raise ValueError(f"the environment variable {name} is not set; set it, or give the path itself")
        return found

    return (base / Path(_VARIABLE.sub(value, text)).expanduser()).resolve()


def _resolve(text: str, info: ValidationInfo) -> str:
    base = (info.context or {}).get("base", Path.cwd())
    return str(expand_path(text, base))


ConfigPath = Annotated[
    str,
    Field(min_length=1, json_schema_extra={"format": "path"}),
    AfterValidator(_resolve),
]
"""A path; relative ones start at the folder of the file they are written in (or, from `--set`, at the current one)."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,63}$")]
"""A name that is safe in file names, column headers and MLflow."""

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Triple = tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]


def plain(settings: Settings) -> dict[str, Any]:
    """The settings as JSON types."""
    return settings.model_dump(mode="json")
