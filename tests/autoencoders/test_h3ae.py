"""The spec's check table: counts, causality, streaming, first frames, pictures."""

from dataclasses import replace

import pytest
import torch

from pocketdiffusion.autoencoders.h3ae import H3AE, PRESETS, count
from pocketdiffusion.nn.attention.causal import CausalAttention, CausalBlocks, Ctx, naive_visible
from pocketdiffusion.nn.causal import CausalConv, CausalResBlock, Chain, Frames, TimeDown, TimeUp, chunks
from pocketdiffusion.nn.conv import Down, ResBlock, Up
from pocketdiffusion.nn.rope import angles, grid, rotate
from pocketdiffusion.nn.taps import tap


def noisy(net):
    """Zero-initialised weights have something to say."""
    for p in net.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.1)
    return net.eval()


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return noisy(H3AE(PRESETS["smoke"]))


@pytest.fixture(scope="module")
def clip():
    g = torch.Generator().manual_seed(1)
    return torch.rand(2, 3, 13, 32, 64, generator=g) * 2 - 1


@pytest.mark.parametrize(
    "preset, encoder, decoder",
    [
        ("4x16x16_c64", 64_228_224, 64_574_659),
        ("4x16x16_c32", 63_343_424, 64_132_291),
        ("smoke", 500_760, 506_499),
    ],
)
def test_counts_of_the_reference_network(preset, encoder, decoder):
    with torch.device("meta"):
        net = H3AE(replace(PRESETS[preset], omni=False))
    assert sum(p.numel() for p in net.encoder.parameters()) == encoder
    assert sum(p.numel() for p in net.decoder.parameters()) == decoder
    assert count(net.config) == encoder + decoder


def counted(*modules):
    return sum(p.numel() for module in modules for p in module.parameters())


def test_parts_of_the_reference_network_cost_what_the_spec_says():
    """Both breakdowns at c = 32, with a temporal layer inside every ``up`` and ``down`` that has one."""
    with torch.device("meta"):
        net = H3AE(replace(PRESETS["4x16x16_c32"], omni=False))
    e, d = net.encoder, net.decoder
    blocks = [m for m in e.levels.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Conv3d)]
    norms = [m for m in e.levels.modules() if isinstance(m, torch.nn.GroupNorm)]
    spatial, temporal = ([m for m in e.down.modules() if isinstance(m, kind)] for kind in (Down, TimeDown))
    assert counted(e.stem) == 1_792
    assert (counted(*blocks), counted(*norms)) == (47_264_896, 10_496)
    assert (counted(*spatial), counted(*temporal)) == (1_344_768, 1_229_696)
    assert counted(e.norm) == 1_024 and counted(e.head) == 884_800
    for attend in (e.attend, d.attend):
        found = {"weights": 0, "biases": 0, "norms": 0, "heads": 0}
        for name, p in attend.named_parameters():
            kind = "heads" if ".norm_" in name else "norms" if ".norm" in name else "weights"
            found["biases" if name.endswith("bias") else kind] += p.numel()
        assert found == {"weights": 12_582_912, "biases": 18_432, "norms": 4_096, "heads": 512}
    assert counted(d.conv_in) == 442_880
    assert [counted(level) for level in d.levels] == [74_112, 591_360, 2_362_368, 15_929_856, 28_317_696]
    spatial, temporal = ([m for m in d.up.modules() if isinstance(m, kind)] for kind in (Up, TimeUp))
    assert [counted(m) for m in spatial] == [33_024, 131_584, 394_240, 787_968]
    assert [counted(m) for m in temporal] == [885_504, 1_573_888]
    assert [counted(m) for m in d.tail if counted(m)] == [128, 1_731]


def test_first_frame_costs_what_the_spec_says():
    reference = PRESETS["4x16x16_c32"]
    assert count(reference) - count(replace(reference, omni=False)) == 496_960


