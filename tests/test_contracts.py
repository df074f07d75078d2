"""What every network of the house promises; a new one is covered by its line in store.KINDS."""

import importlib.util
import re
from dataclasses import fields, replace
from fnmatch import fnmatch

import pytest
import torch
from torch import nn
from torch.utils import _pytree

from pocketdiffusion import store
from pocketdiffusion.nn.axes import entry, find, keep_axes, width

FULL = 20_000_000  # parameters; from here on a preset is looked at on meta only


def modules():
    for name, (where, _) in store.KINDS.items():
        if importlib.util.find_spec(f"pocketdiffusion.{where}"):
            module = store.kind(name)
            yield name, module, getattr(module, name)


# what is not tiny waits for `make test`
PRESETS = [
    pytest.param(
        module, cls, config, id=f"{name}-{preset}", marks=[] if preset == "smoke" else [pytest.mark.slow]
    )
    for name, module, cls in modules()
    for preset, config in module.PRESETS.items()
]
SMALL = [p for p in PRESETS if p.values[0].count(p.values[2]) < FULL]
SMOKE = [p for p in PRESETS if p.id.endswith("-smoke")]
WITH_AXES = [p for p in SMALL if hasattr(p.values[1], "AXES")]
WITH_BRANCHES = [p for p in SMALL if hasattr(p.values[1], "BRANCHES")]

each = pytest.mark.parametrize


def build(cls, config, noise=False):
    """A seeded network; with ``noise`` also its zero-initialised weights have something to say."""
    torch.manual_seed(0)
    model = cls(config)
    if noise:
        for p in model.parameters():
            if not p.any():
                nn.init.normal_(p, std=0.1)
    return model.eval()


def tensors(tree):
    return [x for x in _pytree.tree_leaves(tree) if isinstance(x, torch.Tensor)]


def floats(tree):
    return [x for x in tensors(tree) if x.is_floating_point()]


def rows(tree, *index):
    return _pytree.tree_map(lambda x: x[list(index)] if isinstance(x, torch.Tensor) else x, tree)


def equal(a, b):
    a, b = tensors(a), tensors(b)
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b))


def matching(model, patterns):
    names = dict(model.named_modules())
    found = {p: [n for n in names if fnmatch(n, p) and n.count(".") == p.count(".")] for p in patterns}
    assert all(found.values()), f"a pattern matches nothing: {found}"
    return {n: names[n] for group in found.values() for n in group}


def test_every_kind_has_a_smoke_preset():
    assert {p.id.split("-")[0] for p in SMOKE} == {name for name, *_ in modules()}
    assert {"DiT-smoke", "AutoencoderKL-smoke", "TextTransformer-smoke"} <= {p.id for p in SMOKE}


@each("module, cls, config", SMALL)
def test_shape(module, cls, config):
    model = build(cls, config)
    inputs = model.example(3)
    assert equal(inputs, model.example(3)), "example() is not repeatable"
    with torch.no_grad():
        y = model(*inputs)
    for x in tensors(inputs) + floats(y):
        assert len(x) == 3
    assert all(x.isfinite().all() for x in floats(y))
    if store.KINDS[cls.__name__][0].startswith("models."):
        assert y.shape == inputs[0].shape and y.dtype == inputs[0].dtype


@each("module, cls, config", SMALL)
def test_batch_independence(module, cls, config):
    model = build(cls, config, noise=True)
    inputs = model.example(3)
    with torch.no_grad():
        together = model(*inputs)
        for i in range(3):
            alone = model(*rows(inputs, i))
            for x, y in zip(floats(rows(together, i)), floats(alone)):
                torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-4)


@each("module, cls, config", SMOKE)
def test_gradient_reaches_every_parameter(module, cls, config):
    model = build(cls, config, noise=True)
    # of a supernet, every width
    networks = [model.at(name) for name in model.config.names] if hasattr(model, "at") else [model]
    for network in networks:
        sum((x * torch.randn_like(x)).sum() for x in floats(network(*model.example(2)))).backward()
    dead = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not dead


@each("module, cls, config", WITH_BRANCHES)
def test_branches_are_called_once_with_the_stream_first(module, cls, config):
    """Replacing submodules is enough to skip, time or export them."""
    model, seen = build(cls, config, noise=True), []
    branches = matching(model, cls.BRANCHES)
    for name, branch in branches.items():

        def note(_, inputs, output, name=name):
            assert isinstance(inputs[0], torch.Tensor)
            # the convolutions of a residual block may change the channels of a map
            still = (0, 2, 3) if output.ndim == 4 else range(output.ndim)
            assert all(inputs[0].shape[d] == output.shape[d] for d in still)
            seen.append(name)

        branch.register_forward_hook(note)
    with torch.no_grad():
        model(*model.example(2))
    assert sorted(seen) == sorted(branches)


