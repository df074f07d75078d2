"""batch -> losses: one training idea per file.

A method has ``players`` (exactly the parameters that train, by role), ``turn(step)``, ``losses(player,
batch)`` and its own state (types.Method). It is given networks and knows no model class; ``train.fit`` runs
it. The docstring of each file has the equations in the letters of the code.

    autoencode.py      Trains an autoencoder: L1 reconstruction and a KL term on the posterior.
    classify.py        Trains a network to count: how many things of every label a picture shows.
    flow_matching.py   Flow matching: learns the velocity of the straight path from data to noise.
    velocity.py        Velocity matching: a changed copy of a denoiser learns to predict as the original does.
"""
