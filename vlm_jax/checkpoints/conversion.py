"""Models from other formats into step directories, and from any reference into Hugging Face's format."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Literal

from etils import epath
from jaxtyping import PyTree

from data_pipelines.template import Processor
from vlm_jax.checkpoints.converted import require_empty, save_converted
from vlm_jax.checkpoints.files import read_files
from vlm_jax.checkpoints.reference import is_huggingface, load_part, local_path, whole
from vlm_jax.convert import load_hf
from vlm_jax.convert.chat_programs import layout_of
from vlm_jax.convert.hf import ImportPart, Progress, write_hf
from vlm_jax.convert.onnx_tensors import load_onnx
from vlm_jax.convert.processor_files import save_processor_hf
from vlm_jax.convert.writing import new_directory
from vlm_jax.errors import UserError
from vlm_jax.models.abstract import ModelConfig
from vlm_jax.models.vlm import VLMConfig

Format = Literal["hf", "gguf", "onnx"]

Part = Literal["model", "encoder", "decoder"]


def import_model(
    source: str,
    target: str,
    format: Format,
    *,
    part: ImportPart = "model",
    dtype: str | None = None,
    prefix: str | None = None,
    progress: Progress | None = None,
) -> ModelConfig:
    """Another format -> a step directory, with its processor if there is a tokenizer.

    Args:
        source: a Hugging Face directory, a .gguf or an .onnx file, on the disk or in a package (package://…).
        target: does not exist, or is empty.
        format: what the source is.
        part: what to take of a Hugging Face directory.
        dtype: that parameters are kept in; None = as stored (quantised ones and float16 become float32).
        prefix: where the encoder is in an ONNX file's module, with its dot; None = found by itself.
        progress: told how far reading is.

    Returns:
        The config of what was converted: of a model, or of an image encoder by itself.

    Raises:
        UserError: if the source cannot be read, is of another format, or the target cannot be written.
    """
    require_empty(epath.Path(target))
    path = local_path(source)
    if format == "hf" and not is_huggingface(path):
        load_hf(Path(path))  # which says what is wrong with it
    if format != "hf" and (path.suffix != f".{format}" or not path.is_file()):
        raise UserError(f"{source}: is no file that ends in .{format}; name one, or use another direction")
    if format == "onnx" and prefix is not None:
        encoder, weights = load_onnx(Path(path), prefix, dtype=dtype, progress=progress)
        save_converted(target, encoder, weights, {})
        return encoder
    found = load_part(source, part=part, dtype=dtype, progress=progress)
    config, params = whole(found.config, found.params)
    save_converted(target, config, params, {} if found.processor is None else _files(found.processor))
    return config


def _files(processor: Processor) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as directory:
        processor.save(directory)
        return read_files(directory)


def export_hf(reference: str, target: str, part: Part = "model", progress: Progress | None = None) -> ModelConfig:
    """Any model -> a Hugging Face directory, which transformers loads; a whole model with its processor.

    Args:
        reference: whatever `load_part` takes.
        target: a directory that does not exist or is empty.
        part: "encoder" or "decoder" of a vision-language model by itself (without a processor), or all of it.
        progress: told how far writing is.

    Returns:
        The config of what was written.

    Raises:
        UserError: if there is no such model, or Hugging Face's format cannot express it.
    """
    require_empty(epath.Path(target))
    found = load_part(reference)
    config, params = whole(found.config, found.params)
    processor = found.processor if part == "model" else None
    if part != "model":
        config, params = _part(config, params, part, reference)
    elif isinstance(config, VLMConfig) and config.encoder and config.layout is None and processor:
        config = dataclasses.replace(config, layout=layout_of(processor))
    if processor is not None and isinstance(config, VLMConfig) and config.encoder is not None and config.layout is None:
        config = dataclasses.replace(config, layout=layout_of(processor))
    with new_directory(Path(target)) as directory:
        write_hf(config, params, directory, progress=progress)
        if processor is not None and isinstance(config, VLMConfig):
            save_processor_hf(processor, config, directory)
    return config


def _part(config: ModelConfig, params: PyTree, part: Part, reference: str) -> tuple[ModelConfig, PyTree]:
    found = getattr(config, part) if isinstance(config, VLMConfig) else None
    if found is None:
        raise UserError(f"--part {part}: {reference} has no such part; leave --part out")
    return found, params[part]
