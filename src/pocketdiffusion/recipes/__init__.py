"""One run per file: what, command, cost, expected result; a frozen ``Args`` and ``main(args)``.

    pocket train NAME --flag value

Recipes may import everything. A variant is a flag if it is a number and a new recipe if it is a decision.

    smoke.py               Everything once, in under a minute: autoencoder, denoiser, pipeline, pictures.
    live.py                A small denoiser from scratch, on the shipped autoencoder's latents, in a minute.
    scenes_autoencoder.py  The f4 autoencoder of the scenes world: 64 x 64 pixels -> 4 x 16 x 16 latents.
    scenes_decoder.py      A sharper decoder for the scenes autoencoder, whose encoder stays frozen.
    h3ae_scenes.py         A video autoencoder of the scenes world: 4 x 64 x 64 pixels -> 16 x 8 x 8 latents.
    tiny_decoder.py        A small decoder for an autoencoder, taught by the big one; the encoder stays.
    scale_equivariance.py  Does scale equivariance make latents easier to model? A small DiT tells.
    autoencoder_claims.py  What H3AE claims, at small scale: arms that differ in one thing, over paired seeds.
    autoencoder_speed.py   Autoencoders side by side, in pairs of equal compression: operations, time, memory.
    scenes_teacher.py      The text-to-image teacher of the scenes world: a DiT and its text encoder.
    snapgen_ladder.py      SnapGen's design steps: counted beside the paper's numbers, and trained small.
    snapgen_speed.py       One denoising step, side by side: SnapGen's U-Net, SDXL, SD3 medium, PixArt-alpha.
    snapgen_scenes_kd.py   SnapGen's distillation in the scenes world: a DiT teaches a small U-Net.
    snapgen_scenes_path.py  Four steps by the teacher's trajectories: guided sampling, taken over by a U-Net.
    snapgen_scenes_4step.py  SnapGen's step distillation: a scenes denoiser learns to draw in four steps.
    snapgen_kd_ladder.py   SnapGen's ladder: task, + output, + features, + timestep-aware scaling, over seeds.
    snapgen_claims.py      SnapGen's four steps: adversarial distillation against what is simpler, over seeds.
    snapgen_full.py        SnapGen at full size: SD3.5-Large teaches the 0.38 B U-Net, then four steps.
    elastic_scenes.py      An elastic model for the scenes world: three widths from one set of weights.
    dmd_scenes.py          DMD2 in the scenes world: the DiT teacher itself learns to draw in four steps.
    elastic_scenes_4step.py  Four steps for all widths of an elastic model at once.
    kdmd_scenes.py         K-DMD in the scenes world: every width of an elastic model learns four steps.
    assa_bench.py          Sparse attention (ASSA) beside full attention: time, memory, operations, growth.
    snapgen_pp_claims.py   SnapGen++'s claims, over seeds: sparse attention, elastic widths, K-DMD.
    lazy_scenes.py         Lazy plans for a pipeline: read off trained gates, or searched.
    lazy_speed.py          Wall clock of lazy sampling: what resting saves, and what gates cost.
    lazy_claims.py         LazyDiT's claims, over seeds: lazy sampling against fewer steps at equal calls.
    count_layers.py        Which cross-attention layers look where the things are, to correct counts by.
    count_judge.py         The judge of counts: a regressor of the scenes world, apart from all detectors.
    count_claims.py        CountDiffusion's claims: exact counts before and after correction, by two counters.
    scenes_features.py     The feature network of the scenes world: the default of Frechet distances.
    scenes_throughput.py   How fast the scenes world is drawn, and the teacher trains: eager, compiled, bf16.
    scenes_bits.py         Four-bit weights, with biases and norms tuned to them by self-distillation.
    scenes_runtimes.py     One pipeline on every runtime: torch, onnxruntime, ExecuTorch, the browser.
    scenes_litert.py       A pipeline on LiteRT (TensorFlow Lite): converted, compared with torch, timed.
    finetune_folder.py     Fine-tunes a pipeline on your own folder of pictures, full or LoRA.
"""
