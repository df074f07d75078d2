"""Every family against its own pipeline in diffusers: our samplers, our packing, the same latents."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
sys.path.append(str(Path(__file__).parent))
import diffusers
from tiny_denoisers import FLOWS, TINY, VIDEO, network, path, tiny

from pocketdiffusion.diffusion.flow import to_noise, to_x0
from pocketdiffusion.diffusion.samplers import euler, run
from pocketdiffusion.teachers.convert import Flow
from pocketdiffusion.teachers.diffusers import Foreign

pytestmark = pytest.mark.slow

STEPS = 3


def flow():
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)


def ddim(name):
    scheduler = diffusers.DDIMScheduler.from_config(path(name).config)
    scheduler.register_to_config(clip_sample=False, set_alpha_to_one=False)
    scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    return scheduler


def theirs(name, x, cond):
    """The latents to which diffusers' pipeline brings ``x`` (one row), without guidance; its scheduler."""
    model, text = network(name), {"prompt_embeds": cond.tokens}
    nothing = dict.fromkeys(("vae", "text_encoder", "tokenizer"))
    two = nothing | {"text_encoder_2": None, "tokenizer_2": None}
    three = two | {"text_encoder_3": None, "tokenizer_3": None}
    common = {"num_inference_steps": STEPS, "output_type": "latent", "return_dict": False}
    h, w = x.shape[-2:]
    size = {"height": 8 * h, "width": 8 * w}
    if name in ("sd1.5", "sd2.1"):
        more = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipe = diffusers.StableDiffusionPipeline(unet=model, scheduler=ddim(name), **nothing, **more)
        found = pipe(latents=x, guidance_scale=1.0, **text, **size, **common)[0]
    elif name == "sdxl":
        pipe = diffusers.StableDiffusionXLPipeline(unet=model, scheduler=ddim(name), **two)
        found = pipe(
            latents=x, guidance_scale=1.0, pooled_prompt_embeds=cond.pooled, **text, **size, **common
        )[0]
    elif name == "pixart":
        pipe = diffusers.PixArtAlphaPipeline(transformer=model, scheduler=ddim(name), **nothing)
        text |= {"prompt_attention_mask": cond.mask.float(), "negative_prompt": None}
        more = {"use_resolution_binning": False}
        found = pipe(latents=x, guidance_scale=1.0, **text, **size, **more, **common)[0]
    elif name == "sd3":
        pipe = diffusers.StableDiffusion3Pipeline(transformer=model, scheduler=flow(), **three)
        pipe.patch_size = 2
        found = pipe(
            latents=x, guidance_scale=1.0, pooled_prompt_embeds=cond.pooled, **text, **size, **common
        )[0]
    elif name == "flux":
        pipe = diffusers.FluxPipeline(transformer=model, scheduler=flow(), **two)
        start = pipe._pack_latents(x, 1, 4, h, w)
        text |= {"pooled_prompt_embeds": cond.pooled, "guidance_scale": 2.0}
        found = pipe._unpack_latents(pipe(latents=start, **text, **size, **common)[0], 8 * h, 8 * w, 8)
    elif name == "qwen":
        pipe = diffusers.QwenImagePipeline(transformer=model, scheduler=flow(), **nothing)
        start = pipe._pack_latents(x, 1, 4, h, w)
        text |= {"prompt_embeds_mask": cond.mask, "true_cfg_scale": 1.0}
        found = pipe(latents=start, **text, **size, **common)[0]
        found = pipe._unpack_latents(found, 8 * h, 8 * w, 8)[:, :, 0]
    elif name == "sana":
        pipe = diffusers.SanaPipeline(transformer=model, scheduler=flow(), **nothing)
        text |= {"prompt_attention_mask": cond.mask.float(), "use_resolution_binning": False}
        found = pipe(latents=x, guidance_scale=1.0, height=32 * h, width=32 * w, **text, **common)[0]
    elif name == "wan":
        pipe = diffusers.WanPipeline(transformer=model, scheduler=flow(), **nothing)
        tokens = torch.zeros(1, 512, 12)
        tokens[:, : cond.mask.sum()] = cond.tokens[cond.mask]
        more = {"num_frames": 4 * (x.shape[2] - 1) + 1}
        found = pipe(latents=x, prompt_embeds=tokens, guidance_scale=1.0, **size, **more, **common)[0]
    else:
        pipe = diffusers.LTXPipeline(transformer=model, scheduler=flow(), **nothing)
        frames = x.shape[2]
        text |= {"prompt_attention_mask": cond.mask, "num_frames": 8 * (frames - 1) + 1, "frame_rate": 12}
        start = pipe._pack_latents(x)
        found = pipe(latents=start, guidance_scale=1.0, height=32 * h, width=32 * w, **text, **common)[0]
        found = pipe._unpack_latents(found, frames, h, w)
    return found, pipe.scheduler


