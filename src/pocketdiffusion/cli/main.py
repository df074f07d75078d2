"""The command line: verbs, and errors as one line."""

from __future__ import annotations

import importlib
import sys
import warnings
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
            return fail("out of memory; lower --batch, --size or --num-images", 1)
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