@each("module, cls, config", WITH_BRANCHES)
def test_blocks_keep_the_shape(module, cls, config):
    model, shapes = build(cls, config), []
    for block in model.get_submodule(cls.BLOCKS):
        block.register_forward_hook(lambda _, inputs, y: shapes.append((inputs[0].shape, y.shape)))
    with torch.no_grad():
        model(*model.example(2))
    assert shapes and all(x == y for x, y in shapes)


@each("module, cls, config", [p for p in PRESETS if hasattr(p.values[1], "AXES")])
def test_axes_cover_every_parameter(module, cls, config):
    with torch.device("meta"):
        model = cls(config)
    used, axes, config = set(), model.AXES, model.config
    for name, weight in model.named_parameters():
        words, block = find(axes, name)
        assert len(words) == weight.ndim, name
        for word, size in zip(words, weight.shape):
            terms = [[width(config, f, block) for f in term.split("*")] for term in word.split("+")]
            if all(None not in term for term in terms):
                assert sum(torch.Size(term).numel() for term in terms) == size, f"{name}: {word}"
        matching = (p for p in axes if re.fullmatch(re.escape(p).replace(r"\*", r"\d+"), name))
        used.add(name if name in axes else next(matching))
    assert used == set(axes), "a line of the table names no parameter"


def widths(model):
    """Axes that can be pruned: fields of the config that the table names; head_dim fixes the geometry."""
    named = {entry(f, None)[0] for words in model.AXES.values() for f in re.split(r"[ *+]", words)}
    return sorted(named & {f.name for f in fields(model.config)} - {"head_dim"})


def each_of(size, choose):
    """What to keep of an axis: ``choose(n)`` of n entries, for every entry of a tuple."""
    return [choose(n) for n in size] if isinstance(size, tuple) else choose(size)


@each("module, cls, config", WITH_AXES)
def test_pruning_nothing_changes_nothing(module, cls, config):
    model = build(cls, config, noise=True)
    keep = {axis: each_of(getattr(model.config, axis), range) for axis in widths(model)}
    same = keep_axes(model, keep).eval()
    assert same.config == model.config
    with torch.no_grad():
        assert equal(same(*model.example(2)), model(*model.example(2)))


@each("axis", ["mlp", "heads", "dim", "several"])
@each("module, cls, config", WITH_AXES)
def test_prune_save_load(module, cls, config, axis, tmp_path):
    model = build(cls, config, noise=True)
    axes = ["mlp", "heads", "dim"] if axis == "several" else [axis]
    # a model of several levels has dims
    axes = [a if hasattr(model.config, a) else a + "s" for a in axes]

    def half(n):
        return sorted(torch.randperm(n)[: max(1, n // 2)].tolist())

    keep = {a: each_of(getattr(model.config, a), half) for a in axes}
    small = keep_axes(model, keep).eval()
    left = {a: tuple(map(len, k)) if isinstance(k[0], list) else len(k) for a, k in keep.items()}
    assert small.config == replace(model.config, **left)
    store.save(small, tmp_path / "small")
    again = store.load(tmp_path / "small")
    assert again.config == small.config
    with torch.no_grad():
        y = small(*small.example(2))
        assert equal(y, again(*again.example(2)))
    assert all(x.isfinite().all() for x in floats(y))
    assert sum(p.numel() for p in small.parameters()) == module.count(small.config)


@each("module, cls, config", WITH_AXES)
def test_prune_every_block_its_own_way(module, cls, config, tmp_path):
    model = build(cls, config, noise=True)
    depth = len(model.get_submodule(cls.BLOCKS))
    keep = {"mlp": [list(range(1 + i)) for i in range(depth)]}
    small = keep_axes(model, keep).eval()
    store.save(small, tmp_path / "small")
    again = store.load(tmp_path / "small")
    assert again.config.mlp == tuple(range(1, 1 + depth))
    with torch.no_grad():
        assert equal(small(*small.example(2)), again(*again.example(2)))


@each("module, cls, config", SMALL)
def test_save_load(module, cls, config, tmp_path):
    model = build(cls, config, noise=True)
    store.save(model, tmp_path / "net")
    again = store.load(tmp_path / "net")
    with torch.no_grad():
        assert equal(model(*model.example(2)), again(*again.example(2)))


@each("module, cls, config", PRESETS)
def test_count_is_the_formula(module, cls, config):
    with torch.device("meta"):
        model = cls(config)
    assert sum(p.numel() for p in model.parameters()) == module.count(config)


@pytest.mark.slow
@each("module, cls, config", SMOKE)
def test_export(module, cls, config):
    model = build(cls, config, noise=True)
    inputs = model.example(2)
    program = torch.export.export(model, inputs)
    with torch.no_grad():
        for x, y in zip(floats(program.module()(*inputs)), floats(model(*inputs))):
            torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-4)
