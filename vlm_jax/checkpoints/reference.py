"""A model by reference: what `--model REF` means.

runs/first                        a workdir: its newest step
runs/first/checkpoints/sft/200    a step directory, also one that `vlm convert` made
models/SmolLM2                    a Hugging Face directory
models/SmolLM2.gguf               a GGUF file
package://NAME/FILE               any of them inside an installed package
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from etils import epath
from jaxtyping import PyTree

from data_pipelines.template import Processor, load_processor
from data_pipelines.tokenizers import Tokenizer, load_tokenizer
from vlm_jax.checkpoints.checks import read_step_files
from vlm_jax.checkpoints.converted import read_config, require_whole
from vlm_jax.checkpoints.handoff import abstract_params, load_params, step_directory
from vlm_jax.checkpoints.packages import SCHEME, package_file
from vlm_jax.config import Experiment
from vlm_jax.convert import load_hf
from vlm_jax.convert.families import find_family
from vlm_jax.convert.gguf_tensors import GGUFTensors, load_gguf
from vlm_jax.convert.hf import ImportPart, Progress, family_config
from vlm_jax.convert.hf_config import read_hf_config, with_normalisation
from vlm_jax.convert.onnx_tensors import ONNXTensors, load_onnx
from vlm_jax.convert.processors import has_tokenizer, load_processor_gguf, load_processor_hf
from vlm_jax.errors import UserError
from vlm_jax.models.abstract import ModelConfig, build_model
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.vlm import VLMConfig
from vlm_jax.parallel import Layout, MeshConfig, build_layout


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to be used, and where it came from."""

    config: VLMConfig
    params: dict[str, Any]
    processor: Processor
    experiment: Experiment | None
    """By which it was trained; None if it comes from another format."""
    directory: epath.Path
    """The step directory, Hugging Face directory or file."""


@dataclasses.dataclass(frozen=True)
class LoadedPart:
    """Anything that a reference may mean: a whole model, or an encoder or decoder by itself."""

    config: ModelConfig
    params: dict[str, Any]
    processor: Processor | None
    experiment: Experiment | None
    where: epath.Path


def load_model(reference: str) -> LoadedModel:
    """Loads a model that can read and write text; it needs nothing besides what the reference means.

    Raises:
        UserError: if there is no model, it is damaged, or of an unknown kind.
    """
    layout = build_layout(MeshConfig(data=jax.device_count()))
    found = load_part(reference, layout=layout)
    config, params = whole(found.config, found.params)
    config = require_whole(config, reference)
    if found.processor is None:
        raise UserError(f"{reference}: there is no tokenizer beside the weights; put its files there")
    return LoadedModel(config, params, found.processor, found.experiment, found.where)


def load_part(
    reference: str,
    *,
    part: ImportPart = "model",
    dtype: str | None = None,
    layout: Layout | None = None,
    tokenizer: bool = True,
    progress: Progress | None = None,
) -> LoadedPart:
    """Loads whatever a reference means.

    Args:
        reference: see the module's docstring.
        part: what to take of a Hugging Face directory.
        dtype: that parameters from other formats are held in; None = as stored. A step directory's are as kept there.
        layout: where parameters go; None = the first device.
        tokenizer: whether to read the processor too, where there is one.
        progress: told how far reading another format is.

    Raises:
        UserError: if there is nothing, it is damaged, or of an unknown kind.
    """
    path = local_path(reference)
    if path.is_file():
        return _from_file(path, reference, tokenizer, dtype=dtype, layout=layout, progress=progress)
    if is_huggingface(path):
        directory = Path(path)
        config, params = load_hf(directory, part=part, dtype=dtype, layout=layout, progress=progress)
        processor = None
        readable = part == "model" and isinstance(config, (VLMConfig, DecoderConfig))
        if tokenizer and has_tokenizer(directory) and readable:
            processor = load_processor_hf(directory, require_whole(whole(config, {})[0], reference))
        return LoadedPart(config, params, processor, None, path)
    where = step_directory(str(path))
    config, experiment = read_config(read_step_files(where)["config.json"], where)
    params = load_params(where, abstract_params(build_model(config), layout or build_layout(MeshConfig())))
    files = where / "files" / "processor"
    processor = load_processor(files) if tokenizer and (files / "processor.json").exists() else None
    return LoadedPart(config, params, processor, experiment, where)


