"""An autoencoder by itself -> programs; of clips as streams with their state spelled out.

    pictures   encoder: x -> z            decoder: z -> x
    clips      encoder_first: x -> z, state...              the first frame
               encoder_next: x, state... -> z, state...     every f_t frames after it
               decoder_first: z, first, told -> x, state... first: the frame itself where told is 1, else any
               decoder_next: z, state... -> x, state...

All shapes are fixed, so a clip of any length takes the memory of one chunk. A device hands every ``out_NAME``
back as ``in_NAME``. What does not give, chunk by chunk, what the whole clip gives is not written. int8 is
calibrated, and every program checked, on what pictures (drawn scenes, or of a folder) make of each of its
inputs; of a decoder by itself, which has no encoder to ask, on normal noise, the spread that latents have.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data import clips, motion, photos, scenes
from ..disk import replacing
from ..nn.causal import chunks
from ..pipeline import latents_hash
from .bundle import Report, limits, size_of, target, versions
from .parity import LIMITS, ParityError, demand, psnr, relative
from .program import Program

FILE = "autoencoder.json"
CHUNKS = 9  # after the first, when an export is checked; more than a window of attention
PICTURES, CLIPS = 16, 2  # to calibrate on

Runners = Mapping[str, Callable[[Mapping[str, Any]], Mapping[str, Any]]]


class Call(nn.Module):
    """A method of an autoencoder as a module."""

    def __init__(self, autoencoder: Any, name: str):
        super().__init__()
        self.autoencoder, self.name = autoencoder, name

    def forward(self, entered: Tensor) -> Tensor:
        return getattr(self.autoencoder, self.name)(entered)


class Chunk(nn.Module):
    """One chunk of a stream: tensors in, tensors out."""

    def __init__(self, autoencoder: Any, name: str, state: tuple[str, ...], begin: bool):
        super().__init__()
        self.autoencoder, self.name, self.state, self.begin = autoencoder, name, state, begin

    def forward(self, entered: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        if self.begin and self.name == "decode" and given:
            y, after = self.autoencoder.stream_decode(entered, None, *given)
        else:
            state = None if self.begin else dict(zip(self.state, given, strict=True))
            y, after = getattr(self.autoencoder, f"stream_{self.name}")(entered, state)
        # copies: some exporters know no output that is a view
        return (y, *(after[name].clone() for name in self.state))


def plain(name: str) -> str:
    """A name that every runtime takes as it is."""
    return name.replace(".", "_")


def streamed(autoencoder: Any, direction: str, first: Tensor, next_: Tensor, more: dict[str, Tensor]) -> Any:
    """The two programs of a direction."""
    given = tuple(more.values())
    enter, leave = ("x", "z") if direction == "encode" else ("z", "x")
    with torch.no_grad():
        begun = getattr(autoencoder, f"stream_{direction}")(first, None, *given)[1]
    names = tuple(sorted(begun))
    outputs = (leave, *(plain(f"out.{name}") for name in names))
    yield Program(
        f"{direction}r_first",
        Chunk(autoencoder, direction, names, True),
        {enter: first, **more},
        outputs,
    )
    state = {plain(f"in.{name}"): begun[name].contiguous() for name in names}
    yield Program(
        f"{direction}r_next",
        Chunk(autoencoder, direction, names, False),
        {enter: next_, **state},
        outputs,
    )


def programs(autoencoder: Any, size: int | None = None) -> dict[str, Program]:
    """All programs of ``autoencoder`` for frames of ``size`` pixels, with example inputs, in fp32."""
    network = autoencoder.eval().requires_grad_(False)
    kind = type(autoencoder).__name__
    if not hasattr(network, "decode") or not hasattr(network.config, "factor"):
        raise ValueError(f"a {kind} has no decode, expected an autoencoder, a decoder or a pipeline")
    if getattr(network.config, "time_factor", 1) > 1 and not hasattr(network, "stream_decode"):
        raise ValueError(f"a {kind} has no stream_decode, without which clips have no program of fixed shape")
    config, g = network.config, torch.Generator().manual_seed(0)
    side = size or network.example(1)[0].shape[-1] * (1 if hasattr(network, "encode") else config.factor)
    if side % config.factor or side < config.factor:
        raise ValueError(f"size must be a positive multiple of {config.factor} pixels, got {side}")
    pace, small = getattr(config, "time_factor", 1), side // config.factor
    clip = () if pace == 1 else (1,)
    x = torch.rand(1, 3, *clip, side, side, generator=g) * 2 - 1
    z = torch.randn(1, config.channels, *clip, small, small, generator=g)
    made: list[Program] = []
    if pace == 1:
        if hasattr(network, "encode"):
            made.append(Program("encoder", Call(network, "encode"), {"x": x}, ("z",)))
        made.append(Program("decoder", Call(network, "decode"), {"z": z}, ("x",)))
    else:
        if hasattr(network, "stream_encode"):
            more = torch.rand(1, 3, pace, side, side, generator=g) * 2 - 1
            made += streamed(network, "encode", x, more, {})
        told = {"first": x[:, :, 0].clone(), "told": torch.ones(1)} if getattr(config, "omni", False) else {}
        made += streamed(network, "decode", z, torch.randn(z.shape, generator=g), told)
    return {p.name: p for p in made}


def shown(autoencoder: Any, size: int, source: str | Path = "scenes", step: int = 0) -> Tensor:
    """Pixels to calibrate on: pictures (N, 3, size, size), or clips (N, 3, 1 + f_t CHUNKS, size, size).

    ``source``: "scenes" for the drawn world, or a folder of pictures or videos. ``step`` 1: others, to check
    with; of a folder of fewer than three videos other parts, if these are long enough.
    """
    pace = getattr(autoencoder.config, "time_factor", 1)
    count = 1 + CHUNKS * pace
    if str(source) == "scenes":
        data: Any = scenes.Scenes(scenes.EVAL_WORLD, PICTURES, size)
        data = data if pace == 1 else motion.Clips(motion.MOVING_WORLD, CLIPS, size, count)
    elif pace == 1:
        data = photos.Photos(PICTURES, size, "all", source)
    else:
        data = clips.Clips(source, CLIPS, size, count)
    return data(0, step).x


@torch.no_grad()
def probes(made: Mapping[str, Program], pixels: Tensor, pace: int) -> dict[str, list[dict[str, Tensor]]]:
    """What every program is given while ``pixels`` go through all of them, one picture or clip at a time."""
    found: dict[str, list[dict[str, Tensor]]] = {name: [] for name in made}

    def call(name: str, given: Mapping[str, Any]) -> Mapping[str, Any]:
        inputs = {k: torch.as_tensor(v) for k, v in given.items()}
        found[name].append(inputs)
        return {k: v.numpy() for k, v in made[name](inputs).items()}

    run = {name: partial(call, name) for name in made}
    for x in pixels.split(1):
        if pace == 1:
            run["decoder"](run["encoder"]({"x": x}))
            continue
        z = chained(run, "encode", x, pace, {})
        tells = "told" in made["decoder_first"].inputs
        for told in (0.0, 1.0) if tells else (0.0,):
            more = {"first": x[:, :, 0].numpy(), "told": torch.tensor([told]).numpy()} if tells else {}
            chained(run, "decode", z, 1, more)
    return found


def chained(run: Runners, direction: str, x: Tensor, pace: int, more: Mapping[str, Any]) -> Tensor:
    """A clip through the two programs of a direction, ``pace`` frames of ``x`` at a time."""
    enter, leave = ("x", "z") if direction == "encode" else ("z", "x")
    parts: list[Tensor] = []
    state: dict[str, Any] = {}
    for chunk in chunks(x.shape[2], pace):
        given = {enter: x[:, :, chunk].contiguous().numpy(), **(state if parts else more)}
        found = run[f"{direction}r_{'next' if parts else 'first'}"](given)
        parts.append(torch.as_tensor(found[leave]))
        state = {name.replace("out_", "in_", 1): v for name, v in found.items() if name != leave}
    return torch.cat(parts, 2)


@torch.no_grad()
def agreed(
    autoencoder: Any,
    run: Runners,
    made: Mapping[str, Program],
    precision: str,
    x: Tensor | None = None,
) -> list[float]:
    """PSNR of decoded clips against the whole clip by the original: untold, and told where that can be.

    And of what an encoder's chunks give, decoded by the original. ``x``: a clip to do it with, else noise.
    """
    z0, pace = made["decoder_first"].inputs["z"], autoencoder.config.time_factor
    g = torch.Generator().manual_seed(1)
    z = torch.randn(*z0.shape[:2], 1 + CHUNKS, *z0.shape[3:], generator=g)
    first = made["decoder_first"].inputs.get("first")
    if x is not None:
        z, first = autoencoder.encode(x), None if first is None else x[:, :, 0].contiguous()
    ratios = []
    for told in (0.0, 1.0) if first is not None else (0.0,):
        more = {"first": first.numpy(), "told": torch.tensor([told]).numpy()} if first is not None else {}
        found = chained(run, "decode", z, 1, more)
        wanted = autoencoder.decode(z, first if told else None)
        ratios.append(psnr(found.numpy(), wanted.numpy()))
    if "encoder_first" in made:
        if x is None:
            f = autoencoder.config.factor
            x = torch.rand(1, 3, 1 + CHUNKS * pace, *z0.shape[3:], generator=g) * 2 - 1
            x = x.repeat_interleave(f, 3).repeat_interleave(f, 4)
        found = autoencoder.decode(chained(run, "encode", x, pace, {}))
        ratios.append(psnr(found.numpy(), autoencoder(x).numpy()))
    least = 60.0 if precision == "fp32" else LIMITS[precision][1]
    if min(ratios) < least:
        raise ParityError(f"a stream is at {min(ratios):.1f} dB of the whole clip, expected {least:g}")
    return ratios


def described(autoencoder: Any, made: Mapping[str, Program], suffix: str) -> dict[str, Any]:
    """What a device has to know to run the programs; ``latents``: whose they are, "" if nobody knows."""
    config = autoencoder.config
    # a decoder by itself has no hash of its own, but may say whose latents it reads
    alone = not hasattr(autoencoder, "encode")
    return {
        "class": type(autoencoder).__name__,
        "channels": config.channels,
        "factor": config.factor,
        "time_factor": getattr(config, "time_factor", 1),
        "latents": getattr(config, "latents", "") if alone else latents_hash(autoencoder),
        "programs": {
            name: {
                "file": f"{name}{suffix}",
                "inputs": {k: list(v.shape) for k, v in program.inputs.items()},
                "outputs": {k: list(v.shape) for k, v in program().items()},
            }
            for name, program in made.items()
        },
        "versions": versions(),
    }


def export(
    autoencoder: Any,
    folder: Path,
    to: str = "onnx",
    precision: str = "fp32",
    size: int | None = None,
    seen: Callable[[str], None] = lambda what: None,
    source: str | Path = "scenes",
) -> Report:
    """Write every program, check it, and describe inputs, outputs and states in autoencoder.json.

    ``source``: what to calibrate on, see ``shown``.
    """
    writer = target(to)
    if to == "web" or precision not in writer.PRECISIONS:
        known = ", ".join(writer.PRECISIONS)
        raise ValueError(f"an autoencoder by itself goes to onnx, executorch or coreml in {known}")
    if to == "executorch" and getattr(autoencoder.config, "time_factor", 1) > 1:
        raise ValueError("autoencoders of clips go to onnx and coreml; XNNPACK does not partition them yet")
    made = programs(autoencoder, size)
    pixels, given = None, {name: [dict(program.inputs)] for name, program in made.items()}
    if encoder := made.get("encoder", made.get("encoder_first")):
        pixels = shown(autoencoder, encoder.inputs["x"].shape[-1], source)
        given = probes(made, pixels, getattr(autoencoder.config, "time_factor", 1))
    clip = None
    if pixels is not None and "decoder_first" in made:
        # one that calibrated nothing
        clip = shown(autoencoder, pixels.shape[-1], source, 1)[:1]
    rows: list[dict[str, Any]] = []
    warnings: list[str] = []
    run: dict[str, Any] = {}
    with replacing(folder, (FILE,)) as temporary:
        for name, program in made.items():
            seen(f"writing {name}")
            path = temporary / f"{name}{writer.SUFFIX}"
            writer.write(program, path, precision, None, given[name])
            run[name] = writer.opened(path)
            rel = relative(program, run[name], given[name])
            demand(name, precision, rel)
            bytes_ = size_of(path)
            rows.append({"component": name, "bytes": bytes_, "rel": rel, "operators": writer.operators(path)})
            warnings += limits(name, bytes_)
        ratios = agreed(autoencoder, run, made, precision, clip) if "decoder_first" in made else []
        report = Report(to, precision, rows, ratios, warnings)
        told = {"target": to, "precision": precision, **described(autoencoder, made, writer.SUFFIX)}
        told["calibrated"] = "normal latents" if pixels is None else str(source)
        (temporary / FILE).write_text(json.dumps(told, indent=2) + "\n")
        (temporary / "report.json").write_text(json.dumps(asdict(report), indent=2) + "\n")
    return report
