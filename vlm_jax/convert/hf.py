"""Hugging Face directories in and out: `load_hf` and `save_hf`."""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import PyTree

from vlm_jax.convert.families import FAMILIES, Family, find_family
from vlm_jax.convert.hf_config import read_hf_config, with_normalisation
from vlm_jax.convert.image_processors import (
    ImageProcessor,
    covering_processor,
    encoder_processor,
    write_image_processor,
)
from vlm_jax.convert.names import Row
from vlm_jax.convert.streaming import cast_dtypes, load_rows, stored_dtypes
from vlm_jax.convert.tensors import Renamed, SafetensorsDirectory, Tensors
from vlm_jax.convert.writing import SHARD_BYTES, new_directory, write_rows
from vlm_jax.errors import UserError
from vlm_jax.models.abstract import ModelConfig, boxed_params, build_model
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.qformer import QFormerConfig
from vlm_jax.models.vlm import VLMConfig
from vlm_jax.parallel import Layout, abstract_params
from vlm_jax.serialise import from_plain, to_plain

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""


ImportPart = Literal["model", "encoder", "decoder", "qformer"]


def load_hf(
    path: str | Path,
    *,
    part: ImportPart = "model",
    dtype: str | None = None,
    layout: Layout | None = None,
    progress: Progress | None = None,
) -> tuple[ModelConfig, dict[str, Any]]:
    """Reads a local Hugging Face directory: config.json and safetensors, sharded or not.

    Args:
        path: the directory.
        part: what to take of a vision-language model; "model" = all of it. Of BLIP-2 and InstructBLIP the encoder and
            the Q-Former can be taken whatever their decoder is.
        dtype: that parameters are held in ("float32", "bfloat16"); None = as stored (float16 becomes float32).
        layout: where parameters go; None = the first device.
        progress: told how far it is.

    Returns:
        (config, parameters): of an LLM alone a DecoderConfig and the parameters of `Decoder`, of an image encoder its
        config and parameters, of a Q-Former likewise, of a vision-language model a VLMConfig and the parameters of
        `VLM`.

    Raises:
        UserError: if the directory is no model of a known architecture, or its files are damaged.
    """
    where = Path(path)
    hf = read_hf_config(where)
    find_family(hf, str(where))  # an unknown architecture is the first thing to say
    tensors = SafetensorsDirectory(where)
    config, params = load_tensors(hf, tensors, part=part, dtype=dtype, layout=layout, progress=progress)
    return with_normalisation(config, where), params


def load_tensors(
    hf: Mapping[str, Any],
    tensors: Tensors,
    *,
    part: ImportPart = "model",
    dtype: str | None = None,
    layout: Layout | None = None,
    progress: Progress | None = None,
) -> tuple[ModelConfig, dict[str, Any]]:
    """`load_hf` from tensors of any origin.

    Args:
        hf: the content of a config.json.
        tensors: under the names that the architecture has there.
        part, dtype, layout, progress: as of `load_hf`.
    """
    family = find_family(hf, tensors.where)
    config, rows, dropped = _table(family, hf, tensors.where, part)
    present = Renamed(tensors, family.RENAMED)
    with _user_errors(tensors.where):
        abstract = abstract_params(boxed_params(build_model(config)), layout)
    abstract = cast_dtypes(abstract, dtype) if dtype else stored_dtypes(rows, present, abstract)
    return config, load_rows(rows, present, abstract, dropped, progress)


def _table(family: Family, hf: Mapping[str, Any], where: str, part: ImportPart) -> tuple[Any, list[Row], Sequence[str]]:
    """(config, name table, tensors that are knowingly left) of a model or a part.

    Raises:
        UserError: if the model has no such part.
    """
    if part in ("encoder", "qformer") and hasattr(family, "parts_alone"):
        with _user_errors(where):
            return *family.parts_alone(hf)[part], ("",)
    whole = family_config(family, hf, where)
    with _user_errors(where):
        rows = list(family.rows(whole))
    if part == "model":
        return whole, rows, family.DROPPED
    config = getattr(whole, part, None) if isinstance(whole, VLMConfig) else None
    if config is None:
        raise UserError(f"{where}: a {hf['model_type']} has no {part} that could be taken by itself; leave --part out")
    own = [
        dataclasses.replace(row, ours=row.ours.removeprefix(f"{part}/")) for row in rows if row.ours.startswith(part)
    ]
    return config, own, ("",)


