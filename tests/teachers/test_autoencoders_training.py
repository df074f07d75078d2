"""Foreign autoencoders under the terms of ours: scale equivariance and latent consistency through fit()."""

import sys
from pathlib import Path

import pytest
import torch

from pocketdiffusion.methods.autoencode import Autoencode, Weighed
from pocketdiffusion.methods.consistency import latent_kl, latent_mse
from pocketdiffusion.methods.equivariance import scale_equivariance
from pocketdiffusion.train.fit import Run, fit
from pocketdiffusion.train.optimisers import adamw
from pocketdiffusion.types import Batch

pytest.importorskip("diffusers")
sys.path.append(str(Path(__file__).parent))
from tiny_autoencoders import TINY, tiny

pytestmark = pytest.mark.slow


def moving(seed, step):
    """Smooth clips whose latents can be made smaller by half."""
    g = torch.Generator().manual_seed(step)
    x = torch.rand(1, 3, 5, 4, 4, generator=g) * 1.8 - 0.9
    return Batch(x.repeat_interleave(8, -1).repeat_interleave(8, -2), [""])


def still(seed, step):
    return Batch(moving(seed, step).x[:, :, 0], [""])


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name, data", [("kl", still), ("wan2.1", moving)], ids=["pictures", "clips"])
def test_terms_train_foreign_autoencoders(name, data, half):
    torch.manual_seed(0)
    vae = tiny(name)
    before = {k: v.clone() for k, v in vae.state_dict().items()}
    terms = {
        "se": Weighed(scale_equivariance(TINY[name][2]), 0.25),
        "kl": Weighed(latent_kl, 0.1, 1),
        "mse": Weighed(latent_mse, 0.1),
    }
    method = Autoencode(vae, 1e-6, terms=terms)
    state = fit(method, data, {"autoencoder": adamw(vae.parameters(), 1e-3)}, {"vae": vae}, Run(3, bf16=half))
    assert {f"autoencoder/{k}" for k in terms} <= set(state.seen)
    moved = {k: not torch.equal(v, before[k]) for k, v in vae.state_dict().items()}
    # statistics are no parameters
    assert not moved["mean"] and not moved["std"]
    for part in ("encoder", "decoder"):
        assert any(m for k, m in moved.items() if f"model.{part}." in k)
