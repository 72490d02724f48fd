"""Features of a frozen encoder: computed apart from the step, and kept on disk if the stage asks for it.

While an encoder is frozen, its part of a step is a program of its own that goes through a batch's image slots one by
one (one a device at a time; a picture's slots together where its tiles see each other). What it makes of a picture
therefore depends on nothing else in the batch, and the step that follows is one and the same program whether features
were computed a moment ago or read from the cache: caching changes no bit of what is trained.
"""

import collections
import dataclasses
import hashlib
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, UInt8
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from data_pipelines.examples import Image
from data_pipelines.feature_store import FeatureStore, Shape, distinct_pictures, slot_names
from data_pipelines.images import BadImage
from data_pipelines.mixture import MixtureEntry
from data_pipelines.template import Processor
from data_pipelines.tiles import Cut
from vlm_jax.batch import Batch
from vlm_jax.checkpoints.checksums import tree_checksums
from vlm_jax.config import Experiment, FeatureCache, Stage
from vlm_jax.errors import UserError
from vlm_jax.models.encoders import slots_together
from vlm_jax.models.vlm import VLM
from vlm_jax.optim import Rule
from vlm_jax.parallel import Layout, put_same, replicated, row_sharding
from vlm_jax.parallel.processes import gather_json, is_first, wait_for_all
from vlm_jax.parallel.together import compiled_together
from vlm_jax.serialise import to_json

log = logging.getLogger(__name__)


