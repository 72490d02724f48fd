"""The chat interface: what other programs need of a model, and nothing about how it works."""

import dataclasses
import os
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import UInt8

from data_pipelines.examples import Example, Image, Segment, Text
from data_pipelines.images import ImagePreprocessing
from data_pipelines.template import Processor, Template, TemplateConfig
from data_pipelines.tokenizers import Tokenizer
from vlm_jax.generation.decoding import Params
from vlm_jax.generation.engine import Engine
from vlm_jax.generation.requests import Piece, Request
from vlm_jax.generation.samplers import Sampler
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.vlm import VLMConfig

Picture = Image | str | os.PathLike[str] | bytes | UInt8[np.ndarray, "h w 3"]
"""An Image, a path, an encoded file's bytes, or RGB pixels."""


def question(text: str, images: Sequence[Picture] = (), id: str = "") -> Example:
    """A prompt: the pictures, then the question as the user's turn."""
    return Example(trunk=(*map(as_image, images), Text(text, role="user")), id=id)


def as_image(picture: Picture) -> Image:
    """Any form of a picture -> Image.

    Raises:
        ValueError: if an array is not uint8[h, w, 3].
    """
    if isinstance(picture, Image):
        return picture
    if isinstance(picture, bytes):
        return Image(data=picture)
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise ValueError(f"a picture of {picture.dtype}{list(picture.shape)}: give RGB pixels as uint8[h, w, 3]")
        # A PPM file is a line of text before the plain pixels, so nothing is lost and nothing needs to be encoded.
        header = f"P6 {picture.shape[1]} {picture.shape[0]} 255\n".encode()
        return Image(data=header + np.ascontiguousarray(picture).tobytes())
    return Image(path=os.fspath(picture))


def generate(
    config: VLMConfig | DecoderConfig,
    params: Params,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    images: Sequence[Sequence[Picture] | None] | None = None,
    max_new_tokens: int = 64,
    sampler: Sampler = Sampler(),
    *,
    seed: int = 0,
    stop: Sequence[str] = (),
    template: Template = TemplateConfig(),
    preprocessing: ImagePreprocessing = ImagePreprocessing(),
    processor: Processor | None = None,
    rows: int = 64,
) -> list[str]:
    """Answers questions, each about its own pictures or about none.

    Args:
        config, params: the model, with plain nested dicts of parameters; a decoder's alone too.
        tokenizer: the one that it was trained with.
        prompts: questions, each one user's turn.
        images: for every prompt its pictures, in order, or None; None = no pictures at all.
        max_new_tokens: length of an answer in tokens, at most.
        sampler: how tokens are chosen; greedy unless told otherwise.
        seed: of the draws, where the sampler draws.
        stop: an answer ends before the first of these strings.
        template, preprocessing: as in training; read where no processor is given.
        processor: what a checkpoint keeps; replaces tokenizer, template and preprocessing.
        rows: prompts that are decoded together.

    Returns:
        The answers, in the order of the prompts, without the token that ends them.

    Raises:
        ValueError: if there are not as many entries of images as prompts.
        UserError: if there is a picture and the model has no image encoder, or the tokenizer is not the model's.
        BadImage: if a picture cannot be decoded.
    """
    if isinstance(config, DecoderConfig):
        config, params = VLMConfig(config), {"decoder": params}
    if processor is None:
        processor = Processor(
            tokenizer, template, preprocessing, config.image_size, config.prompt_tokens, config.pictures
        )
    pictures = [None] * len(prompts) if images is None else images
    if len(pictures) != len(prompts):
        raise ValueError(f"generate: {len(prompts)} prompts but {len(pictures)} entries of images; give one a prompt")
    examples = [question(text, shown or ()) for text, shown in zip(prompts, pictures, strict=True)]
    return Engine(config, params, processor, rows).generate(
        examples, max_new_tokens=max_new_tokens, sampler=sampler, seed=seed, stop=stop
    )


_NO_PROMPT = Example(trunk=(Text("", role="user"),))


class Chat:
    """A dialogue of several turns; pictures may come with any of the user's turns.

    chat = Chat(engine)
    chat.ask("What shape is shown?", [path])
    chat.ask("And which colour has it?")
    """

    def __init__(
        self,
        engine: Engine,
        *,
        max_new_tokens: int = 64,
        sampler: Sampler = Sampler(),
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> None:
        self._engine = engine
        self._request = Request(_NO_PROMPT, max_new_tokens, sampler, seed, tuple(stop))
        self.segments: tuple[Segment, ...] = ()
        """The dialogue so far."""

    def ask(self, text: str, images: Sequence[Picture] = ()) -> str:
        """The answer to the next turn of the user."""
        return "".join(self.stream(text, images))

    def stream(self, text: str, images: Sequence[Picture] = ()) -> Iterator[str]:
        """The same, piece by piece; the turn becomes part of the dialogue when the answer has been read to its end."""
        answer = ""
        for piece in self.pieces(text, images):
            answer += piece.text
            if piece.text:
                yield piece.text
        self.segments = (*self.segments, *question(text, images).trunk, Text(answer, role="assistant"))

    def pieces(self, text: str, images: Sequence[Picture] = (), samples: int = 1) -> Iterator[Piece]:
        """Pieces of several answers to what would be the next turn; the dialogue stays as it is."""
        asked = Example(trunk=(*self.segments, *question(text, images).trunk))
        return self._engine.stream_many([dataclasses.replace(self._request, prompt=asked, samples=samples)])
