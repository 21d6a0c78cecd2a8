"""The fused path of linear attention against its twin, in Triton's interpreter where there is no GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

CHECKS = Path(__file__).with_name("fused_linear_attention_checks.py")


@pytest.mark.slow
def test_fused_equals_twin() -> None:
    """In a process of its own: Triton reads whether to interpret as it is loaded, and here it may be loaded already."""
    pytest.importorskip("triton", reason="the fused kernels are written in Triton, which is not installed")
    interpreted = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(CHECKS)]
    done = subprocess.run(command, env=os.environ | interpreted, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
