"""Fills the image slots of packed rows: with a picture's pixels, with its tiles, or with features that are kept."""

from collections.abc import Container, Iterator, Sequence

import numpy as np
from jaxtyping import Int32, Shaped

from data_pipelines import images as pictures
from data_pipelines.examples import Image
from data_pipelines.feature_store import FeatureStore
from data_pipelines.mixture import DataConfig
from data_pipelines.picture_memory import PictureMemory
from data_pipelines.shard import Item, Rejected
from data_pipelines.template import Processor
from data_pipelines.tiles import Cut
from vlm_jax.errors import UserError

_NO_CHANCE = np.random.default_rng(0)
"""Stands where nothing is drawn: to seed a generator takes longer than to copy a picture."""

Slots = Sequence[Shaped[np.ndarray, "*picture"]]
"""What a picture's slots hold: [H, W, 3] pixels or [P, D] features each."""


class RowPictures:
    """Decodes the pictures of rows; safe to use from several threads."""

    def __init__(self, data: DataConfig, processor: Processor, features: FeatureStore | None) -> None:
        """Args:
        data: image slots a row, augmentations, and how much of decoded pictures is kept.
        processor: decodes and cuts.
        features: kept features of every picture, which take the pixels' place.

        Raises:
            UserError: if a row's image slots are no multiple of those that every picture takes.
        """
        tiling = processor.pictures.tiling
        every = tiling.slots if tiling is not None else 0
        if every and data.images % every:
            raise UserError(
                f"the stage's data.images is {data.images}, but every picture takes {every} image slots "
                f"(tiling.slots): choose a multiple of {every}"
            )
        self._data, self._processor, self._features = data, processor, features
        self._cuts = tiling is not None
        budget = data.keep_pictures << 20
        self._pixels = PictureMemory(processor.slots, budget) if budget else processor.slots

    def empty(self, rows: int) -> Shaped[np.ndarray, "B I *picture"]:
        """Image slots without a picture."""
        slots = (rows, self._data.images)
        if self._features is None:
            return np.zeros((*slots, *self._processor.image_size, 3), np.uint8)
        shape = self._features.shape
        return np.zeros((*slots, shape.patches, shape.width), shape.dtype)

    def fill(self, row: Sequence[Item], out: Shaped[np.ndarray, "I *picture"]) -> dict[int, Rejected]:
        """Fills a row's image slots; gives the row's examples that have a bad picture, by their place in the row."""
        bad: dict[int, Rejected] = {}
        slot = 0
        for number, item in enumerate(row):
            first = slot
            try:
                for shown in self._shown(item):
                    out[slot : slot + len(shown)] = shown
                    slot += len(shown)
            except pictures.BadImage as error:
                bad[number] = Rejected(item.entry, item.record_id, str(error))
                out[first : first + item.size.images] = 0
            slot = first + item.size.images
        return bad

    def _shown(self, item: Item) -> Iterator[Slots]:
        """Picture by picture: the pixels of its slots, or the features that are kept of them."""
        augmentation = self._data.mixture[item.entry].augmentation
        rng = np.random.default_rng(item.picture_seed) if augmentation else _NO_CHANCE
        for image, cut in zip(item.rendered.images, item.rendered.cuts, strict=True):
            if self._features is not None:
                yield self._kept(self._features, image, cut, item)
            elif augmentation is None:
                yield self._pixels(image, cut)
            elif self._cuts:
                # The whole picture changes, not its tiles one by one: they must still fit together.
                yield self._processor.slots(image, cut, lambda whole: pictures.augment(whole, augmentation, rng))
            else:
                yield [pictures.augment(self._pixels(image, cut)[0], augmentation, rng)]

    def _kept(self, features: FeatureStore, image: Image, cut: Cut, item: Item) -> Slots:
        kept = features.read_slots(image, cut.slots if self._cuts else None)
        if kept is None:
            self._pixels(image, cut)
            raise UserError(
                f"{features.directory}: features of {item.rendered.id} are not kept, its picture has changed since; "
                "remove this directory, and the features are made anew"
            )
        return kept


def slot_numbers(
    rows: Sequence[Sequence[Item]], images: int, bad: Sequence[Container[int]]
) -> tuple[Int32[np.ndarray, "B I"], Int32[np.ndarray, "B I 3"]]:
    """(image_ids, tile_index) of packed rows: whose slot each is; 0 where it is unused.

    Args:
        rows: the examples of every row.
        images: I, image slots a row.
        bad: for every row, the examples whose pictures cannot be decoded.
    """
    image_ids = np.zeros((len(rows), images), np.int32)
    tile_index = np.zeros((len(rows), images, 3), np.int32)
    for row, items in enumerate(rows):
        slot, picture = 0, 1
        for number, item in enumerate(items):
            for cut in item.rendered.cuts:
                if number not in bad[row]:
                    image_ids[row, slot : slot + cut.slots] = picture
                    tile_index[row, slot : slot + cut.slots] = cut.tile_index
                slot, picture = slot + cut.slots, picture + 1
    return image_ids, tile_index
