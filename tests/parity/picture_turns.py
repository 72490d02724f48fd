"""Prompts as turns of user and assistant: sizes of pictures (height, width), and a text."""

import io

import numpy as np
import PIL.Image

from data_pipelines.examples import Example, Image, Text

ROLES = ("user", "assistant", "user")


def picture(size):
    file = io.BytesIO()
    pixels = np.random.default_rng(sum(size)).integers(0, 256, (*size, 3), np.uint8)
    PIL.Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def ours_of(prompt):
    segments = []
    for role, (sizes, text) in zip(ROLES, prompt, strict=False):
        segments += [*(Image(data=picture(size)) for size in sizes), Text(text, role=role)]
    return Example(tuple(segments))


def read_by(processor, prompt, **options):
    """What transformers' processor makes of a prompt; the options go to it."""
    turns = [
        {"role": role, "content": [*[{"type": "image"}] * len(sizes), {"type": "text", "text": text}]}
        for role, (sizes, text) in zip(ROLES, prompt, strict=False)
    ]
    shown = [PIL.Image.open(io.BytesIO(picture(size))) for sizes, _ in prompt for size in sizes]
    text = processor.apply_chat_template(turns, add_generation_prompt=True)
    return processor(text=[text], images=[shown] if shown else None, return_tensors="np", **options)
