"""pocket reconstruct, as a user meets it, and the passage of frames in chunks and tiles."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from pocketdiffusion import store
from pocketdiffusion.autoencoders import h3ae, kl, tiny
from pocketdiffusion.cli.autoencoder import autoencoder_of
from pocketdiffusion.cli.main import guarded
from pocketdiffusion.cli.through import Through
from pocketdiffusion.data.clips import read_clip, write_clip
from pocketdiffusion.eval import reconstruction
from pocketdiffusion.pipeline import latents_hash

pytest.importorskip("av")


def says(capsys, *argv, code=0):
    """Run; what was printed, or for an error the one line on stderr."""
    assert guarded(["reconstruct", *map(str, argv)]) == code, capsys.readouterr()
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("pocket: error:")]
    assert len(lines) == (1 if code else 0)
    return lines[0] if code else out


def waves(frames, h=32, w=32):
    t, y, x = torch.meshgrid(torch.arange(frames), torch.arange(h), torch.arange(w), indexing="ij")
    return 0.8 * torch.stack([(x / 5 + t / 3).sin(), (y / 7 + t / 5).cos(), ((x + y) / 9).sin()])


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A folder of clips, and of a picture and a video autoencoder with random weights."""
    folder = tmp_path_factory.mktemp("clips")
    torch.manual_seed(0)
    for name, network in {
        "pictures": kl.AutoencoderKL(kl.PRESETS["smoke"]),
        "videos": h3ae.H3AE(h3ae.PRESETS["smoke"]),
    }.items():
        for p in network.parameters():
            if not p.any():
                torch.nn.init.normal_(p, std=0.05)
        store.save(network, folder / name)
    write_clip(waves(11), folder / "eleven.png", 8)  # animated, without loss
    write_clip(waves(9), folder / "nine", 8)
    write_clip(waves(5, 30, 45), folder / "odd.mp4", 8)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 45, 3), dtype=np.uint8)).save(
        folder / "photo.png"
    )
    return folder


def panels(path, width, k):
    """Original, reconstruction and difference of a written file, (T, 3, H, W) each, not enlarged."""
    x = read_clip(path)[0].transpose(0, 1)
    assert x.shape[-1] == 3 * k * width + 4
    parts = [x[..., i * (k * width + 2) :][..., : k * width] for i in range(3)]
    return [p[..., ::k, ::k] for p in parts]


def numbers(path):
    return json.loads(path.read_text())["each"][0]


def test_a_picture(clips, tmp_path, capsys):
    out = tmp_path / "new" / "a.png"
    said = says(capsys, clips / "photo.png", "--model", clips / "pictures", "-o", out, "--gain", "2")
    x, y, difference = panels(out, 45, 5)
    photo = read_clip(clips / "photo.png")[0].transpose(0, 1)
    assert torch.equal(x, photo)
    # padded to 32 x 48 by copies, as by hand
    network = autoencoder_of(clips / "pictures")
    padded = torch.nn.functional.pad(photo, (0, 3, 0, 2), mode="replicate")
    with torch.no_grad():
        expected = network.decode(network.encode(padded))[..., :30, :45].clamp(-1, 1)
    assert (y - expected).abs().max() < 0.01
    assert (difference - (2 * (photo - expected).abs() - 1).clamp(max=1)).abs().max() < 0.02
    found = numbers(tmp_path / "new" / "a.json")
    assert found["psnr"] == pytest.approx(reconstruction.psnr(photo, expected).item(), abs=1e-3)
    assert found["ssim"] == pytest.approx(reconstruction.ssim(photo, expected).item(), abs=1e-3)
    assert found["flicker"] is None and found["ratio"] == 12
    assert found["encode_ms_per_frame"] > 0 and f"{found['psnr']:.4g}" in said
    assert sorted(p.name for p in out.parent.iterdir()) == ["a.json", "a.png"]


