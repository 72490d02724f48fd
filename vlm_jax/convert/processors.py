"""Processors of Hugging Face directories and GGUF files: tokenizer, chat template and image preprocessing."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipelines.conversation import contents_of
from data_pipelines.images import ImagePreprocessing
from data_pipelines.template import ChatTemplate, PrefixTemplate, Processor, Template
from data_pipelines.tokenizers import Tokenizer, load_tokenizer, tokenizer_from_gguf
from data_pipelines.tokenizers.files import read_json
from data_pipelines.tokenizers.sentencepieces import JSON_FILE, MODEL_FILE
from vlm_jax.convert.chat_programs import JOINED, NO_TEMPLATE, PICTURES_FIRST, SURROUNDED, pictures_first
from vlm_jax.convert.gguf_tensors import GGUFTensors
from vlm_jax.convert.image_processors import encoder_processor, read_image_processor
from vlm_jax.convert.instruction_tokenizers import instruction_tokenizer
from vlm_jax.convert.processor_files import save_processor_hf
from vlm_jax.errors import UserError
from vlm_jax.models.vlm import PromptLayout, VLMConfig

__all__ = ["chat_template_for", "has_tokenizer", "load_processor_gguf", "load_processor_hf", "save_processor_hf"]


def load_processor_hf(path: str | Path, config: VLMConfig) -> Processor:
    """The processor of a Hugging Face directory.

    Read are tokenizer.json or tokenizer.model with the files that name their tokens, chat_template.jinja (or
    chat_template.json, or the field of tokenizer_config.json), and processor_config.json or preprocessor_config.json.

    Args:
        path: the directory.
        config: of the model in it (`load_hf`; of an LLM, a VLMConfig without encoder).

    Raises:
        UserError: if a file is missing or damaged, or does not fit the model.
    """
    where = Path(path)
    tokenizer = load_tokenizer(where)
    kind = str(read_json(where / "config.json", missing=True).get("model_type"))
    return _processor(tokenizer, config, _program(where), str(where), kind, where)


def has_tokenizer(path: str | Path) -> bool:
    """Whether a Hugging Face directory brings a tokenizer."""
    return any((Path(path) / name).is_file() for name in (JSON_FILE, MODEL_FILE))


def load_processor_gguf(source: str | Path | GGUFTensors, config: VLMConfig) -> Processor:
    """The processor that a GGUF file's metadata describe.

    Args:
        source: the file, or what was read of it already.
        config: of the model in it; one without an image encoder, since GGUF language models have none.

    Raises:
        UserError: if the file holds no tokenizer of a known kind.
    """
    file = source if isinstance(source, GGUFTensors) else GGUFTensors(source)
    tokenizer = tokenizer_from_gguf(file.metadata, file.where)
    return _processor(tokenizer, config, file.metadata.get("tokenizer.chat_template"), file.where)


def chat_template_for(
    program: str | None,
    tokenizer: Tokenizer,
    *,
    layout: PromptLayout | None = None,
    adds_bos: bool = False,
    image_before: str = "",
    image_after: str = "",
) -> ChatTemplate:
    """A ChatTemplate of a Jinja program: how it takes pictures is found by trying.

    Args:
        program: the Jinja text; None = the model has none, and takes running text only.
        tokenizer: whose `image_id` stands for pictures, if it has one.
        layout: what the model expects of its prompt.
        adds_bos, image_before, image_after: see ChatTemplate.

    Raises:
        UserError: if the program cannot write a user's message.
    """
    template = ChatTemplate(
        NO_TEMPLATE if program is None else program,
        image="" if tokenizer.image_id is None else tokenizer.id_to_piece(tokenizer.image_id),
        image_before=image_before,
        image_after=image_after,
        bidirectional_images=layout is not None and layout.bidirectional == "images",
        first_position=0 if layout is None else layout.first_position,
        adds_bos=adds_bos,
    )
    if program is None:
        return template
    writer = template.writer(tokenizer)
    return dataclasses.replace(template, contents=contents_of(program, dict(writer.names), template.image))


def _processor(
    tokenizer: Tokenizer,
    config: VLMConfig,
    program: str | None,
    where: str,
    kind: str = "",
    directory: Path | None = None,
) -> Processor:
    rows = config.decoder.embedded_tokens
    if tokenizer.vocabulary_size > rows:
        raise UserError(
            f"{where}: the tokenizer has ids up to {tokenizer.vocabulary_size - 1}, but the model embeds {rows}; "
            "take both from one checkpoint"
        )
    layout = config.layout
    if layout is not None:
        if layout.image_token >= rows:
            raise UserError(f"{where}: image token {layout.image_token} is outside the model's vocabulary of {rows}")
        tokenizer = _with_image_id(tokenizer, layout.image_token, where)
    template = _template(tokenizer, config, program, kind)
    if isinstance(template, ChatTemplate) and program is not None:
        end = template.end_of_turn(tokenizer)
        if end is not None and end not in tokenizer.end_ids:
            tokenizer = tokenizer.with_ids(end_ids=(*tokenizer.end_ids, end))
    images = ImagePreprocessing() if config.encoder is None else _images(directory, config)
    asked = instruction_tokenizer(directory) if directory is not None and config.pictures.instruction else None
    return Processor(tokenizer, template, images, config.image_size, config.prompt_tokens, config.pictures, asked)


def _with_image_id(tokenizer: Tokenizer, id: int, where: str) -> Tokenizer:
    try:
        return tokenizer.with_ids(image_id=id)
    except ValueError as error:
        raise UserError(f"{where}: config.json names {id} as the image token, but the tokenizer: {error}") from None


def _template(tokenizer: Tokenizer, config: VLMConfig, program: str | None, kind: str) -> Template:
    layout = config.layout
    if layout is not None and layout.bidirectional == "prompt":
        return PrefixTemplate(first_position=layout.first_position)
    if program is None and kind in PICTURES_FIRST:
        first = chat_template_for(pictures_first(tokenizer), tokenizer, layout=layout)
        return dataclasses.replace(first, pictures_first=True)
    before, after = SURROUNDED.get(kind, ("", ""))
    template = chat_template_for(
        program,
        tokenizer,
        layout=layout,
        # A VLM's processor encodes what the template wrote as a text, which some tokenizers open with <bos>.
        adds_bos=config.encoder is not None and tokenizer.adds_bos,
        # What stands before each tile is part of how pictures are cut.
        image_before=before if config.tiling is None else "",
        image_after=after,
    )
    return dataclasses.replace(template, image_joined=kind in JOINED)


def _images(directory: Path | None, config: VLMConfig) -> ImagePreprocessing:
    encoder = config.encoder
    assert encoder is not None
    found = None if directory is None else _image_processor(directory)
    if found is None:
        return encoder_processor(encoder).preprocessing
    name, plain = found
    processor = read_image_processor(plain, name)
    ours = (encoder.image_size, encoder.mean, encoder.std)
    for what, theirs, wanted in zip(
        ("size", "image_mean", "image_std"), (processor.image_size, processor.mean, processor.std), ours, strict=True
    ):
        if any(abs(a - b) > 1e-6 for a, b in zip(theirs, wanted, strict=True)):
            raise UserError(f"{name}: {what} is {theirs}, but the model takes {wanted}; take both from one checkpoint")
    if processor.tiling != config.tiling:
        raise UserError(
            f"{name}: it cuts pictures into tiles otherwise than the model's config.json says (image_grid_pinpoints; "
            "max_num_tiles, supported_aspect_ratios); take both from one checkpoint"
        )
    return processor.preprocessing


def _image_processor(directory: Path) -> tuple[str, Mapping[str, Any]] | None:
    """(file, content) of what describes the image processor; None if nothing does."""
    whole = read_json(directory / "processor_config.json", missing=True)
    inner = whole.get("image_processor")
    if isinstance(inner, Mapping):
        return str(directory / "processor_config.json"), inner
    path = directory / "preprocessor_config.json"
    plain = read_json(path, missing=True)
    return (str(path), plain) if plain else None


def _program(directory: Path) -> str | None:
    """The chat template's Jinja text; None if the directory brings none."""
    path = directory / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        found = read_json(directory / name, missing=True).get("chat_template")
        if isinstance(found, list):
            named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, Mapping)}
            found = named.get("default")
        if isinstance(found, str):
            return found
    return None
