"""x -> posterior, z -> x: pixels to latents of unit variance and back.

``posterior(x) -> mean, logvar``, ``encode(x)``, ``decode(z, first=None)`` (types.Autoencoder). Scale and
shift of the latents live inside, so that nobody else has to know them.

    kl.py      AutoencoderKL: a plain convolutional autoencoder with a Gaussian posterior, f4 and f8.
    h3ae.py    H3AE: a high-compression autoencoder for clips; 2-D where pixels are many, causal where few.
    tiny.py    TinyDecoder: latents to pixels with a million parameters, taught by a bigger decoder.
    moments.py  Mean and variance of latents per channel, a few rows at a time.
    tiling.py  Large frames in overlapping tiles, blended so that no seam is seen.
"""
