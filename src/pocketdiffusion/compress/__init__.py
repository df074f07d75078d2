"""model -> model, or a plan (data) that one of them applies.

Plans are data beside the weights; what is applied gives a plain model of the same class.

    bits.py     How many bits each layer's weights get: a plan under a size budget, from measured errors.
    costs.py    Cost tables: what a block or a branch takes on a device, in one JSON format.
    lazy.py     Lazy sampling: branches that rest at some steps, by a plan or by gates, on any model.
    ops.py      The ops of a model: its blocks and branches, with all that decides what a call costs.
    width.py    Widths of an elastic model: the widest that is fast enough, and files of one alone.
    round.py    Weights on the grid of their bits: a plain model that exporters pack without changing a value.
"""
