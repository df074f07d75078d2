"""Foreign denoisers: taps, maps, gradients, latents, faults."""

import copy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
sys.path.append(str(Path(__file__).parent))
import diffusers
from tiny_denoisers import FLOWS, TINY, VIDEO, network, path, pipeline, tiny

from pocketdiffusion.autoencoders import kl
from pocketdiffusion.autoencoders import tiny as tiny_decoder
from pocketdiffusion.data.latents import latents_hash
from pocketdiffusion.nn.taps import tap
from pocketdiffusion.teachers import autoencoders
from pocketdiffusion.teachers.convert import Flow
from pocketdiffusion.teachers.diffusers import Foreign, load
from pocketdiffusion.teachers.published import PUBLISHED, Published

pytestmark = pytest.mark.slow


def vae():
    config = {"block_out_channels": (8, 16), "norm_num_groups": 4, "scaling_factor": 0.5}
    down, up = ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2
    torch.manual_seed(0)
    return diffusers.AutoencoderKL(**config, down_block_types=down, up_block_types=up).eval()


# latents


def test_which_latents(tmp_path):
    place = pipeline("sd1.5", tmp_path)
    assert load(tmp_path).latents is None  # like no published model
    vae().save_pretrained(tmp_path / "vae")
    own = autoencoders.load(tmp_path / "vae")
    for source in (tmp_path, place):
        model = load(source)
        assert model.latents == latents_hash(own)
    model.expects(own)
    other = autoencoders.load(tmp_path / "vae")
    with torch.no_grad():
        other.model.encoder.conv_in.weight.add_(0.1)
    told = (
        rf"^latents of autoencoder {latents_hash(other)[:8]} \(AutoencoderKL\): UNet2DConditionModel expects"
    )
    with pytest.raises(ValueError, match=rf"{told} those of {latents_hash(own)[:8]}$"):
        model.expects(other)
    # one of ours with as many channels
    ours = kl.AutoencoderKL(kl.Config(channels=4))
    with pytest.raises(ValueError, match=rf"{latents_hash(ours)[:8]} .* those of {latents_hash(own)[:8]}$"):
        model.expects(ours)
    # a decoder that says whose latents it reads
    decoder = tiny_decoder.TinyDecoder(tiny_decoder.Config(channels=4, latents=latents_hash(own)))
    model.expects(decoder)


def test_latents_of_published_models():
    model = Foreign(network("sd1.5"), path("sd1.5"), "sd1.5")
    encoder = vae()
    encoder.register_to_config(scaling_factor=0.18215)
    model.expects(autoencoders.Foreign(encoder))
    encoder.register_to_config(scaling_factor=0.13025)
    told = (
        r"latents of autoencoder .* \(AutoencoderKL\): .* those of sd1\.5 \(AutoencoderKL, scal.* 0\.18215\)"
    )
    with pytest.raises(ValueError, match=told):
        model.expects(autoencoders.Foreign(encoder))
    with pytest.raises(ValueError, match=r"those of sd1\.5"):
        model.expects(kl.AutoencoderKL(kl.Config(channels=4)))
    wide = Foreign(
        diffusers.SD3Transformer2DModel(**TINY["sd3"][1] | {"in_channels": 16, "out_channels": 16}), Flow()
    )
    with pytest.raises(ValueError, match="latents of 4 channels: this denoiser takes 16"):
        wide.expects(autoencoders.Foreign(encoder))


# features


