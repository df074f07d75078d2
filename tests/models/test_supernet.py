"""Nested widths: extraction, where gradients go, what each width has for itself."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from pocketdiffusion import store
from pocketdiffusion.compress import width
from pocketdiffusion.models import elastic_dit, supernet
from pocketdiffusion.models.supernet import PRESETS, Config, Supernet, elastic, private, with_lora
from pocketdiffusion.nn.taps import tap

THREE = elastic(
    replace(elastic_dit.PRESETS["smoke"], dim=64, heads=8, kv_heads=4, cross_heads=8),
    names=("quarter", "half", "full"),
    shares=(0.25, 0.5, 1.0),
)
EVERY = [pytest.param(c, id=n) for n, c in {"three": THREE, "lora": PRESETS["smoke_lora"]}.items()]
each = pytest.mark.parametrize


def noisy(config):
    """Every width's own parameters are its own; LoRA has something to say."""
    torch.manual_seed(0)
    net = Supernet(config).eval()
    for p in net.parameters():
        nn.init.normal_(p, std=0.1)
    return net


def test_widths_of_the_paper():
    c = PRESETS["snapgen_pp"]
    assert [c.plain(n).dim for n in c.names] == [768, 1024, 2048]
    assert c.plain("tiny") == replace(elastic_dit.PRESETS["tiny"])
    assert c.plain("small") == elastic_dit.PRESETS["small"]


@each("config", EVERY)
def test_extraction_is_bit_equal_and_plain(config, tmp_path):
    net = noisy(config)
    inputs = net.example()
    for name in config.names:
        small = net.extract(name)
        assert type(small) is elastic_dit.ElasticDiT and small.config == config.plain(name)
        store.save(small, tmp_path / name)
        again = store.load(tmp_path / name)
        with torch.no_grad():
            y = net.at(name)(*inputs)
            assert torch.equal(small(*inputs), y) and torch.equal(again(*inputs), y)
    with torch.no_grad():
        assert torch.equal(net(*inputs), net.extract(config.names[-1])(*inputs))


def test_widths_differ_and_own_parameters_matter():
    net = noisy(THREE)
    inputs = net.example()
    with torch.no_grad():
        a, b, c = (net.at(name)(*inputs) for name in THREE.names)
        assert not torch.allclose(a, b) and not torch.allclose(b, c)
        for value in net.extras("half").values():
            value.add_(0.5)
        assert torch.equal(net.at("quarter")(*inputs), a) and torch.equal(net.at("full")(*inputs), c)
        assert not torch.allclose(net.at("half")(*inputs), b)


def test_a_supernet_begins_with_every_width_cut_from_the_full_one():
    net = Supernet(THREE)
    half, full = net.extract("half"), net.extract("full")
    assert torch.equal(half.time.up.weight, full.time.up.weight[:32])
    assert torch.equal(half.modulation.proj.bias, full.modulation.proj.bias.view(6, 64)[:, :32].flatten())
    assert torch.equal(half.blocks[0].attn.q.weight, full.blocks[0].attn.q.weight[:32, :32])


def test_gradients_stay_in_the_slice():
    """Zero, to the bit, outside; both halves of a fusion are sliced; other widths' own get none."""
    net = noisy(THREE)
    net.at("half")(*net.example()).square().sum().backward()
    for name, places in net.cuts["half"].items():
        grad = net.full.get_parameter(name).grad
        if private(name):
            assert grad is None, name
            continue
        inside = supernet.cut(grad, places)
        assert inside.any(), name
        assert grad.ne(0).sum() == inside.ne(0).sum(), name
    fuse = net.full.fuse[0].weight.grad
    assert fuse[:32, :32].any() and fuse[:32, 64:96].any()
    assert not fuse[32:].any() and not fuse[:, 32:64].any() and not fuse[:, 96:].any()
    assert all(p.grad is not None for p in net.extras("half").values())
    assert all(p.grad is None for p in net.extras("quarter").values())


def test_shared_gradients():
    net = noisy(THREE)
    assert not any(g.any() for g in net.shared_grads("half"))
    net.at("full")(*net.example()).square().sum().backward()
    found = net.shared_grads("half")
    shapes = {n: p for n, p in net.shapes["half"].named_parameters() if not private(n)}
    assert [g.shape for g in found] == [p.shape for p in shapes.values()]
    assert torch.equal(found[0], net.full.patchify.weight.grad[:32])