def save_hf(
    config: ModelConfig,
    params: PyTree,
    path: str | Path,
    *,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> None:
    """Writes config.json and model.safetensors, which transformers loads; dtypes are kept.

    An encoder also gets the preprocessor_config.json that is usual for its kind, with its size, mean and std; a VLM
    with Idefics 3's tiles gets one that says how they are cut.

    The directory appears when it is whole.

    Args:
        config: of a VLM, a decoder or an encoder. A VLM without an encoder is written as its decoder.
        params: its parameters, as `load_hf` gives them.
        path: a directory that does not exist or is empty.
        shard_bytes: larger models are cut into files of at most this size, with an index.
        progress: told how far it is.

    Raises:
        UserError: if no architecture of transformers can express the config, or the directory cannot be written.
    """
    with new_directory(Path(path)) as directory:
        write_hf(config, params, directory, shard_bytes=shard_bytes, progress=progress)


def write_hf(
    config: ModelConfig,
    params: PyTree,
    directory: Path,
    *,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> None:
    """`save_hf` into a directory that is there already, file by file."""
    if isinstance(config, VLMConfig) and config.encoder is None:
        config, params = config.decoder, params["decoder"]
    family, hf = find_writer(config)
    leaves = [str(leaf.dtype) for leaf in jax.tree.leaves(params)]
    hf = {**hf, "dtype": max(set(leaves), key=leaves.count)}
    rows, unused = list(family.rows(config)), unused_tensors(family, config)
    if unused:
        rows += [Row(name, f"unused/{name}") for name in unused]
        params = {**params, "unused": unused}
    write_rows(rows, params, directory, shard_bytes, progress)
    (directory / "config.json").write_text(json.dumps(hf, indent=2) + "\n", encoding="utf-8")
    processor = _image_processor(config)
    if processor is not None:
        plain = write_image_processor(processor)
        (directory / "preprocessor_config.json").write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")


def _image_processor(config: ModelConfig) -> ImageProcessor | None:
    """That goes out with a model, since config.json does not say how its pictures are made; None if none does."""
    if isinstance(config, VLMConfig):
        return covering_processor(config)
    return None if isinstance(config, (DecoderConfig, QFormerConfig)) else encoder_processor(config)


def unused_tensors(family: Family, config: ModelConfig) -> dict[str, np.ndarray]:
    """Tensors that a loader outside expects and that have no effect on what the model computes; a family may have
    them, by a function `constants` of the config.
    """
    constants = getattr(family, "constants", None)
    return constants(config) if constants is not None else {}


def find_writer(config: ModelConfig) -> tuple[Family, dict[str, Any]]:
    """The family that can express a config, and the config.json.

    Raises:
        UserError: if there is none; it says what stands in the way.
    """
    refusals = []
    for family in {id(family): family for _, family in sorted(FAMILIES.items())}.values():
        try:
            hf = family.write_config(config)
        except UserError as error:
            refusals.append(str(error))
            continue
        if hf is not None:
            return family, hf
    reason = "; ".join(dict.fromkeys(refusals)) or "no architecture has these parts"
    parts = ""
    if isinstance(config, VLMConfig):
        reason = reason if refusals else f"no architecture has its {_parts_of(config)}"
        parts = ". Its encoder and its decoder can be written each by itself (--part of `vlm convert to-hf`)"
    raise UserError(f"this {type(config).__name__} cannot be written in Hugging Face format: {reason}{parts}")


def _parts_of(config: VLMConfig) -> str:
    names = [type(part).__name__ for part in (config.encoder, config.adapter) if part is not None]
    return f"{' and '.join(names)} together{', cut into tiles' if config.tiling else ''}"


def family_config(family: Family, hf: Mapping[str, Any], where: str) -> Any:
    """`family.read_config`, whose surprises at a damaged config.json become errors of the user's input.

    Raises:
        UserError: if a field is missing, of another type, or no model can have it.
    """
    with _user_errors(where):
        config = family.read_config(hf)
        return from_plain(type(config), to_plain(config), f"{where}: config.json gives a config that")


@contextlib.contextmanager
def _user_errors(where: str) -> Iterator[None]:
    """What numbers that fit no model lead to is the fault of the config.json."""
    try:
        yield
    except KeyError as error:
        raise UserError(f"{where}: config.json lacks the field {error}; copy it again") from error
    except (TypeError, ValueError, ArithmeticError, AttributeError, IndexError, AssertionError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"{where}: config.json cannot be used ({first}); copy it again") from error
