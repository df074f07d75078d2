"""Cross-attention maps of diffusers' denoisers: nothing is changed by looking, and what is seen is theirs."""

import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
sys.path.insert(0, str(Path(__file__).parent))
from tiny_denoisers import tiny

from pocketdiffusion.cli.counting import Looking
from pocketdiffusion.export.foreign import opened
from pocketdiffusion.nn.attention.maps import finest
from pocketdiffusion.teachers.maps import crossing, watched

pytestmark = pytest.mark.slow


def inputs(model, batch=2):
    """Latents, levels and words as the family takes them."""
    from pocketdiffusion.types import Cond

    g = torch.Generator().manual_seed(0)
    config = model.model.config
    tokens = torch.randn(batch, 5, config[model.family.text], generator=g)
    width = model.family.pooled(config)
    pooled = torch.randn(batch, width, generator=g) if width else None
    x = torch.randn(batch, model.channels, 8, 8, generator=g)
    mask = torch.tensor([[True] * 5, [True, True, True, False, False]])[:batch]
    return x, torch.full((batch,), 0.5), Cond(tokens, mask, pooled)


@pytest.mark.parametrize("name", ["sd1.5", "sdxl", "pixart"])
def test_looking_changes_nothing(name):
    model = tiny(name).eval()
    given = inputs(model)
    names = finest(model, given, crossing(model))
    assert names and all(n.endswith("attn2") for n in names)
    before = [model.get_submodule(n).processor for n in names]
    look = watched(model, names)
    with torch.no_grad():
        v, a = look(*given)
        assert torch.equal(v, model(*given))
    torch.testing.assert_close(a.sum(-1), torch.ones_like(a[..., 0]))
    assert not a[1, :, 3:].any(), "words that are masked are looked at"
    assert [model.get_submodule(n).processor for n in names] == before, "the model itself is changed"


def test_the_map_of_a_layer_is_what_it_attends_to():
    """Of one layer with one row: the softmax of the sum of its heads' logits, by diffusers' own scores."""
    model = tiny("pixart").eval()
    name = crossing(model)[-1]
    layer, seen = model.get_submodule(name), {}

    def note(module, args, kwargs):
        seen["hidden"], seen["words"] = args[0], kwargs["encoder_hidden_states"]

    handle = layer.register_forward_pre_hook(note, with_kwargs=True)
    given = inputs(model, 1)
    with torch.no_grad():
        model(*given)
        handle.remove()
        a = watched(model, [name])(*given)[1]
        q = layer.head_to_batch_dim(layer.to_q(seen["hidden"]))
        k = layer.head_to_batch_dim(layer.to_k(seen["words"]))
        logits = layer.get_attention_scores(q, k).log()
        # log-softmax of each head is its logits but for a constant per place
        torch.testing.assert_close(a[0], logits.sum(0).softmax(-1), atol=1e-5, rtol=1e-4)


def test_models_of_joint_attention_have_no_such_layer():
    model = tiny("sd3")
    with pytest.raises(ValueError, match="has no cross-attention to look at"):
        finest(model, inputs(model), crossing(model))


@pytest.mark.parametrize("family", ["sd1.5", "pixart-alpha"])
def test_a_pipeline_of_diffusers_is_corrected(family, tmp_path):
    """A counter that always sees one star asks for another one."""
    pytest.importorskip("transformers")
    import tiny_pipelines

    pipe = opened(tiny_pipelines.saved(family, tmp_path / "pipe"))
    pipe.schedule = pipe.settings(20, 2.0)

    class One:
        def check(self, phrases):
            assert phrases == ["red star"]

        def __call__(self, pictures, phrases):
            mask = torch.zeros(pictures.shape[-2:], dtype=torch.bool)
            mask[:8, :8] = True
            return [{"red star": [mask]} for _ in pictures]

    made = Looking(pipe, counter=One())("two red stars", seed=1)
    assert made.changed and made.found == {"red star": 1} and made.wanted == {"red star": 2}
    assert made.picture.isfinite().all()


@pytest.mark.parametrize("family", ["sdxl", "pixart-alpha", "sd3"])
def test_where_tokens_come_from(family, tmp_path):
    """Every word of the prompt is covered by tokens that stand in its letters, a space at most beside."""
    pytest.importorskip("transformers")
    import tiny_text

    from pocketdiffusion.teachers.encoders import load

    text = load(tiny_text.folder_of(family, tmp_path / "text"))
    prompt = "  Two green stars"
    spans = text.spans(prompt)
    for word in ("Two", "green", "stars"):
        start = prompt.index(word)
        own = [(a, b) for a, b in spans if a < start + len(word) and b > start]
        assert {i for a, b in own for i in range(a, b)} - {start - 1} == set(range(start, start + len(word)))
    assert len(spans) <= text.spoken
