"""x -> posterior, z -> x: pixels to latents of unit variance and back.

``posterior(x) -> mean, logvar``, ``encode(x)``, ``decode(z, first=None)`` (types.Autoencoder). Scale and
shift of the latents live inside, so that nobody else has to know them.

    kl.py   AutoencoderKL: a plain convolutional autoencoder with a Gaussian posterior, f4 and f8.
"""
