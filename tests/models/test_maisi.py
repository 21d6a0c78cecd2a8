"""MAISI's autoencoder behind the house's contract, against MONAI's own network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from medsynth.errors import ConfigError, DataError
from medsynth.models.maisi import MaisiAutoencoder
from medsynth.seeding import torch_generator

SMALL: dict[str, Any] = {"channels": (8, 8, 16), "blocks": 1, "norm_groups": 4, "latent_channels": 3}


def peer(**changes: Any) -> nn.Module:
    """MONAI's network of the same size, as MAISI's published configuration builds it."""
    from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi

    sizes = {**SMALL, **changes}
    levels = len(sizes["channels"])
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(4)
        return AutoencoderKlMaisi(
            spatial_dims=3,
            in_channels=1,
            out_channels=1,
            latent_channels=sizes["latent_channels"],
            num_channels=list(sizes["channels"]),
            num_res_blocks=[sizes["blocks"]] * levels,
            norm_num_groups=sizes["norm_groups"],
            norm_eps=1e-6,
            attention_levels=[False] * levels,
            with_encoder_nonlocal_attn=False,
            with_decoder_nonlocal_attn=False,
            use_checkpointing=False,
            use_convtranspose=False,
            norm_float16=False,
            num_splits=1,
            dim_split=1,
        ).eval()


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "maisi.safetensors"
    save_file(peer().state_dict(), path)
    return path


def adapter(weights: Path, **changes: Any) -> MaisiAutoencoder:
    network = MaisiAutoencoder(**{**SMALL, **changes}).eval()
    network.read_weights(weights)
    return network


def volume(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch_generator(0, "volume")) * 2 - 1


def test_encodes_and_decodes_hounsfield_units_as_monai_does(weights: Path) -> None:
    ours, theirs = adapter(weights, value_range=(0.0, 0.7)), peer()
    x = volume(2, 1, 16, 12, 8)
    hounsfield = (x + 1) / 2 * 1400 - 1000  # -1 and 1 are the ends of the window -1000 to 400 HU
    with torch.no_grad():
        mean, sigma = theirs.encode((hounsfield + 1000) / 2000)
        posterior = ours.encode(x)
        torch.testing.assert_close(posterior.mean, mean, rtol=0, atol=1e-5)
        torch.testing.assert_close((0.5 * posterior.logvar).exp(), sigma, rtol=0, atol=1e-5)
        back = theirs.decode(mean) * 2000 - 1000
        found = (ours.decode(mean) + 1) / 2 * 1400 - 1000
        torch.testing.assert_close(found, back, rtol=0, atol=2000 * 1e-5)


def test_the_published_sizes_are_the_defaults() -> None:
    ours = MaisiAutoencoder()
    theirs = peer(channels=(64, 128, 256), blocks=2, norm_groups=32, latent_channels=4)
    shapes = {name: weight.shape for name, weight in theirs.state_dict().items()}
    assert {name: weight.shape for name, weight in ours.network.state_dict().items()} == shapes
    assert ours.config.downsampling == 4


def test_files_round_trip_without_the_weights_they_came_from(weights: Path, tmp_path: Path) -> None:
    network = adapter(weights, value_range=(0.1, 0.9))
    network.set_latent_statistics(torch.tensor([0.5, 0.0, -1.0]), torch.tensor([2.0, 1.0, 0.5]))
    network.save_pretrained(tmp_path / "saved")
    weights.unlink()
    loaded = MaisiAutoencoder.from_pretrained(tmp_path / "saved")
    x = volume(1, 1, 8, 8, 12)
    with torch.no_grad():
        z = network.encode_latent(x)
        assert torch.equal(loaded.encode_latent(x), z)
        assert torch.equal(loaded.decode_latent(z), network.decode_latent(z))
        torch.testing.assert_close(network.restore(z), network.encode(x).mean)


def test_reach_is_that_of_the_convolutions(weights: Path) -> None:
    network = adapter(weights).double()
    for owner in [*network.modules()]:  # without norms the network is local
        for name, layer in owner.named_children():
            if isinstance(layer, nn.GroupNorm):
                setattr(owner, name, nn.Identity())
            elif isinstance(layer, nn.ModuleList):
                for i, block in enumerate(layer):
                    if isinstance(block, nn.GroupNorm):
                        layer[i] = nn.Identity()
    reach = network.latent_reach()
    cells = 2 * reach + 3
    centre = cells // 2
    z = torch.randn(1, 3, cells, 2, 2, dtype=torch.float64, generator=torch_generator(0, "z")).requires_grad_()
    (gradient,) = torch.autograd.grad(network.decode(z)[:, :, 4 * centre : 4 * centre + 4].sum(), z)
    decoding = (gradient.abs().amax((0, 1, 3, 4)).nonzero()[:, 0] - centre).abs().max()
    x = volume(1, 1, 4 * cells, 8, 8).double().requires_grad_()
    (gradient,) = torch.autograd.grad(network.encode(x).mean[:, :, centre].sum(), x)
    touched = gradient.abs().amax((0, 1, 3, 4)).nonzero()[:, 0].div(4, rounding_mode="floor") - centre
    assert reach - 2 <= max(int(decoding), int(touched.abs().max())) <= reach


def test_tiles_are_close_but_not_equal(weights: Path) -> None:
    network = adapter(weights)
    z = torch.randn(1, 3, 30, 3, 3, generator=torch_generator(0, "z"))
    with torch.no_grad():
        whole = network.decode_latent(z)
        tiled = network.decode_tiled(z, 24 * 3 * 3 * 4**3)
    difference = (tiled - whole).std() / whole.std()
    assert 1e-6 < difference < 0.2


def test_what_tiles_differ_by_is_blended_over_several_latents(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, numbers = adapter(weights), iter(range(9))
    monkeypatch.setattr(
        network, "decode_latent", lambda z: torch.full((1, 1, *(4 * n for n in z.shape[2:])), float(next(numbers)))
    )
    tiled = network.decode_tiled(torch.zeros(1, 3, 60, 3, 3), 40 * 3 * 3 * 4**3)[0, 0, :, 0, 0]
    assert (tiled[0], tiled[-1]) == (0, 1), "two tiles"
    assert tiled.diff().max() <= 1 / (4 * network.blended_latents) + 1e-6


def test_weights_that_are_not_there_or_not_finite_are_refused(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="found none; correct the path"):
        adapter(weights).read_weights(tmp_path / "nowhere.safetensors")
    found = load_file(weights)
    next(iter(found.values()))[0] = torch.nan
    save_file(found, tmp_path / "broken.safetensors")
    with pytest.raises(ConfigError, match="is not finite"):
        adapter(weights).read_weights(tmp_path / "broken.safetensors")


def test_only_safetensors_are_read(tmp_path: Path) -> None:
    path = tmp_path / "autoencoder.pt"
    torch.save(peer().state_dict(), path)
    with pytest.raises(ConfigError, match=r"expected a \.safetensors file, found autoencoder\.pt.*convert it once"):
        MaisiAutoencoder(**SMALL).read_weights(path)
    renamed = path.rename(tmp_path / "renamed.safetensors")
    with pytest.raises(ConfigError, match=r"expected readable weights in renamed\.safetensors"):
        MaisiAutoencoder(**SMALL).read_weights(renamed)


def test_weights_of_another_network_are_refused_with_what_differs(weights: Path) -> None:
    with pytest.raises(ConfigError, match=r"decoder\.blocks\.\d+.* is \[.*\] and not \[.*and \d+ more"):
        MaisiAutoencoder(**{**SMALL, "latent_channels": 4, "channels": (8, 8, 8)}).read_weights(weights)
    with pytest.raises(ConfigError, match="is missing"):
        MaisiAutoencoder(**{**SMALL, "blocks": 2}).read_weights(weights)
    with pytest.raises(ConfigError, match="expected 3 levels, found 2"):
        MaisiAutoencoder(channels=(8, 8))


def test_sizes_that_do_not_divide_are_refused(weights: Path) -> None:
    with pytest.raises(DataError, match="multiples of 4"):
        adapter(weights).encode(torch.zeros(1, 1, 8, 10, 8))


def test_it_can_be_tuned(weights: Path) -> None:
    network = adapter(weights).train()
    x = volume(1, 1, 8, 8, 8)
    posterior = network.encode(x)
    noise = torch.randn(posterior.mean.shape, generator=torch_generator(0, "noise"))
    reconstruction, posterior = network(x, noise)
    ((reconstruction - x).square().mean() + posterior.kl().mean()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    assert sum(bool(p.grad.abs().max() > 0) for p in network.parameters() if p.grad is not None) > 20
