"""A tiny random pipeline, saved once per test run."""

import pytest
import torch

from pocketdiffusion.autoencoders import kl
from pocketdiffusion.models import dit
from pocketdiffusion.pipeline import Pipeline, Schedule
from pocketdiffusion.text import encoder
from pocketdiffusion.text.tokenizer import Tokenizer

torch.set_num_threads(1)


def tiny(**schedule):
    """Random smoke-size parts at 32 x 32 pixels; outputs that start at zero are filled with noise."""
    torch.manual_seed(0)
    texts = ["a red circle", "two green stars", "a blue square to the left of a yellow heart"]
    text = encoder.TextTransformer(encoder.PRESETS["smoke"], Tokenizer.train(texts * 3))
    model = dit.DiT(dit.PRESETS["smoke"])
    for p in model.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.02)
    vae = kl.AutoencoderKL(kl.PRESETS["smoke"])
    return Pipeline(model, text, vae, Schedule(**{"steps": 3, "guidance": 2.0, "size": 32} | schedule))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "pipeline"
    tiny().save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_pipe(tiny_folder):
    return Pipeline.from_pretrained(tiny_folder)
