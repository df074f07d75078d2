"""A run small enough to be killed many times: a module for the tests, and a script.

python tiny.py FOLDER STEPS PAUSE          with torchrun: every process also writes FOLDER/rank-N.safetensors
python tiny.py FOLDER STEPS PAUSE split    with torchrun: split over the processes, and saved on the way
"""

import sys
import time
from pathlib import Path

import torch
from torch import nn

from pocketdiffusion.train import shard, spread
from pocketdiffusion.train.fit import Run, State, fit
from pocketdiffusion.train.optimisers import adamw, warmup_cosine
from pocketdiffusion.types import Batch


class Net(nn.Module):
    """A frozen backbone (with a parameter of no dimension) and a head that trains."""

    def __init__(self, seed=1):
        super().__init__()
        torch.manual_seed(seed)
        self.backbone, self.gain = nn.Linear(4, 8), nn.Parameter(torch.rand(()))
        self.head = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))

    def forward(self, x):
        return self.head(self.gain * self.backbone(x))


class Regress:
    """Least squares with noise from torch's global generator, and a state of its own: a running mean."""

    def __init__(self, net, noise=0.1):
        self.net, self.noise, self.mean = net, noise, torch.zeros(())
        self.players = {"head": list(net.head.parameters())}

    def turn(self, step):
        return ("head",)

    def losses(self, player, batch):
        y = self.net(batch.x + self.noise * torch.randn_like(batch.x))
        error = (y - batch.x[:, :2].sin()).square().mean()
        self.mean = self.mean.lerp(error.detach(), 0.1)
        yield {"loss": error + 0.01 * self.mean, "error": error}

    def state_dict(self):
        return {"mean": self.mean}

    def load_state_dict(self, state):
        self.mean = state["mean"]


def data(seed, step, batch=8):
    g = torch.Generator().manual_seed(1000 * seed + step)
    return Batch(torch.randn(batch, 4, generator=g), [""] * batch)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def train(
    folder=None, steps=20, net=None, method=None, optimiser=None, hooks=(), source=data, **options
) -> State:
    net = net or Net()
    method = method or Regress(net)
    optimiser = optimiser or adamw(method.players["head"], 1e-2)
    run = Run(steps, folder, **({"ema": 0.99, "save_every": 5, "log_every": 5} | options))
    return fit(method, source, {"head": optimiser}, {"net": net}, run, warmup_cosine(20, warmup=5), hooks)


def weights(state):
    return {k: v.clone() for k, v in state.networks["net"].state_dict().items()}


def main(folder: Path, steps: int, pause: float, split: str = "") -> None:
    torch.set_num_threads(1)
    if spread.world() == 1:
        train(folder, steps, hooks=[lambda _: time.sleep(pause)], save_every=2)
        return
    # every process starts from weights of its own, to see that they are made to agree
    net = Net(seed=1 + spread.rank())
    if split:
        shard.shard(net)
    optimiser = adamw(net.head.parameters(), 1e-2)
    state = train(folder if split else None, steps, net, Regress(net, noise=0.0), optimiser, save_every=6)
    from safetensors.torch import save_file

    with state.averaged():
        found = shard.whole(dict(net.state_dict()))
        if spread.rank() == 0 or not split:
            save_file(found, folder / f"rank-{spread.rank()}.safetensors")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), *sys.argv[4:])
