"""foreign model -> Denoiser, autoencoder, text encoder: where another library's conventions end.

The only place that knows them. What is wrapped here speaks the house's language: time, scale of latents,
order of axes and names of parts are converted inside. The library is imported when a model is asked for.

    autoencoders.py   Autoencoders of diffusers as ours: unit variance, pictures and clips, one loader.
    vaes.py           Configurations of published autoencoders: class, and what differs from its defaults.
    diffusers.py      Denoisers of diffusers as ours: x, t, cond -> v, taps on their blocks, one loader.
    maps.py           Cross-attention maps of denoisers of diffusers: a processor that also keeps the logits.
    first_block.py    diffusers' First Block Cache on transformers, theirs and ours: gates' baseline.
    families.py       One class of diffusers' denoisers after another: arguments, packing, blocks, widths.
    convert.py        Other libraries' noising processes: how a prediction at one of their levels becomes v.
    published.py      Configurations of published denoisers: network, noising process, autoencoder.
    checkpoints.py    Files of foreign denoisers: what a folder or a file holds, under diffusers' names.
    text.py           Text encoders of transformers as ours: CLIP, T5, Gemma, Qwen, joined as a family does.
    encoders.py       Folders of transformers -> text encoders and tokenizers: one loader, published sizes.
    kept.py           Text embeddings on the disk, so that a frozen encoder reads every caption once.
    words.py          Prompts -> token numbers and a mask, by the tokenizers of foreign text encoders.
    pipeline.py       Pipelines of diffusers in a folder: their parts as ours, and how they are sampled.
"""
