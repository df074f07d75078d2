"""From prompt to picture: seeds, batches, schedules, bad input, and the saved folder."""

import json
import shutil
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from pocketdiffusion import store
from pocketdiffusion.autoencoders.tiny import Config, TinyDecoder
from pocketdiffusion.export.program import programs
from pocketdiffusion.pipeline import Pipeline, Schedule, to_pil

from .conftest import tiny


def levels(picture):
    return np.asarray(picture).astype(int)


def test_folder_has_the_diffusers_layout(tiny_folder):
    names = {str(p.relative_to(tiny_folder)) for p in tiny_folder.rglob("*") if p.is_file()}
    assert {
        "model_index.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json",
        "scheduler/scheduler_config.json",
    } <= names


def test_saved_and_loaded_draw_the_same(tiny_folder):
    a = tiny()("a red circle", seed=5)[0]
    b = Pipeline.from_pretrained(tiny_folder)("a red circle", seed=5)[0]
    assert np.array_equal(levels(a), levels(b))


def test_a_picture_depends_on_its_seed_and_number_alone(tiny_pipe):
    prompts = ["a red circle", "two green stars", "a blue square to the left of a yellow heart"]
    together = tiny_pipe(prompts, seed=1, num_images=2, batch=6)
    one_by_one = tiny_pipe(prompts, seed=1, num_images=2, batch=1)
    for a, b in zip(together, one_by_one):
        assert abs(levels(a) - levels(b)).max() <= 1
    other = tiny_pipe(prompts, seed=2, num_images=2)
    assert abs(levels(together[0]) - levels(other[0])).max() > 1
    assert abs(levels(together[0]) - levels(together[1])).max() > 1


def test_guidance_one_is_no_guidance(tiny_pipe):
    calls = []
    tiny_pipe.transformer.register_forward_hook(lambda m, i, o: calls.append(len(i[0])))
    tiny_pipe.sample(["a", "b"], guidance=1.0)
    assert calls == [2, 2, 2]
    calls.clear()
    tiny_pipe.sample(["a", "b"], guidance=3.0)
    assert calls == [4, 4, 4]


def test_negative_prompt_changes_the_picture_only_under_guidance(tiny_pipe):
    plain, negative = (tiny_pipe.sample(["a red circle"], n, guidance=1.0) for n in ("", "two green stars"))
    assert torch.equal(plain, negative)
    plain, negative = (tiny_pipe.sample(["a red circle"], n, guidance=4.0) for n in ("", "two green stars"))
    assert not torch.equal(plain, negative)


def test_callback_sees_every_step(tiny_pipe):
    seen = []
    tiny_pipe("a", steps=4, callback=lambda step: seen.append((step.index, step.x0.shape)))
    assert [i for i, _ in seen] == [0, 1, 2, 3]
    assert seen[0][1] == (1, 4, 8, 8)


def test_few_step_models_carry_their_times(tmp_path):
    tiny(times=(1.0, 0.75, 0.5, 0.25), sampler="renoise", guidance=1.0).save_pretrained(tmp_path / "few")
    pipe = Pipeline.from_pretrained(tmp_path / "few")
    assert pipe.schedule.times == (1.0, 0.75, 0.5, 0.25)
    seen = []
    a = pipe("a red circle", seed=3, callback=lambda s: seen.append(round(float(s.t[0]), 3)))[0]
    assert seen == [1.0, 0.75, 0.5, 0.25]
    assert np.array_equal(levels(a), levels(pipe("a red circle", seed=3)[0]))
    with pytest.raises(ValueError, match="takes 4 steps, got 3"):
        pipe("a", steps=3)


@pytest.mark.parametrize(
    "prompt", ["", "x" * 10_000, "a \U0001f98a fox", "\x00\n\t", "turquoise heptagon", "\udcff"]
)
def test_any_string_is_a_prompt(tiny_pipe, prompt):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert tiny_pipe(prompt)[0].size == (32, 32)


def test_long_prompts_are_cut_with_a_notice(tiny_pipe):
    with pytest.warns(UserWarning, match="prompt cut to 32 tokens"):
        tiny_pipe("red " * 100)


