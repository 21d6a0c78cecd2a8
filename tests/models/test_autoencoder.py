"""The autoencoder: shapes, locality, tiling, latent statistics and files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from medsynth.errors import ConfigError, DataError
from medsynth.models.autoencoder import KLAutoencoder
from medsynth.models.volume_autoencoder import Posterior
from medsynth.seeding import torch_generator


def volume(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(shape, generator=torch_generator(0, "volume"), dtype=torch.float64).mul(2).sub(1).to(dtype)


def lively(downsampling: int = 4, width: int = 16, blocks: int = 1, channels: int = 2) -> KLAutoencoder:
    """A small network in float64 in which no branch is silent."""
    network = KLAutoencoder(1, downsampling, channels, width, blocks).double()
    generator = torch_generator(1, "weights")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return network.eval()


@pytest.mark.parametrize("downsampling", [2, 4, 8])
def test_sizes_of_latent_and_reconstruction(downsampling: int) -> None:
    network = KLAutoencoder(1, downsampling, 3, 16, 1)
    x = volume(2, 1, 16, 8, 24, dtype=torch.float32)
    reconstruction, posterior = network(x)
    assert reconstruction.shape == x.shape
    assert posterior.mean.shape == posterior.logvar.shape == (2, 3, *(s // downsampling for s in (16, 8, 24)))


def test_forward_goes_through_the_mean_or_the_named_draw() -> None:
    network = lively()
    x = volume(1, 1, 8, 8, 8)
    posterior = network.encode(x)
    noise = torch.randn(posterior.mean.shape, generator=torch_generator(0, "noise"), dtype=torch.float64)
    torch.testing.assert_close(network(x)[0], network.decode(posterior.mean))
    drawn = posterior.mean + (0.5 * posterior.logvar).exp() * noise
    torch.testing.assert_close(network(x, noise)[0], network.decode(drawn))
    assert not torch.allclose(network(x)[0], network(x, noise)[0])


def test_divergence_is_that_of_torch() -> None:
    generator = torch_generator(0, "kl")
    mean, logvar = (torch.randn(2, 3, 2, 2, 2, generator=generator) for _ in range(2))
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, (0.5 * logvar).exp()), normal(0.0, 1.0))
    torch.testing.assert_close(Posterior(mean, logvar).kl(), expected.flatten(1).mean(1))
    assert Posterior(torch.zeros(1, 1, 1, 1, 1), torch.zeros(1, 1, 1, 1, 1)).kl().item() == 0


@pytest.mark.parametrize("downsampling", [2, 4, 8])
@pytest.mark.parametrize("blocks", [1, 2])
def test_reach_is_what_the_gradient_says(downsampling: int, blocks: int) -> None:
    network = lively(downsampling, blocks=blocks)
    reach = network.latent_reach()
    cells = 2 * reach + 5
    centre = cells // 2
    z = torch.zeros(1, 2, cells, 2, 2, dtype=torch.float64, requires_grad=True)
    cell = slice(centre * downsampling, (centre + 1) * downsampling)
    (gradient,) = torch.autograd.grad(network.decode(z)[:, :, cell].sum(), z)
    touched = gradient.abs().amax((0, 1, 3, 4)).nonzero()[:, 0] - centre
    assert touched.abs().max() == reach
    x = torch.zeros(
        1, 1, cells * downsampling, 2 * downsampling, 2 * downsampling, dtype=torch.float64, requires_grad=True
    )
    (gradient,) = torch.autograd.grad(network.encode(x).mean[:, :, centre].sum(), x)
    touched = gradient.abs().amax((0, 1, 3, 4)).nonzero()[:, 0].div(downsampling, rounding_mode="floor") - centre
    assert touched.abs().max() == reach


@pytest.mark.parametrize("downsampling", [2, 4, 8])
def test_tiles_give_what_the_whole_gives(downsampling: int) -> None:
    network = lively(downsampling, blocks=2)
    network.set_latent_statistics(torch.tensor([0.1, -0.2]), torch.tensor([0.5, 2.0]))
    tile = 2 * network.latent_reach() + 3
    cells = (tile + 7, 1, tile // 2) if downsampling == 8 else (tile + 7, 3, tile + 2)
    voxels = tile * cells[1] * cells[2] * downsampling**3
    x = volume(1, 1, *(c * downsampling for c in cells))
    with torch.no_grad():
        z = network.encode_latent(x)
        torch.testing.assert_close(network.encode_tiled(x, voxels), z, rtol=0, atol=1e-10)
        torch.testing.assert_close(network.decode_tiled(z, voxels), network.decode_latent(z), rtol=0, atol=1e-10)


def test_tiles_in_float32_are_within_a_thousandth() -> None:
    network = lively(4, blocks=2).float()
    z = torch.randn(1, 2, 25, 4, 20, generator=torch_generator(0, "z"))
    with torch.no_grad():
        whole = network.decode_latent(z)
        assert (network.decode_tiled(z, 16 * 4 * 20 * 4**3) - whole).abs().max() < 1e-5 * whole.std()


def test_a_small_overlap_is_close_and_better_than_none() -> None:
    network = lively(4, blocks=2)
    z = torch.randn(1, 2, 25, 4, 4, generator=torch_generator(0, "z"), dtype=torch.float64)
    with torch.no_grad():
        whole = network.decode_latent(z)
        voxels = 12 * 4 * 4 * 4**3
        errors = [(network.decode_tiled(z, voxels, overlap) - whole).std() / whole.std() for overlap in (0, 3, 6, 10)]
    assert errors[0] > 3 * errors[1] > 9 * errors[2] > 27 * errors[3]


def test_memory_of_tiles_does_not_grow_with_the_volume() -> None:
    network = lively(2).float()
    largest = 0

    def note(module: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal largest
        largest = max(largest, output.numel(), *(given.numel() for given in inputs))

    for layer in network.modules():
        layer.register_forward_hook(note)
    most = 14 * 4 * 4 * 2**3
    peaks = []
    for cells in (14, 28, 56, 112):
        z = torch.randn(1, 2, cells, 4, 4, generator=torch_generator(0, "z"))
        largest = 0
        with torch.no_grad():
            network.encode_tiled(network.decode_tiled(z, most), most)
        peaks.append(largest)
    assert max(peaks) == peaks[0]  # that of a volume which is just one tile
    assert min(peaks) > 0.5 * peaks[0]


def test_tiles_that_would_be_all_overlap_are_refused() -> None:
    network = lively(4, blocks=2).float()
    with pytest.raises(ConfigError, match=r"tile_voxels: expected at least \d+.*found 64"):
        network.decode_tiled(torch.zeros(1, 2, 30, 30, 30), 64)


@pytest.mark.parametrize("downsampling", [2, 4])
def test_a_shift_by_one_cell_shifts_the_latent(downsampling: int) -> None:
    network = lively(downsampling)
    reach = network.latent_reach()
    cells = 2 * reach + 6
    x = volume(1, 1, cells * downsampling, 2 * downsampling, 2 * downsampling)
    shifted = x.roll(downsampling, 2)
    with torch.no_grad():
        z, moved = network.encode(x).mean, network.encode(shifted).mean
        y, moved_y = network.decode(z), network.decode(z.roll(1, 2))
    inside = slice(reach + 1, cells - reach)
    torch.testing.assert_close(moved[:, :, inside], z.roll(1, 2)[:, :, inside])
    voxels = slice((reach + 1) * downsampling, (cells - reach) * downsampling)
    torch.testing.assert_close(moved_y[:, :, voxels], y.roll(downsampling, 2)[:, :, voxels])


def test_samples_do_not_see_each_other() -> None:
    network = lively()
    x = volume(3, 1, 8, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(network(x)[0][1:2], network(x[1:2])[0])


@pytest.mark.parametrize("downsampling", [2, 4, 8])
def test_gradient_reaches_every_parameter(downsampling: int) -> None:
    network = lively(downsampling).train()
    x = volume(1, 1, 16, 16, 16)
    posterior = network.encode(x)
    noise = torch.randn(posterior.mean.shape, generator=torch_generator(0, "noise"), dtype=torch.float64)
    reconstruction, posterior = network(x, noise)
    ((reconstruction - x).square().mean() + posterior.kl().mean()).backward()
    silent = [n for n, p in network.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert not silent


def test_a_fresh_head_draws_no_checkerboard() -> None:
    network = KLAutoencoder(1, 4, 4, 16, 1)
    z = torch.randn(1, 4, 4, 4, 4, generator=torch_generator(0, "z"))
    with torch.no_grad():
        y = network.decode(z)
    cells = y.view(1, 1, 8, 2, 8, 2, 8, 2)
    torch.testing.assert_close(cells, cells[:, :, :, :1, :, :1, :, :1].expand_as(cells))


def test_latent_statistics_normalise_and_invert() -> None:
    network = lively()
    x = volume(2, 1, 16, 16, 16)
    with torch.no_grad():
        raw = network.encode(x).mean
        network.set_latent_statistics(raw.mean((0, 2, 3, 4)), raw.std((0, 2, 3, 4)))
        z = network.encode_latent(x)
        torch.testing.assert_close(z.mean((0, 2, 3, 4)), torch.zeros(2, dtype=torch.float64), atol=1e-6, rtol=0)
        torch.testing.assert_close(z.std((0, 2, 3, 4)), torch.ones(2, dtype=torch.float64))
        torch.testing.assert_close(network.restore(z), raw)
        torch.testing.assert_close(network.decode_latent(z), network.decode(raw))


@pytest.mark.parametrize("scale", [[1.0, 0.0], [1.0, float("nan")], [1.0, float("inf")]])
def test_statistics_that_cannot_be_inverted_are_refused(scale: list[float]) -> None:
    with pytest.raises(DataError, match="positive scales"):
        KLAutoencoder(1, 4, 2, 16, 1).set_latent_statistics(torch.zeros(2), torch.tensor(scale))


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(DataError, match=r"multiples of 4, found \[8, 10, 8\]"):
        KLAutoencoder(1, 4, 2, 16, 1).encode(torch.zeros(1, 1, 8, 10, 8))
    with pytest.raises(ConfigError, match="2, 4 or 8"):
        KLAutoencoder(downsampling=3)


def test_bfloat16_autocast_is_close_to_float32() -> None:
    network = lively().float()
    x = volume(1, 1, 16, 16, 16, dtype=torch.float32)
    exact, _ = network(x)
    with torch.autocast("cpu", torch.bfloat16):
        half, _ = network(x)
    assert (half.float() - exact).std() < 0.03 * exact.std()


def test_files_round_trip_with_the_statistics(tmp_path: Path) -> None:
    network = lively().float()
    network.set_latent_statistics(torch.tensor([0.25, -1.0]), torch.tensor([3.0, 0.5]))
    network.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert json.loads((tmp_path / "config.json").read_text())["downsampling"] == 4
    loaded = KLAutoencoder.from_pretrained(tmp_path)
    x = volume(1, 1, 8, 8, 8, dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(loaded.encode_latent(x), network.encode_latent(x))
        assert torch.equal(loaded(x)[0], network(x)[0])


def test_it_learns_to_copy_a_volume() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        network = KLAutoencoder(1, 2, 4, 16, 1)
    axes = torch.meshgrid(*[torch.linspace(-1, 1, 16)] * 3, indexing="ij")
    x = torch.where(sum(a.square() for a in axes) < 0.5, 1.0, -1.0)[None, None]
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        loss = (network(x)[0] - x).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.15 * losses[0]
