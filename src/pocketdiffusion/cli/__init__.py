"""One verb per file: a frozen ``Args`` whose fields are the flags, and ``main(args)``.

A verb's module loads quickly (no torch at the top), so that ``pocket --help`` does. Errors of the user are
ValueError (exit code 2), trouble with the machine OSError or RuntimeError (exit code 1): one line each.

    main.py         The command line: verbs, and errors as one line.
    generate.py     pocket generate: prompts -> PNG files that carry their settings.
    train.py        pocket train: run a recipe, by name or from a file.
    cache.py        pocket cache: a folder of pictures -> latents and captions in shards.
    evaluate.py     pocket eval: a pipeline on SceneEval, and its Frechet distance to the world.
    export.py       pocket export: a pipeline -> a bundle for a device, checked against the original.
    serve_web.py    pocket serve-web: a web bundle on this machine, or on the local network.
    bench.py        pocket bench: parameters, multiply-accumulates, latency and memory of a pipeline's parts.
    costs.py        pocket costs: what every block and branch takes, here or on a phone, as a table.
    spectrum.py     pocket spectrum: how much fine detail an autoencoder's latents carry, beside pixels.
    info.py         pocket info: what is in a saved pipeline or network.
    demo.py         pocket demo: sample, train, score, compare, time and export, in a report to look at.
    compared.py     Pipelines side by side in the demo: teacher and student, the widths of an elastic model.
    autoencoder.py  Which autoencoder a flag means: a shipped name, a folder of ours, or a diffusers one.
    reconstruct.py  pocket reconstruct: a picture or video through an autoencoder, beside the original.
    through.py      Frames through an autoencoder and back, in chunks: padded, tiled, streamed.
    counting.py     Count correction of a pipeline: what is asked for, a counter, words that attention sees.
    films.py        What a path holds: a picture, a video, or the pictures of a folder.
    judge.py        One row of numbers per autoencoder, over a data set.
    compare.py      Frames beside what became of them: panels to look at, and numbers.
    latents.py      The latents of one picture or video in a file, with whose they are.
"""
