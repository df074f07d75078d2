"""foreign model -> Denoiser, autoencoder, text encoder: where another library's conventions end.

The only place that knows them. What is wrapped here speaks the house's language: time, scale of latents,
order of axes and names of parts are converted inside. The library is imported when a model is asked for.

    autoencoders.py   Autoencoders of diffusers as ours: unit variance, pictures and clips, one loader.
"""
