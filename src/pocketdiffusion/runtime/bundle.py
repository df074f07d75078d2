"""Bundle: an exported folder, opened, checked and run by onnxruntime; no torch anywhere.

bundle = Bundle.open("out/scenes-int8")
bundle.generate(["two green stars"], seed=3)     # (1, 64, 64, 3) bytes
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .manifest import Manifest, read
from .sample import Named, Progress, sample

Component = Callable[[Named], dict[str, Any]]


def opened(path: Path, threads: int | None = None) -> Component:
    """An ONNX file as a function of named arrays, by onnxruntime on the CPU."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    # products with 8-bit weights are computed in fp32 (1), not with activations rounded to int8 (4)
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if threads:
        options.intra_op_num_threads = threads
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the library's own classes derive from Exception alone
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}: onnxruntime {ort.__version__} cannot load it ({reason})") from None
    inputs, outputs = [i.name for i in session.get_inputs()], [o.name for o in session.get_outputs()]

    def call(given: Named) -> dict[str, Any]:
        return dict(zip(outputs, session.run(None, {key: given[key] for key in inputs})))

    return call


# target -> opener of its components; a caller may know more runtimes
RUNTIMES: dict[str, Callable[[Path, int | None], Component]] = {"onnx": opened}


class Words:
    """Prompts -> (ids (1, N), mask (1, N)), as the manifest says: of one tokenizer or several in a row."""

    def __init__(self, folder: Path, text: dict[str, Any]):
        from tokenizers import Tokenizer

        self.parts: list[tuple[Any, dict[str, Any]]] = []
        for part in text.get("parts", [text]):
            path = folder / part["tokenizer"]
            try:
                self.parts.append((Tokenizer.from_file(str(path)), part))
            except Exception as error:  # the library raises bare Exception
                raise ValueError(f"{path}: not a readable tokenizer ({error})") from None

    def __call__(self, prompt: str) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        # bytes that are no text come from a shell as lone surrogates
        clean = prompt.encode("utf-8", "replace").decode()
        found = [row(inner, part, clean) for inner, part in self.parts]
        return np.concatenate([ids for ids, _ in found], 1), np.concatenate([mask for _, mask in found], 1)


def row(inner: Any, part: Mapping[str, Any], prompt: str) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Numbers and mask of one tokenizer: [begin] prefix prompt suffix [end], cut and padded to its length."""
    said = prompt.lower().strip() if part.get("lower") else prompt
    if said or part.get("always"):
        said = part.get("prefix", "") + said + part.get("suffix", "")
    ids, length = inner.encode(said).ids, part["length"]
    begin, end = ([] if part[side] is None else [part[side]] for side in ("begin", "end"))
    room = length - len(begin) - len(end)
    if len(ids) > room:
        has = len(ids) + length - room
        print(f"warning: prompt cut to {length} tokens (it has {has}): {prompt[:60]!r}", file=sys.stderr)
    numbers = [*begin, *ids[:room], *end]
    padded = np.zeros((1, length), np.int32)
    padded[0, : len(numbers)] = numbers
    return padded, (np.arange(length)[None] < len(numbers)).astype(np.float32)


class Bundle:
    """``opener``: from a component's file to a function. ``sequential``: one component in memory at a time,
    loaded when it is needed."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        threads: int | None = None,
        sequential: bool = False,
        opener: Callable[[Path, int | None], Component] = opened,
    ):
        self.folder, self.manifest, self.threads, self.sequential = folder, manifest, threads, sequential
        self.opener = opener
        self.words = Words(folder, manifest.text)
        self.loaded: dict[str, Component] = {}
        if not sequential:
            for name in manifest.components:
                self.component(name)

    @classmethod
    def open(
        cls,
        folder: str | Path,
        threads: int | None = None,
        sequential: bool = False,
        runtimes: Mapping[str, Callable[[Path, int | None], Component]] = RUNTIMES,
    ) -> Bundle:
        """ValueError says why a folder is refused: another target or format, a missing or changed file."""
        manifest = read(Path(folder), tuple(runtimes))
        return cls(Path(folder), manifest, threads, sequential, runtimes[manifest.target])

    def component(self, name: str) -> Component:
        if name not in self.loaded:
            path = self.folder / self.manifest.components[name]["file"]
            self.loaded[name] = self.opener(path, self.threads)
        return self.loaded[name]

    def release(self, name: str) -> None:
        if self.sequential:
            self.loaded.pop(name, None)

    def __call__(self, name: str, inputs: Named) -> dict[str, Any]:
        """Run one component on named arrays."""
        return self.component(name)(inputs)

    def generate(
        self,
        prompts: Sequence[str],
        negative: str = "",
        steps: int | None = None,
        guidance: float | None = None,
        seed: int = 0,
        first: int = 0,
        callback: Callable[[Progress], None] | None = None,
    ) -> NDArray[np.uint8]:
        """One picture per prompt, (n, H, W, 3); picture i takes its noise from (seed, first + i)."""
        said = [self.words(p) for p in prompts]
        settings = (steps, guidance, seed, first, callback, self.release)
        x = sample(self, self.manifest, said, self.words(negative), *settings)
        return np.clip(np.round((x + 1) * 127.5), 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