def by_ddim(model, x, cond, scheduler):
    """DDIM on the model's own levels, in our words; x and the result are on the variance-preserving path."""
    alphas = model.path.alphas
    gap = len(alphas) // STEPS
    for k in scheduler.timesteps:
        a, b = alphas[k].sqrt(), (1 - alphas[k]).sqrt()
        t = (b / (a + b)).view(1)
        v = model(x / (a + b), t, cond)
        x0, e = to_x0(x / (a + b), v, t), to_noise(x / (a + b), v, t)
        before = alphas[max(int(k) - gap, 0)]
        x = before.sqrt() * x0 + (1 - before).sqrt() * e
    return x


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in TINY if n != "dit"])
def test_a_trajectory_is_that_of_the_pipeline(name):
    model = tiny(name)
    model.settings = replace(model.settings, guidance=2.0, fps=12)
    x, _, cond = model.example(1)
    x = x[..., :4]  # taller than wide
    cond = replace(cond, mask=torch.arange(7)[None] < 5)
    with torch.no_grad():
        wanted, scheduler = theirs(name, x.clone(), cond)
        if name in FLOWS:
            *_, end = run(euler, model, x, scheduler.sigmas, cond)
            found = end.x
        else:
            found = by_ddim(model, x, cond, scheduler)
    assert wanted.shape == x.shape
    assert (wanted - x).abs().max() > 0.1
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_dit_predicts_what_its_pipeline_makes_of_it():
    """DiTPipeline always decodes: here the network is called as in its loop, and DDIM's x0 compared."""
    model, scheduler, k = tiny("dit"), ddim("dit"), torch.tensor(400)
    scheduler.set_timesteps(STEPS)
    y, _, cond = model.example(2)
    with torch.no_grad():
        answer = model.model(y, timestep=k.expand(2), class_labels=cond.label).sample
        wanted = scheduler.step(answer.split(4, dim=1)[0], k, y).pred_original_sample
        a = model.path.alphas[k].sqrt()
        b = (1 - model.path.alphas[k]).sqrt()
        t = (b / (a + b)).expand(2)
        x = y / (a + b)
        torch.testing.assert_close(to_x0(x, model(x, t, cond), t), wanted, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", VIDEO)
def test_frames_with_their_own_level(name):
    model = tiny(name)
    x, t, cond = model.example()
    with torch.no_grad():
        same = model(x, t[:, None].expand(-1, x.shape[2]), cond)
        torch.testing.assert_close(same, model(x, t, cond), atol=1e-5, rtol=1e-5)
        levels = t[:, None].repeat(1, x.shape[2])
        levels[:, -1] = 0.5
        assert (model(x, levels, cond) - same).abs().max() > 1e-4


@pytest.mark.parametrize("name", VIDEO)
def test_a_picture_is_a_clip_of_one_frame(name):
    model = tiny(name)
    x, t, cond = model.example()
    with torch.no_grad():
        assert torch.equal(model(x[:, :, 0], t, cond), model(x[:, :, :1], t, cond)[:, :, 0])


@pytest.mark.parametrize("name", ["qwen", "pixart", "sana", "ltx", "wan"])
def test_tokens_behind_the_mask_are_not_read(name):
    model = tiny(name)
    x, t, cond = model.example()
    other = replace(cond, tokens=torch.where(cond.mask[..., None], cond.tokens, 9.0))
    with torch.no_grad():
        torch.testing.assert_close(model(x, t, other), model(x, t, cond), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", TINY)
def test_everything_is_read(name):
    """v depends on x, on t, on every part of the condition; rows do not mix."""
    model = tiny(name)
    x, t, cond = model.example()
    with torch.no_grad():
        v = model(x, t, cond)
        assert v.shape == x.shape and v.isfinite().all()
        torch.testing.assert_close(
            model(x[1:], t[1:], cond.map(lambda c: c[1:])), v[1:], atol=1e-5, rtol=1e-4
        )
        changed = [model(x, t * 0.7, cond)]
        if name != "dit":
            changed.append(model(x, t, replace(cond, tokens=cond.tokens + 1)))
        if cond.pooled is not None:
            changed.append(model(x, t, replace(cond, pooled=cond.pooled + 1)))
        if cond.label is not None:
            changed.append(model(x, t, replace(cond, label=cond.label + 1)))
    for other in changed:
        assert (other - v).abs().max() > 1e-4


def test_a_flow_of_another_scheduler_is_the_same_flow():
    """v does not depend on the shift of the sampler."""
    model = tiny("sd3")
    x, t, cond = model.example()
    with torch.no_grad():
        assert torch.equal(Foreign(network("sd3"), Flow(None))(x, t, cond), model(x, t, cond))
