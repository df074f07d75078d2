"""Discriminator heads: one logit per place, its text, and what it does not depend on."""

import pytest
import torch
from torch import nn

from pocketdiffusion.models import dit
from pocketdiffusion.nn.heads import ClipHead, Heads, MapHead, PatchHead


def noisy(head):
    for p in head.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.1)
    return head.eval()


def test_patch_head_has_one_logit_per_patch():
    assert PatchHead(3, 16)(torch.randn(2, 3, 32, 32)).shape == (2, 1, 4, 4)


@pytest.mark.parametrize("kind, places", [(MapHead, (5, 4)), (ClipHead, (3, 5, 4))])
def test_one_logit_per_place_and_rows_are_apart(kind, places):
    torch.manual_seed(0)
    head, x, pooled = noisy(kind(6, 16, text=7)), torch.randn(2, 6, *places), torch.randn(2, 7)
    y = head(x, pooled)
    assert y.shape == (2, *places)
    torch.testing.assert_close(head(x[1:], pooled[1:]), y[1:], atol=1e-5, rtol=1e-5)


def test_the_text_enters_as_an_inner_product():
    """logit(c) - logit(0) is linear in c, and nothing at the start."""
    torch.manual_seed(0)
    head, x = MapHead(6, 16, text=7), torch.randn(2, 6, 4, 4)
    a, b, none = torch.randn(2, 7), torch.randn(2, 7), torch.zeros(2, 7)
    assert torch.equal(head(x, a), head(x, none))
    noisy(head)
    gain = [head(x, c) - head(x, none) for c in (a, b, a + b)]
    assert gain[0].abs().max() > 1e-3
    torch.testing.assert_close(gain[0] + gain[1], gain[2], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", [MapHead, ClipHead])
def test_the_scale_of_the_features_does_not_matter(kind):
    head, x = noisy(kind(6, 16)), torch.randn(2, 6, *((3,) * (kind is ClipHead)), 4, 4)
    torch.testing.assert_close(head(100 * x), head(x), atol=1e-3, rtol=1e-3)


def test_only_clips_look_at_other_frames():
    """Attention in time sees another frame at the same place, of any distance."""
    torch.manual_seed(0)
    x = torch.randn(1, 6, 4, 4, 4, requires_grad=True)
    noisy(head := ClipHead(6, 16))
    (gradient,) = torch.autograd.grad(head(x)[0, 0].sum(), [x])
    assert (gradient[0].flatten(2).abs().amax((0, 2)) > 0).all()
    # without the attention a frame is a picture
    nn.init.zeros_(head.time.out.weight)
    picture = MapHead(6, 16).eval()
    picture.load_state_dict({k: v for k, v in head.state_dict().items() if not k.startswith("time")})
    torch.testing.assert_close(head(x)[:, 2], picture(x[:, :, 2]), atol=1e-5, rtol=1e-5)


def test_order_of_frames_matters():
    torch.manual_seed(0)
    head, x = noisy(ClipHead(6, 16)), torch.randn(1, 6, 4, 2, 2)
    assert not torch.allclose(head(x.flip(2)).flip(1), head(x), atol=1e-4)


def test_heads_read_tokens_and_maps_by_name():
    torch.manual_seed(0)
    x = torch.randn(2, 4, 8, 8)
    heads = noisy(Heads({"tokens": 16, "map": 6}, 16, text=7))
    seen = {"map": torch.randn(2, 6, 2, 2), "tokens": dit.patches(x, 2), "more": torch.zeros(())}
    y = heads(seen, x, torch.ones(2, 7))
    assert y.shape == (2, 16 + 4)
    again = heads({**seen, "map": torch.randn(2, 6, 2, 2)}, x, torch.ones(2, 7))
    assert torch.equal(again[:, :16], y[:, :16]) and not torch.allclose(again[:, 16:], y[:, 16:])
    clips = torch.randn(2, 4, 3, 8, 8)
    assert Heads({"f": 6}, 16, clips=True)({"f": torch.randn(2, 6, 3, 4, 4)}, clips).shape == (2, 48)
