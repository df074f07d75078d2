"""Everything once, in under a minute: autoencoder, denoiser, pipeline, pictures.

    pocket train smoke

One thing per picture at 32 x 32 pixels. It shows that the parts work together and that losses fall; the
pictures are coloured blobs, which is what a minute buys.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..autoencoders import kl
from ..data.scenes import Scenes, World
from ..device import choose
from ..methods.autoencode import Autoencode
from ..methods.flow_matching import FlowMatching
from ..models import dit
from ..pipeline import Pipeline, Schedule
from ..text import encoder
from ..text.tokenizer import Tokenizer
from ..train import spread
from ..train.fit import Run, fit
from ..train.optimisers import adamw, warmup_cosine
from ..types import Batch, Cond

WORLD = World(
    textures=("plain",),
    backgrounds=("plain",),
    most=1,
    groups=(1.0, 0.0, 0.0),
    singles=1.0,
    textured=0.0,
    tilt=0.0,
    empty=0.0,
    tell_backdrop=0.0,
)


@dataclass(frozen=True)
class Args:
    out: Path = Path("runs/smoke")
    steps_autoencoder: int = 150
    steps: int = 300
    batch: int = 32
    seed: int = 0
    device: str = "cpu"


def autoencoder(args: Args, device: torch.device) -> kl.AutoencoderKL:
    vae = kl.AutoencoderKL(kl.PRESETS["smoke"]).to(device)
    data = Scenes(WORLD, args.batch // 2, 32, device)
    run = Run(args.steps_autoencoder, args.out / "autoencoder", args.seed, name="autoencoder")
    schedule = warmup_cosine(args.steps_autoencoder, 20)
    fit(Autoencode(vae), data, {"autoencoder": adamw(vae.parameters(), 4e-3)}, {"vae": vae}, run, schedule)
    vae.calibrate(Scenes(WORLD, 256, 32, device)(args.seed, 0).x)
    return vae.requires_grad_(False)


def main(args: Args) -> None:
    device = choose(args.device)
    torch.manual_seed(args.seed)
    vae = autoencoder(args, device)
    data = Scenes(WORLD, args.batch, 32, device)
    tokenizer = Tokenizer.train([c for i in range(20) for c in (s.caption for s in data.specs(0, i))])
    text = encoder.TextTransformer(encoder.PRESETS["smoke"], tokenizer).to(device)
    model = dit.DiT(dit.PRESETS["smoke"]).to(device)

    def embed(batch: Batch) -> tuple[Tensor, Cond]:
        return vae.encode(batch.x), text.embed(batch.text)

    trained = [*model.parameters(), *text.parameters()]
    method = FlowMatching(model, embed, lambda: text.embed([""]), trained)
    run = Run(args.steps, args.out / "denoiser", args.seed, ema=0.99, name="denoiser")
    networks = {"transformer": model, "text_encoder": text}
    optimisers = {"denoiser": adamw(trained, 3e-3)}
    state = fit(method, data, optimisers, networks, run, warmup_cosine(args.steps, 30))
    if spread.rank():
        return
    with state.averaged():
        pipe = Pipeline(model, text, vae, Schedule(steps=12, guidance=3.0, size=32))
        pipe.save_pretrained(args.out / "pipeline")
        prompts = [
            f"a {colour} {shape}" for colour in ("red", "green", "blue") for shape in ("circle", "square")
        ]
        for prompt, picture in zip(prompts, pipe(prompts, seed=args.seed)):
            picture.save(args.out / f"{prompt.replace(' ', '-')}.png")
    print(f"{args.out}: a pipeline and {len(prompts)} pictures")
