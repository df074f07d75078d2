"""Count correction of a pipeline: what is asked for, a counter, words that attention sees.

made = counted(pipe, "five red circles", seed=0, index=0)
made.found, made.counted, made.pictures      before, after, and (before, mask, after) to look at
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from math import sqrt
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ..data.shapes import COLOURS, SHAPES, TEXTURES
from ..diffusion.count import Corrected, Settings, correct
from ..diffusion.guidance import cfg
from ..diffusion.samplers import STEPS
from ..nn.attention.maps import crossing, finest, watched
from ..noise import normal
from ..rewards.count import Counter, DetectorCounter
from ..rewards.scenes import SceneDetector
from ..teachers import maps as foreign
from ..teachers.diffusers import Foreign
from ..text.numbers import Target, given, places, targets

if TYPE_CHECKING:
    from ..pipeline import Pipeline

LEAST = 20  # steps that a trajectory needs so that there is something to go back to


@dataclass
class Counted:
    wanted: dict[str, int]
    found: dict[str, int]  # before it was finished
    counted: dict[str, int]  # on the finished picture
    picture: Tensor  # (3, H, W)
    shown: Tensor  # (3, H, 3 W): what was foreseen, the mask, what became of it
    changed: bool
    calls: int

    def line(self) -> str:
        def told(counts: dict[str, int]) -> str:
            return ", ".join(f"{n} {phrase}" for phrase, n in counts.items())

        if not self.wanted:
            return "no number in it, so there is nothing to correct"
        found, wanted, after = told(self.found), told(self.wanted), told(self.counted)
        if not self.changed:
            return f"found {found}, as asked: nothing to correct; finished with {after}"
        return f"found {found}, wanted {wanted}; corrected, finished with {after}"


def scene_counter(lenient: bool = False) -> DetectorCounter:
    """Lenient: counts things whose outlines are soft or poor, for corrections; strict: judges them too."""
    words = {"shape": list(SHAPES), "colour": list(COLOURS), "texture": TEXTURES}
    return DetectorCounter(SceneDetector(0.1, 0.3) if lenient else SceneDetector(), words, lenient)


def asked(prompt: str, flags: Sequence[str], counter: Counter) -> list[Target]:
    """What is to be counted; nothing, where a prompt has no number. ValueError for what cannot be."""
    found = [pointed(prompt, t) for t in given(flags)] if flags else targets(prompt)
    counter.check([t.phrase for t in found])
    return found


def pointed(prompt: str, target: Target) -> Target:
    """A target of --count with its place in the prompt."""
    found = places(prompt, target.phrase)
    if not found:
        raise ValueError(f"--count {target.phrase}: the prompt {prompt!r} does not speak of it")
    if len(found) > 1:
        raise ValueError(
            f"--count {target.phrase}: the prompt {prompt!r} speaks of it {len(found)} times; "
            "name one with the words before it"
        )
    return replace(target, where=found[0])


def words_of(pipe: Any, prompt: str, wanted: Sequence[Target]) -> dict[str, list[int]]:
    """Tokens that overlap with each target's noun; that pieces of a plural count as the rest does is ours."""
    text = pipe.text_encoder
    spans = text.spans(prompt) if hasattr(text, "spans") else text.tokenizer.spans(prompt)
    found = {}
    for target in wanted:
        start, end = target.where
        inside = [i for i, (a, b) in enumerate(spans) if a < end and b > start]
        if not inside:
            raise ValueError(
                f"{prompt!r}: {target.phrase!r} is beyond the length of text that the model reads"
            )
        found[target.phrase] = inside
    return found


def check(pipe: Any) -> None:
    if pipe.schedule.times or len(pipe.schedule.levels()) - 1 < LEAST:
        steps = len(pipe.schedule.levels()) - 1
        raise ValueError(
            f"--count-correct: {steps} steps leave nothing to go back to; it needs {LEAST} or more "
            "(--steps, or --model with the many-step pipeline that this one was distilled from)"
        )
    if pipe.schedule.sampler == "renoise":
        raise ValueError("--count-correct: samplers that add noise have no trajectory to go back to")


