"""What a run writes: log.jsonl, TensorBoard when installed, a progress bar on a terminal."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm


class Log:
    """Scalars and pictures of one run. Only the first process of a distributed run writes."""

    def __init__(self, folder: Path, start: int, steps: int, name: str = "train", write: bool = True):
        self.write = write
        self.bar = tqdm(
            total=steps, initial=start, desc=name, disable=None if write else True, mininterval=1.0
        )
        self.file: Any = None
        self.board: Any = None
        self.clock, self.since = time.perf_counter(), start
        if write:
            folder.mkdir(parents=True, exist_ok=True)
            self.file = open(folder / "log.jsonl", "a")  # noqa: SIM115
            try:
                from torch.utils.tensorboard import SummaryWriter

                self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=start)
            except ImportError:
                pass

    def tick(self, step: int, every: int, seen: Mapping[str, Tensor], rate: float) -> None:
        """Count a step; after every so many, write down what was ``seen`` in the last one, and the pace."""
        self.bar.update()
        if step % every == 0:
            now = time.perf_counter()
            pace = {"steps_per_s": (step - self.since) / (now - self.clock), "lr": rate}
            self.clock, self.since = now, step
            self.scalars(step, {k: float(v) for k, v in seen.items()} | pace)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        if not self.write:
            return
        self.file.write(json.dumps({"step": step, **{k: round(v, 7) for k, v in values.items()}}) + "\n")
        self.file.flush()
        self.bar.set_postfix({k.split("/")[-1]: f"{v:.4g}" for k, v in values.items()}, refresh=False)
        if self.board:
            for key, value in values.items():
                self.board.add_scalar(key, value, step)

    def grid(self, step: int, name: str, grid: Tensor) -> None:
        """One picture (3, H, W) in [-1, 1]."""
        if self.board:
            self.board.add_image(name, ((grid + 1) / 2).clamp(0, 1), step)

    def close(self) -> None:
        self.bar.close()
        for sink in (self.file, self.board):
            if sink:
                sink.close()