@pytest.mark.parametrize("model, used", [("pictures", 11), ("videos", 9)])
def test_a_video_in_chunks_is_the_video_at_once(clips, tmp_path, capsys, model, used):
    out = tmp_path / "a.png"
    said = says(capsys, clips / "eleven.png", "--model", clips / model, "-o", out, "--batch", "4")
    x = read_clip(clips / "eleven.png")[0][None, :, :used]
    network = autoencoder_of(clips / model)
    whole = reconstruction.measure(network, [x])
    found = numbers(tmp_path / "a.json")
    assert found["frames"] == used and read_clip(out)[1] == 8
    for name in ("psnr", "ssim", "flicker", "ratio"):
        assert found[name] == pytest.approx(whole[name], rel=1e-3), name
    y = reconstruction.reconstruct(network, reconstruction.fitted(network, x))
    y = y if model == "pictures" else y[0].transpose(0, 1)
    assert (panels(out, 32, 8)[1] - y).abs().max() < 0.01
    told = "eleven.png: 11 frames, H3AE takes 1 + 4 k: the first 9 are used"
    assert (told in said) == (model == "videos")


def test_strict_takes_all_frames_or_none(clips, tmp_path, capsys):
    flags = [clips / "eleven.png", "--model", clips / "videos", "-o", tmp_path / "a.gif", "--strict"]
    assert "11 frames, H3AE takes 1 + 4 k; give --max-frames 9" in says(capsys, *flags, code=2)
    assert not list(tmp_path.iterdir())
    says(capsys, *flags, "--max-frames", "5", "--fps", "20")
    clip, fps = read_clip(tmp_path / "a.gif")
    assert clip.shape[1] == 5 and fps == 20


def test_a_first_frame_is_given_and_not_counted(clips, tmp_path, capsys):
    flags = [clips / "nine", "--first", "-o", tmp_path / "a.png"]
    says(capsys, *flags, "--model", clips / "videos")
    network, x = autoencoder_of(clips / "videos"), read_clip(clips / "nine")[0][None]
    with torch.no_grad():
        y = network.decode(network.encode(x), first=x[:, :, 0]).clamp(-1, 1)
        plain = network.decode(network.encode(x)).clamp(-1, 1)
    shown = panels(tmp_path / "a.png", 32, 8)[1].transpose(0, 1)[None]
    assert (shown - y).abs().max() < 0.01 < (shown - plain).abs().max()
    expected = reconstruction.psnr(*(v[0, :, 1:].transpose(0, 1) for v in (x, y))).mean()
    assert numbers(tmp_path / "a.json")["psnr"] == pytest.approx(expected.item(), abs=1e-3)
    message = "--first: AutoencoderKL takes no first frame"
    assert message in says(capsys, *flags, "--model", clips / "pictures", code=2)


@pytest.mark.parametrize("several", [False, True])
def test_a_first_frame_is_all_of_a_picture(clips, tmp_path, capsys, several):
    """An error before anything is written."""
    photo = tmp_path / "photos" if several else clips / "photo.png"
    if several:
        photo.mkdir()
        for name, side in (("a", 32), ("b", 48)):
            Image.new("RGB", (side, side)).save(photo / f"{name}.png")
    out = tmp_path / ("out" if several else "a.png")
    said = says(capsys, photo, "--model", clips / "videos", "--first", "-o", out, code=2)
    assert f"--first: {photo} is no video" in said and not out.exists()


def test_another_decoder(clips, tmp_path, capsys):
    """Of clips it streams as the whole does; one of other latents is refused."""
    config = tiny.Config(8, (8, 8, 8, 8, 8), (1, 1, 1, 1, 1), groups=8, double=(0, 1))
    network = autoencoder_of(clips / "videos")
    torch.manual_seed(1)
    part = tiny.TinyDecoder(replace(config, latents=latents_hash(network))).eval()
    store.save(part, tmp_path / "small")
    flags = ["--model", clips / "videos", "--decoder", tmp_path / "small"]
    file = tmp_path / "z.safetensors"
    says(capsys, clips / "nine", *flags, "-o", tmp_path / "a.png", "--latents", file)
    x = read_clip(clips / "nine")[0][None]
    with torch.no_grad():
        y = part.decode(network.encode(x)).clamp(-1, 1)[0].transpose(0, 1)
    assert (panels(tmp_path / "a.png", 32, 8)[1] - y).abs().max() < 0.01
    assert json.loads((tmp_path / "a.json").read_text())["decoder"] == str(tmp_path / "small")
    # latents are the encoder's, whoever decodes them
    for i, given in enumerate((flags, flags[:2])):
        says(capsys, file, *given, "-o", tmp_path / f"b{i}.png")
    assert "--first: a --decoder" in says(capsys, clips / "nine", *flags, "--first", code=2)
    for name, changed, said in (
        ("theirs", {"latents": "0" * 32}, "theirs: reads latents of autoencoder 00000000"),
        ("slow", {"double": ()}, "slow: the decoder has time_factor 1, the vae 4"),
        ("thin", {"channels": 4}, "thin: the decoder has channels 4, the vae 8"),
    ):
        store.save(tiny.TinyDecoder(replace(config, **changed)), tmp_path / name)
        wrong = [*flags[:3], tmp_path / name, "-o", tmp_path / "c.png"]
        assert said in says(capsys, clips / "nine", *wrong, code=2)
    assert not (tmp_path / "c.png").exists()


