"""The command line: verbs, and errors as one line."""

from __future__ import annotations

import importlib
import sys
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any

# verb -> (module, what it does)
VERBS = {
    "generate": ("generate", "prompts -> pictures"),
    "train": ("train", "run a recipe: pocket train NAME [flags]"),
    "cache": ("cache", "a folder of pictures -> latents and captions"),
    "eval": ("evaluate", "score a pipeline on SceneEval"),
    "export": ("export", "a pipeline -> a bundle for a device"),
    "serve-web": ("serve_web", "show a web bundle in the browser"),
    "spectrum": ("spectrum", "how much fine detail latents carry"),
    "bench": ("bench", "parameters, latency and memory"),
    "costs": ("costs", "what every block takes, as a table for pruning and search"),
    "reconstruct": ("reconstruct", "a picture or video through an autoencoder, side by side"),
    "info": ("info", "what is in a saved pipeline or network"),
    "demo": ("demo", "sample, train, score, time, export: a report in a few minutes"),
}
# package -> the extra that brings it
EXTRAS = {
    **dict.fromkeys(("onnx", "onnxscript", "onnxruntime"), "onnx"),
    **dict.fromkeys(("executorch", "torchao"), "executorch"),
    **dict.fromkeys(("tensorboard", "peft"), "train"),
    **dict.fromkeys(("diffusers", "transformers", "accelerate"), "teachers"),
    "coremltools": "coreml",
    **dict.fromkeys(("scipy", "skimage"), "eval"),
    "av": "video",
    "playwright": "dev",
}

# fields of Args (a verb's or a recipe's) that decide how much memory is needed
SIZES = ("batch", "num_images", "size", "sizes", "side", "frames", "max_frames", "tile", "pool")


def usage() -> str:
    lines = ["usage: pocket VERB [flags]      (pocket VERB --help for the flags)", ""]
    return "\n".join([*lines, *(f"  {verb:11} {what}" for verb, (_, what) in VERBS.items())])


def run(argv: list[str]) -> None:
    verb, rest = argv[0], argv[1:]
    if verb not in VERBS:
        raise ValueError(f"unknown verb {verb!r}; known: {', '.join(VERBS)}")
    module: Any = importlib.import_module(f".{VERBS[verb][0]}", __package__)
    if hasattr(module, "run"):
        return module.run(rest)
    import tyro

    return module.main(tyro.cli(module.Args, args=rest, prog=f"pocket {verb}", description=module.__doc__))


def out_of_memory(argv: list[str]) -> str:
    """What can be lowered: flags that the verb, or the recipe, has."""
    module: Any = importlib.import_module(f".{VERBS[argv[0]][0]}", __package__)
    what = argv[0]
    if what == "train":
        module, what = module.load(argv[1]), Path(argv[1]).stem
    names = [f.name for f in fields(module.Args)]
    flags = [f"--{name.replace('_', '-')}" for name in SIZES if name in names]
    if not flags:
        return f"out of memory; {what} has no flag that lowers it"
    return "out of memory; lower " + " or ".join(filter(None, [", ".join(flags[:-1]), flags[-1]]))


def fail(message: str, code: int) -> int:
    print("pocket: error: " + " ".join(message.split()), file=sys.stderr)
    return code


def guarded(argv: list[str]) -> int:
    """Run a verb; turn what can go wrong into one line and an exit code."""
    warnings.formatwarning = lambda message, *_rest, **_more: f"pocket: warning: {message}\n"
    try:
        run(argv)
        return 0
    except ValueError as error:
        return fail(str(error), 2)
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").split(".")[0])
        what = f"pip install 'pocketdiffusion[{extra}]'" if extra else f"pip install {error.name}"
        return fail(f"{error}; {what}", 1)
    except OSError as error:
        return fail(f"{error.filename or ''} {error.strerror or error}".strip(), 1)
    except KeyboardInterrupt as stop:
        return fail(str(stop) or "interrupted", 1)
    except (RuntimeError, MemoryError) as error:
        text = str(error).lower()
        if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate" in text:
            return fail(out_of_memory(argv), 1)
        return fail(str(error).splitlines()[0], 1)


def main() -> None:
    argv = sys.argv[1:]
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return
    if argv[0] == "--version":
        from .. import __version__

        print(f"pocketdiffusion {__version__}")
        return
    sys.exit(guarded(argv))
