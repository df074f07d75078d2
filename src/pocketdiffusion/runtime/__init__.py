"""Runs an exported bundle: numpy, onnxruntime and tokenizers only, never torch.

A bundle carries a copy of this folder and of noise.py, so it runs without the package.

    manifest.py    manifest.json: what a bundle is, and the refusal of one that is not whole or not ours.
    schedule.py    Levels of a schedule and its one-step samplers, in numpy; the twin of ``diffusion``.
    sample.py      Prompt tokens -> pictures, given the three components as functions of named arrays.
    bundle.py      Bundle: an exported folder, opened, checked and run by onnxruntime; no torch anywhere.
    run.py         The command line of a bundle, without this package.
"""