def test_an_mp4_of_odd_size_and_a_folder_out(clips, tmp_path, capsys):
    says(capsys, clips / "odd.mp4", "--model", clips / "videos", "-o", tmp_path / "frames")
    x, _, _ = panels(tmp_path / "frames", 46, 5)
    assert torch.equal(x, read_clip(clips / "odd.mp4")[0].transpose(0, 1))
    assert numbers(tmp_path / "frames.json")["width"] == 46
    says(capsys, clips / "odd.mp4", "--model", clips / "videos", "-o", tmp_path / "a.mp4", "--size", "16")
    assert read_clip(tmp_path / "a.mp4")[0].shape == (3, 5, 256, 3 * 256 + 4)


def test_folders_are_frames_or_pictures(clips, tmp_path, capsys):
    says(capsys, clips / "nine", "--model", clips / "videos", "-o", tmp_path / "a.gif")
    assert read_clip(tmp_path / "a.gif")[0].shape[1] == 9
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for name in ("cat.png", "dog.png", "dog.bmp"):
        Image.open(clips / "photo.png").crop((0, 0, 20 + len(list(mixed.iterdir())), 24)).save(mixed / name)
    (mixed / "bad.png").write_text("no picture")
    said = says(capsys, mixed, "--model", clips / "pictures", "-o", tmp_path / "out")
    assert "left out: " in said and "bad.png: not a picture" in said
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"cat.png.png", "dog.png.png", "dog.bmp.png"}
    record = json.loads((tmp_path / "out.json").read_text())
    each = [n["psnr"] for n in record["each"]]
    assert len(each) == 3 and record["psnr"] == pytest.approx(sum(each) / 3)


@pytest.mark.parametrize("source, model", [("photo.png", "pictures"), ("eleven.png", "videos")])
def test_latents_are_decoded_by_the_autoencoder_that_made_them(clips, tmp_path, capsys, source, model):
    file, width, k = (
        tmp_path / "z.safetensors",
        45 if "photo" in source else 32,
        5 if "photo" in source else 8,
    )
    flags = ["--model", clips / model]
    says(capsys, clips / source, *flags, "-o", tmp_path / "a.png", "--latents", file)
    says(capsys, file, *flags, "-o", tmp_path / "b.png")
    back, fps = read_clip(tmp_path / "b.png")
    # 8 bits twice
    assert (back.transpose(0, 1) - panels(tmp_path / "a.png", width, k)[1]).abs().max() < 0.01
    assert source == "photo.png" or fps == 8
    other = clips / ("videos" if model == "pictures" else "pictures")
    message = says(capsys, file, "--model", other, "-o", tmp_path / "c.png", code=2)
    assert "z.safetensors: latents of autoencoder" in message and f"--model {clips / model}" in message
    assert "--size: " in says(capsys, file, *flags, "--size", "32", code=2)
    file.write_bytes(file.read_bytes()[:-5])
    assert "not a whole safetensors file" in says(capsys, file, *flags, code=2)
    weights = clips / model / "diffusion_pytorch_model.safetensors"
    assert "no latents, expected what" in says(capsys, weights, *flags, code=2)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["gone.mp4"], "gone.mp4: no such file"),
        (["photo.png", "-o", "a.mp4"], "-o a.mp4: expected NAME.png"),
        (["odd.mp4", "-o", "a.avi"], "a.avi: expected a name with .mp4"),
        (["odd.mp4", "--fps", "60", "-o", "a.gif"], "at most 50 frames per second"),
        (["odd.mp4", "--fps", "0"], "--fps 0: expected more than 0"),
        (["odd.mp4", "-o", "odd.mp4"], "-o odd.mp4: is the input"),
        (["odd.mp4", "--max-frames", "0"], "--max-frames 0: expected 1 or more"),
        (["odd.mp4", "--tile", "7"], "--tile 7: expected 16 pixels or more"),
        (["odd.mp4", "--latents", "a.pt"], "--latents a.pt: expected NAME.safetensors"),
        (["odd.mp4", "--model", "nonsense"], "no pipeline 'nonsense'"),
        (["pictures"], "pictures: no pictures"),
        (["gone.safetensors"], "gone.safetensors: no such file"),
        (["odd.mp4", "--device", "toaster"], "device toaster"),
    ],
)
def test_user_errors_are_one_line(clips, capsys, monkeypatch, flags, message):
    monkeypatch.chdir(clips)
    before = sorted(clips.iterdir())
    model = [] if "--model" in flags else ["--model", "pictures"]
    assert message in says(capsys, *flags, *model, code=2)
    assert sorted(clips.iterdir()) == before


