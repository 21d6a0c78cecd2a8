"""The downstream classifiers: MONAI's 3D networks, initialised from a seed of their own."""

from __future__ import annotations

from typing import Literal

import torch
from monai.networks.nets.densenet import DenseNet121
from monai.networks.nets.resnet import ResNet
from torch import nn

from medsynth.errors import ConfigError

ClassifierKind = Literal["small", "resnet10", "densenet121"]

GROUPS = 8


def build_classifier(kind: ClassifierKind, classes: int, seed: int) -> nn.Module:
    """A fresh classifier: volumes [B, 1, X, Y, Z] to logits [B, classes].

    An axis has at least 16 voxels (densenet121: 32). `resnet10` (He 2016, in 3D as Chen 2019) and `densenet121`
    (Huang 2017) are MONAI's; `small` is MONAI's ResNet with one block per stage and few channels (0.6 million weights).
    All use group norm
    (Wu 2018) in place of batch norm: batches here are small, and batch statistics would let the mix of real and
    synthetic scans in a batch change what is computed for each of them. The norms are exchanged here, since MONAI's
    ResNet hands its `norm` setting to the first layer only.

    Weights depend on `seed` alone; the global random state is as before afterwards. Raises ConfigError for another kind
    or fewer than two classes.
    """
    if classes < 2:
        raise ConfigError([f"classifier: expected at least 2 classes, found {classes}"])
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = _fresh(kind, classes)
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.BatchNorm3d):
            network.set_submodule(name, nn.GroupNorm(GROUPS, module.num_features))
    return network


def _fresh(kind: ClassifierKind, classes: int) -> nn.Module:
    match kind:
        case "small":
            return _resnet([16, 32, 64, 96], classes, stem_size=3, pool=True)
        case "resnet10":
            return _resnet([64, 128, 256, 512], classes, stem_size=7, pool=True)
        case "densenet121":
            return DenseNet121(spatial_dims=3, in_channels=1, out_channels=classes)
    raise ConfigError([f"classifier: expected small, resnet10 or densenet121; found {kind!r}"])


def _resnet(channels: list[int], classes: int, *, stem_size: int, pool: bool) -> nn.Module:
    return ResNet(
        block="basic",
        layers=[1, 1, 1, 1],
        block_inplanes=channels,
        spatial_dims=3,
        n_input_channels=1,
        conv1_t_size=stem_size,
        conv1_t_stride=2,
        no_max_pool=not pool,
        num_classes=classes,
    )
