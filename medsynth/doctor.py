"""What this machine has, and what could get in the way."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from pathlib import Path
from typing import Any

import psutil
import torch

from medsynth import __version__
from medsynth.kernels.triton_at_hand import OLDEST_CAPABILITY, obstacle

PACKAGES = (
    "torch",
    "monai",
    "diffusers",
    "accelerate",
    "mlflow",
    "pydicom",
    "highdicom",
    "nibabel",
    "scikit-learn",
    "numpy",
)
NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "fuse.sshfs", "lustre", "gpfs", "beegfs", "ceph"}
)
NETWORK_SWITCHES = {
    "MLFLOW_TRACKING_URI": "MLflow records would go to this server unless `tracking.uri` says otherwise",
    "HTTP_PROXY": "a proxy is set; medsynth itself opens no connection",
    "HTTPS_PROXY": "a proxy is set; medsynth itself opens no connection",
}


def examine(workspace: Path) -> dict[str, Any]:
    """Versions, devices, free disk and memory, the workspace's file system, and uses of the network."""
    place = _existing(workspace)
    kind = file_system(place)
    networked = kind in NETWORK_FILE_SYSTEMS
    return {
        "medsynth": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "packages": {name: _version(name) for name in PACKAGES},
        "devices": _devices(),
        "memory_free_gb": round(psutil.virtual_memory().available / 1e9, 1),
        "disk_free_gb": round(shutil.disk_usage(place).free / 1e9, 1),
        "workspace": str(workspace),
        "workspace_writable": place.is_dir() and os.access(place, os.W_OK),
        "workspace_file_system": kind,
        "sqlite": "warning: SQLite is unsafe on a network file system; set tracking.uri to a server, or use a local workspace"
        if networked
        else "fine: a local file system",
        "network": [f"{name}: {why}" for name, why in NETWORK_SWITCHES.items() if os.environ.get(name)]
        or "nothing would use the network",
    }


def file_system(path: Path) -> str:
    """Type of the file system that holds `path`, by the longest matching mount point; `unknown` where none matches."""
    mounts = psutil.disk_partitions(all=True)
    inside = [mount for mount in mounts if path.is_relative_to(mount.mountpoint)]
    return max(inside, key=lambda mount: len(mount.mountpoint)).fstype if inside else "unknown"


def _existing(path: Path) -> Path:
    path = path.resolve()
    return next(place for place in (path, *path.parents) if place.exists())


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _fused(capability: int) -> str:
    """Whether linear attention and norms have kernels of their own on a GPU of this major compute capability."""
    if capability < OLDEST_CAPABILITY:
        return "no, the GPU is too old for Triton"
    why = obstacle()
    return "yes" if why is None else f"no, several times slower: {why}"


def _devices() -> list[str]:
    found = [f"cpu: {torch.get_num_threads()} threads"]
    for number in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(number)
        found.append(
            f"cuda:{number}: {facts.name}, {facts.total_memory / 1e9:.0f} GB, bf16 {torch.cuda.is_bf16_supported()}, "
            f"fused kernels: {_fused(facts.major)}"
        )
    if torch.backends.mps.is_available():
        found.append("mps")
    return found