def test_a_damaged_video_leaves_nothing(clips, tmp_path, capsys):
    data = bytearray((clips / "odd.mp4").read_bytes())
    at = data.index(b"mdat")
    data[at + 900 : at + 1000] = bytes(100)
    (tmp_path / "bad.mp4").write_bytes(data)
    flags = ["--model", clips / "pictures", "-o", tmp_path / "a.mp4"]
    assert "bad.mp4: " in says(capsys, tmp_path / "bad.mp4", *flags, code=2)
    assert [p.name for p in tmp_path.iterdir()] == ["bad.mp4"]


def test_which_autoencoder_a_name_means(clips, tiny_folder):
    assert type(autoencoder_of("scenes")).__name__ == "AutoencoderKL"
    assert autoencoder_of(tiny_folder).config == autoencoder_of(tiny_folder / "vae").config
    with pytest.raises(ValueError, match="transformer: a DiT has no encode, expected an autoencoder"):
        autoencoder_of(tiny_folder / "transformer")


@pytest.mark.slow
def test_diffusers_autoencoder_of_the_same_name_as_ours(clips, tmp_path, capsys):
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("pocketdiffusion.teachers.autoencoders")
    network = diffusers.AutoencoderKL(block_out_channels=(32,), latent_channels=4)
    network.save_pretrained(tmp_path / "theirs")
    assert autoencoder_of(tmp_path / "theirs").config.channels == 4
    says(capsys, clips / "photo.png", "--model", tmp_path / "theirs", "-o", tmp_path / "a.png")
    assert numbers(tmp_path / "a.json")["ratio"] == 0.75


def passed(way, x):
    """x (T, 3, H, W) through; what came out, and how long the chunks were."""
    parts = [way.decode(way.encode(part)) for part in way.chunks(iter(x), len(x))]
    return torch.cat(parts), [len(part) for part in parts]


@pytest.mark.parametrize("first", [False, True])
def test_a_stream_in_tiles_is_the_clip_in_tiles(clips, first):
    network = autoencoder_of(clips / "videos")
    x = waves(9, 72, 64).transpose(0, 1)
    way, at_once = Through(network, 64, 4, first), Through(network, 64, 4, first)
    at_once.streams = False
    y, lengths = passed(way, x)
    expected, whole = passed(at_once, x)
    assert (lengths, whole) == ([1, 4, 4], [9])
    assert y.shape == x.shape and len(way.functions["encode"].states) == 2
    assert (y - expected).abs().max() < 1e-4
    # the network's memory of one clip is not the next one's
    way.restart()
    assert torch.equal(passed(way, x)[0], y)


def test_tiles_are_near_the_whole_and_small_frames_are_left_alone():
    network = autoencoder_of("scenes")
    x = waves(1, 96, 128).transpose(0, 1)
    tiled, whole = (passed(Through(network, tile), x)[0] for tile in (64, 0))
    assert 0 < (tiled - whole).abs().mean() < 0.05
    assert torch.equal(passed(Through(network, 128), x)[0], whole)


def test_chunks_do_not_grow_with_length(clips):
    pictures, videos = (Through(autoencoder_of(clips / name), batch=6) for name in ("pictures", "videos"))
    assert list(pictures.lengths(15)) == [6, 6, 3]
    assert list(videos.lengths(17)) == [1, 4, 4, 4, 4]
    assert list(videos.lengths(5, latent=True)) == [1, 1, 1, 1, 1]
    assert [videos.usable(n) for n in (1, 4, 5, 8, 9)] == [1, 1, 5, 5, 9]
