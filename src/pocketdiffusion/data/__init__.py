"""-> Iterator[Batch]: pictures, clips or latents, what they show in words, and the truth where it is known.

    batch = source(seed, step)

Every source is a pure function of (seed, step): a resumed run sees what it would have seen, processes take
different steps, and nothing has to be saved. The scenes world (shapes, render, captions, scenes, motion) is
drawn on the fly and never repeats; folders and caches visit every sample once per epoch, in a seeded order.

    shapes.py      The vocabulary of the scenes world: shapes as signed distances, colours, textures.
    render.py      Draws scenes: things -> pixels and visible masks, in batch, on any device.
    captions.py    Puts a scene into words: articles, numbers, attributes, relations, several phrasings.
    scenes.py      An endless, seeded world of captioned scenes, with the ground truth of every picture.
    motion.py      The scenes world moves: captioned clips (B, C, T, H, W), batch = f(seed, step).
    video.py       Video files, animations and folders of frames, read one picture at a time.
    record.py      Pictures into video files and folders of frames, as they come.
    clips.py       Video files as clips: read, write, and a folder of them, batch = f(seed, step).
    files.py       A folder of pictures with captions, as users have: same-name .txt or metadata.jsonl.
    photos.py      Natural pictures, of scikit-image or of a folder; a corner of each is held out.
    latents.py     Cached latents and text embeddings in safetensors shards that carry their encoders' hashes.
"""
