"""batch -> losses: one training idea per file.

A method has ``players`` (exactly the parameters that train, by role), ``turn(step)``, ``losses(player,
batch)`` and its own state (types.Method). It is given networks and knows no model class; ``train.fit`` runs
it. The docstring of each file has the equations in the letters of the code.

    autoencode.py      Trains an autoencoder: reconstruction, a KL term, and the terms that a recipe adds.
    consistency.py     Latent consistency: what was reconstructed should be encoded as the original was.
    equivariance.py    Scale equivariance: a smaller latent should decode to a smaller picture.
    chopping.py        Chopping: latents without high frequencies should decode to pixels without them.
    perceptual.py      A perceptual distance: how differently a network sees two pictures.
    wavelet.py         A wavelet loss: L1 between Haar sub-bands of a picture or clip and its reconstruction.
    patch_gan.py       Adversarial training of an autoencoder: a PatchGAN beside the other terms.
    classify.py        Trains a network to count: how many things of every label a picture shows.
    regress.py         Trains a network to say how many things of every shape and colour there are.
    flow_matching.py   Flow matching: learns the velocity of the straight path from data to noise.
    velocity.py        Velocity matching: a changed copy of a denoiser learns to predict as the original does.
    kd.py              Knowledge distillation across architectures: by data, a teacher's output, its features.
    elastic.py         Elastic training: several widths of one network at once, told by the full one.
    dmd.py             Distribution matching (DMD2, K-DMD): few steps, by the difference of two scores.
    gates.py           Gates learn which branches may rest, on a frozen denoiser: LazyDiT's two-step scheme.
    scaling.py         Timestep-aware scaling: a teacher's losses at the size of the data's, weighed by time.
    trajectory.py      Trajectory distillation: a few long steps in place of a teacher's many short ones.
    adversarial.py     Adversarial step distillation: few steps, taught by a critic on frozen features.
"""