def test_keys_of_the_text_are_whole_in_every_width():
    shapes = {n: Supernet(THREE).shapes[n].blocks[0].cross.k.weight.shape for n in THREE.names}
    assert len(set(shapes.values())) == 1


def test_lora_begins_as_nothing_and_belongs_to_a_width():
    net = noisy(THREE)
    inputs = net.example()
    more = with_lora(net, 2, 4.0).eval()
    with torch.no_grad():
        for name in THREE.names:
            assert torch.equal(more.at(name)(*inputs), net.at(name)(*inputs))
        before = more.at("full")(*inputs)
        more.lora_b["half/blocks/0/mlp/up"].fill_(0.1)
        assert torch.equal(more.at("full")(*inputs), before)
        assert not torch.equal(more.at("half")(*inputs), net.at("half")(*inputs))
        gap = more.extract("half").blocks[0].mlp.up.weight - net.extract("half").blocks[0].mlp.up.weight
        wanted = 2.0 * more.lora_b["half/blocks/0/mlp/up"] @ more.lora_a["half/blocks/0/mlp/up"]
        torch.testing.assert_close(gap, wanted)


def test_taps_see_a_width():
    net = noisy(THREE)
    v, seen = tap(net.at("half"), ["net.blocks.1"])(*net.example())
    assert seen["net.blocks.1"].shape[-1] == 32 and v.shape == (2, 4, 8, 8)


def test_what_is_refused():
    net = Supernet(THREE)
    for asked in (net.at, net.extract, THREE.plain):
        with pytest.raises(ValueError, match="no width 'huge'; there are quarter, half, full"):
            asked("huge")
    base = elastic_dit.PRESETS["smoke"]
    for names, shares, message in (
        (("a", "b"), (0.5,), "a share each"),
        (("a", "b"), (0.5, 0.8), "the last 1.0"),
        (("a", "a"), (0.5, 1.0), "different names"),
        (("a/b", "c"), (0.5, 1.0), "without / and ."),
    ):
        with pytest.raises(ValueError, match=message):
            elastic(base, names=names, shares=shares)
    with pytest.raises(ValueError, match=r"a share of 0\.3 leaves 9\.6 of 32"):
        Supernet(elastic(base, names=("a", "b"), shares=(0.3, 1.0)))
    assert isinstance(THREE, Config)


@each("config", EVERY)
def test_a_width_in_a_file_of_its_own(config, tmp_path):
    """What one width has for itself goes into another copy of the same base, and into no other."""
    net, other = noisy(config), noisy(config)
    first = config.names[0]
    for value in other.extras(first).values():
        nn.init.zeros_(value)
    path = tmp_path / "first.safetensors"
    width.write(net, first, path, {})
    given = width.read(path)
    assert (given.name, given.rank) == (first, config.rank)
    width.adopt(other, given, path)
    inputs = net.example()
    with torch.no_grad():
        torch.testing.assert_close(other.at(first)(*inputs), net.at(first)(*inputs), atol=5e-3, rtol=5e-3)
        other.full.get_parameter("blocks.0.attn.q.weight").add_(0.1)
    with pytest.raises(
        ValueError, match=rf"first.safetensors: width '{first}' belongs to base [0-9a-f]{{8}}"
    ):
        width.adopt(other, given, path)
    with pytest.raises(ValueError, match="no width 'huge'"):
        width.write(net, "huge", path, {})


def test_files_that_are_no_width(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"nothing")
    store.save(noisy(THREE), tmp_path / "net")
    for path in (
        tmp_path / "a.safetensors",
        tmp_path / "b.safetensors",
        *(tmp_path / "net").glob("*.safetensors"),
    ):
        with pytest.raises(ValueError, match=f"{path.name}: not a file of one width"):
            width.read(path)
    lora, plain = noisy(with_lora(noisy(THREE), 2, 4.0).config), noisy(THREE)
    plain.full.load_state_dict(lora.full.state_dict())
    width.write(lora, "half", tmp_path / "half.safetensors", {})
    given = width.read(tmp_path / "half.safetensors")
    for other in (plain, with_lora(plain, 4, 4.0), with_lora(plain, 2, 8.0)):
        before = {n: v.clone() for n, v in other.state_dict().items()}
        with pytest.raises(ValueError, match="a LoRA of rank 2, alpha 4; the model has one of rank"):
            width.adopt(other, given, "half.safetensors")
        assert all(torch.equal(v, before[n]) for n, v in other.state_dict().items())
