"""Devices and precisions by name."""

import pytest
import torch

from pocketdiffusion.device import bf16, choose, precision


def test_names():
    assert choose("cpu") == torch.device("cpu")
    assert precision("bf16") is torch.bfloat16


@pytest.mark.parametrize(
    "call", [lambda: choose("tpu"), lambda: choose("cuda:99x"), lambda: precision("fp8")]
)
def test_an_unknown_name_is_told(call):
    with pytest.raises(ValueError, match=r"tpu|cuda|fp8"):
        call()


def test_bf16_follows_the_wish_and_else_the_hardware():
    cpu = torch.device("cpu")
    assert bf16(cpu, True) and not bf16(cpu, False)
    assert bf16(cpu) == torch.ops.mkldnn._is_mkldnn_bf16_supported()
