"""Each measure against values known by hand, or against another implementation."""

import math
import sys
import types
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from pocketdiffusion.autoencoders import kl
from pocketdiffusion.eval import features
from pocketdiffusion.eval.frechet import frechet
from pocketdiffusion.eval.reconstruction import (
    by_frame,
    flicker,
    frames,
    lpips,
    measure,
    moving,
    perceptual,
    psnr,
    reconstruct,
    scene_maps,
    ssim,
)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return features.SceneNet(features.PRESETS["smoke"]).eval()


def test_psnr_of_a_known_error():
    x = torch.zeros(2, 3, 4, 4)
    y = x + torch.tensor([0.2, 0.02])[:, None, None, None]
    torch.testing.assert_close(psnr(x, y), torch.tensor([20.0, 40.0]))


def test_equal_pictures_are_finite():
    x = torch.rand(1, 3, 4, 4)
    assert psnr(x, x) == 100


def test_reconstruct_is_clamped_and_has_the_input_s_shape():
    vae = kl.AutoencoderKL(kl.PRESETS["smoke"])
    x = vae.example()[0]
    y = reconstruct(vae, x)
    assert y.shape == x.shape and y.abs().max() <= 1


def test_ssim_is_that_of_scikit_image():
    from skimage.metrics import structural_similarity

    g = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 24, 31, generator=g, dtype=torch.float64) * 2 - 1
    y = (x + torch.tensor([0.1, 0.6])[:, None, None, None] * torch.randn(x.shape, generator=g)).clamp(-1, 1)
    expected = [
        structural_similarity(
            a.numpy(),
            b.numpy(),
            data_range=2,
            channel_axis=0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for a, b in zip(x, y)
    ]
    found = ssim(x, y)
    torch.testing.assert_close(found, torch.tensor(expected).double(), atol=1e-9, rtol=0)
    torch.testing.assert_close(ssim(x.float(), y.float()), found.float(), atol=1e-5, rtol=0)
    assert found[0] > found[1] + 0.2
    torch.testing.assert_close(ssim(x, x), torch.ones(2).double())


def test_ssim_needs_a_window_of_pixels():
    with pytest.raises(ValueError, match="11 x 11"):
        ssim(torch.zeros(1, 3, 10, 32), torch.zeros(1, 3, 10, 32))


def test_perceptual_by_hand():
    def maps(x):
        return [x, F.avg_pool2d(x, 2)]

    x = torch.zeros(2, 2, 2, 2)
    x[:, 0] = 3.0
    y = x.clone()
    # at one of four places the direction turns by a right angle, which is a squared distance of 2
    y[1, :, 0, 0] = torch.tensor([0.0, 5.0])
    # and on the coarse map (9/4, 0) becomes (9/4, 5/4)
    coarse = 2 - 2 * 9 / math.hypot(9, 5)
    torch.testing.assert_close(perceptual(maps, x, y), torch.tensor([0.0, 2 / 4 + coarse]))
    # length does not count
    torch.testing.assert_close(perceptual(maps, x, 2 * x), torch.zeros(2))


def test_the_maps_of_a_scene_net_are_its_stages(network):
    x = network.example(3)[0]
    first, *_, last = scene_maps(network)(x)
    assert len(scene_maps(network)(x)) == len(network.config.widths)
    c = network.config
    assert first.shape == (3, c.widths[0], c.side // 2, c.side // 2) and last.shape[1] == c.widths[-1]
    pooled = F.relu(network.project(F.silu(network.norm(last)))).mean((2, 3))
    torch.testing.assert_close(pooled, network.features(x))


def test_a_scene_net_sees_more_of_a_greater_change(network):
    x = network.example(4)[0]
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    maps = scene_maps(network)
    small, large = (perceptual(maps, x, (x + s * noise).clamp(-1, 1)) for s in (0.05, 0.5))
    assert (perceptual(maps, x, x) == 0).all() and (small > 0).all() and (small < large).all()


def test_flicker_counts_change_alone():
    x = torch.rand(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert flicker(x, x + 0.3).max() < 1e-6
    y = x.clone()
    y[1, :, 1::2] += 0.2  # every other frame: all three differences are off
    torch.testing.assert_close(flicker(x, y), torch.tensor([0.0, 0.2]))
    y = x.clone()
    y[0, :, 0] += 0.3  # the first frame alone: one of three
    torch.testing.assert_close(flicker(x, y), torch.tensor([0.1, 0.0]))
    with pytest.raises(ValueError, match="two frames"):
        flicker(x[:, :, :1], x[:, :, :1])


def test_frames_of_clips():
    x = torch.arange(2 * 3 * 4).float().view(2, 3, 4, 1, 1)
    assert frames(x).shape == (8, 3, 1, 1)
    assert torch.equal(frames(x)[4 + 2], x[1, :, 2])
    assert torch.equal(frames(x[:, :, 0]), x[:, :, 0])


class Brighter:
    """Latents are pixels of the upper left of 2 x 2, decoding repeats them and adds a little."""

    def __init__(self, more=0.0, time_factor=1):
        self.config = SimpleNamespace(factor=2, channels=3, time_factor=time_factor)
        self.more, self.given = more, []

    def encode(self, x):
        assert not torch.is_grad_enabled()
        self.given.append(tuple(x.shape))
        return x[..., ::2, ::2]

    def decode(self, z, first=None):
        return z.repeat_interleave(2, -1).repeat_interleave(2, -2) + self.more


def blocks(*shape):
    """Pictures of constant 2 x 2 blocks, between -0.5 and 0.5."""
    x = torch.rand(*shape, generator=torch.Generator().manual_seed(0)) - 0.5
    return x.repeat_interleave(2, -1).repeat_interleave(2, -2)


def test_measure_of_an_autoencoder_that_gives_all_back(network):
    x = blocks(5, 3, 8, 8)
    found = measure(Brighter(), [x[:3], x[3:]], network)
    assert found == pytest.approx(
        {"pictures": 5, "ratio": 4, "psnr": 100, "ssim": 1, "cycle": 0, "perceptual": 0, "frechet": 0},
        abs=1e-4,
    )


def test_measure_of_a_known_error(network):
    x = blocks(6, 3, 8, 8)
    found = measure(Brighter(0.2), [x[:1], x[1:]], network)
    assert found["psnr"] == pytest.approx(20, abs=1e-3) and found["cycle"] == pytest.approx(0.2, abs=1e-5)
    assert found["ssim"] == pytest.approx(ssim(x, x + 0.2).mean().item(), abs=1e-5)
    assert found["perceptual"] == pytest.approx(
        perceptual(scene_maps(network), x, x + 0.2).mean().item(), rel=1e-3
    )
    assert found["frechet"] == pytest.approx(
        frechet(network.features(x).detach(), network.features(x + 0.2).detach()), rel=1e-3
    )


def test_measure_without_a_network_or_with_any_other():
    x = blocks(4, 3, 8, 8)
    assert set(measure(Brighter(), [x])) == {"pictures", "ratio", "psnr", "ssim", "cycle"}
    other = measure(Brighter(0.1), [x], lambda x: x.mean((2, 3)), lambda x, y: (x - y).abs().mean((1, 2, 3)))
    # features move by 0.1 in each of three dimensions
    assert other["frechet"] == pytest.approx(0.03, abs=1e-4) and other["perceptual"] == pytest.approx(0.1)
    with pytest.raises(ValueError, match="no batches"):
        measure(Brighter(), [])


@pytest.mark.parametrize("time_factor", [1, 4])
def test_measure_of_clips(time_factor):
    x = blocks(2, 3, 5, 8, 8)

    class Blinking(Brighter):
        def decode(self, z, first=None):
            y = super().decode(z)
            # frames alternate, whether they come as a clip or one after the other
            sign = torch.tensor([0.1, -0.1, 0.1, -0.1, 0.1])
            return y + (sign.view(5, 1, 1) if y.ndim == 5 else sign.repeat(2).view(-1, 1, 1, 1))

    model = Blinking(time_factor=time_factor)
    found = measure(model, [x])
    assert model.given[0] == ((2, 3, 5, 16, 16) if time_factor > 1 else (10, 3, 16, 16))
    assert found["pictures"] == 10 and found["ratio"] == 4 * time_factor
    assert found["flicker"] == pytest.approx(0.2, abs=1e-5)
    assert found["psnr"] == pytest.approx(26.02, abs=0.01)


def test_psnr_by_distance_in_time():
    x = torch.zeros(2, 3, 3, 4, 4)
    error = torch.tensor([[0.2, 0.02, 0.2], [0.2, 0.02, 0.02]])
    found = by_frame(x, x + error[:, None, :, None, None])
    torch.testing.assert_close(found, torch.tensor([20.0, 40.0, 30.0]))


def test_features_of_clips_are_means_and_changes():
    rows = torch.tensor([[1.0, 0.0], [3.0, 0.0], [2.0, 5.0], [0.0, 0.0], [0.0, 0.0], [0.0, 3.0]])
    torch.testing.assert_close(moving(rows, 3), torch.tensor([[2, 5 / 3, 1.5, 2.5], [0, 1, 0, 1.5]]))


def test_a_distance_of_clips_sees_what_frames_do_not(network):
    """Frames in another order: the same pictures, another movement."""

    class Shuffled(Brighter):
        def decode(self, z, first=None):
            return super().decode(z)[:, :, [0, 2, 4, 1, 3]]

    x = torch.linspace(-0.5, 0.5, 5).view(1, 1, 5, 1, 1) + 0.2 * blocks(6, 3, 5, 8, 8)
    found = measure(Shuffled(time_factor=4), [x[:4], x[4:]], lambda x: x.mean((2, 3)))
    assert found["frechet"] == pytest.approx(0, abs=1e-6) and found["frechet_clips"] > 0.01
    same = measure(Brighter(time_factor=4), [x], network)
    assert same["frechet_clips"] == pytest.approx(0, abs=1e-3)
    assert "frechet_clips" not in measure(Brighter(time_factor=4), [x[:1]], network)


def test_pictures_are_clips_of_one_frame_to_an_autoencoder_of_clips():
    model = Brighter(time_factor=4)
    found = measure(model, [blocks(2, 3, 8, 8)])
    assert model.given[0] == (2, 3, 1, 16, 16) and "flicker" not in found and found["psnr"] == 100


def test_what_comes_back_in_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"\(1, 3, 17, 16\) came back as \(1, 3, 18, 16\)"):
        measure(Brighter(), [torch.zeros(1, 3, 17, 16)])


def test_the_cycle_is_not_clamped_but_pictures_are():
    x = torch.full((2, 3, 16, 16), 0.9)
    found = measure(Brighter(0.3), [x])
    assert found["cycle"] == pytest.approx(0.3, abs=1e-5)
    assert found["psnr"] == pytest.approx(-20 * math.log10(0.1 / 2), abs=0.01)


def test_lpips_without_its_libraries_says_what_is_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    monkeypatch.setitem(sys.modules, "torchmetrics.image", None)
    with pytest.raises(ValueError, match="LPIPS needs torchmetrics") as caught:
        lpips()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "raised", [OSError("no network"), RuntimeError("nms\nmore"), ModuleNotFoundError("vision")]
)
def test_lpips_without_its_weights(monkeypatch, raised):
    def refuse(network):
        raise raised

    fake(monkeypatch, refuse)
    with pytest.raises(ValueError, match=r"pretrained weights .*: (no network|nms|vision)$"):
        lpips()


def fake(monkeypatch, build):
    """Stands in for torchmetrics, whose networks need torchvision and a download."""
    module = types.ModuleType("torchmetrics.image")
    module.lpip = types.SimpleNamespace(LearnedPerceptualImagePatchSimilarity=build)
    monkeypatch.setitem(sys.modules, "torchmetrics", types.ModuleType("torchmetrics"))
    monkeypatch.setitem(sys.modules, "torchmetrics.image", module)


def test_lpips_is_a_distance_per_picture_and_trains_pixels_alone(monkeypatch):
    class Net(torch.nn.Module):
        """Of random weights."""

        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 3, padding=1, bias=False)

        def forward(self, x, y):
            return (self.conv(x) - self.conv(y)).square().mean((1, 2, 3), keepdim=True)

    class Metric:
        def __init__(self, network):
            assert network == "vgg"
            self.net = Net()

        def to(self, device):
            return self

    fake(monkeypatch, Metric)
    x = torch.zeros(2, 3, 4, 4)
    y = x + torch.tensor([0.0, 0.5])[:, None, None, None]
    distance = lpips("vgg")(x, y.requires_grad_())
    assert distance.shape == (2,) and distance[0] == 0 < distance[1]
    distance.sum().backward()
    assert not y.grad[0].any() and y.grad[1].any()
