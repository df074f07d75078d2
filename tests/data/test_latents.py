import json

import pytest
import torch
from torch import nn

from pocketdiffusion.autoencoders import kl
from pocketdiffusion.data.latents import Encoded, Latents, weights_hash, write, written
from pocketdiffusion.types import Batch, Cond


def batch(first, count, length=3):
    """Samples whose numbers are in everything they consist of."""
    i = torch.arange(first, first + count, dtype=torch.float32)
    tokens = i[:, None, None].expand(count, length, 2).clone()
    mask = torch.arange(length)[None] <= i[:, None] % length
    return Batch(
        i[:, None, None, None].expand(count, 4, 2, 2).clone(), Cond(tokens, mask, pooled=i[:, None].clone())
    )


def captioned(first, count):
    return Batch(batch(first, count).x, [f"caption {i}" for i in range(first, first + count)])


def everything(data):
    """All samples of one epoch by number."""
    assert len(data) % data.batch == 0
    steps = [data(0, step) for step in range(len(data) // data.batch)]
    return {int(x[0, 0, 0]): (b, i) for b in steps for i, x in enumerate(b.x)}


def test_what_was_written_is_read(tmp_path):
    # token sequences grow from batch to batch, and shards do not fall together with batches
    assert write(tmp_path, [batch(0, 4), batch(4, 4, 5), batch(8, 4, 6)], "vae", "text", shard_size=5) == 12
    data = Latents(tmp_path, 4, "vae", "text")
    assert len(data) == 12 and len(list(tmp_path.glob("*.safetensors"))) == 3
    seen = everything(data)
    assert sorted(seen) == list(range(12))
    for n, (b, i) in seen.items():
        assert (b.x[i] == n).all() and b.text.pooled[i] == n
        length = (3, 5, 6)[n // 4]
        assert b.text.mask[i].sum() == n % length + 1 and b.text.mask.dtype == torch.bool
        assert (b.text.tokens[i][b.text.mask[i]] == n).all()


def test_captions_are_kept_as_they_are(tmp_path):
    write(tmp_path, [captioned(0, 4), captioned(4, 2)], "vae", shard_size=4)
    for n, (b, i) in everything(Latents(tmp_path, 2, "vae")).items():
        assert b.text[i] == f"caption {n}"


def test_a_batch_is_a_function_of_seed_and_step(tmp_path):
    write(tmp_path, [batch(0, 8)], "vae", "text", shard_size=3)
    a, b = Latents(tmp_path, 3, "vae", "text"), Latents(tmp_path, 3, "vae", "text")
    b(0, 0)
    assert torch.equal(a(1, 9).x, b(1, 9).x) and not torch.equal(a(1, 9).x, a(2, 9).x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_storage_dtype(tmp_path, dtype):
    x = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    write(tmp_path, [Batch(x, ["a"] * 6)], "vae", dtype=dtype)
    data = Latents(tmp_path, 6, "vae")
    assert data.sample(2).x.dtype == dtype and data(0, 0).x.dtype == torch.float32
    assert torch.equal(data.sample(2).x, x[2:3].to(dtype))


def test_another_encoder_is_refused(tmp_path):
    write(tmp_path, [batch(0, 2)], "vae-a", "text-a")
    with pytest.raises(ValueError, match=f"{tmp_path}: made with autoencoder vae-a, expected vae-b"):
        Latents(tmp_path, 2, "vae-b", "text-a")
    with pytest.raises(ValueError, match="made with text text-a, expected text-b"):
        Latents(tmp_path, 2, "vae-a", "text-b")
    with pytest.raises(ValueError, match="made with text text-a, expected captions"):
        Latents(tmp_path, 2, "vae-a")


def test_a_shard_of_another_cache_is_refused(tmp_path):
    write(tmp_path / "a", [captioned(0, 2)], "a" * 32)
    write(tmp_path / "b", [captioned(0, 2)], "b" * 32)
    (tmp_path / "a" / "shard-00000.safetensors").replace(tmp_path / "b" / "shard-00000.safetensors")
    with pytest.raises(ValueError, match=r"shard-00000.safetensors: made with autoencoder aaa"):
        Latents(tmp_path / "b", 2, "b" * 32)


def test_damage_is_told(tmp_path):
    with pytest.raises(ValueError, match="none: not a finished cache"):
        Latents(tmp_path / "none", 2, "vae")
    write(tmp_path, [captioned(0, 4)], "vae", shard_size=2)
    shard = tmp_path / "shard-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-7])
    with pytest.raises(ValueError, match=r"shard-00001.safetensors: damaged shard"):
        Latents(tmp_path, 2, "vae")
    shard.unlink()
    with pytest.raises(ValueError, match="found nothing"):
        Latents(tmp_path, 2, "vae")
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(ValueError, match="not a finished cache"):
        Latents(tmp_path, 2, "vae")


def stopped(count):
    """Batches of two samples, up to a power cut after ``count`` samples."""
    yield from (captioned(i, 2) for i in range(0, count, 2))
    raise InterruptedError


def test_a_stopped_write_leaves_whole_shards_and_goes_on(tmp_path):
    with pytest.raises(InterruptedError):
        write(tmp_path, stopped(8), "vae", shard_size=3)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "shard-00000.safetensors",
        "shard-00001.safetensors",
    ]
    with pytest.raises(ValueError, match="not a finished cache"):
        Latents(tmp_path, 2, "vae")
    assert written(tmp_path, "vae") == 6
    with pytest.raises(ValueError, match="made with autoencoder vae, expected other"):
        written(tmp_path, "other")
    with pytest.raises(ValueError, match="cannot go on at sample 4, the shards there hold 6"):
        write(tmp_path, [captioned(4, 6)], "vae", shard_size=3, start=4)
    assert write(tmp_path, [captioned(6, 4)], "vae", shard_size=3, start=6) == 10
    assert sorted(everything(Latents(tmp_path, 2, "vae"))) == list(range(10))


def test_a_damaged_shard_is_made_again(tmp_path):
    with pytest.raises(InterruptedError):
        write(tmp_path, stopped(8), "vae", shard_size=2)
    shard = tmp_path / "shard-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-7])
    assert written(tmp_path, "vae") == 4
    write(tmp_path, [captioned(4, 6)], "vae", shard_size=2, start=4)
    assert sorted(everything(Latents(tmp_path, 2, "vae"))) == list(range(10))


def test_writing_from_the_start_removes_what_a_stopped_write_left(tmp_path):
    with pytest.raises(InterruptedError):
        write(tmp_path, stopped(8), "old", shard_size=2)
    assert write(tmp_path, [captioned(20, 4)], "vae", shard_size=4) == 4
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    assert sorted(everything(Latents(tmp_path, 2, "vae"))) == [20, 21, 22, 23]


def test_a_finished_cache_is_never_overwritten(tmp_path):
    write(tmp_path, [captioned(0, 2)], "vae")
    with pytest.raises(ValueError, match="already holds a finished cache"):
        write(tmp_path, [captioned(0, 2)], "vae")


def test_text_must_be_what_the_hash_says(tmp_path):
    with pytest.raises(ValueError, match="the text is a list"):
        write(tmp_path, [captioned(0, 2)], "vae", "text")
    with pytest.raises(ValueError, match="the text is a Cond"):
        write(tmp_path, [batch(0, 2)], "vae")
    with pytest.raises(ValueError, match="nothing to cache"):
        write(tmp_path, [], "vae")


def test_the_index_is_readable(tmp_path):
    write(tmp_path, [batch(0, 3)], "vae", "text", shard_size=2)
    index = json.loads((tmp_path / "index.json").read_text())
    assert (index["autoencoder"], index["text"], index["count"]) == ("vae", "text", 3)
    assert [s["count"] for s in index["shards"]] == [2, 1]


def test_weights_hash_sees_everything_that_matters():
    torch.manual_seed(0)
    vae = kl.AutoencoderKL(kl.PRESETS["smoke"])
    told = weights_hash(vae)
    assert len(told) == 32 and told == weights_hash(vae)
    twin = kl.AutoencoderKL(kl.PRESETS["smoke"])
    assert weights_hash(twin) != told
    twin.load_state_dict(vae.state_dict())
    assert weights_hash(twin) == told
    with torch.no_grad():
        twin.scale[0] += 1e-6
    assert weights_hash(twin) != told


def test_weights_hash_tells_shapes_types_and_names_apart():
    def of(**tensors):
        module = nn.Module()
        for name, value in tensors.items():
            module.register_buffer(name, value)
        return weights_hash(module)

    zeros = torch.zeros(2, 3)
    alike = [
        of(a=zeros),
        of(b=zeros),
        of(a=zeros.T),
        of(a=zeros.half()),
        of(a=torch.zeros(6)),
        of(a=torch.tensor(0.0)),
    ]
    assert len(set(alike)) == len(alike)


def test_pictures_are_encoded_once_for_all_their_steps():
    asked, encoded = [], []

    def pictures(seed, step):
        asked.append(step)
        return Batch(torch.full((2, 3, 4, 4), float(step)), ["a", "b"])

    def encode(x):
        encoded.append(x)
        return x[:, :1] + 1

    # two processes: rank 1 sees every second step
    data = Encoded(pictures, encode, uses=3, world=2)
    seen = [data(0, step) for step in range(1, 14, 2)]
    assert asked == [1, 3, 5] and len(encoded) == 3
    assert [float(b.x[0, 0, 0, 0]) for b in seen] == [2, 2, 2, 4, 4, 4, 6]
    assert seen[0].text == ["a", "b"] and seen[0].x.shape == (2, 1, 4, 4)
    # a resumed run sees what it would have seen
    assert torch.equal(Encoded(pictures, encode, 3, 2)(0, 9).x, seen[4].x)
    with pytest.raises(ValueError, match="uses must be at least 1"):
        Encoded(pictures, encode, 0)