LAYERS = {
    "conv": lambda: CausalConv(8, 8),
    "block": lambda: CausalResBlock(8),
    "down": lambda: TimeDown(8),
    "up": lambda: TimeUp(8),
    "frames": lambda: Chain(Frames(ResBlock(8, 8))),
    "attention": lambda: CausalBlocks(32, 2, 2, 64, window=3),
    "one-frame attention": lambda: CausalBlocks(32, 1, 2, 64, window=1),
    "chain": lambda: Chain(
        CausalConv(8, 8), Frames(ResBlock(8, 8)), TimeDown(8), TimeUp(8), CausalResBlock(8)
    ),
}


@pytest.mark.parametrize("length", [2, 4])
@pytest.mark.parametrize("layer", LAYERS)
@torch.no_grad()
def test_every_layer_streams_what_it_computes(layer, length):
    torch.manual_seed(0)
    net = LAYERS[layer]().eval()
    x = torch.randn(2, 32 if "attention" in layer else 8, 9, 3, 5)
    state, parts, shapes = None, [], []
    for chunk in chunks(9, length):
        y, state = net.stream(x[:, :, chunk], state)
        parts.append(y)
        shapes.append({k: v.shape for k, v in state.items()})
    torch.testing.assert_close(torch.cat(parts, 2), net(x), atol=1e-5, rtol=1e-4)
    assert all(s == shapes[0] for s in shapes), "a state changes its shape"


def test_who_sees_whom():
    seen = naive_visible(frames=3, past=2, window=2).int().tolist()
    assert seen == [[0, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 1]]


@pytest.mark.parametrize("known", [None, [1.0, 1.0], [0.0, 1.0]])
def test_frames_with_their_windows_are_the_masked_whole(known):
    """Outputs and gradients, against one attention over everything with a mask."""
    torch.manual_seed(0)
    layer, n, past = CausalAttention(32, 2, 16, bias=True), 6, 0 if known is None else 2
    x = torch.randn(2, 3 * n, 32, requires_grad=True)
    state = {k: torch.randn(2, 2, past * n, 16) for k in "kv"} if past else None
    rope = angles(grid(past + 3, 2, 3), 16, widths=(4, 6, 6))
    seen = torch.tensor(known) if known else None
    y = layer.stream(x, state, Ctx(rope, n, 3, seen))[0]
    q, k = (
        norm(f(x).unflatten(-1, (2, -1)).transpose(1, 2))
        for f, norm in ((layer.q, layer.norm_q), (layer.k, layer.norm_k))
    )
    v = layer.v(x).unflatten(-1, (2, -1)).transpose(1, 2)
    if state:
        k, v = torch.cat([state["k"], k], 2), torch.cat([state["v"], v], 2)
    mask = naive_visible(3, past, 3)
    if seen is not None:
        mask = mask & torch.cat([seen > 0.5, torch.ones(3, dtype=torch.bool)])
    mask = mask.repeat_interleave(n, 0).repeat_interleave(n, 1)
    whole = layer.core(rotate(q, rope[:, past * n :]), rotate(k, rope), v, mask)
    wanted = layer.out(whole.transpose(1, 2).flatten(2))
    torch.testing.assert_close(y, wanted, atol=1e-5, rtol=1e-4)
    for a, b in zip(*(torch.autograd.grad(f.square().sum(), [x, layer.k.weight]) for f in (y, wanted))):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_latents_do_not_see_the_future(net, clip):
    changed = clip.clone()
    changed[:, :, 5:] = 0
    z, other = net.encode(clip), net.encode(changed)
    # latent 0 holds frame 0, latent 1 frames 1 to 4
    torch.testing.assert_close(z[:, :, :2], other[:, :, :2], atol=1e-6, rtol=0)
    assert not torch.allclose(z[:, :, 2], other[:, :, 2])


@torch.no_grad()
def test_frames_do_not_see_later_latents(net, clip):
    z = net.encode(clip)
    changed = z.clone()
    changed[:, :, 2:] = 0
    x, other = net.decode(z), net.decode(changed)
    torch.testing.assert_close(x[:, :, :5], other[:, :, :5], atol=1e-6, rtol=0)
    assert not torch.allclose(x[:, :, 5], other[:, :, 5])


