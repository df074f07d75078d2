"""Clips that were written come back; what cannot be read is named."""

import sys
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from pocketdiffusion.data import record, video
from pocketdiffusion.data.clips import Clips, frames_of, read_clip, write_clip
from pocketdiffusion.data.files import read_picture
from pocketdiffusion.eval.reconstruction import psnr

av = pytest.importorskip("av")
NTSC = 30000 / 1001


def smooth(frames=12, h=48, w=64):
    """Waves that move, (3, T, H, W)."""
    t, y, x = torch.meshgrid(torch.arange(frames), torch.arange(h), torch.arange(w), indexing="ij")
    return 0.8 * torch.stack([(x / 20 + t / 5).sin(), (y / 15 + t / 7).cos(), ((x + y) / 25).sin()])


def decibels(a, b):
    return psnr(a.transpose(0, 1), b.transpose(0, 1)).min().item()


@pytest.mark.parametrize(
    "name, floor, rates",
    [
        ("a.mp4", 36, (24, NTSC, 7.5)),
        ("a.mov", 36, (24, NTSC)),
        ("a.mkv", 36, (24, NTSC)),
        ("a.webm", 36, (24, NTSC)),
        # 255 colours for all hues at once
        ("a.gif", 26, (24, 10)),
        # rounding to 8 bits alone
        ("a.png", 58, (24, 10)),
        ("a", 58, (24, NTSC)),
    ],
)
def test_round_trip(tmp_path, name, floor, rates):
    clip = smooth()
    for fps in rates:
        write_clip(clip, tmp_path / "new" / name, fps)
        back, rate = read_clip(tmp_path / "new" / name)
        assert back.shape == clip.shape and rate == pytest.approx(fps, abs=1e-4)
        assert decibels(clip, back) > floor
    assert [p.name for p in (tmp_path / "new").iterdir()] == [name]


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a.png", "a"])
def test_frames_that_are_alike_are_all_kept(tmp_path, name):
    write_clip(smooth(1).expand(-1, 7, -1, -1), tmp_path / name, 10)
    back, fps = read_clip(tmp_path / name)
    assert back.shape[1] == 7 and fps == 10


def test_colours_survive_and_are_told(tmp_path):
    chart = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (200, 30, 120)]
    x = torch.tensor(chart).float().T[:, None, None, :].repeat_interleave(32, 3) / 127.5 - 1
    write_clip(x.expand(-1, 3, 32, -1), tmp_path / "a.mp4", 24)
    back = read_clip(tmp_path / "a.mp4")[0][:, 1, 16, 16::32]
    assert ((back.T + 1) * 127.5 - torch.tensor(chart)).abs().max() < 4
    with av.open(str(tmp_path / "a.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_range, context.pix_fmt) == (1, 1, "yuv420p")


def test_quality_is_a_choice(tmp_path):
    clip = smooth() + 0.1 * torch.randn(3, 12, 48, 64, generator=torch.Generator().manual_seed(0))
    sizes = []
    for crf in (10, 17, 30):
        write_clip(clip, tmp_path / "a.mp4", 24, crf)
        sizes.append((tmp_path / "a.mp4").stat().st_size)
    assert sizes[0] > 1.2 * sizes[1] and sizes[1] > 2 * sizes[2]


@pytest.fixture(scope="module")
def keyed(tmp_path_factory):
    """A clip in which decoding can start at every fifth frame, and frames are stored out of order."""
    path = tmp_path_factory.mktemp("keyed") / "a.mp4"
    kind = replace(record.KINDS[".mp4"], options={"g": "5", "bf": "2"})
    frames = [((x + 1) * 127.5).byte().permute(1, 2, 0).numpy() for x in smooth(23).unbind(1)]
    record._encode(iter(frames), path, kind, Fraction(24), 17)
    return path


@pytest.mark.parametrize("start, stride", [(0, 1), (3, 1), (5, 1), (14, 2), (22, 1), (1, 6)])
def test_a_part_is_the_whole_s_part_to_the_bit(keyed, start, stride):
    whole, fps = read_clip(keyed)
    assert len(video.opened(keyed).keys) >= 5
    assert torch.equal(torch.stack(list(frames_of(keyed)), 1), whole)
    part, slower = read_clip(keyed, start=start, stride=stride)
    assert torch.equal(part, whole[:, start::stride]) and slower == fps / stride


def test_only_what_is_needed_is_decoded(keyed, monkeypatch):
    seen = []
    monkeypatch.setattr(video, "rgb", lambda frame, rgb=video.rgb: seen.append(frame.pts) or rgb(frame))
    frames = frames_of(keyed, start=17)
    assert not seen
    next(frames)
    assert len(seen) == 1


def test_sizes_are_those_of_pictures(tmp_path):
    write_clip(smooth(2, 40, 64), tmp_path / "a", 24)
    back = read_clip(tmp_path / "a", size=(10, 12))[0]
    assert torch.equal(back[:, 1], read_picture(tmp_path / "a" / "frame-00001.png", (10, 12)))
    assert read_clip(tmp_path / "a", size=16)[0].shape == (3, 2, 16, 16)


def test_odd_sides_get_a_copy_where_colour_is_halved(tmp_path):
    clip = smooth(3, 33, 47)
    write_clip(clip, tmp_path / "a.mp4", 24)
    back = read_clip(tmp_path / "a.mp4")[0]
    assert back.shape == (3, 3, 34, 48)
    assert decibels(torch.nn.functional.pad(clip, (0, 1, 0, 1), mode="replicate"), back) > 34
    write_clip(clip, tmp_path / "a.gif", 24)
    assert read_clip(tmp_path / "a.gif")[0].shape == clip.shape


def test_a_video_held_upright_is_upright(tmp_path):
    write_clip(smooth(2), tmp_path / "a.mp4", 24)
    data = (tmp_path / "a.mp4").read_bytes()
    whole = read_clip(tmp_path / "a.mp4")[0]
    # the matrix of the track header: as it is, and turned clockwise by 90 degrees
    one = 0x10000
    straight, turned = (
        b"".join(v.to_bytes(4, "big", signed=True) for v in m)
        for m in ((one, 0, 0, 0, one, 0, 0, 0, 1 << 30), (0, one, 0, -one, 0, 0, 0, 0, 1 << 30))
    )
    at = data.index(straight, data.index(b"tkhd"))
    (tmp_path / "b.mp4").write_bytes(data[:at] + turned + data[at + len(turned) :])
    assert torch.equal(read_clip(tmp_path / "b.mp4")[0], whole.rot90(-1, (2, 3)))


def test_animations_of_others(tmp_path):
    frames = [Image.new("RGBA", (8, 6), (255, 0, 0, 0 if i == 1 else 255)) for i in range(3)]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], duration=50, lossless=True)
    clip, fps = read_clip(tmp_path / "a.webp")
    assert clip.shape == (3, 3, 6, 8) and fps == 20
    assert clip[:, :, 0, 0].T.tolist() == [[1, -1, -1], [1, 1, 1], [1, -1, -1]]


