"""Cached latents and text embeddings in safetensors shards that carry their encoders' hashes.

    folder/shard-00000.safetensors   x (N, C, ...); tokens, mask, ... (a Cond), or captions in the header
    folder/index.json                hashes and shards; written last, so a cache that has it is whole

A cache is refused when an encoder differs: latents of another autoencoder look right and train into noise.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, is_dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..disk import renamed, save_tensors
from ..types import Batch, Cond
from .files import rows

INDEX = "index.json"
SHARD = "shard-{:05d}.safetensors"
CAPTIONS = "captions, not embeddings"


def weights_hash(module: nn.Module) -> str:
    """32 hex digits over the config and the name, dtype, shape and bytes of every tensor."""
    config = getattr(module, "config", {})
    settings = asdict(config) if is_dataclass(config) else dict(config)  # type: ignore[arg-type]
    # keys with an underscore say where the weights came from
    told = {k: v for k, v in settings.items() if not k.startswith("_")}
    digest = hashlib.blake2b(json.dumps(told, sort_keys=True, default=str).encode(), digest_size=16)
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def rounded_hash(tensors: Mapping[str, Tensor]) -> str:
    """32 hex digits over names and values as fp16: what was stored so is still the same."""
    side = nn.Module()
    for name, value in tensors.items():
        side.register_buffer(name.replace(".", "/"), value.half() if value.is_floating_point() else value)
    return weights_hash(side)


def latents_hash(vae: nn.Module) -> str:
    """32 hex digits over all that decides what latents are: every tensor that is not a decoder's."""
    decoders = {"decoder", "post_quant_conv"}
    return rounded_hash({n: v for n, v in vae.state_dict().items() if not decoders & set(n.split("."))})


