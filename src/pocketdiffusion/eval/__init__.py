"""Measures: samples, references -> numbers, and the report that shows them.

Nothing here knows how a picture was made: whoever calls brings the generator, the detector or the features.
Every number has a definition that a test checks against a case with a known answer.

    compose.py         SceneEval: the six categories of GenEval in the scenes world, judged by a detector.
    prompts.py         The prompts of SceneEval: six categories of sixty, with what each asks for.
    curves.py          Loss curves of runs, from the log.jsonl that each of them writes.
    detection.py       How often a detector is right, in worlds whose truth is known.
    reconstruction.py  How well an autoencoder gives its input back.
    spectrum.py        Spectra of pictures and latents by block DCT, and the error of scale equivariance.
    frechet.py         Frechet and kernel distances between two sets of features.
    features.py        SceneNet: pictures -> features, by a small classifier of the scenes world.
    seeds.py           Several runs with several seeds, kept on the disk: means, intervals, differences.
    report.py          A single-file HTML report: text, tables, picture grids and plots.
    plots.py           Line and bar charts and maps of squares as inline SVG, written by hand.
"""
