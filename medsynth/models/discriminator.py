"""A network that tells real patches from reconstructed ones, for training only."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from medsynth.models.blocks import ChannelNorm

SLOPE = 0.2
"""Of the leaky ReLUs, as in Isola 2017, sec. 6.1."""


class PatchDiscriminator(nn.Module):
    """One logit per patch of a volume: positive for real, negative for made (Isola 2017, sec. 3.2.2, in three dimensions).

    Two halvings and a 3x3x3 head: a logit sees 18 voxels along each axis, which is texture and not anatomy. The norm is
    that of each voxel's channels, so that no patch knows of another one.
    """

    def __init__(self, in_channels: int = 1, width: int = 16) -> None:
        super().__init__()
        self.first = nn.Conv3d(in_channels, width, 4, stride=2, padding=1)
        self.second = nn.Conv3d(width, 2 * width, 4, stride=2, padding=1)
        self.norm = ChannelNorm(2 * width)
        self.head = nn.Conv3d(2 * width, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, X, Y, Z] -> logits [B, 1, X // 4, Y // 4, Z // 4]; at least four voxels along each axis."""
        h = F.leaky_relu(self.first(x), SLOPE)
        h = self.norm(self.second(h).movedim(1, -1)).movedim(-1, 1)
        return self.head(F.leaky_relu(h, SLOPE))