def test_numbers_are_counted_and_not_spelled(tmp_path):
    for i in (9, 10, 11):
        Image.new("RGB", (4, 4), (i, 0, 0)).save(tmp_path / f"shot{i}.png")
    clip, fps = read_clip(tmp_path)
    assert fps == video.FPS
    assert ((clip[0, :, 0, 0] + 1) * 127.5).round().tolist() == [9, 10, 11]
    Image.new("RGB", (4, 6)).save(tmp_path / "shot12.png")
    with pytest.raises(ValueError, match=r"shot12\.png: 6 x 4 pixels, expected 4 x 4 as before"):
        read_clip(tmp_path)
    Image.new("RGB", (4, 4)).save(tmp_path / "other1.png")
    with pytest.raises(ValueError, match="no frames, expected pictures called one name and a number"):
        read_clip(tmp_path)


def fails(match, f, *args, **kwargs):
    with pytest.raises(ValueError, match=match) as error:
        f(*args, **kwargs)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm", ".gif", ".png"])
def test_what_is_no_whole_video_is_named(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    fails(f"a{suffix}: no such file", read_clip, path)
    path.write_bytes(b"")
    fails(f"a{suffix}: zero bytes", read_clip, path)
    path.write_text("this is no video\n" * 99)
    fails(f"a{suffix}: (not a picture|cannot be decoded)", read_clip, path)
    noise = torch.rand(3, 30, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    write_clip(noise, path, 24)
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    holes = bytearray(data)
    holes[len(data) // 2 : len(data) * 3 // 4] = rng.bytes(len(data) * 3 // 4 - len(data) // 2)
    cut = data[: len(data) // 2]
    for broken in (bytes(holes), cut):
        path.write_bytes(broken)
        if suffix in (".mkv", ".webm"):
            # they do not tell how many frames there should be: what is whole is read
            assert read_clip(path)[0].shape[1] < 25
        else:
            fails(f"a{suffix}: (cut off|cannot be decoded|damaged)", read_clip, path)


def test_sound_and_nothing_are_no_video(tmp_path):
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        sound.rate, sound.pts = 44100, 0
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    fails(r"sound\.mp4: holds no pictures", read_clip, tmp_path / "sound.mp4")
    with av.open(str(tmp_path / "none.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        container.start_encoding()
    fails(r"none\.mp4: (holds no pictures|no frame)", read_clip, tmp_path / "none.mp4")
    (tmp_path / "empty").mkdir()
    fails("empty: no frames", read_clip, tmp_path / "empty")


def test_too_short(keyed):
    assert read_clip(keyed, frames=4, start=14, stride=2)[0].shape[1] == 4
    fails(r"a\.mp4: too short, 23 frames, expected 24 from frame 0", read_clip, keyed, frames=24)
    fails("too short, 23 frames, expected 4 from frame 14, stride 3", read_clip, keyed, 4, None, 14, 3)
    fails("too short", read_clip, keyed, start=23)
    fails("expected 1, 0, 1 or more", read_clip, keyed, frames=0)


def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path):
    clip = smooth(2)
    fails(r"a\.avi: expected a name with \.mp4", write_clip, clip, tmp_path / "a.avi", 24)
    fails("above 0, got 0", write_clip, clip, tmp_path / "a.mp4", 0)
    fails("at most 50 frames per second, got 60", write_clip, clip, tmp_path / "a.gif", 60)
    fails("no frames to write", write_clip, clip[:, :0], tmp_path / "a.mp4", 24)

    def stops():
        yield clip[:, 0]
        raise ValueError("the source is damaged")

    (tmp_path / "a.mp4").write_text("what was there")
    for name in ("a.mp4", "b.gif", "frames"):
        fails("the source is damaged", write_clip, stops(), tmp_path / name, 24)
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
    assert (tmp_path / "a.mp4").read_text() == "what was there"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("")
    fails("holds other files", write_clip, clip, tmp_path / "mine", 24)
    with pytest.raises(OSError) as error:
        write_clip(clip, tmp_path / "a.mp4" / "b.mp4", 24)
    assert "a.mp4" in str(error.value)


def test_without_pyav_it_is_the_missing_package_and_animations_work(tmp_path, monkeypatch):
    write_clip(smooth(2), tmp_path / "a.gif", 10)
    write_clip(smooth(2), tmp_path / "a.mp4", 10)
    monkeypatch.setitem(sys.modules, "av", None)
    assert read_clip(tmp_path / "a.gif")[0].shape[1] == 2
    for use in (lambda: read_clip(tmp_path / "a.mp4"), lambda: Clips(tmp_path, frames=1)):
        with pytest.raises(ModuleNotFoundError) as error:
            use()
        assert error.value.name == "av"


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    """Five videos of 8 to 12 grey frames; the level tells the video (steps of 40) and the frame (of 3)."""
    folder = tmp_path_factory.mktemp("five")
    for i in range(5):
        levels = 5 + 40.0 * i + 3 * torch.arange(8 + i)
        write_clip((levels / 127.5 - 1).view(1, -1, 1, 1).expand(3, -1, 16, 16), folder / f"{i}.mp4", 24)
        if i:
            (folder / f"{i}.txt").write_text(f"video\n{i} ")
    return folder


def levels(x):
    """(B, T)"""
    return ((x + 1) * 127.5).mean((1, 3, 4))


def test_every_video_comes_once_per_epoch_with_its_caption(five):
    data = Clips(five, batch=2, size=8, frames=4)
    batches = [data(0, step) for step in range(5)]
    assert batches[0].x.shape == (2, 3, 4, 8, 8) and len(data) == 5
    told = [caption for b in batches for caption in b.text]
    assert sorted(told[:5]) == sorted(told[5:]) == ["", *(f"video {i}" for i in range(1, 5))]
    seen = [int(v) // 40 for b in batches for v in levels(b.x)[:, 0]]
    assert [f"video {i}" if i else "" for i in seen] == told


def test_a_batch_is_a_function_of_seed_and_step(five):
    a, b = Clips(five, batch=3, size=8, frames=4), Clips(five, batch=3, size=8, frames=4)
    b(0, 0)
    assert torch.equal(a(3, 7).x, b(3, 7).x) and a(3, 7).text == b(3, 7).text
    assert not torch.equal(a(3, 7).x, a(4, 7).x)


def test_parts_of_a_video_start_anywhere_and_run_on(five):
    data = Clips(five, batch=5, size=8, frames=3, stride=3)
    starts = set()
    for step in range(8):
        for row in levels(data(0, step).x):
            assert row.diff().tolist() == pytest.approx([9, 9], abs=2.1)
            starts.add((int(row[0]) // 40, round((row[0].item() % 40 - 5) / 3)))
    # of 8 frames the last start is 1, of 12 it is 5
    assert {s for i, s in starts if i == 0} == {0, 1}
    assert max(s for i, s in starts if i == 4) in (4, 5) and len(starts) > 9


def test_bad_videos_are_named_counted_and_left_out(tmp_path, five, capsys):
    for i in (0, 4):
        (tmp_path / f"{i}.mp4").write_bytes((five / f"{i}.mp4").read_bytes())
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "cut.mp4").write_bytes((five / "4.mp4").read_bytes()[:-20])
    (tmp_path / "deep" / "latin.mp4").write_bytes((five / "4.mp4").read_bytes())
    (tmp_path / "deep" / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / ".hidden.mp4").write_text("left by some other program")
    data = Clips(tmp_path, size=8, frames=10)
    assert [film.path.name for film, _ in data.items] == ["4.mp4"]
    assert sorted(path.name for path, _ in data.bad) == ["0.mp4", "cut.mp4", "latin.mp4", "text.mp4"]
    said = capsys.readouterr().out
    assert "1 videos; 4 left out" in said
    assert "0.mp4: too short, 8 frames, expected 10" in said
    assert "latin.txt cannot be read" in said and "hidden" not in said
    fails("no videos .*5 left out, the first: ", Clips, tmp_path, frames=20)
    fails("no such folder", Clips, tmp_path / "gone")
    fails("not a folder", Clips, tmp_path / "4.mp4")
    fails("at least 1", Clips, tmp_path, frames=0)
