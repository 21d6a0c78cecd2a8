"""A tiny generator with random weights, whose output layer is not zero."""

import pytest
import torch

from medsynth.diffusion.pipeline import LatentVolumePipeline
from medsynth.models.autoencoder import KLAutoencoder
from medsynth.models.transformer import LatentTransformer
from medsynth.models.unet import LatentUNet

CONDITIONS = {
    "diagnosis": {"kind": "category", "values": ["benign", "malignant"], "dropout": 0.1},
    "diameter_mm": {"kind": "number", "range": [3.0, 40.0], "unit": "mm", "dropout": 0.1},
    "nodule": {"kind": "mask", "labels": {"nodule": 1}, "dropout": 0.1},
}
WINDOW = {"kind": "hu_window", "low": -1000.0, "high": 400.0, "unit": "HU", "reference": None}
PERCENTILES = {"kind": "percentiles", "low": 0.5, "high": 99.5, "unit": "a.u.", "reference": [10.0, 210.0]}
GEOMETRY = {"spacing_mm": [0.5, 0.75, 2.0], "box": [16, 24, 16], "modality": "CT", "unit": "HU", "orientation": "RAS"}


def make_transformer(conditions=CONDITIONS):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        network = LatentTransformer(
            latent_channels=3,
            downsampling=4,
            width=16,
            depth=2,
            head_channels=8,
            mask_channels=4,
            conditions=conditions,
        ).eval()
        torch.nn.init.normal_(network.head.weight, std=0.2)
    return network


def make_pipeline(conditions=CONDITIONS, intensity=WINDOW, geometry=GEOMETRY, objective=None, denoiser=None):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        autoencoder = KLAutoencoder(downsampling=4, latent_channels=3, width=8, blocks=1).eval()
        denoiser = (
            denoiser
            or LatentUNet(
                latent_channels=3,
                downsampling=4,
                widths=[8, 16],
                blocks=1,
                attention=["linear"],
                head_channels=8,
                mask_channels=4,
                conditions=conditions,
            ).eval()
        )
        if isinstance(denoiser, LatentUNet):
            torch.nn.init.normal_(denoiser.head.conv.weight, std=0.2)
    autoencoder.set_latent_statistics(torch.tensor([0.1, -0.2, 0.0]), torch.tensor([1.5, 0.5, 2.0]))
    return LatentVolumePipeline(
        autoencoder=autoencoder,
        denoiser=denoiser,
        objective=objective or {"kind": "flow", "logit_mean": 0.0, "logit_std": 1.0, "shift": "auto"},
        conditions=conditions,
        intensity=intensity,
        geometry=geometry,
    )


@pytest.fixture
def pipeline():
    return make_pipeline()


@pytest.fixture
def build():
    return make_pipeline


@pytest.fixture
def build_transformer():
    return make_transformer


@pytest.fixture
def transformer_pipeline():
    return make_pipeline(denoiser=make_transformer())
