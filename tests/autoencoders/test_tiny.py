"""The spec's counts, TAESD's, clips, and decoders put on other autoencoders."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from pocketdiffusion import store
from pocketdiffusion.autoencoders.h3ae import H3AE
from pocketdiffusion.autoencoders.h3ae import PRESETS as H3AES
from pocketdiffusion.autoencoders.kl import PRESETS as KL
from pocketdiffusion.autoencoders.kl import AutoencoderKL
from pocketdiffusion.autoencoders.tiny import PRESETS, Config, Grafted, TinyDecoder, count
from pocketdiffusion.nn.causal import chunks
from pocketdiffusion.pipeline import Pipeline, latents_hash


@pytest.mark.parametrize(
    "preset, millions",
    [("snapgen", 1.372), ("snapgen_wide", 1.380), ("snapgen_expanded", 1.386), ("taesd", 1.2225)],
)
def test_published_counts(preset, millions):
    assert round(count(PRESETS[preset]) / 1e6, 4 if preset == "taesd" else 3) == millions
    with torch.device("meta"):
        net = TinyDecoder(PRESETS[preset])
    assert sum(p.numel() for p in net.parameters()) == count(PRESETS[preset])


def test_no_attention_and_one_norm_per_block():
    net = TinyDecoder(PRESETS["snapgen"])
    norms = sum(isinstance(m, torch.nn.GroupNorm) for m in net.modules())
    assert norms == sum(PRESETS["snapgen"].blocks) + 1
    assert not any("Attention" in type(m).__name__ for m in net.modules())


@pytest.mark.parametrize("preset", ["smoke", "scenes", "smoke_clips"])
@torch.no_grad()
def test_sizes(preset):
    net = TinyDecoder(PRESETS[preset]).eval()
    z = net.example(2)[0]
    x = net.decode(z)
    c = net.config
    assert x.shape[-1] == c.factor * z.shape[-1] and x.shape[1] == 3
    if c.double:
        assert x.shape[2] == 1 + c.time_factor * (z.shape[2] - 1)
        # a picture is a clip of one frame
        torch.testing.assert_close(net.decode(z[:, :, 0]), x[:, :, 0], atol=1e-5, rtol=1e-4)
    else:
        # a clip is decoded frame by frame
        clip = torch.stack([z, z.flip(0)], 2)
        torch.testing.assert_close(net.decode(clip)[:, :, 0], x, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_clips_stream():
    torch.manual_seed(0)
    net = TinyDecoder(PRESETS["smoke_clips"]).eval()
    z = torch.randn(1, 8, 6, 4, 4)
    state, parts = None, []
    for chunk in chunks(6, 2):
        x, state = net.stream_decode(z[:, :, chunk], state)
        parts.append(x)
    torch.testing.assert_close(torch.cat(parts, 2), net.decode(z), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_graft_keeps_the_encoder_and_changes_the_decoder():
    vae = AutoencoderKL(KL["smoke"]).eval()
    tiny = TinyDecoder(PRESETS["smoke"]).eval()
    both = Grafted(vae, tiny)
    x = vae.example(2)[0]
    z = both.encode(x)
    assert torch.equal(z, vae.encode(x)) and torch.equal(both.decode(z), tiny(z))
    trained = {id(p) for p in both.parameters() if p.requires_grad}
    assert trained == {id(p) for p in tiny.parameters()}


def test_what_does_not_fit_is_refused():
    vae = AutoencoderKL(KL["smoke"])
    with pytest.raises(ValueError, match="the decoder has channels 16, the autoencoder 4"):
        Grafted(vae, TinyDecoder(Config(widths=(8, 8, 8), blocks=(1, 1, 1), groups=8)))
    with pytest.raises(ValueError, match="factor 8, the autoencoder 4"):
        Grafted(vae, TinyDecoder(Config(4, (8, 8, 8, 8), (1, 1, 1, 1), groups=8)))
    with pytest.raises(ValueError, match="5 channels, expected 4"):
        TinyDecoder(PRESETS["smoke"]).decode(torch.zeros(1, 5, 4, 4))


def test_the_preset_for_clips_of_scenes_fits_their_autoencoder():
    ours, theirs = PRESETS["scenes_clips"], H3AES["scenes"]
    for name in ("channels", "factor", "time_factor"):
        assert getattr(ours, name) == getattr(theirs, name)


@torch.no_grad()
def test_whose_latents_depends_on_the_encoder_alone(tmp_path):
    torch.manual_seed(0)
    nets = [AutoencoderKL(KL["smoke"]), H3AE(H3AES["smoke"])]
    for net in nets:
        before = latents_hash(net)
        store.save(net, tmp_path / "half", torch.float16)
        assert latents_hash(store.load(tmp_path / "half")) == before
        net.decoder.requires_grad_(False)
        next(net.decoder.parameters()).add_(1)
        assert latents_hash(net) == before
        net.scale.mul_(2)
        scaled = latents_hash(net)
        next(net.encoder.parameters()).add_(1)
        assert len({before, scaled, latents_hash(net)}) == 3


def test_a_decoder_of_another_autoencoder_is_refused(tiny_folder, tmp_path):
    config = Config(4, (8, 8, 8), (1, 1, 1), groups=8)
    ours = latents_hash(store.load(tiny_folder / "vae"))
    torch.manual_seed(7)
    theirs = latents_hash(AutoencoderKL(KL["smoke"]))
    for name, whose in {"ours": ours, "theirs": theirs, "nobody": ""}.items():
        store.save(TinyDecoder(replace(config, latents=whose)), tmp_path / name)
    for name in ("ours", "nobody"):
        pipe = Pipeline.from_pretrained(tiny_folder, tmp_path / name)
        assert type(pipe.decoder).__name__ == "TinyDecoder"
    message = f"theirs: reads latents of autoencoder {theirs[:8]}, the vae's are of {ours[:8]}$"
    with pytest.raises(ValueError, match=message):
        Pipeline.from_pretrained(tiny_folder, tmp_path / "theirs")
    # and in a pipeline that was saved with it
    pipe.decoder.config = replace(config, latents=theirs)
    pipe.save_pretrained(tmp_path / "whole")
    with pytest.raises(ValueError, match=message.replace("theirs", "whole", 1)):
        Pipeline.from_pretrained(tmp_path / "whole")


@torch.no_grad()
def test_a_graft_streams_where_both_parts_do():
    torch.manual_seed(0)
    config = replace(PRESETS["smoke_clips"], widths=(8, 8, 8, 16, 16), blocks=(1,) * 5, double=(1, 2))
    vae, tiny = H3AE(H3AES["smoke"]).eval(), TinyDecoder(config).eval()
    both = Grafted(vae, tiny)
    x = vae.example(1)[0]
    state, decoding, parts = None, None, []
    for chunk in chunks(9, 4):
        z, state = both.stream_encode(x[:, :, chunk], state)
        y, decoding = both.stream_decode(z, decoding)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 2), both.decode(both.encode(x)), atol=1e-4, rtol=1e-3)
    # a copy streams by itself
    copied = deepcopy(both)
    copied.decoder.apply(lambda m: isinstance(m, torch.nn.Conv2d) and m.weight.zero_())
    assert not torch.equal(copied.stream_decode(z)[0], both.stream_decode(z)[0])
    pictures = Grafted(AutoencoderKL(KL["smoke"]), TinyDecoder(PRESETS["smoke"]))
    assert not hasattr(pictures, "stream_encode") and not hasattr(pictures, "stream_decode")


@torch.no_grad()
def test_shifted_latents_give_shifted_pixels():
    """The spec's check 10: 8 pixels per position, for norms see all positions and are left out.

    Only where the border is out of sight: no more than 17 positions see into an output.
    """
    torch.manual_seed(0)
    net = TinyDecoder(PRESETS["snapgen"]).eval()
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, torch.nn.GroupNorm):
                setattr(module, name, torch.nn.Identity())
    wide = torch.randn(1, 16, 3, 40)
    for axis, z in ((3, wide), (2, wide.transpose(2, 3))):
        x, moved = net.decode(z), net.decode(z.roll(1, axis))
        inside = slice(8 * 18, 8 * 22)
        found, expected = (v.movedim(axis, 0)[inside] for v in (moved, x.roll(8, axis)))
        assert expected.std() > 1e-3
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
        # at the border the padding is seen
        assert not torch.allclose(moved.movedim(axis, 0)[16:32], x.roll(8, axis).movedim(axis, 0)[16:32])
