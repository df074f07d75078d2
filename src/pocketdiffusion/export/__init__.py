"""Program -> file: a trained pipeline becomes packages for devices, each checked against the original.

A target is a module with PRECISIONS, PLANNED (those that heed a plan of bits), SUFFIX, LIBRARY (what runs it
here), ``write(program, path, precision, bits, probes)``, ``opened(path, threads) -> f(named arrays)`` and
``operators(path)``, and a line in ``bundle.TARGETS``. It sees Programs, never a class of the house.

    program.py     Programs: a pipeline as three plain functions of fixed shape; all that exporters see.
    rewrite.py     Same weights and function, operators that edge runtimes like: nn/ modules replaced.
    onnx.py        ONNX for onnxruntime: the dynamo exporter, and its own packers for int8 and 4 bits.
    coreml.py      Core ML for iPhones and Macs (iOS 18): a program becomes an .mlpackage, a folder.
    mil.py         Core ML programs on any machine: reads a saved .mlpackage back and runs it in torch.
    milops.py      The operators of MIL, in torch: one reading of what Apple's documentation says.
    executorch.py  ExecuTorch for phones and embedded CPUs, through XNNPACK, in as few calls as can be.
    web.py         Web: a static folder that draws pictures in the visitor's browser, with onnxruntime-web.
    parity.py      Parity: exported components and whole pictures against the original.
    streams.py     An autoencoder by itself -> programs; of clips as streams with their state spelled out.
    budget.py      A budget in bytes for a whole pipeline -> a plan of bits for each of its programs.
    lazy.py        Lazy plans as static graphs: a program per set of branches that rest.
    bundle.py      A pipeline -> a bundle: programs, a manifest, the runtime, and proof that it is right.
    foreign.py     Pipelines of diffusers as our Pipeline, their parts spelled for exporters.
"""