def layers_of(pipe: Any, patterns: Sequence[str] = ()) -> list[str]:
    """The cross-attention layers that answer to ``patterns``; without any, those of the finest grid."""
    network, given = pipe.transformer, cast(Any, pipe)
    if isinstance(network, Foreign):
        inputs, layers = given.example(1), foreign.crossing(network)
    else:
        inputs, layers = network.example(1, pipe.device), crossing(network)
    if not patterns:
        return finest(network, inputs, layers)
    found = [name for name in layers if any(fnmatch(name, pattern) for pattern in patterns)]
    if not found:
        raise ValueError(f"no layer like {', '.join(patterns)} looks at words; there are {', '.join(layers)}")
    return found


class Looking:
    """A pipeline with some cross-attention layers watched."""

    def __init__(
        self,
        pipe: Pipeline,
        settings: Settings | None = None,
        counter: Counter | None = None,
        layers: Sequence[str] = (),
    ):
        """``counter``: default the scenes' own, lenient, which also counts what is not finished.

        ``layers``: patterns of those whose map is looked at (recipes/count_layers.py); default: the finest.
        """
        check(pipe)
        self.pipe, self.settings = pipe, settings or Settings()
        self.counter = counter or scene_counter(lenient=True)
        watch = foreign.watched if isinstance(pipe.transformer, Foreign) else watched
        self.look = watch(pipe.transformer, layers_of(pipe, layers))

    def grid(self, x: Tensor, cond: Any) -> tuple[int, int]:
        """Of the attention map."""
        with torch.no_grad():
            places = self.look(x, x.new_full((len(x),), 0.5), cond)[1].shape[1]
        h = round(sqrt(places * x.shape[-2] / x.shape[-1]))
        return h, places // h

    def check(self, prompt: str, flags: Sequence[str] = ()) -> list[Target]:
        """What is to be counted in a picture of ``prompt``. ValueError where it cannot be."""
        wanted = asked(prompt, flags, self.counter)
        words_of(self.pipe, prompt, wanted)
        return wanted

    def __call__(
        self, prompt: str, flags: Sequence[str] = (), negative: str = "", seed: int = 0, index: int = 0
    ) -> Counted:
        with self.pipe.computing():
            return self.counted(prompt, flags, negative, seed, index)

    def counted(self, prompt: str, flags: Sequence[str], negative: str, seed: int, index: int) -> Counted:
        pipe, schedule = self.pipe, self.pipe.schedule
        wanted = self.check(prompt, flags)
        h, w = (side // pipe.vae.config.factor for side in pipe.sides(None))
        x = torch.from_numpy(normal(seed, index, 0, (pipe.vae.config.channels, h, w)))[None].to(pipe.device)
        with torch.no_grad():
            cond, null = pipe.text_encoder.embed([prompt]), pipe.text_encoder.embed([negative])
        model = cfg(pipe.transformer, null, schedule.guidance, schedule.interval)
        numbers = {t.phrase: t.count for t in wanted}
        phrases = list(numbers)

        def decode(z: Tensor) -> Tensor:
            return pipe.decoder.decode(z).float().clamp(-1, 1)

        def count(pictures: Tensor) -> list[dict[str, list[Tensor]]]:
            return self.counter(pictures, phrases) if phrases else [{} for _ in pictures]

        made = correct(
            model,
            self.look,
            STEPS[schedule.sampler],
            x,
            schedule.levels(),
            cond,
            decode,
            count,
            numbers,
            words_of(pipe, prompt, wanted),
            self.grid(x, cond),
            self.settings,
            torch.Generator().manual_seed(seed * 1000003 + index),
        )
        with torch.no_grad():
            picture, before = decode(made.x)[0], decode(made.preview)[0]
        after = {p: len(m) for p, m in count(picture[None])[0].items()}
        shown = torch.cat([before, masked(made, before), picture], -1)
        return Counted(numbers, made.found, after, picture, shown, made.masks is not None, made.calls)


def masked(made: Corrected, picture: Tensor) -> Tensor:
    """The picture with what goes in red and what comes in green; grey where nothing changes."""
    grey = picture.mean(0, keepdim=True).expand(3, -1, -1) * 0.5
    if made.masks is None:
        return grey
    tint = grey.clone()
    for channel, group in ((0, made.masks.remove), (1, made.masks.add)):
        for mask in group.values():
            large = torch.nn.functional.interpolate(mask[None, None].float(), picture.shape[-2:])[0, 0] > 0.5
            tint[channel][large.to(tint.device)] = 1.0
    return tint
