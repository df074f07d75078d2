"""Benchmarks: model -> ms, MB, FLOPs from outside, by hooks; writes cost tables.

    cost(model, inputs), latency(model, inputs), peak(model, inputs), text(rows)

Every function takes a module and its inputs (ours have ``model.example()``), ours or a foreign one alike,
and leaves it as it was. Numbers are plain: bytes, milliseconds, multiply-accumulates.

    cost.py       Parameters, bytes and multiply-accumulates of a model and of its submodules to any depth.
    costs.py      Fills cost tables: every distinct block and branch of a model, measured alone on a runtime.
    latency.py    How long a call takes: warm-up, median and spread, and whether others were using the cores.
    memory.py     Peak memory of one forward call: the allocator's on a GPU, a fresh process's on the CPU.
    peak.py       Peak memory of an exported component, measured in a fresh process.
    picture.py    What a whole picture costs: the denoiser's calls with guidance, the text, the decoder.
    table.py      Prints rows of results as aligned plain text or as markdown.
"""
