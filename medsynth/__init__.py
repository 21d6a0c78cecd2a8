"""medsynth: from a hospital's own scans to a generator of labelled synthetic ones, with the evidence of their worth.

The public names are loaded on first use (PEP 562), so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "KLAutoencoder": "medsynth.models.autoencoder",
    "LatentTransformer": "medsynth.models.transformer",
    "LatentUNet": "medsynth.models.unet",
    "MaisiAutoencoder": "medsynth.models.maisi",
    "LatentVolumePipeline": "medsynth.diffusion.pipeline",
    "Deidentifier": "medsynth.imaging.deidentify",
    "Manifest": "medsynth.cohort.manifest",
}

__all__ = ["__version__", *_HOME]

# diffusers finds out how to load a part of a pipeline by looking for its own base class in the part's library.
_HOME |= {"ModelMixin": "diffusers.models.modeling_utils"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'medsynth' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOME[name]), name)