class FrozenEncoder:
    """Turns the pictures of a batch into features, by a program of its own."""

    def __init__(self, model: VLM, layout: Layout) -> None:
        """Args:
        model: with an image encoder.
        layout: where the rows of a batch are.
        """
        self.sharding = row_sharding(layout)
        """Of a batch's rows."""
        together = slots_together(model.config.encoder) if model.config.encoder is not None else 1

        def encode(
            params: Mapping[str, Any],
            images: UInt8[Array, "B I H W 3"],
            image_ids: Int[Array, "B I"],
            tile_index: Int[Array, "B I 3"] | None = None,
        ) -> Float[Array, "B I P D"]:
            rows, slots = images.shape[:2]
            axes = _picture_axes(layout, rows, slots // together)
            devices, place = math.prod(layout.shape[axis] for axis in axes), PartitionSpec(None, axes)

            # [n, devices, T, …]: each device takes pictures of the rows it has, and encodes one (T slots) at a time.
            def by_picture(plane: Array) -> Array:
                plane = plane.reshape(devices, rows * slots // (devices * together), together, *plane.shape[2:])
                return jax.lax.with_sharding_constraint(plane.swapaxes(0, 1), NamedSharding(layout.mesh, place))

            def encode_some(some: tuple[Array, Array | None]) -> Array:
                pixels, tiles = jax.tree.map(lambda plane: plane.reshape(devices * together, *plane.shape[2:]), some)
                features: Array = model.apply({"params": whole}, pixels, tiles, method="encode")  # type: ignore[assignment]
                return features

            # Gathered once and not for every picture; a frozen encoder is small beside what trains.
            whole = jax.lax.with_sharding_constraint(params, replicated(layout))
            features = jax.lax.map(encode_some, jax.tree.map(by_picture, (images, tile_index)))
            features = features.reshape(len(features), devices, together, *features.shape[2:]).swapaxes(0, 1)
            features = features.reshape(rows, slots, *features.shape[3:])
            return jnp.where(image_ids[..., None, None] > 0, features, 0)

        self.encode = jax.jit(encode, out_shardings=self.sharding)
        """(the encoder's parameters, images, image_ids, tile_index) -> features; 0 in slots that are not in use."""
        self._encode = compiled_together(self.encode)
        self.gather = jax.jit(lambda features: features, out_shardings=replicated(layout))
        """Features -> the same on every device."""

    def lower(self, params: Mapping[str, Any], batch: Batch) -> Any:
        """The program lowered for abstract parameters and an abstract batch with pictures."""
        return self.encode.lower({"encoder": params["encoder"]}, batch.images, batch.image_ids, batch.tile_index)

    def __call__(self, params: Mapping[str, Any], batch: Batch) -> Batch:
        """The batch with features in place of pictures; a batch without pictures as it is.

        Args:
            params: all parameters, or at least "encoder".
            batch: on the devices.
        """
        if batch.images is None:
            return batch
        features = self._encode({"encoder": params["encoder"]}, batch.images, batch.image_ids, batch.tile_index)
        return dataclasses.replace(batch, images=None, features=features)


def _picture_axes(layout: Layout, rows: int, pictures: int) -> tuple[str, ...]:
    """Mesh axes over which a batch's pictures are split: those of its rows, and the rule's others while they divide.

    Args:
        layout: of the devices.
        rows, pictures: of a batch, and in a row.
    """
    axes = layout.axes("batch")
    left = rows * pictures // layout.devices("batch")
    for axis in layout.axes("pictures"):
        if axis not in axes and left % layout.shape[axis] == 0:
            axes, left = (*axes, axis), left // layout.shape[axis]
    return axes


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

    Of several processes each decodes all of these, encodes those of its devices, and reads what the first one wrote.

    Args:
        experiment: gives the encoder's config and the cache's limits.
        stage: whose mixtures are listed.
        workdir: of the run.
        processor: decodes and resizes.
        frozen: encodes.
        params: all parameters, in the dtype in which the stage holds them.
        console: where progress is shown.

    Raises:
        UserError: if the cache would grow too large, cannot be written, is damaged, or is not one for all processes.
    """
    directory = _directory(experiment.feature_cache, workdir) / _key(experiment, processor, params)
    shape = _shape(frozen, params, processor, stage)
    store = FeatureStore(directory, shape)
    mixture = [*stage.data.mixture, *(stage.validation.mixture if stage.validation else ())]
    missing = _missing(mixture, processor, store)
    _check_shared(directory, len(missing))
    _check_size(stage, experiment.feature_cache, len(store) + sum(len(picture.names) for picture in missing), shape)
    kept_as = "pictures" if processor.pictures.tiling is None else "image slots"
    if missing:
        log.info("stage %s: encoding %d pictures once, into %s", stage.name, len(missing), directory)
        total = sum(len(picture.names) for picture in missing)
        encoded = _shown(_encode_all(missing, stage, processor, frozen, params), total, kept_as, stage.name, console)
        if is_first():
            store.add(encoded)
        else:  # its devices are needed, but one writes
            collections.deque(encoded, maxlen=0)
        wait_for_all()
        store = FeatureStore(directory, shape)
        _check_shared(directory, sum(name not in store for picture in missing for name in picture.names))
    log.info("stage %s: features of %d %s are cached", stage.name, len(store), kept_as)
    return store


@dataclasses.dataclass(frozen=True)
class _Picture:
    """A picture whose features are not kept yet."""

    image: Image
    cut: Cut
    names: list[str]
    """What its slots will be kept as."""


def _missing(mixture: Sequence[MixtureEntry], processor: Processor, store: FeatureStore) -> list[_Picture]:
    """Pictures that are not kept; without those that cannot be cut, which the loader meets in their turn."""
    cuts = processor.pictures.tiling is not None
    missing = []
    for digest, image in distinct_pictures(mixture).items():
        try:
            cut = processor.cut(image)
        except BadImage:
            continue
        names = slot_names(digest, cut.slots if cuts else None)
        if any(name not in store for name in names):
            missing.append(_Picture(image, cut, names))
    return missing


def _check_shared(directory: Path, missing: int) -> None:
    """Raises UserError if processes do not find the same there."""
    found = gather_json(missing)
    for index, other in enumerate(found):
        if other != found[0]:
            raise UserError(
                f"{directory}: process {index} lacks features of {other} pictures there, process 0 of {found[0]}; name "
                "a feature_cache.directory that all hosts share"
            )


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
        *([] if processor.pictures.tiling is None else [to_json(processor.pictures.tiling)]),
        jax.__version__,
        f"{device.platform} {device.device_kind}",
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _shape(frozen: FrozenEncoder, params: Mapping[str, Any], processor: Processor, stage: Stage) -> Shape:
    found = jax.eval_shape(frozen.encode, {"encoder": params["encoder"]}, *_empty_slots(stage, processor))
    patches, width = found.shape[2:]
    return Shape(patches, width, str(found.dtype))


def _empty_slots(stage: Stage, processor: Processor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(images, image_ids, tile_index)"""
    slots = (stage.data.rows, stage.data.images)
    images = np.zeros((*slots, *processor.image_size, 3), np.uint8)
    return images, np.zeros(slots, np.int32), np.zeros((*slots, 3), np.int32)


def _check_size(stage: Stage, config: FeatureCache, slots: int, shape: Shape) -> None:
    needed = slots * shape.nbytes / 1e9
    if needed > config.gigabytes:
        raise UserError(
            f"stage {stage.name}: features of {slots:,} pictures take {needed:.2f} GB, feature_cache.gigabytes "
            f"allows {config.gigabytes:g}; raise it, or leave cache_features off"
        )


def _encode_all(
    pictures: Sequence[_Picture],
    stage: Stage,
    processor: Processor,
    frozen: FrozenEncoder,
    params: Mapping[str, Any],
) -> Iterator[tuple[Sequence[str], np.ndarray]]:
    """(names, features) of as many image slots at a time as the stage's batches hold, so that one program serves both.

    A picture that cannot be decoded is left out, and so is one that no row holds: the loader meets it in its turn.
    """
    left = collections.deque(picture for picture in pictures if len(picture.names) <= stage.data.images)
    encoder = {"encoder": params["encoder"]}
    while left:
        images, ids, tile_index = _empty_slots(stage, processor)
        flat_images, flat_tiles = images.reshape(-1, *images.shape[2:]), tile_index.reshape(-1, 3)
        names: list[str] = []
        while left and len(names) + len(left[0].names) <= len(flat_images):
            picture = left.popleft()
            span = slice(len(names), len(names) + len(picture.names))
            try:
                flat_images[span] = processor.slots(picture.image, picture.cut)
            except BadImage:
                continue
            flat_tiles[span] = picture.cut.tile_index
            names += picture.names
        ids.reshape(-1)[: len(names)] = 1
        encoded = frozen.encode(encoder, *put_same((images, ids, tile_index), frozen.sharding))
        features = np.asarray(encoded if encoded.is_fully_addressable else frozen.gather(encoded))
        yield names, features.reshape(-1, *features.shape[2:])[: len(names)]


def _shown(
    encoded: Iterable[tuple[Sequence[str], np.ndarray]], total: int, kept_as: str, stage: str, console: Console
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
        task = progress.add_task(f"{stage}: encoding {kept_as}", total=total)
        for names, features in encoded:
            yield names, features
            done += len(names)
            progress.update(task, completed=done)
            if not console.is_terminal and (done - told >= total / 10 or done == total):
                told = done
                console.print(f"{stage}: {done:,} of {total:,} {kept_as} encoded", highlight=False)