LEVELS = [f"{side}.levels.{i}" for side in ("encoder", "decoder") for i in range(5)]
PARTS = ["encoder.stem", "encoder.down.3.0", "encoder.attend.blocks.0.attn", "encoder.head"]
PARTS += ["decoder.attend", "decoder.up.2", "decoder.levels.3.0.conv1", "decoder.tail"]


@torch.no_grad()
def test_taps_see_every_level_and_change_nothing(net, clip):
    """The plain path calls every part as a module; the stream, which does not, gives the same bits."""
    x, first = clip, clip[:, :, 0]
    y, seen = tap(net, [*LEVELS, *PARTS])(x, first)
    assert set(seen) == {*LEVELS, *PARTS}
    z = net.encode(x)
    assert torch.equal(y, net.decode(z, first)) and torch.equal(y, net.stream_decode(z, None, first)[0])
    assert torch.equal(z, net.stream_encode(x)[0])
    sides = {name: tuple(seen[name].shape[-3:]) for name in LEVELS}
    assert [sides[f"encoder.levels.{i}"] for i in (0, 2, 3, 4)] == [
        (13, 32, 64),
        (13, 8, 16),
        (13, 4, 8),
        (7, 2, 4),
    ]
    # features of the clip, though those of the first frame pass the same levels
    assert all(sides[f"decoder.levels.{i}"] == sides[f"encoder.levels.{i}"] for i in range(5))


