"""The command line of a bundle, without this package.

    python run.py "two green stars" -o out.png

Needs numpy, onnxruntime, tokenizers and pillow.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from .bundle import Bundle


def parser(folder: Path) -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(prog="run.py", description=f"Pictures from the bundle {folder.name}.")
    flags.add_argument("prompt")
    flags.add_argument("-o", "--out", type=Path, default=Path("out.png"))
    flags.add_argument("--negative", default="")
    flags.add_argument("--steps", type=int)
    flags.add_argument("--guidance", type=float)
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--threads", type=int)
    flags.add_argument("--sequential", action="store_true", help="one component in memory at a time")
    return flags


def main(folder: Path, argv: list[str] | None = None) -> int:
    """0; 2 for what the user asked wrongly, 1 for the rest. One line on stderr says why."""
    args = parser(folder).parse_args(argv)
    try:
        from PIL import Image

        started = time.perf_counter()
        bundle = Bundle.open(folder, args.threads, args.sequential)
        loaded = time.perf_counter()
        pixels = bundle.generate([args.prompt], args.negative, args.steps, args.guidance, args.seed)[0]
        made = time.perf_counter()
        temporary = args.out.with_name(f".{args.out.name}.{os.getpid()}")
        args.out.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(temporary, "PNG")
        os.replace(temporary, args.out)
    except ValueError as error:
        print(f"run.py: error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"run.py: error: {error}; pip install numpy onnxruntime tokenizers pillow", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"run.py: error: {error.filename or args.out}: {error.strerror or error}", file=sys.stderr)
        return 1
    print(f"{args.out}  (load {loaded - started:.2f} s, picture {made - loaded:.2f} s)")
    return 0
