"""pocket cache: a folder of pictures -> latents and captions in shards.

    pocket cache photos/ -o cache/ --model scenes
    pocket cache photos/ -o cache/ --text          # embeddings of the (frozen) text encoder as well
    pocket cache photos/ -o cache/ --model my_sd3/ --size 1024       # a pipeline of diffusers

The shards carry the hashes of the encoders that made them; training refuses a cache of others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ..device import choose, precision

if TYPE_CHECKING:
    from ..types import Batch


@dataclass(frozen=True)
class Args:
    data: Annotated[Path, tyro.conf.Positional]
    """A folder of pictures with same-name .txt captions, or a metadata.jsonl."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Folder of the cache."""
    model: str = "scenes"
    """The pipeline whose autoencoder (and text encoder) encode; a folder of diffusers too."""
    size: int = 64
    """Pixels per side."""
    batch: int = 32
    text: bool = False
    """Store text embeddings in place of captions."""
    dtype: str = "fp16"
    """How latents are stored: fp32, bf16 or fp16."""
    device: str = "auto"


def encoded(pipe: Any, folder: Any, args: Args, start: int) -> Iterator[Batch]:
    """The pictures of ``folder`` from number ``start`` on, in order, as latents."""
    import torch
    from tqdm import tqdm

    from ..data.files import read_picture
    from ..export.foreign import ForeignPipeline
    from ..types import Batch

    text_encoder = pipe.text_encoder
    # foreign encoders say several tokens where they read one, or one for several
    # foreign encoders do not say one token for every one that they read
    length = text_encoder.spoken if isinstance(pipe, ForeignPipeline) else text_encoder.config.length
    with torch.no_grad():
        for i in tqdm(range(start, len(folder), args.batch), "encoding", disable=None, delay=2):
            items = folder.items[i : i + args.batch]
            x = torch.stack([read_picture(path, folder.size) for path, _ in items]).to(pipe.device)
            captions = [caption for _, caption in items]
            text = text_encoder.embed(captions).pad(length) if args.text else captions
            yield Batch(pipe.vae.encode(x), text)


def main(args: Args) -> None:
    from ..data.files import Folder
    from ..data.latents import weights_hash, write, written
    from ..export.foreign import opened

    if args.batch < 1:
        raise ValueError(f"--batch {args.batch}: expected 1 or more")
    dtype = precision(args.dtype)
    pipe = opened(args.model).to(choose(args.device))
    pipe.sides(args.size)
    folder = Folder(args.data, args.batch, args.size)
    hashes = weights_hash(pipe.vae), weights_hash(pipe.text_encoder) if args.text else None
    start = written(args.out, *hashes)
    total = write(args.out, encoded(pipe, folder, args, start), *hashes, dtype=dtype, start=start)
    print(f"{args.out}: {total} latents; {len(folder.bad)} files left out")
