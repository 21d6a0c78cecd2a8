"""Named random generators derived from one seed.

Every draw names what it is for: `derive(seed, "split")` and `derive(seed, "synthetic", 17)` are independent of each
other and of the order in which they are asked for, so adding a draw never moves another one.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch

SEED_BITS = 63


def derive(seed: int, *names: str | int) -> int:
    """A seed of 63 bits for the purpose that `names` spell out; the same on every machine and version."""
    text = "\x1f".join([str(seed), *(f"{type(name).__name__}:{name}" for name in names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> (64 - SEED_BITS)


def numpy_generator(seed: int, *names: str | int) -> np.random.Generator:
    """A NumPy generator for the purpose that `names` spell out."""
    import numpy as np

    return np.random.default_rng(derive(seed, *names))


def torch_generator(seed: int, *names: str | int) -> torch.Generator:
    """A CPU torch generator for the purpose that `names` spell out.

    It lives on the CPU whatever the device, because the streams of CPU and GPU generators differ: drawing on the CPU
    and moving the result gives the same numbers everywhere.
    """
    import torch

    return torch.Generator().manual_seed(derive(seed, *names))
