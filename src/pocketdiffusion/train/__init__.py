"""fit(method, data, optimisers, networks, run) -> trained networks.

The loop and what it needs: it knows players, turns, averages, checkpoints and resume, and no method, model or
metric. Everything else is a hook, scheduled by ``every(n, hook)``.

    checkpoint.py   Training checkpoints: any nested state as JSON and safetensors; whole or not there.
    ema.py          Exponential moving average of weights.
    fit.py          fit(): the one training loop; it knows turns, EMA and resume - no method, model or metric.
    health.py       Hooks that stop a run which has collapsed, and keep the last checkpoint before it.
    log.py          What a run writes: log.jsonl, TensorBoard when installed, a progress bar on a terminal.
    lora.py         Low-rank adapters by peft: what trains, what was learned, and the plain network with it.
    optimisers.py   Optimisers and learning-rate schedules with our defaults: AdamW, warm-up and cosine.
    shard.py        A network whose weights are split over processes: FSDP2, and whole tensors outside it.
    spread.py       One run over several processes: torchrun starts them, gradients are averaged.
"""
