import torch
from torch import nn

from pocketdiffusion.nn.residual import TimedConvs, TimedResBlock


def dense(separable):
    """The kernel and the bias of the one convolution that a separable one amounts to."""
    depthwise, pointwise = separable.depthwise, separable.pointwise
    weight = pointwise.weight * depthwise.weight.transpose(0, 1)
    return {"weight": weight, "bias": pointwise.weight[:, :, 0, 0] @ depthwise.bias}


def impulses(channels, side=7):
    x = torch.zeros(channels, channels, side, side)
    x[range(channels), range(channels), side // 2, side // 2] = 1
    return x


def test_an_expanded_separable_branch_is_a_dense_one():
    thin, full = (TimedConvs(4, 12, 6, 5, separable, 2, "silu") for separable in (True, False))
    full.time, full.norm = thin.time, thin.norm
    full.conv1.load_state_dict(dense(thin.conv1))
    full.conv2.load_state_dict(dense(thin.conv2))
    torch.testing.assert_close(thin.conv1(impulses(4)), full.conv1(impulses(4)), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(thin.conv2(impulses(12)), full.conv2(impulses(12)), atol=1e-5, rtol=1e-5)
    h, temb = torch.randn(2, 4, 7, 7), torch.randn(2, 5)
    torch.testing.assert_close(thin(h, temb), full(h, temb), atol=1e-5, rtol=1e-5)
    assert sum(p.numel() for p in thin.parameters()) < sum(p.numel() for p in full.parameters())


def test_the_block_is_its_formula():
    block = TimedResBlock(4, 8, 6, 5, groups=2, act="hardswish", skip=True)
    x, temb, act = torch.randn(2, 4, 6, 6), torch.randn(2, 5), nn.Hardswish()
    h = block.conv.conv1(act(block.norm(x))) + block.conv.time(temb).view(2, 8, 1, 1)
    truth = block.skip(x) + block.conv.conv2(act(block.conv.norm(h)))
    torch.testing.assert_close(block(x, temb), truth)


def test_a_silenced_branch_leaves_the_input():
    for separable in (True, False):
        block = TimedResBlock(4, 8, 4, 5, separable, groups=2)
        block.conv.silence()
        x = torch.randn(2, 4, 6, 6)
        assert torch.equal(block(x, torch.randn(2, 5)), x)
