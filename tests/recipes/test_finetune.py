import signal

import pytest
import torch
from PIL import Image
from torch import nn

from pocketdiffusion.autoencoders import kl
from pocketdiffusion.cli.main import guarded
from pocketdiffusion.data.files import Folder
from pocketdiffusion.models import dit
from pocketdiffusion.pipeline import Pipeline, Schedule
from pocketdiffusion.recipes import finetune_folder
from pocketdiffusion.recipes.finetune_folder import Args, adapt, finetune
from pocketdiffusion.text import encoder
from pocketdiffusion.text.tokenizer import Tokenizer

# importing peft takes seconds
pytestmark = pytest.mark.slow

SIZE = 32


def pieces():
    """A tiny pipeline whose every weight matters (no zeros left)."""
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(["a red picture", "a blue picture"], vocab=300)
    text = encoder.TextTransformer(encoder.PRESETS["smoke"], tokenizer)
    model, vae = dit.DiT(dit.PRESETS["smoke"]), kl.AutoencoderKL(kl.PRESETS["smoke"])
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return Pipeline(model, text, vae, Schedule(steps=2, size=SIZE))


def frozen_copy(module):
    return {k: v.clone() for k, v in module.state_dict().items()}


def changed(module, before):
    return {k for k, v in module.state_dict().items() if not torch.equal(v, before[k])}


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, colour in enumerate(("red", "blue", "green")):
        Image.new("RGB", (40, 36), colour).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a {colour} picture")
    return folder


def args(photos, **changes):
    given = {"out": photos.parent / "run", "steps": 3, "batch": 2, "lr": 1e-2}
    return Args(photos, **(given | changes))


def test_lora_at_zero_changes_nothing():
    model = pieces().transformer
    x, t, cond = model.example()
    before = model(x, t, cond)
    adapted = adapt(model, 4)
    assert torch.equal(model(x, t, cond), before)
    merged = adapted.merge_and_unload()
    assert merged is model and torch.equal(model(x, t, cond), before)


def test_lora_touches_every_linear_layer_of_the_blocks_and_nothing_else():
    model = pieces().transformer
    linear = {k for k, m in model.blocks.named_modules() if isinstance(m, nn.Linear)}
    adapt(model, 4)
    adapted = {
        k.removesuffix(".base_layer") for k, _ in model.blocks.named_modules() if k.endswith(".base_layer")
    }
    assert adapted == linear
    assert all("lora_" in k for k, p in model.named_parameters() if p.requires_grad)


def test_merged_weights_are_base_plus_scaled_product():
    model = pieces().transformer
    base = frozen_copy(model)
    adapted = adapt(model, 4)
    with torch.no_grad():
        for k, p in model.named_parameters():
            if "lora_B" in k:
                p.normal_()
    layers = {k: m for k, m in model.named_modules() if hasattr(m, "base_layer")}
    sums = {
        f"{k}.weight": base[f"{k}.weight"]
        + m.scaling["default"] * m.lora_B["default"].weight @ m.lora_A["default"].weight
        for k, m in layers.items()
    }
    x, t, cond = model.example()
    v = model(x, t, cond)
    merged = adapted.merge_and_unload()
    assert set(merged.state_dict()) == set(base) and changed(merged, base) == set(sums)
    for k, value in sums.items():
        torch.testing.assert_close(merged.state_dict()[k], value)
    torch.testing.assert_close(merged(x, t, cond), v, atol=1e-4, rtol=1e-4)


def test_lora_moves_only_what_it_adapts(photos):
    pipe = pieces()
    text, vae, base = (frozen_copy(m) for m in (pipe.text_encoder, pipe.vae, pipe.transformer))
    finetune(pipe, Folder(photos, 2, SIZE), args(photos, rank=2))
    assert not changed(pipe.text_encoder, text) and not changed(pipe.vae, vae)
    moved = changed(pipe.transformer, base)
    assert moved and all(k.startswith("blocks.") and base[k].ndim == 2 for k in moved)