def write(
    folder: Path | str,
    batches: Iterable[Batch],
    autoencoder_hash: str,
    text_hash: str | None = None,
    shard_size: int = 1024,
    dtype: torch.dtype = torch.float32,
    start: int = 0,
) -> int:
    """Store ``batches`` in shards of ``shard_size`` samples, floats as ``dtype``; returns how many.

    ``text_hash`` None: the batches carry captions. A stopped run goes on when ``start`` is ``written(...)``
    and ``batches`` begin with that sample; with ``start`` 0 its shards are removed. A finished cache stays.
    """
    folder, made = Path(folder), _made(autoencoder_hash, text_hash)
    if (folder / INDEX).exists():
        raise ValueError(f"{folder}: already holds a finished cache; remove it or name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    if not start:
        for old in folder.glob(SHARD.format(0).replace("00000", "*")):
            old.unlink()
    shards = _whole(folder, made)
    if (there := sum(s["count"] for s in shards)) != start:
        raise ValueError(f"{folder}: cannot go on at sample {start}, the shards there hold {there}")
    for batch in _regroup(batches, shard_size):
        shards.append(_save(folder / SHARD.format(len(shards)), batch, made, dtype))
    if not shards:
        raise ValueError(f"{folder}: nothing to cache, there were no batches")
    total = sum(s["count"] for s in shards)
    with renamed(folder / INDEX) as temporary:
        temporary.write_text(json.dumps({**made, "count": total, "shards": shards}, indent=2) + "\n")
    return total


def written(folder: Path | str, autoencoder_hash: str, text_hash: str | None = None) -> int:
    """Samples in the shards that a stopped ``write`` with the same encoders left."""
    return sum(s["count"] for s in _whole(Path(folder), _made(autoencoder_hash, text_hash)))


class Latents:
    """``Latents(...)(seed, step) -> Batch`` of latents (fp32), a Cond or captions; once per epoch, shuffled.

    Shards are memory-mapped: only the rows that are asked for are read.
    """

    def __init__(
        self,
        folder: Path | str,
        batch: int,
        autoencoder_hash: str,
        text_hash: str | None = None,
        device: torch.device | str = "cpu",
    ):
        self.folder, self.batch, self.device = Path(folder), batch, device
        made = _made(autoencoder_hash, text_hash)
        try:
            index = json.loads((self.folder / INDEX).read_text())
        except (OSError, ValueError):
            raise ValueError(f"{folder}: not a finished cache (no readable {INDEX})") from None
        _check(self.folder, index, made)
        self.shards = [_Shard(self.folder / s["file"], s["bytes"], made) for s in index["shards"]]
        self.ends = list(accumulate(s["count"] for s in index["shards"]))

    def __len__(self) -> int:
        return self.ends[-1]

    def __call__(self, seed: int, step: int) -> Batch:
        batch = _cat([self.sample(i) for i in rows(len(self), self.batch, seed, step)])
        text = batch.text.to(self.device, torch.float32) if isinstance(batch.text, Cond) else batch.text
        return Batch(batch.x.to(self.device, torch.float32), text)

    def sample(self, i: int) -> Batch:
        """The ``i``-th sample as a batch of one, as it is stored."""
        shard = bisect_right(self.ends, i)
        row = i - self.ends[shard - 1] if shard else i
        return _cut(self.shards[shard].batch, row, row + 1)


class Encoded:
    """``data`` with latents in place of its pixels, encoded as they are needed.

    Every batch serves ``uses`` steps in a row, for which a method draws other times and noise; of a step's
    batches that are accumulated, each counts as one. Ground truth is left behind.
    ``world``: processes, each of which asks for its own batches (train/spread.py).
    """

    def __init__(
        self,
        data: Callable[[int, int], Batch],
        encode: Callable[[Tensor], Tensor],
        uses: int = 1,
        world: int = 1,
    ):
        if uses < 1:
            raise ValueError(f"uses must be at least 1, got {uses}")
        self.data, self.encode, self.uses, self.world = data, encode, uses, world
        self.last: tuple[tuple[int, int], Batch] | None = None

    def __call__(self, seed: int, step: int) -> Batch:
        step, rank = divmod(step, self.world)
        where = seed, step // self.uses * self.world + rank
        if self.last is None or self.last[0] != where:
            batch = self.data(*where)
            with torch.no_grad():
                self.last = where, Batch(self.encode(batch.x).float(), batch.text)
        return self.last[1]


class _Shard:
    """One open file; its tensors lie on the disk until they are indexed."""

    def __init__(self, path: Path, size: int, made: Mapping[str, str]):
        if not path.exists() or path.stat().st_size != size:
            found = f"{path.stat().st_size} bytes" if path.exists() else "nothing"
            raise ValueError(f"{path}: damaged shard, expected {size} bytes and found {found}")
        with safe_open(path, "pt") as f:
            told = f.metadata() or {}
            _check(path, told, made)
            parts = {name: f.get_tensor(name) for name in f.offset_keys()}
        x = parts.pop("x")
        self.batch = Batch(x, json.loads(told["captions"]) if "captions" in told else Cond(**parts))


def _made(autoencoder_hash: str, text_hash: str | None) -> dict[str, str]:
    return {"autoencoder": autoencoder_hash, "text": text_hash or CAPTIONS}


def _check(where: Path, told: Mapping[str, Any], made: Mapping[str, str]) -> None:
    for role, expected in made.items():
        if (found := told.get(role)) != expected:
            raise ValueError(f"{where}: made with {role} {found}, expected {expected}; make the cache again")


def _whole(folder: Path, made: Mapping[str, str]) -> list[dict[str, Any]]:
    """The index's lines for the shards that are there, in order, up to the first that is damaged."""
    shards: list[dict[str, Any]] = []
    while (path := folder / SHARD.format(len(shards))).exists():
        try:
            with safe_open(path, "pt") as f:
                told = f.metadata() or {}
        except SafetensorError:
            break
        _check(path, told, made)
        shards.append({"file": path.name, "count": int(told["count"]), "bytes": path.stat().st_size})
    return shards


def _save(path: Path, batch: Batch, made: Mapping[str, str], dtype: torch.dtype) -> dict[str, Any]:
    """Write one shard; returns its line of the index."""
    parts = {"x": batch.x}
    told = {**made, "count": str(len(batch.x))}
    if isinstance(batch.text, Cond):
        parts |= {k: v for k, v in vars(batch.text).items() if v is not None}
    else:
        told["captions"] = json.dumps(list(batch.text))
    if ("captions" in told) != (made["text"] == CAPTIONS):
        raise ValueError(
            f"{path}: text encoder {made['text']}, but the text is a {type(batch.text).__name__}"
        )
    stored = {k: v.to(dtype if v.is_floating_point() else None).contiguous() for k, v in parts.items()}
    with renamed(path) as temporary:
        save_tensors(stored, temporary, told)
    return {"file": path.name, "count": len(batch.x), "bytes": path.stat().st_size}


def _regroup(batches: Iterable[Batch], size: int) -> Iterator[Batch]:
    """The same samples in batches of ``size``; the last may be smaller."""
    parts: list[Batch] = []
    held = 0
    for batch in batches:
        text = batch.text.to("cpu") if isinstance(batch.text, Cond) else batch.text
        parts.append(Batch(batch.x.detach().cpu(), text))
        held += len(batch.x)
        while held >= size:
            whole = _cat(parts)
            yield _cut(whole, 0, size)
            parts, held = [_cut(whole, size, held)], held - size
    if held:
        yield _cat(parts)


def _cat(batches: list[Batch]) -> Batch:
    texts = [b.text for b in batches]
    x = torch.cat([b.x for b in batches])
    if isinstance(texts[0], Cond):
        return Batch(x, Cond.cat(*texts))  # type: ignore[arg-type]
    return Batch(x, [caption for captions in texts for caption in captions])  # type: ignore[union-attr]


def _cut(batch: Batch, start: int, stop: int) -> Batch:
    text = batch.text
    return Batch(
        batch.x[start:stop], text.map(lambda v: v[start:stop]) if isinstance(text, Cond) else text[start:stop]
    )
