"""strings -> tokens -> Cond: the tokenizer, our small text encoder, and the protocol behind which others fit.

A text encoder has ``embed(texts) -> Cond`` (types.TextEncoder); CLIP, T5 and Gemma will come through
``teachers/``.

    tokenizer.py    Byte-level BPE: strings -> token numbers and a mask.
    numbers.py      How many of what a prompt asks for: numbers in words and digits, and their nouns.
    encoder.py      TextTransformer: a small bidirectional text encoder, trained with the denoiser.
"""