def test_the_base_stays_bit_equal_while_lora_trains(photos, monkeypatch):
    pipe = pieces()
    base = frozen_copy(pipe.transformer)
    seen = {}

    def spy(method, data, optimisers, networks, run, schedule):
        state = fit(method, data, optimisers, networks, run, schedule)
        seen.update(frozen_copy(networks["transformer"]))
        seen["players"] = len(method.players["denoiser"])
        return state

    fit = finetune_folder.fit
    monkeypatch.setattr(finetune_folder, "fit", spy)
    finetune(pipe, Folder(photos, 2, SIZE), args(photos, rank=2))
    adapters = [k for k in seen if "lora_" in k]
    assert seen["players"] == len(adapters) and any(seen[k].any() for k in adapters if "lora_B" in k)
    for k, value in base.items():
        inner = k.replace(".weight", ".base_layer.weight").replace(".bias", ".base_layer.bias")
        assert torch.equal(seen[inner if inner in seen else k], value), k


def test_full_fine_tuning_trains_denoiser_and_text_encoder(photos):
    pipe = pieces()
    text, vae, base = (frozen_copy(m) for m in (pipe.text_encoder, pipe.vae, pipe.transformer))
    finetune(pipe, Folder(photos, 2, SIZE), args(photos))
    assert not changed(pipe.vae, vae)
    assert changed(pipe.text_encoder, text) and changed(pipe.transformer, base) == set(base)


@pytest.mark.parametrize("rank", [0, 2])
def test_from_pipeline_folder_to_pipeline_folder(photos, tmp_path, rank):
    pieces().save_pretrained(tmp_path / "base")
    given = args(photos, pipeline=str(tmp_path / "base"), rank=rank)
    finetune_folder.main(given)
    tuned = Pipeline.from_pretrained(given.out / "pipeline")
    assert changed(tuned.transformer, frozen_copy(pieces().transformer))
    assert len(tuned("a red picture")) == 1


@pytest.mark.parametrize("rank", [0, 2])
def test_a_stopped_run_goes_on_to_the_same_weights(photos, tmp_path, rank):
    pieces().save_pretrained(tmp_path / "base")
    given = args(photos, pipeline=str(tmp_path / "base"), rank=rank, steps=4)
    finetune_folder.main(given)
    whole = frozen_copy(Pipeline.from_pretrained(given.out / "pipeline").transformer)

    given = args(photos, pipeline=given.pipeline, rank=rank, steps=4, out=tmp_path / "stopped")

    class Interrupting(Folder):
        """Ctrl-C while the third batch is read."""

        def __call__(self, seed, step):
            if step == 2:
                signal.raise_signal(signal.SIGINT)
            return super().__call__(seed, step)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt, match="resumes"):
        patch.setattr(finetune_folder, "Folder", Interrupting)
        finetune_folder.main(given)
    assert not (given.out / "pipeline").exists()
    finetune_folder.main(given)
    assert not changed(Pipeline.from_pretrained(given.out / "pipeline").transformer, whole)


def test_wrong_arguments_are_told(photos, tmp_path):
    pieces().save_pretrained(tmp_path / "base")
    base = str(tmp_path / "base")
    for wrong in ({"rank": -1}, {"steps": 0}, {"size": 30, "pipeline": base}, {"pipeline": "nothing"}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}"):
            finetune_folder.main(args(photos, **wrong))
    with pytest.raises(ValueError, match="no such folder"):
        finetune_folder.main(args(photos / "nowhere", pipeline=base))


def test_a_cache_of_the_same_encoders_trains_and_another_is_refused(photos, tmp_path):
    pieces().save_pretrained(tmp_path / "base")
    base = ["--model", str(tmp_path / "base"), "--size", str(SIZE)]
    assert guarded(["cache", str(photos), "-o", str(tmp_path / "cache"), *base]) == 0
    finetune_folder.main(args(tmp_path / "cache", out=tmp_path / "a", pipeline=str(tmp_path / "base")))
    assert Pipeline.from_pretrained(tmp_path / "a" / "pipeline")("a red picture")[0].size == (SIZE, SIZE)
    torch.manual_seed(1)
    other = pieces()
    torch.nn.init.normal_(other.vae.encoder[0].weight)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="made with autoencoder"):
        finetune_folder.main(args(tmp_path / "cache", out=tmp_path / "b", pipeline=str(tmp_path / "other")))
