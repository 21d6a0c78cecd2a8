"""What is missing is said before a kernel is needed."""

import shutil
import sysconfig
from importlib import util

import pytest

from medsynth.doctor import _fused
from medsynth.kernels import triton_at_hand
from medsynth.kernels.triton_at_hand import obstacle


@pytest.fixture(autouse=True)
def complete(monkeypatch, tmp_path):
    """A machine that has everything."""
    (tmp_path / "Python.h").touch()
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(triton_at_hand, "find_spec", lambda name: util.find_spec("os"))
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(sysconfig, "get_paths", lambda scheme: {"include": str(tmp_path)})


def test_nothing_is_missing():
    assert obstacle() is None
    assert _fused(9) == "yes"
    assert "too old" in _fused(7)


@pytest.mark.parametrize(
    ("what", "name", "value", "said"),
    [
        (triton_at_hand, "find_spec", lambda name: None, "Triton is not installed"),
        (shutil, "which", lambda name: None, "install gcc"),
        (sysconfig, "get_paths", lambda scheme: {"include": "/nowhere"}, "install python3-dev"),
    ],
    ids=["triton", "compiler", "headers"],
)
def test_what_is_missing_is_said_with_the_remedy(monkeypatch, what, name, value, said):
    monkeypatch.setattr(what, name, value)
    assert said in (obstacle() or "")
    assert _fused(9).startswith("no, ") and said in _fused(9)


def test_a_compiler_may_be_named(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setenv("CC", "/opt/cc")
    assert obstacle() is None
