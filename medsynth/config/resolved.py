"""The pipeline with everything filled in, and the schema that an editor can check it against."""

from __future__ import annotations

from typing import Any

import yaml

from medsynth.config.load import PRESET_SECTIONS
from medsynth.config.pipeline import Pipeline
from medsynth.config.shipped import presets


def resolved_yaml(pipeline: Pipeline) -> str:
    """The pipeline with every setting spelled out, as YAML that can be run again."""
    return yaml.safe_dump(pipeline.model_dump(mode="json", by_alias=True), sort_keys=False, allow_unicode=True)


def schema() -> dict[str, Any]:
    """JSON Schema of a pipeline file, with the `preset` key where a section has presets."""
    found = Pipeline.model_json_schema(by_alias=True)
    for section in PRESET_SECTIONS:
        names = list(presets(section))
        reference = found["properties"][section].get("$ref", "").rpartition("/")[2]
        if names and reference:
            found["$defs"][reference]["properties"]["preset"] = {
                "enum": names,
                "description": "Start from a shipped preset.",
            }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}
