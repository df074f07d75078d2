"""x, ctx -> x: layers that two or more models use.

Layers know no model and no task. Whatever another part of the house wants to replace, skip, time or look into
(norms, attention cores, branches) is a module here and never an inline call. ``taps`` reads features from
inside a network, ``axes`` makes a smaller network out of a bigger one.

    axes.py         Named weight axes: one table per model, from which pruning and extraction follow.
    causal.py       Causal layers for clips: a frame sees itself and earlier ones, whole or as a stream.
    conv.py         Convolution blocks: separable convolution, the plain residual block, resampling by two.
    finite.py       Names the first layer of a model whose output is not finite.
    gate.py         Gates that say whether a branch is computed or its last output used again, and switches.
    heads.py        Discriminator heads: features or pixels -> logits, one per place.
    merge.py        Tokens merged by cells of 2 x 2 and back, and a stream that meets an earlier one (U-ViT).
    mlp.py          Feed-forward layers: MLP (tanh-approximated GELU) and GEGLU.
    modulation.py   adaLN-single: one projection of the time embedding, a small table per block.
    norm.py         RMSNorm and LayerNorm with fp32 statistics, GroupNorm that is exact in any memory format.
    projector.py    Features of one network in the width and on the grid of another's.
    residual.py     Residual convolutions that are told the time: dense, or separable and expanded (SnapGen).
    rope.py         Rotary position embedding in one, two or three dimensions.
    taps.py         tap(model, names)(x, t, cond) -> v, {name: tensor}: the only path to features.
    time.py         The noise level t in [0, 1] as a vector: sinusoids and a two-layer MLP.
    attention/      Attention layers: x, ctx -> x, each built on a replaceable core (q, k, v, mask) -> y.
"""
