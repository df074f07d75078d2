"""Count correction while sampling: look before the end, sample again what is wrong.

    1  sample down to the middle, keeping every x; decode the x0 predicted there; count
    2  right: go on, nothing was changed
       wrong: masks on the grid of the attention map (below), and from step ``first`` again, up to ``until``
           x   <- x inside M, the kept x outside
           L   =  sum over wrong phrases  + I (too many)   - w I (too few),   w = 2
           x'  =  x - size std(x) grad L / rms(grad L)
           x_s =  x + (s - t) v(x')               or from x' itself, where ``through`` is "state"
       then the rest as always. Several phrases are wrong: all at once, or "apart", once for each with its own
       M, and what comes of it averaged
    I     mean of the largest 80 % of the phrase's attention inside its mask S

    S, too many    the smallest instances but one, as many as there are too many (all, if none is wanted)
    S, too few     a window per missing one where fewest other things are, of 1.3 times the smallest's side
    M              all S together; everything else keeps its latents

What goes takes every cell with it that it reaches into, and what comes shuns those that others reach into
(ours: at 16 x 16 cells a rim would stay).

Source: CountDiffusion (arXiv 2505.04347), whose text leaves the constants open; they are those of a public
prototype that is likely its own (PixArt-Sigma, 30 steps), but the size of a step, which is ours, as is where
the middle lies. The prototype counts on the finished picture (middle 1) and guides during the first half of
the steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt

import torch
from torch import Tensor
from torch.nn import functional as F

from ..types import Cond, Denoiser
from .samplers import Sampler, run

# x, t, cond -> v and the attention map (B, h w, words)
Look = Callable[[Tensor, Tensor, Cond], tuple[Tensor, Tensor]]
# pictures -> for each of them phrase -> masks (H, W) of its instances
Count = Callable[[Tensor], list[dict[str, list[Tensor]]]]


@dataclass(frozen=True)
class Settings:
    middle: float = 0.9  # share of the steps after which is counted; ours. 1: on the finished picture
    first: int = 2  # step from which is sampled again
    until: float = 0.5  # share of the steps up to which masks and guidance act
    size: float = 0.05  # of a guidance step, in deviations of x; ours
    add: float = 2.0  # weight of what is missing
    top: float = 0.8  # share of the mask's cells that count
    through: str = "state"  # or "prediction"
    several: str = "together"  # wrong phrases; or "apart"

    def __post_init__(self) -> None:
        if not 0 < self.middle <= 1 or not 0 < self.until < 1:
            told = f"middle {self.middle}, until {self.until}"
            raise ValueError(f"{told}: expected more than 0, and at most 1 for middle, less for until")
        for name, known in (("through", ("state", "prediction")), ("several", ("together", "apart"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} {getattr(self, name)!r}: expected {' or '.join(known)}")
        if self.first < 0 or self.size < 0 or not 0 < self.top <= 1:
            told = f"first {self.first}, size {self.size}, top {self.top}"
            raise ValueError(f"{told}: expected 0 or more, and a share above 0 for top")


@dataclass
class Masks:
    """On the grid of the attention map, (h, w) bool."""

    remove: dict[str, Tensor] = field(default_factory=dict)
    add: dict[str, Tensor] = field(default_factory=dict)

    @property
    def every(self) -> Tensor:
        """M."""
        return torch.stack([*self.remove.values(), *self.add.values()]).any(0)


def on_grid(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """(H, W) bool -> (h, w) bool: cells that are covered by half, and the fullest one at least."""
    share = F.adaptive_avg_pool2d(mask[None, None].float(), grid)[0, 0]
    return share >= min(0.5, float(share.max()))


def touched(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """(H, W) bool -> (h, w) bool: all cells that it reaches into."""
    return F.adaptive_max_pool2d(mask[None, None].float(), grid)[0, 0] > 0


def window(busy: Tensor, side: int, generator: torch.Generator | None) -> Tensor:
    """The square of ``side`` cells with the least of ``busy`` (h, w) in it, by lot where several tie."""
    h, w = busy.shape
    tall, wide = min(side, h), min(side, w)
    load = F.avg_pool2d(busy[None, None].float(), (tall, wide), stride=1)[0, 0]
    ties = (load <= load.min() + 1e-6).nonzero()
    y, x = ties[int(torch.randint(len(ties), (), generator=generator))].tolist()
    made = torch.zeros_like(busy)
    made[y : y + tall, x : x + wide] = True
    return made


def masks(
    found: Mapping[str, Sequence[Tensor]],
    wanted: Mapping[str, int],
    grid: tuple[int, int],
    generator: torch.Generator | None = None,
) -> Masks:
    """What has to go and where something has to come; empty where all counts are right."""
    here = {phrase: [on_grid(m, grid) for m in found.get(phrase, ())] for phrase in wanted}
    busy = torch.zeros(grid, dtype=torch.bool)
    for phrase in wanted:
        for mask in found.get(phrase, ()):
            busy = busy | touched(mask, grid)
    made = Masks()
    for phrase, count in wanted.items():
        more = len(here[phrase]) - count
        if more > 0:
            by_area = sorted(found[phrase], key=lambda mask: int(mask.sum()))
            gone = [touched(mask, grid) for mask in by_area]
            made.remove[phrase] = torch.stack(gone if count == 0 else gone[1 : more + 1]).any(0)
            busy = busy & ~made.remove[phrase]
    for phrase, count in wanted.items():
        missing = count - len(here[phrase])
        if missing > 0:
            least = min((int(m.sum()) for m in here[phrase]), default=0)
            # 15 of 64 cells where there is none to measure
            side = max(1, int(1.3 * sqrt(least)) if least else round(15 / 64 * min(grid)))
            places = torch.zeros(grid, dtype=torch.bool)
            for _ in range(missing):
                place = window(busy, side, generator)
                places, busy = places | place, busy | place
            made.add[phrase] = places
    return made


def smoothed(a: Tensor) -> Tensor:
    """(h, w) by a Gaussian of 3 x 3 with deviation 1/2, reflected at the borders."""
    line = torch.exp(-torch.tensor([1.0, 0.0, 1.0], device=a.device) / (2 * 0.5**2))
    kernel = torch.outer(line, line) / line.sum() ** 2
    return F.conv2d(F.pad(a[None, None], (1, 1, 1, 1), mode="reflect"), kernel[None, None].to(a))[0, 0]


def seen(a: Tensor, words: Sequence[int], grid: tuple[int, int]) -> Tensor:
    """The map of a phrase (h, w) from that of all words (h w, M): the mean over its words, smoothed."""
    return smoothed(a[:, list(words)].mean(1).unflatten(0, grid))


def intensity(a: Tensor, mask: Tensor, top: float) -> Tensor:
    """I: mean of the largest share ``top`` of ``a`` inside ``mask``."""
    inside = a[mask.to(a.device)]
    return inside.topk(max(1, int(top * len(inside)))).values.mean()


def loss(
    a: Tensor, wrong: Masks, words: Mapping[str, Sequence[int]], grid: tuple[int, int], settings: Settings
) -> Tensor:
    """L of one picture's map (h w, M)."""
    parts = [intensity(seen(a, words[p], grid), m, settings.top) for p, m in wrong.remove.items()]
    parts += [
        -settings.add * intensity(seen(a, words[p], grid), m, settings.top) for p, m in wrong.add.items()
    ]
    return torch.stack(parts).sum()