@torch.no_grad()
def test_numbers_are_those_of_the_first_version():
    """Means of absolute outputs of a seeded network, from before the plain path and the stream parted."""
    torch.manual_seed(0)
    net = noisy(H3AE(PRESETS["smoke"]))
    x = torch.rand(2, 3, 13, 32, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    z = net.encode(x)
    found = [v.double().abs().mean().item() for v in (z, net.decode(z), net.decode(z, x[:, :, 0]))]
    assert found == pytest.approx([0.205816, 0.240456, 0.240867], rel=1e-4)


@torch.no_grad()
def test_a_picture_is_the_first_frame_of_a_clip(net, clip):
    z = net.encode(clip)
    torch.testing.assert_close(net.encode(clip[:, :, 0]), z[:, :, 0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(net.decode(z[:, :, 0]), net.decode(z)[:, :, 0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("length", [4, 8])
@torch.no_grad()
def test_streams_equal_the_whole_clip_beyond_the_window(net, length):
    """41 frames are 11 latent frames, more than the 8 that attention remembers."""
    x = torch.rand(1, 3, 41, 32, 32, generator=torch.Generator().manual_seed(2)) * 2 - 1
    z = net.encode(x)
    state, parts = None, []
    for chunk in chunks(41, length):
        part, state = net.stream_encode(x[:, :, chunk], state)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, 2), z, atol=1e-4, rtol=0)
    for first in (None, x[:, :, 0]):
        state, parts = None, []
        for chunk in chunks(z.shape[2], length // 4):
            part, state = net.stream_decode(z[:, :, chunk], state, first)
            parts.append(part)
        torch.testing.assert_close(torch.cat(parts, 2), net.decode(z, first), atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_first_frame_says_nothing_before_training(clip):
    torch.manual_seed(0)
    net = H3AE(PRESETS["smoke"]).eval()
    z = net.encode(clip)
    assert torch.equal(net.decode(z), net.decode(z, clip[:, :, 0]))
    plain = H3AE(replace(PRESETS["smoke"], omni=False)).eval()
    left = plain.load_state_dict(net.state_dict(), strict=False)
    assert all("inject" in name for name in left.unexpected_keys) and not left.missing_keys
    assert torch.equal(net.decode(z), plain.decode(z))


@torch.no_grad()
def test_rows_that_are_not_told_know_nothing(net, clip):
    z, first = net.encode(clip), clip[:, :, 0]
    mixed = net.decode(z, first, torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(mixed[:1], net.decode(z[:1], first[:1]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(mixed[1:], net.decode(z[1:]), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(mixed[:1], net.decode(z[:1]))


@torch.no_grad()
def test_calibrated_latents_have_unit_variance_and_decode_alike(clip):
    torch.manual_seed(0)
    net = H3AE(PRESETS["smoke"]).eval()
    before = net.decode(net.encode(clip))
    net.calibrate(clip.repeat(3, 1, 1, 1, 1))  # more clips than go through at once
    z = net.encode(clip)
    torch.testing.assert_close(z.mean((0, 2, 3, 4)), torch.zeros(8), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.std((0, 2, 3, 4), correction=0), torch.ones(8), atol=1e-4, rtol=0)
    torch.testing.assert_close(net.decode(z), before, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("preset", [p for p in PRESETS if "x" in p and "smoke" not in p])
def test_presets_compress_as_their_names_say(preset):
    c = PRESETS[preset]
    words = preset.split("_")[0].split("x")
    assert [c.time_factor, c.factor, c.factor] == [int(w) for w in words]
    with torch.device("meta"):
        net = H3AE(c)
        frames = 1 + 2 * c.time_factor if c.time_factor > 1 else 1
        z = net.encode(torch.empty(1, 3, frames, 64, 96))
    assert z.shape == (1, c.channels, 1 + (frames - 1) // c.time_factor, 64 // c.factor, 96 // c.factor)


@pytest.mark.parametrize(
    "shape, said",
    [
        ((1, 3, 4, 32, 32), "4 frames: expected 1 \\+ 4 k"),
        ((1, 3, 5, 30, 32), "multiples of 16"),
        ((1, 4, 5, 32, 32), "expected clips"),
    ],
)
def test_clips_that_do_not_fit(net, shape, said):
    with pytest.raises(ValueError, match=said):
        net.encode(torch.zeros(shape))


@pytest.mark.parametrize(
    "frames, said", [(6, "a chunk of 6 frames: expected a multiple of 4"), (2, "2 frames")]
)
@torch.no_grad()
def test_chunks_that_do_not_fit(net, frames, said):
    _, state = net.stream_encode(torch.zeros(1, 3, 1, 32, 32))
    with pytest.raises(ValueError, match=said):
        net.stream_encode(torch.zeros(1, 3, frames, 32, 32), state if frames == 6 else None)


def test_latents_of_others_and_wrong_configs(net):
    with pytest.raises(ValueError, match="7 channels, expected 8"):
        net.decode(torch.zeros(1, 7, 2, 2, 2))
    with pytest.raises(ValueError, match="takes no first frame"):
        plain = H3AE(replace(PRESETS["smoke"], omni=False))
        plain.decode(torch.zeros(1, 8, 1, 2, 2), torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match=r"latents of shape \(8, 2, 2\): expected \(B, 8, T, h, w\)"):
        net.decode(torch.zeros(8, 2, 2))
    with pytest.raises(ValueError, match="3 numbers of blocks for 5 widths"):
        H3AE(replace(PRESETS["smoke"], blocks=(1, 1, 1)))


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (2, 3, 32, 32), (2, 3, 1, 32, 64), (2, 4, 32, 64)])
def test_first_frames_that_do_not_fit(net, shape):
    """Of another batch, size, rank or number of colours; at the start of a stream too."""
    first, z = torch.zeros(shape), torch.zeros(2, 8, 1, 2, 4)
    said = "a first frame of shape .*, expected \\(2, 3, 32, 64\\)"
    for call in (lambda: net.decode(z, first), lambda: net.stream_decode(z, None, first)):
        with pytest.raises(ValueError, match=said):
            call()
    with pytest.raises(ValueError, match=said):
        net(torch.zeros(2, 3, 1, 32, 64), first)
    assert net.decode(z[:, :, 0], torch.zeros(2, 3, 32, 64)).shape == (2, 3, 32, 64)


def test_pictures_do_not_stream(net):
    with pytest.raises(ValueError, match=r"a chunk of shape \(1, 3, 32, 32\): expected \(B, 3, T, H, W\)"):
        net.stream_encode(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match=r"a chunk of shape \(1, 8, 2, 2\): expected \(B, 8, T, h, w\)"):
        net.stream_decode(torch.zeros(1, 8, 2, 2))
