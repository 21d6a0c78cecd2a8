"""Takes the paths of this machine out of what is about to be recorded.

A path names the user, the hospital's shares and sometimes a patient; whoever reads a tracking server needs none of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

ELSEWHERE = "<path outside the workspace>"
WORKSPACE = "<workspace>"


def without_paths(value: Any, workspace: Path) -> Any:
    """`value` (JSON types, nested as it may be) with every absolute path in its strings replaced.

    A path inside `workspace` is shown from there on; of any other not even its last part is kept, because a folder
    may be called after a patient.
    """
    if isinstance(value, str):
        return _text_without_paths(value, workspace)
    if isinstance(value, Mapping):
        return {str(key): without_paths(item, workspace) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [without_paths(item, workspace) for item in value]
    return value


def known_prefixes(workspace: Path) -> dict[str, str]:
    """The folders of this machine that free text may mention, longest first, and what to write instead."""
    folders = {workspace: WORKSPACE, workspace.resolve(): WORKSPACE, Path.cwd(): ELSEWHERE, Path.home(): ELSEWHERE}
    texts = {str(folder): shown for folder, shown in folders.items() if len(folder.parts) > 1}
    return dict(sorted(texts.items(), key=lambda item: -len(item[0])))


def bytes_without_paths(content: bytes, workspace: Path) -> bytes:
    """UTF-8 or other text with the folders of `known_prefixes` replaced; nothing else is touched."""
    for folder, shown in known_prefixes(workspace).items():
        content = content.replace(folder.encode(), shown.encode())
    return content


def _text_without_paths(text: str, workspace: Path) -> str:
    if _is_absolute(text):
        return _shown(text, workspace)
    # A path inside a sentence or a URI: up to the next blank, quote or bracket.
    return _PATH.sub(lambda match: _shown(match.group(), workspace), text)


_PATH = re.compile(
    r"(?<![\w.:/<>~-])(?:file://)?(?:~|[A-Za-z]:[\\/]|/)[\w.@~+-]+(?:[\\/][^\s\"'<>()\[\],;]*)+|"
    r"file://[^\s\"'<>()\[\],;]+"
)


def _is_absolute(text: str) -> bool:
    if "\n" in text:
        return False
    return (
        (PurePosixPath(text).is_absolute() and len(text) > 1)
        or bool(PureWindowsPath(text).drive and PureWindowsPath(text).root)
        or text.startswith(("~/", "file:"))
    )


def _shown(text: str, workspace: Path) -> str:
    path = Path(text.removeprefix("file://"))
    for root in (workspace, workspace.resolve()):
        if path.is_relative_to(root):
            inside = path.relative_to(root).as_posix()
            return WORKSPACE if inside == "." else f"{WORKSPACE}/{inside}"
    return ELSEWHERE