def load_reference_processor(reference: str) -> Processor:
    """The processor of a model, without its weights.

    Raises:
        UserError: if there is none.
    """
    path = local_path(reference)
    if path.is_file() and path.suffix == ".gguf":
        tensors = GGUFTensors(Path(path))
        return load_processor_gguf(tensors, _config(tensors.config, reference))
    if is_huggingface(path) and has_tokenizer(Path(path)):
        normalised = with_normalisation(_config(read_hf_config(Path(path)), reference), Path(path))
        return load_processor_hf(Path(path), require_whole(normalised, reference))
    if (path / "processor.json").is_file():
        return load_processor(path)
    if path.is_dir() and not is_huggingface(path):
        return load_processor(step_directory(str(path)) / "files" / "processor")
    raise UserError(f"{reference}: no tokenizer there; name a model that has one")


def load_reference_tokenizer(reference: str) -> Tokenizer:
    """The tokenizer of a model, or of a directory that holds nothing else; of any family, whether or not it is known.

    Raises:
        UserError: if there is none.
    """
    path = local_path(reference)
    if path.is_dir() and has_tokenizer(Path(path)):
        return load_tokenizer(path)
    return load_reference_processor(reference).tokenizer


def _config(hf: Mapping[str, Any], reference: str) -> VLMConfig:
    """What a config.json says, as the config of a whole model."""
    config = family_config(find_family(hf, reference), hf, reference)
    return require_whole(whole(config, {})[0], reference)


def local_path(reference: str) -> epath.Path:
    """The file or directory that a reference means.

    Raises:
        UserError: if it is an address, or there is nothing.
    """
    if reference.startswith(("http://", "https://")):
        raise UserError(f"{reference}: a server's address, which cannot be used here; name a model on the disk")
    path = epath.Path(package_file(reference) if reference.startswith(SCHEME) else reference).resolve()
    if not path.exists():
        raise UserError(
            f"{reference}: no checkpoint there; give a workdir, a directory checkpoints/STAGE/STEP, a Hugging Face "
            "directory, a .gguf file or package://NAME/FILE"
        )
    return path


def is_own(reference: str) -> bool:
    """Whether a reference means a workdir or a step directory, and not a model in another format."""
    path = local_path(reference)
    return path.is_dir() and not is_huggingface(path)


def is_huggingface(path: epath.Path) -> bool:
    """Whether a directory's config.json is that of a Hugging Face model."""
    try:
        plain = json.loads((path / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(plain, dict) and "stages" not in plain and ("model_type" in plain or "architectures" in plain)


def whole(config: ModelConfig, params: PyTree) -> tuple[ModelConfig, dict[str, Any]]:
    """An LLM by itself as a model without pictures; anything else as it is."""
    if isinstance(config, DecoderConfig):
        return VLMConfig(decoder=config), {"decoder": params}
    return config, params


def _from_file(path: epath.Path, reference: str, tokenizer: bool, **how: Any) -> LoadedPart:
    if path.suffix == ".gguf":
        tensors = GGUFTensors(Path(path))
        config, params = load_gguf(tensors, **how)
        processor = load_processor_gguf(tensors, VLMConfig(decoder=config)) if tokenizer else None
        return LoadedPart(config, params, processor, None, path)
    if path.suffix == ".onnx":
        encoder, params = load_onnx(Path(path), _prefix(path), **how)
        return LoadedPart(encoder, params, None, None, path)
    raise UserError(f"{reference}: a file of an unknown kind; name a .gguf or .onnx file, or a directory")


def _prefix(path: epath.Path) -> str:
    """Where the encoder is in an exported module: in its backbone, if it has one."""
    names = ONNXTensors(Path(path)).shapes
    return "backbone." if any(name.startswith("backbone.") for name in names) else ""