@pytest.mark.parametrize("name", TINY)
def test_blocks_and_maps(name):
    model = tiny(name)
    x, t, cond = model.example()
    x = x[..., :-2] if name in ("sd3", "flux", "qwen", "wan") else x  # not square
    v, seen = tap(model, model.blocks)(x, t, cond)
    assert list(seen) == list(model.blocks) and model.last == model.blocks[-1]
    frames, side = model.family.patch(model.model.config)
    grid = (*(() if name not in VIDEO else (x.shape[2] // frames,)), x.shape[-2] // side, x.shape[-1] // side)
    for feature in seen.values():
        assert feature.isfinite().all()
        found = model.map(feature, x)
        assert found.shape[0] == 2
        if TINY[name][0] != "UNet2DConditionModel":
            assert found.shape[2:] == grid
            assert torch.equal(found.flatten(2).transpose(1, 2), feature)  # row by row
    if TINY[name][0] == "UNet2DConditionModel":
        assert [k.removeprefix("features.") for k in seen] == [
            "down_blocks_0",
            "down_blocks_1",
            "mid_block",
            "up_blocks_0",
            "up_blocks_1",
        ]
        assert model.map(seen[model.last], x).shape == (2, 8, *x.shape[-2:])
    assert torch.equal(v, model(x, t, cond))


@pytest.mark.parametrize("name", ["sd3", "flux", "qwen"])
def test_the_picture_is_tapped_and_not_the_text(name):
    """The last block's feature is what the output layer reads."""
    model = tiny(name)
    x, t, cond = model.example()
    read = []
    hook = model.model.norm_out.register_forward_hook(lambda m, inputs, out: read.append(inputs[0]))
    _, seen = tap(model, [model.last])(x, t, cond)
    hook.remove()
    assert torch.equal(seen[model.last], read[0])


def test_a_map_moves_with_its_picture():
    """Of a network without positions: shift the picture by a patch, and the map moves."""
    model = Foreign(network("sana"), path("sana"))
    x, t, cond = model.example()
    for block in model.model.transformer_blocks:
        torch.nn.init.zeros_(block.ff.conv_depth.weight)  # its borders are not periodic
    maps = []
    with torch.no_grad():
        for picture in (x, x.roll((1, 2), (-2, -1))):
            _, seen = tap(model, [model.last])(picture, t, cond)
            maps.append(model.map(seen[model.last], picture))
    torch.testing.assert_close(maps[1], maps[0].roll((1, 2), (-2, -1)), atol=1e-5, rtol=1e-4)


def test_gradients_reach_x_and_no_weight():
    model = tiny("sd3").requires_grad_(False)
    x, t, cond = model.example()
    x.requires_grad_(True)
    v, seen = tap(model, [model.blocks[0]])(x, t, cond)
    (gradient,) = torch.autograd.grad(seen[model.blocks[0]].square().sum() + v.sum(), x)
    assert gradient.abs().sum() > 0
    assert not any(p.requires_grad for p in model.parameters())


def test_a_copy_taps_itself():
    model = tiny("sd3")
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for p in twin.parameters():
            p.mul_(0.5)
    x, t, cond = model.example()
    own, others = (tap(m, [m.last])(x, t, cond)[1][m.last] for m in (model, twin))
    assert not torch.equal(own, others)


# faults


def test_the_first_layer_that_is_not_finite_is_named():
    model = tiny("sd3")
    x, t, cond = model.example()
    assert torch.equal(model.check(x, t, cond), model(x, t, cond))
    with torch.no_grad():
        model.model.transformer_blocks[1].ff.net[2].bias[0] = torch.inf
    told = r"^transformer_blocks.1.ff.net.2 \(Linear\) of SD3Tr.* is the first that is not finite, in .*32"
    with pytest.raises(ValueError, match=told):
        model.check(x, t, cond)
    with pytest.raises(ValueError, match=r"^x of the denoiser: not finite"):
        model.check(x / 0, t, cond)
    assert not [m for m in model.modules() if len(m._forward_hooks) > 1]


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("sd3", {"x": (2, 3, 8, 8)}, r"x of shape \(2, 3, 8, 8\): expected \(B, 4, H, W\)$"),
        ("sd3", {"x": (2, 4, 3, 8, 8)}, r"expected \(B, 4, H, W\)$"),
        ("wan", {"x": (2, 4, 8)}, r"expected \(B, 4, H, W\) or \(B, 4, T, H, W\)$"),
        ("flux", {"x": (2, 4, 8, 7)}, r"x of shape .*: expected sides that are multiples of 2"),
        ("dit", {"x": (2, 4, 8, 4)}, r"DiTTransformer2DModel takes squares only"),
        ("sd3", {"t": (3,)}, r"t of shape \(3,\): expected \(2,\)$"),
        ("sd3", {"t": (2, 3)}, r"t of shape \(2, 3\): expected \(2,\)$"),
        ("wan", {"t": (2, 5)}, r"t of shape \(2, 5\): expected \(2,\) or \(2, 3\)$"),
        ("sdxl", {"tokens": (2, 7, 11)}, r"cond.tokens of width 11: expected 12"),
        ("sdxl", {"pooled": None}, r"cond.pooled None: expected \(B, 10\)"),
        ("sd3", {"pooled": (2, 9)}, r"cond.pooled of width 9: expected \(B, 10\)"),
        ("dit", {"label": None}, r"cond.label None: expected \(B,\), the number of a class"),
    ],
)
def test_inputs_that_do_not_fit(name, change, message):
    model = tiny(name)
    x, t, cond = model.example()
    made = {k: None if shape is None else torch.rand(shape) for k, shape in change.items()}
    x, t = made.pop("x", x), made.pop("t", t)
    with pytest.raises(ValueError, match=message):
        model(x, t, replace(cond, **made))


def test_other_networks_are_refused():
    with pytest.raises(
        ValueError, match=r"unknown class of denoiser 'Linear'; known: UNet2DConditionModel, "
    ):
        Foreign(torch.nn.Linear(1, 1), Flow())
    inpainting = diffusers.UNet2DConditionModel(**TINY["sd1.5"][1], in_channels=9)
    with pytest.raises(
        ValueError, match="with 9 channels in and 4 out: expected a denoiser that takes x and nothing"
    ):
        Foreign(inpainting, path("sd1.5"))


def test_every_entry_has_a_family_and_an_autoencoder():
    for entry in PUBLISHED.values():
        assert isinstance(entry, Published) and entry.latents in autoencoders.PUBLISHED
    assert {v[0] for v in TINY.values()} == {v.kind for v in PUBLISHED.values()}
    assert set(FLOWS) == {"sd3", "flux", "qwen", "sana", "wan", "ltx"}
