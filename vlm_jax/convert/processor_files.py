"""A processor written as the files of a Hugging Face directory."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from data_pipelines.template import ChatTemplate, PrefixTemplate, Processor
from data_pipelines.tokenizers import HuggingFaceTokenizer, SentencePieceTokenizer, Tokenizer
from data_pipelines.tokenizers.protocol import IMAGE_TOKEN
from vlm_jax.convert.chat_programs import (
    JOINED,
    NO_TEMPLATE,
    PICTURES_FIRST,
    SURROUNDED,
    chat_program,
    layout_of,
    pictures_first,
)
from vlm_jax.convert.hf import find_writer
from vlm_jax.convert.image_processors import ImageProcessor, write_image_processor
from vlm_jax.convert.instruction_tokenizers import write_instruction_tokenizer
from vlm_jax.convert.sentencepiece_json import sentencepiece_json
from vlm_jax.convert.tilings import idefics2_fields
from vlm_jax.errors import UserError
from vlm_jax.models.vlm import VLMConfig

_WITHOUT_PROGRAM = ("Blip2Processor", "InstructBlipProcessor")
"""They put pictures first by themselves, where a chat template would put them a second time; as `PICTURES_FIRST`."""


def save_processor_hf(processor: Processor, config: VLMConfig, path: str | Path) -> None:
    """Writes a processor so that transformers' AutoTokenizer and AutoProcessor load it beside the exported model.

    Files: tokenizer.json (of a sentencepiece tokenizer, an equal one), tokenizer_config.json, generation_config.json,
    chat_template.jinja; of a VLM also preprocessor_config.json and processor_config.json. The program writes <bos>
    itself where the template has one, so it comes once, whoever encodes the text.

    Args:
        processor: of the model.
        config: of the model, which decides which of transformers' processors it gets.
        path: the directory; it is made if it is not there.

    Raises:
        UserError: if transformers has no processor that does the same.
    """
    directory = Path(path)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = as_huggingface(processor.tokenizer)
    kind, settings = ("", {}) if config.encoder is None else _kind(processor, config)
    tokenizer.save(directory)
    named = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
    if config.decoder.context:
        named["model_max_length"] = config.decoder.context
    if tokenizer.image_id is not None and kind not in _WITHOUT_PROGRAM:
        named["extra_special_tokens"] = {"image_token": tokenizer.id_to_piece(tokenizer.image_id)}
        if kind == "Idefics2Processor":
            named["extra_special_tokens"]["image_boundary_token"] = SURROUNDED["idefics2"][1]
    if kind:
        named["processor_class"] = kind
        _write(directory / "processor_config.json", {"processor_class": kind, **settings})
        _write(directory / "preprocessor_config.json", {**_pixels(processor, config, kind), "processor_class": kind})
    _write(directory / "tokenizer_config.json", named)
    generation = {"eos_token_id": list(tokenizer.end_ids), "pad_token_id": tokenizer.pad_id}
    if tokenizer.bos_id is not None:
        generation["bos_token_id"] = tokenizer.bos_id
    _write(directory / "generation_config.json", generation)
    surrounds = kind in ("Idefics2Processor", "Idefics3Processor")
    program = chat_program(processor.template, processor.tokenizer, surrounds)
    if processor.instruction_tokenizer is not None:
        write_instruction_tokenizer(processor.instruction_tokenizer, directory)
    if program and program != NO_TEMPLATE and kind not in _WITHOUT_PROGRAM:
        (directory / "chat_template.jinja").write_text(program, encoding="utf-8")


def as_huggingface(tokenizer: Tokenizer) -> HuggingFaceTokenizer:
    """The tokenizer itself, or one of the `tokenizers` library with the same ids.

    Raises:
        UserError: if a sentencepiece model cannot be written as such.
    """
    if isinstance(tokenizer, HuggingFaceTokenizer):
        return tokenizer
    assert isinstance(tokenizer, SentencePieceTokenizer)
    return HuggingFaceTokenizer(
        sentencepiece_json(tokenizer),
        end_ids=tokenizer.end_ids,
        bos_id=tokenizer.bos_id,
        pad_id=tokenizer.pad_id,
        image_id=tokenizer.image_id,
        adds_bos=tokenizer.adds_bos,
    )


def _kind(processor: Processor, config: VLMConfig) -> tuple[str, dict[str, Any]]:
    """(class of transformers' processor, its settings) for the architecture that the model is written as."""
    if config.layout is None:
        config = dataclasses.replace(config, layout=layout_of(processor))
    _, hf = find_writer(config)
    image_token = processor.tokenizer.id_to_piece(layout_of(processor).image_token)
    if hf["model_type"] == "llava":
        return "LlavaProcessor", {"image_token": image_token, **_llava_tokens(config, hf)}
    if hf["model_type"] == "llava_next":
        return "LlavaNextProcessor", {"image_token": image_token, **_llava_tokens(config, hf)}
    if hf["model_type"] in SURROUNDED:
        return _surrounding(processor, config, hf["model_type"]), {"image_seq_len": config.prompt_tokens}
    if hf["model_type"] in PICTURES_FIRST and _puts_pictures_first(processor):
        return _WITHOUT_PROGRAM[PICTURES_FIRST.index(hf["model_type"])], {"num_query_tokens": config.prompt_tokens}
    if hf["model_type"] == "mllama":
        return "MllamaProcessor", {}
    if hf["model_type"] == "paligemma" and processor.template == PrefixTemplate():
        return "PaliGemmaProcessor", {}
    raise UserError(f"no processor of transformers does what this template does with a {hf['model_type']}")


def _puts_pictures_first(processor: Processor) -> bool:
    template = processor.template
    # Of these processors the token is always called so; one that the tokenizer names breaks them.
    called = processor.tokenizer.id_to_piece(layout_of(processor).image_token) == IMAGE_TOKEN
    return called and isinstance(template, ChatTemplate) and template.jinja == pictures_first(processor.tokenizer)


def _surrounding(processor: Processor, config: VLMConfig, kind: str) -> str:
    """The processor of an architecture that puts text around pictures, if this template puts the same."""
    name = "Idefics2Processor" if kind == "idefics2" else "Idefics3Processor"
    template = processor.template
    around = (template.image_before, template.image_after) if isinstance(template, ChatTemplate) else ("", "")
    before, after = SURROUNDED[kind]
    before = before if config.tiling is None else ""
    if around != (before, after):
        raise UserError(
            f"transformers' {name} puts {before or 'nothing'} before and {after} after a picture, this template "
            f"{around[0]!r} and {around[1]!r}; train with a ChatTemplate that has these"
        )
    if isinstance(template, ChatTemplate) and template.image_joined != (kind in JOINED):
        raise UserError(f"transformers' {name} needs a ChatTemplate with image_joined {kind in JOINED}")
    return name


def _llava_tokens(config: VLMConfig, hf: dict[str, Any]) -> dict[str, Any]:
    """Settings by which LlavaProcessor counts a picture's tokens: as many as patches, and as many as we have."""
    (height, width), strategy = config.image_size, hf["vision_feature_select_strategy"]
    wanted = config.prompt_tokens - config.separator
    fitting = [edge for edge in range(min(height, width), 0, -1) if (height // edge) * (width // edge) == wanted]
    if not fitting:
        raise UserError(
            f"LlavaProcessor counts square patches, and none cut {height} x {width} pixels into {wanted} tokens"
        )
    # With "default" it counts the class token and takes it away again.
    extra = int(strategy == "default")
    patch = hf["vision_config"].get("patch_size")
    return {
        "patch_size": patch if patch in fitting else fitting[0],
        "num_additional_image_tokens": extra,
        "vision_feature_select_strategy": strategy,
    }


def _pixels(processor: Processor, config: VLMConfig, kind: str) -> dict[str, Any]:
    plain = write_image_processor(_image_processor(processor, config))
    if isinstance(processor.template, PrefixTemplate):
        plain |= {"image_processor_type": "SiglipImageProcessor", "image_seq_length": config.prompt_tokens}
    if kind == "Idefics2Processor":
        if processor.images.resize != "squash" or processor.images.longest_edge:
            raise UserError(f"Idefics 2's processor does not resize pictures with {processor.images}; use 'squash'")
        plain |= idefics2_fields(processor.image_size, splits=config.tiling is not None)
    return plain


def _image_processor(processor: Processor, config: VLMConfig) -> ImageProcessor:
    encoder = config.encoder
    assert encoder is not None
    return ImageProcessor(processor.image_size, processor.images, encoder.mean, encoder.std, config.tiling)


def _write(path: Path, plain: dict[str, Any]) -> None:
    path.write_text(json.dumps(plain, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
