"""Tiles put together: exact for layers that look at one place, seamless for others."""

from itertools import pairwise

import pytest
import torch

from pocketdiffusion import store
from pocketdiffusion.autoencoders import tiling
from pocketdiffusion.data.scenes import EVAL_WORLD, Scenes
from pocketdiffusion.eval.reconstruction import psnr
from pocketdiffusion.pipeline import SHIPPED


@pytest.mark.parametrize("side", [8, 16, 17, 40, 41])
def test_tiles_cover_the_side_and_overlap(side):
    at = tiling.starts(side, 16, 4)
    assert at[0] == 0 and (side <= 16 or at[-1] == side - 16)
    assert all(0 < b - a <= 12 for a, b in pairwise(at))


@pytest.mark.parametrize("enter, leave", [(1, 4), (4, 1), (1, 1)])
def test_pointwise_functions_do_not_notice(enter, leave):
    """Nearest-neighbour resampling is the same in tiles."""
    x = torch.randn(2, 3, 5, 40 * enter, 56 * enter)

    def f(x):
        x = x[..., ::enter, ::enter]
        return x.repeat_interleave(leave, -1).repeat_interleave(leave, -2)

    torch.testing.assert_close(tiling.tiled(f, x, 16, 4, enter, leave), f(x))


def test_a_constant_per_tile_becomes_a_smooth_frame():
    """Tiles that disagree wholly leave no jump: a step of 1 is spread over the overlap."""
    calls = iter((0.0, 1.0))
    y = tiling.tiled(lambda x: torch.full_like(x, next(calls)), torch.zeros(1, 1, 8, 24), 16, 8)
    assert y[0, 0, 0, 0] == 0 and y[0, 0, 0, -1] == 1
    assert y.diff(dim=-1).max() < 0.2 and (y.diff(dim=-1) >= -1e-6).all()


@torch.no_grad()
def test_an_autoencoder_in_tiles_is_near_the_whole():
    net = store.load(SHIPPED / "scenes" / "pipeline" / "vae")
    x = Scenes(EVAL_WORLD, 1, 160)(0, 0).x
    z, near = net.encode(x), tiling.encode(net, x, 20, 6)
    assert near.shape == z.shape and not torch.equal(near, z)
    assert (near - z).square().mean().sqrt() < 0.1 * z.std()
    y = tiling.decode(net, z, 20, 6)
    assert psnr(y, net.decode(z)).item() > 30


def test_too_little_overlap_is_refused():
    with pytest.raises(ValueError, match="overlap 0: expected 1 to 8"):
        tiling.tiled(lambda x: x, torch.zeros(1, 1, 32, 32), 16, 0)
