"""From noise to data: the path, time schedules, one-step samplers and the loop over them, guidance.

    step(model, x, t, s, cond, noise=None) -> x, x0

Nothing here knows a model class: a denoiser is any callable ``(x, t, cond) -> v``. Everything is a pure
function of tensors and differentiable; whoever wants no gradients (pipeline, eval) says so itself. Schedules
and conversions follow the dtype and the device of ``x``.

    flow.py       The one path used here, and every conversion that follows from it.
    times.py      Laws of t for training, and the decreasing grids of t for sampling.
    samplers.py   One-step samplers, and the one loop over them.
    count.py      Count correction while sampling: look before the end, sample again what is wrong.
    guidance.py   Classifier-free guidance: one denoiser made of a conditional and an unconditional call.
"""
