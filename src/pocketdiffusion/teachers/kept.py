"""Text embeddings on the disk, so that a frozen encoder reads every caption once.

    kept = Kept(text, "cache/")         embed(captions) -> Cond, as ``text`` has it
    cache/HASH/ab/abcd....safetensors   one caption; HASH is that of the encoders that made it

Batches keep their captions: two networks that read with different encoders have a Kept each, and a caption
that is emptied is one more caption. Values are stored in the dtype in which the encoders compute, which loses
nothing. Processes may share a folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path

import torch

from ..data.latents import weights_hash
from ..disk import renamed, save_tensors
from ..types import Cond
from .text import ForeignText


class Kept:
    """A ``types.TextEncoder``. A caption that is not there yet is read and stored."""

    def __init__(self, text: ForeignText, folder: Path | str):
        self.text, self.folder = text, Path(folder) / weights_hash(text)
        self.dtype = next(text.parameters()).dtype

    def place(self, caption: str) -> Path:
        name = hashlib.blake2b(caption.encode("utf-8", "replace"), digest_size=16).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"

    def embed(self, texts: Sequence[str] | Cond) -> Cond:
        """On the encoders' device, in fp32."""
        if isinstance(texts, Cond):
            return texts
        absent = [caption for caption in dict.fromkeys(texts) if not self.place(caption).exists()]
        if absent:
            found = self.text.embed(absent)
            for i, caption in enumerate(absent):
                self.write(caption, found.map(itemgetter(slice(i, i + 1))))
        return Cond.cat(*(self.read(caption) for caption in texts)).to(self.text.device, torch.float32)

    def write(self, caption: str, cond: Cond) -> None:
        cond = cond.to("cpu", self.dtype).map(lambda v: v.clone())
        with renamed(self.place(caption)) as temporary:
            save_tensors({k: v for k, v in vars(cond).items() if v is not None}, temporary)

    def read(self, caption: str) -> Cond:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = self.place(caption)
        try:
            return Cond(**load_file(path))
        except (SafetensorError, OSError, TypeError) as error:
            raise ValueError(f"{path}: not a whole embedding ({error}); delete it") from None
