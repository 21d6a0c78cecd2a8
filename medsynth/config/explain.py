"""Validation errors as one line each: where, which key, what was expected, what was found, what was probably meant."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from medsynth.config.yaml12 import KeyPath


def nearest(word: str, known: Iterable[str]) -> str:
    """` (did you mean X?)`, or nothing where no known word is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.55)
    return f" (did you mean {close[0]}?)" if close else ""


def explain(error: ValidationError, root: type[BaseModel], data: Any, origin: Callable[[KeyPath], str]) -> list[str]:
    """One line per mistake; the branches of a union are joined into one."""
    grouped: dict[tuple[KeyPath, Any], list[str]] = {}
    lines = []
    for item in error.errors(include_url=False):
        key = _real_path(item["loc"], data)
        if not key and item["type"] == "value_error":
            messages = str(item["ctx"]["error"]).splitlines()
            lines += [f"{origin(tuple(m.partition(': ')[0].split('.')))}: {m}" for m in messages]
            continue
        expected, found = _sides(item, key, data, root)
        wanted = grouped.setdefault((key, found), [])
        if expected not in wanted:
            wanted.append(expected)
    for (key, found), wanted in grouped.items():
        path = ".".join(map(str, key)) or "the pipeline"
        lines.append(f"{origin(key)}: {path}: {' or '.join(wanted)}" + (f", found {found}" if found else ""))
    return lines


def _sides(item: Any, key: KeyPath, data: Any, root: type[BaseModel]) -> tuple[str, str]:
    """(what was expected, what was found) for one of pydantic's errors."""
    kind, found = item["type"], _show(item["input"])
    context = item.get("ctx", {})
    if kind == "extra_forbidden":
        known = known_keys(root, key[:-1], data)
        return f"unknown key; expected one of {', '.join(known)}{nearest(str(key[-1]), known)}", ""
    if kind == "missing":
        return "expected a value, found none", ""
    if kind == "union_tag_not_found":
        return f"expected a `kind`, one of {_tags(root, key, data)}", ""
    if kind == "union_tag_invalid":
        tags = str(context["expected_tags"]).replace("'", "")
        return f"kind: expected one of {tags}{nearest(str(context['tag']), tags.split(', '))}", repr(context["tag"])
    if kind == "model_type" and (known := known_keys(root, key, data)):
        return f"expected settings by name, such as {{{known[0]}: ...}}", found
    if kind == "literal_error":
        values = str(context["expected"]).replace("'", "").replace(" or ", ", ").split(", ")
        return f"expected one of {', '.join(values)}{nearest(str(item['input']), values)}", found
    if kind == "value_error":
        return str(context["error"]), ""
    message = str(item["msg"])
    return message.replace("Input should be", "expected").replace("Field required", "expected a value"), found


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _real_path(loc: Sequence[str | int], data: Any) -> KeyPath:
    """`loc` without the tags and type names that pydantic adds for the branches of unions."""
    path: list[str | int] = []
    place = data
    for position, part in enumerate(loc):
        if isinstance(place, dict):
            if part in place:
                place = place[part]
            elif position < len(loc) - 1 or not isinstance(part, str) or _is_tag(part, place):
                continue
            else:
                place = None
        elif isinstance(place, list) and isinstance(part, int) and part < len(place):
            place = place[part]
        elif place is not None:
            continue
        path.append(part)
    return tuple(path)


def _is_tag(part: str, place: dict[str, Any]) -> bool:
    return place.get("kind") == part or "[" in part or part in ("float", "int", "str")


def _members(annotation: Any) -> list[Any]:
    """The alternatives of an annotation, with Annotated and unions taken apart."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _members(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [member for argument in typing.get_args(annotation) for member in _members(argument)]
    return [annotation]


def _fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    return {info.alias or name: info for name, info in model.model_fields.items()}


def _models(annotation: Any, value: Any) -> list[type[BaseModel]]:
    """The models that an annotation allows, narrowed by the value's `kind` where it has one."""
    models = [m for m in _members(annotation) if isinstance(m, type) and issubclass(m, BaseModel)]
    kind = value.get("kind") if isinstance(value, dict) else None
    tagged = [
        m for m in models if "kind" in m.model_fields and kind in typing.get_args(m.model_fields["kind"].annotation)
    ]
    return tagged or models


def annotation_at(root: type[BaseModel], path: KeyPath, data: Any) -> Any:
    """The declared type at a key path (a FieldInfo where it is a field), or None where there is no such key."""
    current: Any = root
    place = data
    for part in path:
        annotation = current.annotation if isinstance(current, FieldInfo) else current
        step = None
        for model in _models(annotation, place):
            step = step or _fields(model).get(str(part))
        if step is None:
            for member in _members(annotation):
                if typing.get_origin(member) is dict:
                    step = typing.get_args(member)[1]
                elif typing.get_origin(member) in (tuple, list):
                    step = typing.get_args(member)[0]
        if step is None:
            return None
        current = step
        place = place.get(part) if isinstance(place, dict) else None
    return current


def is_path(declared: Any) -> bool:
    """Whether a declared type is ConfigPath, alone or as `ConfigPath | None`."""
    if isinstance(declared, FieldInfo):
        extras = [declared.json_schema_extra, *declared.metadata]
        return any(_says_path(extra) for extra in extras) or is_path(declared.annotation)
    if typing.get_origin(declared) is typing.Annotated:
        return any(_says_path(getattr(extra, "json_schema_extra", None)) for extra in typing.get_args(declared)[1:])
    return any(is_path(argument) for argument in typing.get_args(declared))


def _says_path(extra: Any) -> bool:
    return isinstance(extra, dict) and extra.get("format") == "path"


def known_keys(root: type[BaseModel], path: KeyPath, data: Any) -> list[str]:
    """The keys that may stand at a key path."""
    declared = annotation_at(root, path, data) if path else root
    place = data
    for part in path:
        place = place.get(part) if isinstance(place, dict) else None
    annotation = declared.annotation if isinstance(declared, FieldInfo) else declared
    return list(dict.fromkeys(key for model in _models(annotation, place) for key in _fields(model)))


def _tags(root: type[BaseModel], path: KeyPath, data: Any) -> str:
    declared = annotation_at(root, path, data)
    annotation = declared.annotation if isinstance(declared, FieldInfo) else declared
    kinds = [k for m in _models(annotation, None) for k in typing.get_args(m.model_fields["kind"].annotation)]
    return ", ".join(dict.fromkeys(kinds))
