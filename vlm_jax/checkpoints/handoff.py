"""Parameters from somewhere else: from stage to stage, from another run, or from nowhere (initialised under jit)."""

import functools
import json
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util
from jaxtyping import PyTree

from vlm_jax import parallel
from vlm_jax.checkpoints.checks import check_model, first_line, is_damage, read_step_files, unread, verify
from vlm_jax.checkpoints.checksums import damaged_leaves, seal, tree_checksums, unseal
from vlm_jax.errors import UserError
from vlm_jax.models.abstract import Model, boxed_params, initialise
from vlm_jax.parallel import Layout, use_layout
from vlm_jax.parallel.processes import is_first, of_first, wait_for_all
from vlm_jax.parallel.together import compiled_together


def abstract_params(model: Model, layout: Layout | None = None) -> dict[str, Any]:
    """Shapes and dtypes of all parameters, without memory; with a layout also their shardings."""
    return parallel.abstract_params(boxed_params(model), layout)


def logical_axes(model: Model) -> dict[str, tuple[str | None, ...]]:
    """Logical axes of every parameter, by name."""
    specs = traverse_util.flatten_dict(nn.get_partition_spec(boxed_params(model)), sep="/")
    return {name: tuple(spec) for name, spec in specs.items()}


def initialise_missing(model: Model, layout: Layout, seed: int, loaded: PyTree | None = None) -> dict[str, Any]:
    """Every parameter: those loaded as they are, the others drawn under jit, each straight into its sharding.

    Args:
        model: gives names, shapes and initialisers.
        layout: where parameters go.
        seed: of the random draw; a parameter's value does not depend on which others were loaded.
        loaded: nested dictionary with some of the parameters, or None.
    """
    abstract = abstract_params(model, layout)
    flat = traverse_util.flatten_dict(abstract, sep="/")
    have = traverse_util.flatten_dict(dict(loaded or {}), sep="/")
    missing = [name for name in flat if name not in have]
    shardings = {name: flat[name].sharding for name in missing}

    @functools.partial(jax.jit, out_shardings=shardings)
    def draw(key: jax.Array) -> dict[str, jax.Array]:
        drawn = traverse_util.flatten_dict(nn.meta.unbox(initialise(model, key)), sep="/")
        return {name: drawn[name] for name in missing}

    # "rbg" draws the same on any sharding, as threefry does, and compiles several times faster where kernels are many.
    with use_layout(layout):
        drawn = compiled_together(draw)(jax.random.key(seed, impl="rbg")) if missing else {}
    return traverse_util.unflatten_dict({**drawn, **have}, sep="/")


def newest_step(directory: epath.Path) -> int | None:
    """The newest step in a stage's directory, WORKDIR/checkpoints/STAGE; None if the stage has saved nothing."""
    if not directory.exists():
        return None
    return max((int(entry.name) for entry in directory.iterdir() if entry.name.isdigit()), default=None)


def step_directory(reference: str) -> epath.Path:
    """The step directory that a reference means: itself, or the newest step of the last stage of a workdir.

    Raises:
        UserError: if there is no checkpoint.
    """
    path = epath.Path(reference).resolve()
    if (path / "files").is_dir():
        return path
    if not (path / "config.json").exists():
        raise UserError(f"{reference}: no checkpoint there; give a workdir or a directory checkpoints/STAGE/STEP")
    for stage in reversed(_stage_names(path / "config.json")):
        directory = path / "checkpoints" / stage
        newest = newest_step(directory)
        if newest is not None:
            return directory / str(newest)
    raise UserError(f"{reference}: this workdir holds no checkpoint yet; let `vlm train` reach its first save")


def _stage_names(config: epath.Path) -> list[str]:
    try:
        return [str(stage["name"]) for stage in json.loads(config.read_text())["stages"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{config}: damaged ({type(error).__name__}: {error}); give a directory checkpoints/STAGE/STEP instead"
        ) from None


def load_params(where: epath.Path, abstract: PyTree) -> dict[str, Any]:
    """Parameters of a step directory, into the given shapes and shardings; checksums are verified.

    Parameters that were frozen when they were saved come back in the dtype in which they were kept.

    Raises:
        UserError: if a file is damaged or cannot be read, or the checkpoint is of another model.
    """
    expected = unseal(read_step_files(where)["checksums.json"])
    try:
        check_model(where, expected, {"params": abstract}, dtypes=False)
        kept = jax.tree_util.tree_map_with_path(lambda path, x: _as_kept(expected, path, x), abstract)
        with ocp.StandardCheckpointer() as checkpointer:
            params = checkpointer.restore(where / "params", kept)
    except UserError:
        raise
    except Exception as error:
        raise unread(where, error) from error
    verify(where, {"params": params}, expected)
    return params


def _as_kept(expected: Mapping[str, str], path: Any, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return jax.ShapeDtypeStruct(leaf.shape, expected[f"params/{name}"].split(":")[0], sharding=leaf.sharding)


def keep_masters(directory: epath.Path, frozen: PyTree) -> None:
    """Writes parameters that a stage will hold in a narrower dtype, so that a later stage can train them in full.

    Args:
        directory: WORKDIR/masters/STAGE; if it is there, it is whole and nothing is written.
        frozen: a nested dictionary in the dtype that parameters are kept in.
    """
    if not of_first(directory.exists()):
        sums = seal(tree_checksums(frozen))
        if is_first():
            directory.parent.mkdir(parents=True, exist_ok=True)
            _sums_file(directory).write_bytes(sums)
        wait_for_all()
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(directory, frozen)


def _sums_file(masters: epath.Path) -> epath.Path:
    return masters.with_name(f"{masters.name}.checksums.json")


def widen(params: PyTree, abstract: PyTree, masters: epath.Path) -> dict[str, Any]:
    """Parameters in the dtype that they are kept in: those a stage narrowed are read back from its masters.

    Args:
        params: all parameters at the end of a stage.
        abstract: their full dtypes and shardings.
        masters: WORKDIR/masters/STAGE of that stage; without it narrowed parameters are only cast.

    Raises:
        UserError: if the masters are damaged.
    """
    full = traverse_util.flatten_dict(abstract, sep="/")
    have = traverse_util.flatten_dict(dict(params), sep="/")
    narrow = {name: full[name] for name, leaf in have.items() if leaf.dtype != full[name].dtype}
    if narrow and masters.exists():
        kept = _restore_masters(masters, traverse_util.unflatten_dict(narrow, sep="/"))
        have |= traverse_util.flatten_dict(kept, sep="/")
    return traverse_util.unflatten_dict({name: x.astype(full[name].dtype) for name, x in have.items()}, sep="/")


def _restore_masters(masters: epath.Path, narrow: PyTree) -> PyTree:
    mend = "remove the stages that come after it and this directory, and train that stage again"
    try:
        expected = unseal(_sums_file(masters).read_bytes())
        with ocp.StandardCheckpointer() as checkpointer:
            kept = checkpointer.restore(masters, narrow)
    except Exception as error:
        if not is_damage(error):
            raise UserError(f"{masters}: could not be read ({first_line(error)}); run again when it can") from error
        raise UserError(f"{masters}: damaged ({type(error).__name__}); {mend}") from error
    if bad := damaged_leaves(kept, expected):
        raise UserError(f"{masters}: damaged (checksum of {bad[0]} differs); {mend}")
    return kept