@dataclass
class Corrected:
    x: Tensor  # (1, C, H, W)
    found: dict[str, int]  # what was counted in the middle
    masks: Masks | None  # None: all was right
    preview: Tensor  # x0 predicted in the middle
    calls: int  # of the denoiser, gradients included


def correct(
    model: Denoiser,
    look: Look,
    step: Sampler,
    x: Tensor,
    levels: Tensor,
    cond: Cond,
    decode: Callable[[Tensor], Tensor],
    count: Count,
    wanted: Mapping[str, int],
    words: Mapping[str, Sequence[int]],
    grid: tuple[int, int],
    settings: Settings | None = None,
    generator: torch.Generator | None = None,
) -> Corrected:
    """One picture from noise ``x`` (1, C, H, W). ``look`` sees through the conditional call; ``model`` may be
    guided. ``words``: which words of cond make up each phrase. One-step samplers only.
    """
    settings = settings or Settings()
    steps = len(levels) - 1
    middle, last = (
        min(steps - (share < 1), max(settings.first + 1, round(share * steps)))
        for share in (settings.middle, min(settings.until, settings.middle))
    )
    if settings.first >= last:
        raise ValueError(f"first {settings.first}: expected less than {last}, the step where guidance ends")
    calls = 0

    def counted(x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        nonlocal calls
        calls += 1
        return model(x, t, cond)

    kept, preview = [x], x
    with torch.no_grad():
        walk = run(step, counted, x, levels, cond)
        for at in walk:
            kept.append(at.x)
            preview = at.x0
            if at.index + 1 == middle:
                break
        there = count(decode(preview))[0]
        found = {phrase: len(there.get(phrase, ())) for phrase in wanted}
        if found == dict(wanted):
            kept += [at.x for at in walk]
            return Corrected(kept[-1], found, None, preview, calls)
    wrong = masks(there, wanted, grid, generator)
    times, places = levels.to(x), [wrong.every]
    if settings.several == "apart":
        places = [*wrong.remove.values(), *wrong.add.values()]
    ends = []
    for place in places:
        inside = F.interpolate(place[None, None].float(), x.shape[-2:]).bool().to(x.device)
        x = kept[settings.first]
        for i in range(settings.first, last):
            t, s = times[i].expand(1), times[i + 1].expand(1)
            x = torch.where(inside, x, kept[i])
            bent = nudged(look, x, t, cond, wrong, words, grid, settings)
            calls += 1
            with torch.no_grad():
                moved = step(counted, bent, t, s, cond)[0]
                x = moved if settings.through == "state" else x + (moved - bent)
        ends.append(x)
    x = torch.stack(ends).mean(0)
    with torch.no_grad():
        for i in range(last, steps):
            x = step(counted, x, times[i].expand(1), times[i + 1].expand(1), cond)[0]
    return Corrected(x, found, wrong, preview, calls)


def nudged(
    look: Look,
    x: Tensor,
    t: Tensor,
    cond: Cond,
    wrong: Masks,
    words: Mapping[str, Sequence[int]],
    grid: tuple[int, int],
    settings: Settings,
) -> Tensor:
    """x', a step against the gradient of L."""
    with torch.enable_grad():
        given = x.detach().requires_grad_(True)
        a = look(given, t, cond)[1][0]
        gradient = torch.autograd.grad(loss(a, wrong, words, grid, settings), given)[0]
    size = gradient.square().mean().sqrt()
    return x - settings.size * x.std() * gradient / size.clamp(min=1e-20)
