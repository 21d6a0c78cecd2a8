"""The fused paths against their twins, in Triton's interpreter where there is no GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

CHECKS = sorted(Path(__file__).parent.glob("fused_*_checks.py"))


def test_there_are_checks() -> None:
    assert len(CHECKS) == 4


@pytest.mark.slow
@pytest.mark.parametrize("checks", CHECKS, ids=lambda path: path.stem)
def test_fused_equals_twin(checks: Path) -> None:
    """In a process of its own: Triton reads whether to interpret as it is loaded, and here it may be loaded already."""
    pytest.importorskip("triton", reason="the fused kernels are written in Triton, which is not installed")
    interpreted = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(checks)]
    done = subprocess.run(command, env=os.environ | interpreted, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
