"""Checkpoints are whole or not there, hold nothing executable, and belong to one run."""

import json
import logging
import resource
import signal

import pytest
import torch

from medsynth.errors import UnreadableError
from medsynth.training.checkpoint import (
    Checkpoint,
    discard_checkpoints,
    load_checkpoint,
    load_optimiser,
    optimiser_tensors,
    save_checkpoint,
)

IDENTITY = {"seed": 1, "training": {"steps": 10, "learning_rate": 1e-3}, "shape": (1, 2)}


def checkpoint(step=3, value=1.0):
    tensors = {"network": {"a.weight": torch.full((2, 3), value), "flag": torch.tensor(True)}, "average": {}}
    return Checkpoint(step, tensors, {"seconds": 0.1 + 0.2, "records": []})


def test_comes_back_exactly(tmp_path):
    save_checkpoint(tmp_path, checkpoint(), IDENTITY)
    found = load_checkpoint(tmp_path, IDENTITY)
    assert found.step == 3
    assert found.counters == checkpoint().counters
    assert torch.equal(found.tensors["network"]["a.weight"], torch.ones(2, 3))
    assert found.tensors["network"]["flag"].dtype == torch.bool


def test_only_the_newest_stays_and_partial_ones_are_never_read(tmp_path):
    save_checkpoint(tmp_path, checkpoint(3), IDENTITY)
    leftover = tmp_path / "step-000000009.partial"
    leftover.mkdir()
    (leftover / "state.json").write_text("{")
    assert load_checkpoint(tmp_path, IDENTITY).step == 3
    save_checkpoint(tmp_path, checkpoint(4), IDENTITY)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000004"]
    assert {path.suffix for path in tmp_path.glob("*/*")} == {".json", ".safetensors"}
    discard_checkpoints(tmp_path)
    assert not list(tmp_path.iterdir())
    assert load_checkpoint(tmp_path, IDENTITY) is None
    assert load_checkpoint(tmp_path / "nowhere", IDENTITY) is None


def test_another_run_starts_anew_and_is_told_why(tmp_path, caplog):
    save_checkpoint(tmp_path, checkpoint(30), IDENTITY)
    other = {**IDENTITY, "seed": 2, "training": {"steps": 10, "learning_rate": 2e-3}}
    with caplog.at_level(logging.WARNING):
        assert load_checkpoint(tmp_path, other) is None
    assert "seed, training.learning_rate differ" in caplog.text
    save_checkpoint(tmp_path, checkpoint(5), other)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000005"]
    assert load_checkpoint(tmp_path, other).step == 5


@pytest.mark.parametrize("harm", ["altered", "missing", "no state"])
def test_a_damaged_one_is_refused_with_a_remedy(tmp_path, harm):
    folder = save_checkpoint(tmp_path, checkpoint(), IDENTITY)
    weights = folder / "network.safetensors"
    if harm == "altered":
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
    elif harm == "missing":
        weights.unlink()
    else:
        (folder / "state.json").write_text("{")
    with pytest.raises(UnreadableError, match="step-000000003 is damaged: remove that folder"):
        load_checkpoint(tmp_path, IDENTITY)


def test_a_newer_format_is_refused(tmp_path):
    path = save_checkpoint(tmp_path, checkpoint(), IDENTITY) / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    with pytest.raises(UnreadableError, match="expected format 1, found 99"):
        load_checkpoint(tmp_path, IDENTITY)


def test_a_full_disk_leaves_the_last_checkpoint_and_no_remains(tmp_path):
    save_checkpoint(tmp_path, checkpoint(3), IDENTITY)
    big = Checkpoint(4, {"network": {"w": torch.zeros(100_000)}}, {})
    handler, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # the system's refusal, in small
    try:
        with pytest.raises(OSError, match="File too large"):
            save_checkpoint(tmp_path, big, IDENTITY)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000003"]
    assert load_checkpoint(tmp_path, IDENTITY).step == 3


def test_an_optimiser_goes_on_as_if_never_stopped():
    def made():
        torch.manual_seed(0)
        net = torch.nn.Linear(3, 2)
        groups = [{"params": [net.weight], "weight_decay": 0.1}, {"params": [net.bias], "weight_decay": 0.0}]
        return net, torch.optim.AdamW(groups, lr=0.1, fused=True), {p: n for n, p in net.named_parameters()}

    def step(net, optimiser, k):
        optimiser.zero_grad()
        (net(torch.ones(1, 3) * k) ** 2).sum().backward()
        optimiser.step()

    with torch.random.fork_rng(devices=[]):
        (whole, first_optimiser, names), (other, second_optimiser, other_names) = made(), made()
    for k in range(3):
        step(whole, first_optimiser, k)
    other.load_state_dict(whole.state_dict())
    saved = {name: tensor.clone() for name, tensor in optimiser_tensors(first_optimiser, names).items()}
    load_optimiser(second_optimiser, other_names, saved)
    for k in range(3, 6):
        step(whole, first_optimiser, k)
        step(other, second_optimiser, k)
    assert torch.equal(whole.weight, other.weight)
    assert torch.equal(whole.bias, other.bias)
