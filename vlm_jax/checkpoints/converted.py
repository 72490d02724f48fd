"""A model that was not trained here as a step directory: parameters and files, without optimiser and data position.

Its config.json holds the model's own config, where that of a run holds the whole experiment.
"""

import json
from collections.abc import Mapping

import orbax.checkpoint as ocp
from etils import epath
from jaxtyping import PyTree

from vlm_jax.checkpoints.checksums import file_checksum, seal, tree_checksums
from vlm_jax.checkpoints.files import FilesHandler, FilesSave
from vlm_jax.config import Experiment
from vlm_jax.errors import UserError
from vlm_jax.models.abstract import ModelConfig
from vlm_jax.models.vlm import VLMConfig
from vlm_jax.serialise import from_plain, to_json


def save_converted(
    directory: epath.PathLike, config: ModelConfig, params: PyTree, processor: Mapping[str, bytes]
) -> None:
    """Writes a step directory, which `--model` loads; it gets its name when it is whole.

    Args:
        directory: does not exist, or is empty.
        config: of a whole model, or of an image encoder by itself.
        params: its parameters.
        processor: the files of `Processor.save` by name; empty if there is none.

    Raises:
        UserError: if the directory holds something, or cannot be written.
    """
    where = epath.Path(directory).resolve()
    require_empty(where)
    files = {"config.json": to_json(config).encode(), **{f"processor/{name}": x for name, x in processor.items()}}
    sums = {
        **tree_checksums({"params": params}),
        **{f"files/{name}": file_checksum(content) for name, content in files.items()},
    }
    items = ocp.args.Composite(
        params=ocp.args.StandardSave(params), files=FilesSave({**files, "checksums.json": seal(sums)})
    )
    handler = ocp.CompositeCheckpointHandler(params=ocp.StandardCheckpointHandler(), files=FilesHandler())
    try:
        where.parent.mkdir(parents=True, exist_ok=True)
        if where.exists():
            where.rmdir()
        with ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(where, items)
    except (OSError, ValueError, RuntimeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"{where}: cannot be written ({first}); free space or choose another directory") from error


def require_empty(directory: epath.Path) -> None:
    """Raises UserError if there is something at the place where a conversion is to go."""
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise UserError(f"{directory}: is there already; name a directory that does not exist or is empty")


def read_config(content: bytes, where: epath.PathLike) -> tuple[ModelConfig, Experiment | None]:
    """The model's config in a step directory's config.json, and the experiment, if it was trained by one.

    Raises:
        UserError: naming the field that cannot be read.
    """
    plain = json.loads(content)
    if plain.get("type", "Experiment") == "Experiment":
        experiment = from_plain(Experiment, plain)
        return experiment.model, experiment
    config: ModelConfig = from_plain(ModelConfig, plain, f"{where}: config")  # type: ignore[arg-type]
    return config, None


def require_whole(config: ModelConfig, where: epath.PathLike) -> VLMConfig:
    """The config of a model that can read and write text.

    Raises:
        UserError: if it is one of a part.
    """
    if not isinstance(config, VLMConfig):
        raise UserError(
            f"{where}: holds a part by itself ({type(config).__name__}), which answers no prompt; give a whole model"
        )
    return config
