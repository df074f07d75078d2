import pytest
import torch

from pocketdiffusion.nn.attention.full import Attention, Core, NaiveCore, fold
from pocketdiffusion.nn.rope import angles, grid


def masked(batch, length):
    mask = torch.rand(batch, 1, 1, length) < 0.5
    mask[..., 0] = True
    return mask


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_fast_equals_naive_with_gradients(kv_heads, mask):
    q, k, v = torch.randn(2, 4, 5, 8), torch.randn(2, kv_heads, 7, 8), torch.randn(2, kv_heads, 7, 8)
    seen, results = masked(2, 7) if mask else None, []
    for core in (Core(), fold, NaiveCore()):
        inputs = [x.clone().requires_grad_() for x in (q, k, v)]
        y = core(*inputs, seen)
        results.append([y, *torch.autograd.grad(y.sin().sum(), inputs)])
    for fast, folded, naive in zip(*results):
        torch.testing.assert_close(fast, naive, atol=2e-6, rtol=1e-4)
        torch.testing.assert_close(folded, naive, atol=2e-6, rtol=1e-4)


def test_half_precision_training_on_a_cpu_folds_and_nothing_else_does(monkeypatch):
    called = []
    monkeypatch.setattr("pocketdiffusion.nn.attention.full.fold", lambda *given: called.append(1) or given[0])
    q, k = torch.randn(2, 4, 5, 8, requires_grad=True), torch.randn(2, 1, 7, 8)
    Core()(q, k, k)
    with torch.autocast("cpu", torch.bfloat16):
        Core()(q.detach(), k, k)
        assert not called
        # a mask of its own for every query is left to the library
        Core()(q, k, k, torch.ones(2, 1, 5, 7, dtype=torch.bool))
        assert not called
        Core()(q, k, k, masked(2, 7))
    assert called


def test_as_many_kv_heads_as_heads_is_multi_head():
    """Against torch's own multi-head attention, with the same weights."""
    ours = Attention(16, heads=4, head_dim=4, kv_heads=4, qk_norm=False)
    torchs = torch.nn.MultiheadAttention(16, 4, bias=False, batch_first=True)
    torchs.in_proj_weight.data = torch.cat([ours.q.weight, ours.k.weight, ours.v.weight])
    torchs.out_proj.weight.data = ours.out.weight.data
    x = torch.randn(2, 6, 16)
    torch.testing.assert_close(ours(x), torchs(x, x, x, need_weights=False)[0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_grouped_heads_are_multi_head_with_tiled_weights(kv_heads):
    """Head h reads key-value head floor(h K / H)."""
    few, many = Attention(16, 4, 8, kv_heads), Attention(16, 4, 8)
    for name, weight in few.state_dict().items():
        if name in ("k.weight", "v.weight"):
            weight = weight.unflatten(0, (kv_heads, 8)).repeat_interleave(4 // kv_heads, 0).flatten(0, 1)
        many.state_dict()[name].copy_(weight)
    x, table = torch.randn(2, 6, 16), angles(grid(6), 8)
    torch.testing.assert_close(few(x, table), many(x, table), atol=1e-6, rtol=1e-5)


def test_kv_heads_must_divide_heads():
    with pytest.raises(ValueError, match="kv_heads"):
        Attention(16, 4, 8, kv_heads=3)


def test_a_masked_key_has_no_influence_at_all():
    attention, mask = Attention(16, 2, 8, source=12), torch.tensor([[True, True, False, True, False]])
    x, other = torch.randn(1, 3, 16), torch.randn(1, 5, 12)
    changed = torch.where(mask[..., None], other, 1e3 * torch.randn_like(other))
    assert torch.equal(attention(x, None, other, mask), attention(x, None, changed, mask))
    seen = attention(x, None, other[:, mask[0]], None)
    torch.testing.assert_close(attention(x, None, other, mask), seen, atol=1e-6, rtol=1e-5)


def test_qk_norm_bounds_the_logits():
    """|logit| <= sqrt(d) max |gamma_q| max |gamma_k| however large the input (foundations, section 10)."""
    attention, seen = Attention(16, 2, 8), {}
    for norm in (attention.norm_q, attention.norm_k):
        torch.nn.init.normal_(norm.weight)
    attention.core.register_forward_pre_hook(lambda _, inputs: seen.update(q=inputs[0], k=inputs[1]))
    attention(1e3 * torch.randn(2, 50, 16), angles(grid(50), 8))
    logits = seen["q"] @ seen["k"].transpose(-1, -2) / 8**0.5
    largest = attention.norm_q.weight.abs().max() * attention.norm_k.weight.abs().max()
    assert logits.abs().max() <= 8**0.5 * largest * 1.0001
    plain = torch.nn.functional.rms_norm(seen["q"], (8,))
    assert (plain @ plain.transpose(-1, -2) / 8**0.5).abs().max() > 0.9 * 8**0.5  # the bound is tight


def test_without_qk_norm_there_are_only_four_weights():
    assert sum(p.numel() for p in Attention(16, 2, 8, qk_norm=False).parameters()) == 4 * 16 * 16
