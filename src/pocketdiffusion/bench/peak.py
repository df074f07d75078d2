"""Peak memory of an exported component, measured in a fresh process.

From "the runtime's library is imported" to the end of the first call: the file, the runtime's own copy of the
weights, activations and scratch space. Good to a few megabytes, and a little higher on a phone.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def high_water() -> int:
    """The most bytes that were ever resident in this process."""
    status = Path("/proc/self/status")
    if status.exists():
        # not getrusage: on Linux a child inherits its parent's maximum
        return 1024 * next(
            int(v.split()[1]) for v in status.read_text().splitlines() if v.startswith("VmHWM")
        )
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def peak(path: Path, inputs: Mapping[str, Any], module: str, library: str) -> int:
    """Bytes. ``module`` has ``opened(path, threads)``; ``library`` is what it imports to run the file."""
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder) / "inputs.npz"
        arrays: dict[str, Any] = {name: np.asarray(value) for name, value in inputs.items()}
        np.savez(given, **arrays)
        return alone(str(path), __name__, str(path), str(given), module, library)


def alone(what: str, module: str, *argv: str) -> int:
    """The number that ``python -m module argv`` prints last. ValueError, naming ``what``, when it fails."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-m", module, *argv]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ValueError(f"{what} cannot be measured in a process of its own: {reason}")
    return int(done.stdout.split()[-1])


def child(path: Path, given: Path, module: str, library: str) -> int:
    """What ``peak`` runs in its own process."""
    opened = importlib.import_module(module).opened
    importlib.import_module(library)
    with np.load(given) as inputs:
        arrays = dict(inputs)
    before = high_water()
    opened(path, 1)(arrays)
    return high_water() - before


if __name__ == "__main__":
    print(child(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]))
