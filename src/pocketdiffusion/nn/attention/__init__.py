"""Attention layers: x, ctx -> x, each built on a replaceable core (q, k, v, mask) -> y.

Heads lie in dimension 1: q (B, H, N, d), k and v (B, K, M, d) with K dividing H. Masks are boolean, True =
seen.

    causal.py        Block-causal attention in clips: a token sees its own frame and those before it.
    full.py          Softmax attention over all tokens: MHA, GQA and MQA, QK-norm, RoPE, self and cross.
    global_local.py  Sparse self-attention (ASSA): coarse keys from everywhere, fine ones from nearby, gated.
    maps.py          Where a picture looks at its words: explicit cross-attention maps, on request.
"""
