"""pocket generate: prompts -> PNG files that carry their settings.

    pocket generate "three red circles and a blue square" -o out.png
    pocket generate --prompts prompts.txt --num-images 4 --grid -o grid.png
    pocket generate "a lighthouse" --model my-sd15/ --device cuda --dtype fp16       # a folder of diffusers

PNGs carry prompt, seed, steps, guidance and model as text.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ..device import choose, precision
from ..disk import renamed

if TYPE_CHECKING:
    from PIL import Image

    from ..runtime.bundle import Bundle


@dataclass(frozen=True)
class Args:
    prompt: Annotated[str | None, tyro.conf.Positional] = None
    """What to draw (or use --prompts)."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("out.png")
    """A PNG file; with several pictures -0001, -0002 ... are added, or a folder."""
    prompts: Path | None = None
    """A text file with one prompt per line, in place of the prompt."""
    negative: str = ""
    """What to stay away from (guidance)."""
    steps: int | None = None
    """Denoising steps; default: what the model was saved with."""
    guidance: float | None = None
    """Classifier-free guidance scale; 1 is off."""
    seed: int = 0
    num_images: int = 1
    """Pictures per prompt."""
    size: int | None = None
    """Pixels per side."""
    grid: bool = False
    """Put all pictures into one file, a row per prompt."""
    scale: int = 1
    """Enlarge by this whole factor, without smoothing."""
    model: str = "snapgen_scenes"
    """A shipped pipeline's name or a folder, ours or one of diffusers."""
    decoder: Path | None = None
    """A folder with another decoder of the same latents (pocket train tiny_decoder)."""
    width: str | None = None
    """Of an elastic model: a width by name, or a file of one (kdmd_scenes); default: the full one."""
    lazy: str | None = None
    """A plan of the pipeline's, by name: branches that rest at some steps (pocket train lazy_scenes)."""
    count_correct: bool = False
    """Count what is foreseen near the end, and sample again what is too much or missing."""
    count: tuple[str, ...] = ()
    """With --count-correct: what to count, "red circles=3", in place of the prompt's own numbers."""
    count_layers: tuple[str, ...] = ()
    """With --count-correct: cross-attention layers to look at (recipe count_layers); default: the finest."""
    counter: str | None = None
    """With --count-correct, for photographs: a Grounding DINO or OWLv2 of transformers, folder or hub id."""
    segmenter: str | None = None
    """With --counter: a SAM of transformers, for masks in place of boxes."""
    show_correction: Path | None = None
    """With --count-correct: also a PNG of before, mask and after."""
    step_ms: float | None = None
    """Of an elastic model: the widest that takes at most this long per step, by the table --costs."""
    costs: Path | None = None
    """A table of `pocket costs MODEL -o FILE`, made on the device that will run it, in --precision of the
    --dtype here and, where guidance is used, with --batch 2."""
    bundle: Path | None = None
    """An exported folder (pocket export), run in place of the model by its own runtime."""
    sequential: bool = False
    """With --bundle: one component in memory at a time."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    dtype: str = "fp32"
    """fp32, bf16 or fp16 (compute)."""


def slug(prompt: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:48] or "empty"


def targets(out: Path, prompts: list[str], each: int, seed: int) -> list[Path]:
    """One file per picture."""
    if not out.suffix:
        return [
            out / f"{slug(p)}-{seed}-{i:04d}.png"
            for i, p in enumerate(p for p in prompts for _ in range(each))
        ]
    total = len(prompts) * each
    return [out] if total == 1 else [out.with_stem(f"{out.stem}-{i + 1:04d}") for i in range(total)]


def write(picture: Image.Image, path: Path, settings: dict[str, Any]) -> None:
    """A PNG with ``settings`` as text, written whole or not at all."""
    from PIL import PngImagePlugin

    meta = PngImagePlugin.PngInfo()
    for key, value in settings.items():
        meta.add_itxt(key, str(value))
    with renamed(path) as temporary:
        picture.save(temporary, "PNG", pnginfo=meta)


def check(args: Args) -> list[str]:
    """The prompts; everything that can be refused before the model is loaded."""
    if (args.prompt is None) == (args.prompts is None):
        raise ValueError('give a prompt ("two green stars") or --prompts FILE, one of them')
    if args.steps is not None and args.steps < 1:
        raise ValueError(f"--steps {args.steps}: expected 1 or more")
    if args.num_images < 1:
        raise ValueError(f"--num-images {args.num_images}: expected 1 or more")
    if args.scale < 1:
        raise ValueError(f"--scale {args.scale}: expected 1 or more")
    if (args.step_ms is None) != (args.costs is None):
        raise ValueError("--step-ms and --costs FILE choose a width together: give both or none")
    if args.step_ms is not None and args.width is not None:
        raise ValueError("--width and --step-ms both choose a width: give one of them")
    if args.step_ms is not None and args.size:
        raise ValueError("--step-ms: tables are of the model's own size, leave --size out")
    if args.bundle and (args.width or args.costs or args.decoder or args.lazy):
        raise ValueError(f"--bundle {args.bundle}: is run as exported, without --width, --decoder and --lazy")
    if (args.count or args.show_correction or args.counter or args.count_layers) and not args.count_correct:
        raise ValueError("--count, --count-layers, --counter and --show-correction belong to --count-correct")
    if args.segmenter and not args.counter:
        raise ValueError(f"--segmenter {args.segmenter}: refines the boxes of a --counter, give both")
    if args.count_correct and (args.bundle or args.lazy or args.size):
        raise ValueError("--count-correct: runs without --bundle, --lazy and --size")
    if args.count_correct and (args.width or args.costs):
        raise ValueError("--count-correct: runs at the full width, without --width and --step-ms")
    if args.out.suffix.lower() not in ("", ".png"):
        raise ValueError(f"-o {args.out}: expected NAME.png, or a folder without a suffix")
    if args.grid and not args.out.suffix:
        raise ValueError(f"--grid writes one file: give -o NAME.png, not {args.out}")
    folder = args.out.parent if args.out.suffix else args.out
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(13, "no permission to write", str(folder))
    if args.prompts is None:
        return [args.prompt or ""]
    from ..data.files import read_prompts

    return read_prompts(args.prompts)


def width_of(args: Args) -> str | None:
    """The one that is named, or the widest that is fast enough."""
    if args.costs is None or args.step_ms is None:
        return args.width
    from .. import store
    from ..compress.costs import Costs
    from ..compress.width import times, widest
    from ..pipeline import Pipeline, find

    network = store.load(find(args.model) / "transformer")
    if not hasattr(network, "shapes"):
        raise ValueError(f"{args.model}: a {type(network).__name__} has one width, --step-ms has no choice")
    guided = Pipeline.from_pretrained(args.model).settings(args.steps, args.guidance).guidance != 1
    table, flags = Costs.load(args.costs), [] if args.dtype == "fp32" else [f"--precision {args.dtype}"]
    try:
        found = times(network.shapes, table, args.dtype, None, 1 + guided)
    except ValueError as error:
        flags += ["--batch 2"] if guided else []
        told = " ".join(["pocket costs", args.model, *flags])
        raise ValueError(f"--costs {args.costs}: {error}; {told} measures it") from None
    name = widest(found, args.step_ms)
    print(f"width {name}: " + ", ".join(f"{n} {ms:.3g} ms" for n, ms in found.items()))
    return name


def from_model(args: Args, prompts: list[str]) -> tuple[list[Image.Image], dict[str, Any]]:
    """Pictures by the torch pipeline, and the settings that made them."""
    from tqdm import tqdm

    from ..export.foreign import opened

    width = width_of(args)
    pipe, model = opened(args.model, args.decoder, width), args.model
    if args.count_correct and pipe.schedule.times and pipe.teacher:
        steps, model = len(pipe.schedule.times), pipe.teacher
        print(f"{args.model} draws in {steps} steps: {model}, its teacher, draws and is corrected")
        try:
            pipe = opened(model, args.decoder)
        except ValueError as error:
            raise ValueError(
                f"{args.model}: its teacher is not there; name one with --model ({error})"
            ) from None
    pipe.to(choose(args.device), precision(args.dtype))
    schedule = pipe.settings(args.steps, args.guidance)
    steps, batch = len(schedule.levels()) - 1, 16
    if args.count_correct:
        return with_counts(args, prompts, pipe), {
            "steps": steps,
            "guidance": schedule.guidance,
            "model": model,
        }
    total = -(-len(prompts) * args.num_images // batch) * steps
    with tqdm(total=total, desc="steps", delay=2, disable=None) as bar:
        pictures = pipe(
            prompts,
            args.negative,
            args.steps,
            args.guidance,
            args.seed,
            size=args.size,
            num_images=args.num_images,
            batch=batch,
            callback=lambda step: bar.update(),
            lazy=pipe.lazy(args.lazy) if args.lazy else None,
        )
    used = {"steps": steps, "guidance": schedule.guidance, "model": args.model}
    return pictures, used | ({"width": width} if width else {})


def with_counts(args: Args, prompts: list[str], pipe: Any) -> list[Image.Image]:
    """One picture after the other, with a line for each."""
    import torch

    from ..pipeline import to_pil
    from ..rewards.detectors import load
    from .counting import Looking

    pipe.schedule = pipe.settings(args.steps, args.guidance)
    counter = load(args.counter, args.segmenter, pipe.device) if args.counter else None
    looking, pictures, shown = Looking(pipe, counter=counter, layers=args.count_layers), [], []
    for prompt in prompts:
        looking.check(prompt, args.count)  # before any picture is drawn
    for i, prompt in enumerate(p for p in prompts for _ in range(args.num_images)):
        made = looking(prompt, args.count, args.negative, args.seed, i)
        print(f"{prompt}: {made.line()}")
        pictures.append(to_pil(made.picture))
        shown.append(made.shown)
    if args.show_correction:
        with renamed(args.show_correction) as temporary:
            to_pil(torch.cat(shown, 1)).save(temporary, "PNG")
    return pictures


def bundle_of(folder: Path, threads: int | None = None, sequential: bool = False) -> Bundle:
    """An exported folder: target onnx without torch, others by their own runtime, as far as it runs here."""
    from ..runtime.bundle import RUNTIMES, Bundle

    def elsewhere(name: str) -> Any:
        def opened(path: Path, threads: int | None) -> Any:
            from ..export.bundle import target

            return target(name).opened(path, threads)

        return opened

    others = {name: elsewhere(name) for name in ("executorch", "coreml")}
    return Bundle.open(folder, threads, sequential, {**RUNTIMES, **others})


def from_bundle(args: Args, prompts: list[str]) -> tuple[list[Image.Image], dict[str, Any]]:
    """The same by an exported bundle."""
    from PIL import Image
    from tqdm import tqdm

    from ..runtime.schedule import levels

    assert args.bundle is not None
    bundle = bundle_of(args.bundle, sequential=args.sequential)
    height, width = bundle.manifest.picture
    if args.size not in (None, height) or height != width:
        raise ValueError(f"--size {args.size}: {args.bundle} was exported for {height} x {width} pixels")
    every = [p for p in prompts for _ in range(args.num_images)]
    steps = len(levels(bundle.manifest.schedule, args.steps)) - 1
    with tqdm(total=len(every) * steps, desc="steps", delay=2, disable=None) as bar:
        made = bundle.generate(
            every, args.negative, args.steps, args.guidance, args.seed, callback=lambda _: bar.update()
        )
    scale = bundle.manifest.schedule["guidance"] if args.guidance is None else args.guidance
    used = {"steps": steps, "guidance": scale, "model": f"{bundle.manifest.model} ({args.bundle})"}
    return [Image.fromarray(x) for x in made], used


def main(args: Args) -> None:
    prompts = check(args)
    pictures, used = (from_bundle if args.bundle else from_model)(args, prompts)
    every = [p for p in prompts for _ in range(args.num_images)]
    if args.scale > 1:
        pictures = [p.resize((p.width * args.scale, p.height * args.scale), 0) for p in pictures]
    settings = {"negative": args.negative, "seed": args.seed, **used, "software": "pocketdiffusion"}
    if args.grid:
        write(sheet(pictures, args.num_images), args.out, {"prompt": " | ".join(prompts), **settings})
        print(f"{args.out}: {len(pictures)} pictures, a row per prompt")
        return
    for i, (path, picture) in enumerate(
        zip(targets(args.out, prompts, args.num_images, args.seed), pictures)
    ):
        write(picture, path, {"prompt": every[i], "index": i, **settings})
        print(path)


def sheet(pictures: list[Image.Image], columns: int, gap: int = 4) -> Image.Image:
    """All pictures on one white page."""
    from PIL import Image

    w, h = pictures[0].size
    rows = -(-len(pictures) // columns)
    page = Image.new("RGB", (columns * (w + gap) + gap, rows * (h + gap) + gap), "white")
    for i, picture in enumerate(pictures):
        page.paste(picture, (gap + i % columns * (w + gap), gap + i // columns * (h + gap)))
    return page
