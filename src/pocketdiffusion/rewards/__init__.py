"""Judges: pictures, prompts or nouns -> scores or instances.

A detector turns pictures (B, 3, H, W) in [-1, 1] into what it sees, ``list[list[Instance]]``. Count
correction, reward gradients and evaluation are given one; none of them knows which.

    count.py         Counters: pictures and phrases -> masks of the instances, by any detector.
    detectors.py     Counters for photographs: Grounding DINO and OWLv2 of transformers, with SAM's masks.
    regressor.py     CountNet: pictures -> how many things of every shape and colour, by a density.
    scenes.py        A detector for the scenes world that looks at pixels only.
    silhouettes.py   Names a silhouette: coverage in a standard frame, compared with rendered templates.
"""
