"""Program -> file: a trained pipeline becomes packages for devices, each checked against the original.

A target is a module with PRECISIONS, SUFFIX, ``write(program, path, precision, bits, probes)``,
``opened(path) -> f(named arrays)`` and ``operators(path)``, and a line in ``bundle.TARGETS``. It sees
Programs, never a class of the house.

    program.py    Programs: a pipeline as three plain functions of fixed shape; all that exporters see.
    rewrite.py    Same weights and function, operators that edge runtimes like: nn/ modules replaced.
    onnx.py       ONNX for onnxruntime: the dynamo exporter, and its own packers for int8 and 4 bits.
    web.py        Web: a static folder that draws pictures in the visitor's browser, with onnxruntime-web.
    parity.py     Parity: exported components and whole pictures against the original.
    bundle.py     A pipeline -> a bundle: programs, a manifest, the runtime, and proof that it is right.
"""
