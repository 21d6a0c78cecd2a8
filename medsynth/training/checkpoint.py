"""Checkpoints: tensors as safetensors, counters as JSON, nothing that could run code when it is loaded.

A checkpoint is the folder `step-<number>`. It is written under a name of its own and renamed when it is whole, so a
process that is killed leaves a partial folder that is never read and goes away with the next checkpoint.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from medsynth.digests import file_sha256
from medsynth.errors import UnreadableError

FORMAT = 1
STATE = "state.json"
PARTIAL = ".partial"
TENSOR_SUFFIX = ".safetensors"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A training run at one moment."""

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    """File name without suffix -> tensors by name."""
    counters: Mapping[str, Any]
    """Everything else that the run needs to go on, as JSON types."""


def save_checkpoint(folder: Path, checkpoint: Checkpoint, identity: Mapping[str, Any]) -> Path:
    """Write `checkpoint` under `folder`, then remove the ones before it. OSError where the disk is full."""
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{checkpoint.step:09d}"
    partial = folder / f"{final.name}{PARTIAL}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _write(partial, checkpoint, identity)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if final.exists():
        _remove(final)
    partial.rename(final)
    for other in folder.iterdir():
        if other != final and other.name.startswith("step-"):
            _remove(other)
    return final


def load_checkpoint(folder: Path, identity: Mapping[str, Any]) -> Checkpoint | None:
    """The newest checkpoint of the run that `identity` describes, or None where there is none.

    A checkpoint of other settings or other data is left unread, with a warning that names what differs: the run
    starts anew, and its first checkpoint takes the other's place. Raises UnreadableError for one that was altered.
    """
    if not folder.is_dir():
        return None
    expected = json.loads(json.dumps(dict(identity)))
    whole = (path for path in folder.glob("step-*") if not path.name.endswith(PARTIAL))
    for path in sorted(whole, reverse=True):
        state = _read_state(path)
        differing = _differences(expected, state["identity"])
        if not differing:
            return Checkpoint(state["step"], _read_tensors(path, state), state["counters"])
        log.warning("checkpoint %s is of another run (%s differ): starting anew", path.name, ", ".join(differing[:5]))
    return None


def discard_checkpoints(folder: Path) -> None:
    """Remove every checkpoint under `folder`."""
    if folder.is_dir():
        for path in folder.glob("step-*"):
            _remove(path)


def optimiser_tensors(optimiser: torch.optim.Optimizer, names: Mapping[nn.Parameter, str]) -> dict[str, Tensor]:
    """The state of `optimiser` as tensors named `<weight>/<quantity>`."""
    weights = [weight for group in optimiser.param_groups for weight in group["params"]]
    return {
        f"{names[weight]}/{quantity}": torch.as_tensor(value)
        for weight in weights
        for quantity, value in optimiser.state[weight].items()
    }


def load_optimiser(
    optimiser: torch.optim.Optimizer, names: Mapping[nn.Parameter, str], tensors: Mapping[str, Tensor]
) -> None:
    """Give `optimiser` the state that `optimiser_tensors` took."""
    states: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, quantity = key.rsplit("/", 1)
        states.setdefault(name, {})[quantity] = tensor
    weights = [weight for group in optimiser.param_groups for weight in group["params"]]
    numbered = {i: states[names[weight]] for i, weight in enumerate(weights) if names[weight] in states}
    optimiser.load_state_dict({"state": numbered, "param_groups": optimiser.state_dict()["param_groups"]})


def _write(folder: Path, checkpoint: Checkpoint, identity: Mapping[str, Any]) -> None:
    folder.mkdir()
    digests = {}
    for name, tensors in checkpoint.tensors.items():
        path = folder / f"{name}{TENSOR_SUFFIX}"
        _save_tensors({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, path)
        digests[name] = file_sha256(path)
    state = {
        "format": FORMAT,
        "step": checkpoint.step,
        "identity": dict(identity),
        "sha256": digests,
        "counters": dict(checkpoint.counters),
    }
    (folder / STATE).write_text(json.dumps(state), encoding="utf-8")
    for path in folder.iterdir():
        _flush(path)


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """safetensors' `save_file`, whose error for a full disk is no OSError: it holds the number in its text."""
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), path.name) from error


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads((path / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path) from error
    if state.get("format") != FORMAT:
        raise UnreadableError(
            f"checkpoint {path.name}: expected format {FORMAT}, found {state.get('format')!r}; "
            "it was written by another version: go on with that one, or remove the folder to start anew"
        )
    return state


def _read_tensors(path: Path, state: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    tensors = {}
    for name, digest in state["sha256"].items():
        file = path / f"{name}{TENSOR_SUFFIX}"
        if not file.is_file() or file_sha256(file) != digest:
            raise _damaged(path)
        tensors[name] = load_file(file)
    return tensors


def _damaged(path: Path) -> UnreadableError:
    return UnreadableError(f"checkpoint {path.name} is damaged: remove that folder, and training starts anew")


def _differences(expected: Any, found: Any, prefix: str = "") -> list[str]:
    """Dotted names of what differs between two JSON trees."""
    if isinstance(expected, dict) and isinstance(found, dict):
        names = sorted(expected.keys() | found.keys())
        return [d for n in names for d in _differences(expected.get(n), found.get(n), f"{prefix}{n}.")]
    return [] if expected == found else [prefix.rstrip(".")]


def _flush(path: Path) -> None:
    """Make sure that a file is on the disk before the rename that declares it whole."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _remove(path: Path) -> None:
    """Remove a checkpoint; renamed first, so that a half-removed one is never taken for whole."""
    if not path.name.endswith(PARTIAL):
        path = path.rename(path.with_name(f"{path.name}.old{PARTIAL}"))
    shutil.rmtree(path)
