"""x, t, cond -> v: denoisers, one architecture per file.

Every file holds a frozen ``Config``, ``PRESETS``, the blocks, the model and ``count(config)``. A model names
its branches (``BRANCHES``), its removable blocks (``BLOCKS``) and its weight axes (``AXES``), and has
``example()``, the inputs that tests, bench and exporters use. Models never load, sample, train or move
themselves.

    dit.py           DiT: a text-conditioned diffusion transformer for pictures, PixArt style.
    elastic_dit.py   ElasticDiT: a three-stage diffusion transformer with sparse attention and nested widths.
    supernet.py      Supernet: several widths of one ElasticDiT in one set of weights.
    unet.py          UNet: SnapGen's denoiser, a thin SDXL U-Net with separable convolutions.
    unet_config.py   Config and presets of the U-Net, the order of its parts, SnapGen's ablation as presets.
    unet_count.py    Parameters and multiply-accumulates of a U-Net by part, from its config alone.
"""
