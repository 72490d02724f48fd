"""The JSON files of a Hugging Face directory that decide what a model is."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_jax.convert.image_processors import read_image_processor
from vlm_jax.errors import UserError
from vlm_jax.models.abstract import ModelConfig
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.encoders import EncoderConfig
from vlm_jax.models.qformer import QFormerConfig
from vlm_jax.models.tile_vit import TileViTConfig
from vlm_jax.models.vit import PatchStem, ViTConfig
from vlm_jax.models.vlm import VLMConfig
from vlm_jax.pictures import Tiling


def read_hf_config(path: Path) -> dict[str, Any]:
    """The content of a directory's config.json.

    Raises:
        UserError: if there is none, or it is not a JSON object.
    """
    file = path / "config.json"
    if not file.is_file():
        raise UserError(f"{path}: there is no config.json; give a directory that Hugging Face's save_pretrained wrote")
    return _read_json(file)


def with_normalisation(config: ModelConfig, path: Path) -> ModelConfig:
    """The same config with size, mean and std of pictures as the directory's image processor has them, if there is one.

    Mean and std are part of our encoder's config, but not of config.json, so families can only give what is usual. A
    config.json tells the size that positions were learned for, which need not be that of the pictures (DINOv2).

    Raises:
        UserError: if the image processor's file is damaged.
    """
    if isinstance(config, (DecoderConfig, QFormerConfig)):
        return config
    if isinstance(config, VLMConfig):
        if config.encoder is None:
            return config
        return dataclasses.replace(config, encoder=_normalised(config.encoder, path), tiling=_tiling(config, path))
    return _normalised(config, path)


def _tiling(config: VLMConfig, path: Path) -> Tiling | None:
    """How pictures are cut, where only the image processor tells (Idefics 3): by tiles that need no parameter."""
    processor = _image_processor(path)
    if config.tiling is not None or processor is None:
        return config.tiling
    try:
        found = read_image_processor(processor[1], str(processor[0])).tiling
    except UserError:
        return None  # whoever asks for the processor is told
    return found if found is not None and not found.separator and not found.slots else None


def _normalised(config: EncoderConfig, path: Path) -> EncoderConfig:
    found = _image_processor(path)
    if found is None:
        return config
    file, processor = found
    mean, std = (_three(file, processor[field]) for field in ("image_mean", "image_std"))
    return _sized(dataclasses.replace(config, mean=mean, std=std), processor)


def _image_processor(path: Path) -> tuple[Path, Mapping[str, Any]] | None:
    """(file, content) of what describes the directory's image processor; None if nothing does."""
    for name in ("processor_config.json", "preprocessor_config.json"):
        file = path / name
        if not file.is_file():
            continue
        processor = _read_json(file)
        processor = processor.get("image_processor", processor)
        if isinstance(processor, Mapping) and "image_mean" in processor and "image_std" in processor:
            return file, processor
    return None


def _sized(config: EncoderConfig, processor: Mapping[str, Any]) -> EncoderConfig:
    try:
        size = read_image_processor(processor).image_size
    except UserError:
        return config  # its pictures have no one size, or it does what we cannot: the config's own size stands
    if size == config.image_size or isinstance(config, TileViTConfig):
        return config
    if not isinstance(config, ViTConfig):
        return dataclasses.replace(config, image_size=size)
    stem, grid = config.stem, config.position_grid or config.grid
    if isinstance(stem, PatchStem) and any(side % stem.patch for side in size):
        stem = dataclasses.replace(stem, truncate=True)
    return dataclasses.replace(config, image_size=size, stem=stem, position_grid=grid)


def _three(file: Path, numbers: Any) -> tuple[float, float, float]:
    try:
        red, green, blue = map(float, numbers)
    except (TypeError, ValueError):
        raise UserError(f"{file}: image_mean and image_std are not three numbers each; copy it again") from None
    return red, green, blue


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: not readable as JSON ({error}); copy it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{file}: holds no JSON object; copy it again")
    return content
