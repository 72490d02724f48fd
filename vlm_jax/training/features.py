"""Features of a frozen encoder: computed apart from the step, and kept on disk if the stage asks for it.

While an encoder is frozen, its part of a step is a program of its own that goes through a batch's pictures one by one
(one a device at a time). What it makes of a picture therefore depends on nothing else in the batch, and the step that
follows is one and the same program whether features were computed a moment ago or read from the cache: caching changes
no bit of what is trained.
"""

import dataclasses
import hashlib
import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt8
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from data_pipelines.examples import Image
from data_pipelines.feature_store import FeatureStore, Shape, distinct_pictures
from data_pipelines.images import BadImage
from data_pipelines.template import Processor
from vlm_jax.batch import Batch
from vlm_jax.checkpoints.checksums import tree_checksums
from vlm_jax.config import Experiment, FeatureCache, Stage
from vlm_jax.errors import UserError
from vlm_jax.models.vlm import VLM
from vlm_jax.optim import Rule
from vlm_jax.parallel import batch_sharding
from vlm_jax.serialise import to_json

log = logging.getLogger(__name__)


class FrozenEncoder:
    """Turns the pictures of a batch into features, by a program of its own."""

    def __init__(self, model: VLM, mesh: Mesh) -> None:
        """Args:
        model: with an image encoder.
        mesh: whose data and fsdp devices share the rows of a batch.
        """
        self.sharding = batch_sharding(mesh)
        """Of a batch's rows."""
        devices = mesh.shape["data"] * mesh.shape["fsdp"]

        def encode(
            params: Mapping[str, Any], images: UInt8[Array, "B I H W 3"], image_ids: Int[Array, "B I"]
        ) -> Float[Array, "B I P D"]:
            rows, slots = images.shape[:2]
            # [n, devices, H, W, 3]: each device keeps the rows it has, and encodes one picture at a time.
            pictures = images.reshape(devices, rows * slots // devices, *images.shape[2:]).swapaxes(0, 1)
            features = jax.lax.map(lambda some: model.apply({"params": params}, some, method="encode"), pictures)
            features = features.swapaxes(0, 1).reshape(rows, slots, *features.shape[2:])
            return jnp.where(image_ids[..., None, None] > 0, features, 0)

        self.encode = jax.jit(encode, out_shardings=self.sharding)
        """(the encoder's parameters, images, image_ids) -> features; 0 in slots that are not in use."""

    def __call__(self, params: Mapping[str, Any], batch: Batch) -> Batch:
        """The batch with features in place of pictures; a batch without pictures as it is.

        Args:
            params: all parameters, or at least "encoder".
            batch: on the devices.
        """
        if batch.images is None:
            return batch
        features = self.encode({"encoder": params["encoder"]}, batch.images, batch.image_ids)
        return dataclasses.replace(batch, images=None, features=features)


def encoder_is_frozen(rules: Mapping[str, Rule]) -> bool:
    """Whether there is an encoder, and the stage's rules train nothing of it."""
    rates = [rule.rate for name, rule in rules.items() if name.startswith("encoder/")]
    return bool(rates) and not any(rates)


def check_cached_features(stage: Stage, rules: Mapping[str, Rule]) -> None:
    """Raises UserError if a stage shall cache features of an encoder that it trains, or that there is not."""
    if not stage.cache_features or encoder_is_frozen(rules):
        return
    trained = [name for name, rule in rules.items() if name.startswith("encoder/") and rule.rate]
    entry = stage.data.mixture[0].title
    why = f"{trained[0]} trains" if trained else "the model has no image encoder"
    raise UserError(
        f"stage {stage.name}: features of '{entry}' cannot be cached, since {why}; freeze the encoder by "
        "Rule('^encoder/', rate=0), or leave cache_features off"
    )


def open_features(
    experiment: Experiment,
    stage: Stage,
    workdir: epath.Path,
    processor: Processor,
    frozen: FrozenEncoder,
    params: Mapping[str, Any],
    console: Console,
) -> FeatureStore:
    """The features of every picture of the stage and its validation; those that are not kept yet are made.

    Args:
        experiment: gives the encoder's config and the cache's limits.
        stage: whose mixtures are listed.
        workdir: of the run.
        processor: decodes and resizes.
        frozen: encodes.
        params: all parameters, in the dtype in which the stage holds them.
        console: where progress is shown.

    Raises:
        UserError: if the cache would grow too large, cannot be written or is damaged.
    """
    directory = _directory(experiment.feature_cache, workdir) / _key(experiment, processor, params)
    shape = _shape(frozen, params, processor, stage)
    store = FeatureStore(directory, shape)
    mixture = [*stage.data.mixture, *(stage.validation.mixture if stage.validation else ())]
    missing = {name: image for name, image in distinct_pictures(mixture).items() if name not in store}
    _check_size(stage, experiment.feature_cache, len(store) + len(missing), shape)
    if missing:
        log.info("stage %s: encoding %d pictures once, into %s", stage.name, len(missing), directory)
        encoded = _encode_all(missing, stage, processor, frozen, params)
        store.add(_shown(encoded, len(missing), stage.name, console))
    log.info("stage %s: features of %d pictures are cached", stage.name, len(store))
    return store


def _directory(config: FeatureCache, workdir: epath.Path) -> Path:
    where = config.directory or str(workdir / "features")
    if "://" in where:
        raise UserError(f"{where}: features are mapped into memory; name a local feature_cache.directory")
    return Path(where)


def _key(experiment: Experiment, processor: Processor, params: Mapping[str, Any]) -> str:
    """Names what features depend on: encoder, weights, preprocessing, and the software and device that compute them."""
    model = experiment.model
    assert model.encoder is not None
    device = jax.devices()[0]
    parts = (
        to_json(model.encoder),
        to_json(model.precision),
        to_json(processor.images),
        repr(processor.image_size),
        repr(sorted(tree_checksums(params["encoder"]).items())),
        jax.__version__,
        f"{device.platform} {device.device_kind}",
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _shape(frozen: FrozenEncoder, params: Mapping[str, Any], processor: Processor, stage: Stage) -> Shape:
    images, ids = _empty_slots(stage, processor)
    found = jax.eval_shape(frozen.encode, {"encoder": params["encoder"]}, images, ids)
    patches, width = found.shape[2:]
    return Shape(patches, width, str(found.dtype))


def _empty_slots(stage: Stage, processor: Processor) -> tuple[np.ndarray, np.ndarray]:
    slots = (stage.data.rows, stage.data.images)
    return np.zeros((*slots, *processor.image_size, 3), np.uint8), np.zeros(slots, np.int32)


def _check_size(stage: Stage, config: FeatureCache, pictures: int, shape: Shape) -> None:
    needed = pictures * shape.nbytes / 1e9
    if needed > config.gigabytes:
        raise UserError(
            f"stage {stage.name}: features of {pictures:,} pictures take {needed:.2f} GB, feature_cache.gigabytes "
            f"allows {config.gigabytes:g}; raise it, or leave cache_features off"
        )


def _encode_all(
    pictures: Mapping[str, Image],
    stage: Stage,
    processor: Processor,
    frozen: FrozenEncoder,
    params: Mapping[str, Any],
) -> Iterator[tuple[Sequence[str], np.ndarray]]:
    """(digests, features) of as many pictures at a time as the stage's batches hold, so that one program serves both.

    A picture that cannot be decoded is left out: the loader meets it in its turn.
    """
    left = iter(pictures.items())
    encoder = {"encoder": params["encoder"]}
    while some := list(itertools.islice(left, stage.data.rows * stage.data.images)):
        images, ids = _empty_slots(stage, processor)
        flat = images.reshape(-1, *images.shape[2:])
        names: list[str] = []
        for name, image in some:
            try:
                flat[len(names)] = processor.pixels(image)
            except BadImage:
                continue
            names.append(name)
        ids.reshape(-1)[: len(names)] = 1
        features = np.asarray(frozen.encode(encoder, *jax.device_put((images, ids), frozen.sharding)))
        yield names, features.reshape(-1, *features.shape[2:])[: len(names)]


def _shown(
    encoded: Iterable[tuple[Sequence[str], np.ndarray]], total: int, stage: str, console: Console
) -> Iterator[tuple[Sequence[str], np.ndarray]]:
    """The same, with a bar on a terminal, else with a line for every tenth."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    done = told = 0
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"{stage}: encoding pictures", total=total)
        for names, features in encoded:
            yield names, features
            done += len(names)
            progress.update(task, completed=done)
            if not console.is_terminal and (done - told >= total / 10 or done == total):
                told = done
                console.print(f"{stage}: {done:,} of {total:,} pictures encoded", highlight=False)