def test_other_sizes(tiny_pipe):
    assert tiny_pipe("a", size=64)[0].size == (64, 64)
    assert tiny_pipe("a", size=(32, 64))[0].size == (64, 32)


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"steps": -3}, "steps must be at least 1"),
        ({"guidance": float("nan")}, "guidance must be 0 or more"),
        ({"guidance": -1.0}, "guidance must be 0 or more"),
        ({"size": 30}, "multiple of 8 pixels, got 30 x 30"),
        ({"size": 0}, "multiple of 8"),
        ({"num_images": 0}, "num_images and batch must be at least 1"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_values_are_named(tiny_pipe, bad, message):
    with pytest.raises(ValueError, match=message):
        tiny_pipe("a", **bad)


def test_unknown_names_list_what_there_is():
    with pytest.raises(ValueError, match="no pipeline 'nonsense': give a folder or one of"):
        Pipeline.from_pretrained("nonsense")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"prediction_type": "epsilon"}, "prediction_type 'epsilon' is not supported"),
        ({"sampler": "magic"}, "unknown sampler 'magic'"),
        ({"speed": 3}, "unknown key 'speed'"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"steps": "ten"}, "steps is 'ten', expected something like 28"),
        ({"interval": [0.5]}, "interval must be two levels"),
        ({"shift": -1.0}, "scheduler_config.json: shift must be positive"),
        ({"times": [0.5, 1.0]}, "scheduler_config.json: times must decrease"),
        ({"times": "soon"}, "scheduler_config.json"),
    ],
)
def test_a_schedule_that_cannot_be_honoured_is_refused(tiny_folder, tmp_path, change, message):
    folder = shutil.copytree(tiny_folder, tmp_path / "copy")
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        Pipeline.from_pretrained(folder)


def other(folder, name, **changes):
    """Replace a component by one with another config."""
    network = store.load(folder / name)
    config = replace(network.config, **changes)
    store.save(type(network)(config), folder / name)


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("text_encoder", {"dim": 64}, "reads text of width 32, not 64"),
        ("vae", {"channels": 8}, "the transformer has 4 channels, the vae 8"),
        ("text_encoder", {"vocab": 10}, "the tokenizer has .* tokens, the text encoder 10"),
    ],
)
def test_parts_of_different_pipelines_are_refused(tiny_folder, tmp_path, name, changes, message):
    folder = shutil.copytree(tiny_folder, tmp_path / "copy")
    other(folder, name, **changes)
    with pytest.raises(ValueError, match=message):
        Pipeline.from_pretrained(folder)


def test_a_component_in_the_wrong_folder(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "copy")
    shutil.rmtree(folder / "transformer")
    shutil.copytree(folder / "vae", folder / "transformer")
    with pytest.raises(ValueError, match="holds a AutoencoderKL, expected DiT"):
        Pipeline.from_pretrained(folder)


def test_incomplete_folders_are_refused(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "copy")
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer.json: not a readable tokenizer"):
        Pipeline.from_pretrained(folder)
    shutil.rmtree(folder / "vae")
    with pytest.raises(ValueError, match=r"vae/config.json: no such file"):
        Pipeline.from_pretrained(folder)
    (folder / "model_index.json").write_text("{}")
    with pytest.raises(ValueError, match="no component 'transformer'"):
        Pipeline.from_pretrained(folder)


def test_schedule_levels():
    assert Schedule(steps=4, shift=1.0).levels().tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert Schedule(times=(1.0, 0.5)).levels().tolist() == [1.0, 0.5, 0.0]


def test_to_pil_rounds_to_the_nearest_level():
    x = torch.tensor([-1.0, 0.0, 1.0])[:, None, None].expand(3, 2, 2)
    assert np.asarray(to_pil(x))[0, 0].tolist() == [0, 128, 255]


def test_a_smaller_decoder_takes_the_place_of_the_vae_s(tiny_folder, tmp_path):
    pipe = Pipeline.from_pretrained(tiny_folder)
    assert pipe.decoder is pipe.vae and "decoder" not in pipe.components
    config = Config(pipe.vae.config.channels, (8, 8, 8), (1, 1, 1), groups=8)
    store.save(TinyDecoder(config), tmp_path / "decoder")
    other = Pipeline.from_pretrained(tiny_folder, tmp_path / "decoder")
    x = other.sample(["a red circle"], steps=2)
    assert x.shape == pipe.sample(["a red circle"], steps=2).shape
    other.save_pretrained(tmp_path / "both")
    again = Pipeline.from_pretrained(tmp_path / "both")
    assert type(again.decoder).__name__ == "TinyDecoder"
    assert torch.equal(again.sample(["a red circle"], steps=2), x)
    # the runtimes get the decoder that draws
    assert programs(again)["decoder"].module.vae.config == config


def test_a_decoder_of_other_latents_is_refused(tiny_folder, tmp_path):
    store.save(TinyDecoder(Config(5, (8, 8, 8), (1, 1, 1), groups=8)), tmp_path / "decoder")
    with pytest.raises(ValueError, match="the decoder has channels 5, the vae 4"):
        Pipeline.from_pretrained(tiny_folder, tmp_path / "decoder")
