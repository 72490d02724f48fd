"""A cache of features that a frozen encoder gave for pictures: on disk, mapped into memory, read by the loader.

    DIRECTORY/0000/features.bin   [N, P, D], one picture after another
                   index.json     shape, dtype, and for each picture "digest checksum"
              0001/…             what a later stage added

A picture is known by the digest of its file's bytes, so paths may change and copies are kept once; each slot of one
that is cut is kept by itself, as "digest.slot". A part gets its name when it is whole: what a killed process was
writing ends in `.partial` and is thrown away by the next writer.
"""

import dataclasses
import hashlib
import json
import shutil
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import ml_dtypes  # noqa: F401 (so that NumPy knows bfloat16 by name)
import numpy as np
from jaxtyping import Float

from data_pipelines.examples import Image
from data_pipelines.images import BadImage, file_bytes
from data_pipelines.kinds import to_example
from data_pipelines.mixture import MixtureEntry
from data_pipelines.quarantine import BadRecord
from data_pipelines.sources import open_source
from vlm_jax.errors import UserError

Features = Float[np.ndarray, "P D"]

_DATA, _INDEX = "features.bin", "index.json"


@dataclasses.dataclass(frozen=True)
class Shape:
    """What one picture takes."""

    patches: int
    """P."""
    width: int
    """D."""
    dtype: str
    """Name of the number format, such as float32."""

    @property
    def nbytes(self) -> int:
        """Bytes a picture."""
        return self.patches * self.width * np.dtype(self.dtype).itemsize


class FeatureStore:
    """Features by picture. Reading is safe from several threads; one process at a time may write."""

    def __init__(self, directory: Path, shape: Shape) -> None:
        """Opens every whole part of a directory, which need not exist.

        Raises:
            UserError: if a part is damaged or of another shape.
        """
        self.directory, self.shape = directory, shape
        self._found: dict[str, tuple[np.memmap, int, int]] = {}
        for part in sorted(directory.glob("[0-9]*")):
            if part.suffix != ".partial":
                self._open(part)

    def __len__(self) -> int:
        """Pictures that are kept."""
        return len(self._found)

    def __contains__(self, picture: str) -> bool:
        """Whether a picture is kept, by its digest."""
        return picture in self._found

    def read(self, image: Image) -> Features | None:
        """The features of a picture, [P, D]; None if they are not kept.

        Raises:
            BadImage: if the picture's file cannot be read.
            UserError: if the cache is damaged.
        """
        return self._kept(digest(image))

    def read_slots(self, image: Image, slots: int | None) -> list[Features] | None:
        """The features of all slots of a picture that is cut into so many (None = it is not cut, and is one slot).

        Returns:
            None if they are not all kept.

        Raises: as `read`.
        """
        name = digest(image)
        found = [self._kept(each) for each in slot_names(name, slots)]
        return None if any(features is None for features in found) else found  # type: ignore[return-value]

    def _kept(self, name: str) -> Features | None:
        found = self._found.get(name)
        if found is None:
            return None
        array, row, checksum = found
        features = np.array(array[row])
        if zlib.crc32(features.tobytes()) != checksum:
            raise self._damaged(Path(str(array.filename)), "a checksum differs")
        return features

    def add(self, encoded: Iterable[tuple[Sequence[str], np.ndarray]]) -> None:
        """Writes a part: all of it or, if this is interrupted, nothing.

        Args:
            encoded: (digests, [n, P, D] features) of pictures that are not kept yet, some at a time.

        Raises:
            UserError: if the disk refuses.
        """
        number = max((int(part.name) for part in self.directory.glob("[0-9]*[0-9]")), default=-1) + 1
        part = self.directory / f"{number:04d}"
        partial = part.with_suffix(".partial")
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            self._write(partial, encoded)
            partial.rename(part)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise UserError(
                f"{self.directory}: features cannot be cached ({error.strerror or error}); free space, or choose "
                "another feature_cache.directory"
            ) from None
        self._open(part)

    def _write(self, partial: Path, encoded: Iterable[tuple[Sequence[str], np.ndarray]]) -> None:
        pictures: list[str] = []
        with open(partial / _DATA, "wb") as file:
            for names, features in encoded:
                for name, picture in zip(names, features, strict=True):
                    content = np.ascontiguousarray(picture, self.shape.dtype).tobytes()
                    pictures.append(f"{name} {zlib.crc32(content):08x}")
                    file.write(content)
        index = {**dataclasses.asdict(self.shape), "pictures": pictures}
        (partial / _INDEX).write_text(json.dumps(index, indent=0) + "\n")

    def _open(self, part: Path) -> None:
        shape = (self.shape.patches, self.shape.width)
        try:
            index = json.loads((part / _INDEX).read_text())
            pictures = [line.split() for line in index.pop("pictures")]
            if index != dataclasses.asdict(self.shape):
                raise ValueError("its features are of another shape")
            size = (part / _DATA).stat().st_size
            if size != len(pictures) * self.shape.nbytes:
                raise ValueError(f"{_DATA} has {size:,} bytes instead of {len(pictures) * self.shape.nbytes:,}")
            if pictures:
                dtype = np.dtype(self.shape.dtype)
                array = np.memmap(part / _DATA, dtype, mode="r", shape=(len(pictures), *shape))
                self._found |= {name: (array, row, int(sum_, 16)) for row, (name, sum_) in enumerate(pictures)}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._damaged(part, str(error)) from None

    def _damaged(self, where: Path, why: str) -> UserError:
        return UserError(
            f"{where}: damaged feature cache ({why}); remove {self.directory}, and the features are made anew"
        )


def digest(image: Image) -> str:
    """32 hexadecimal digits of the SHA-256 of a picture's file.

    Raises:
        BadImage: if the file cannot be read.
    """
    return hashlib.sha256(file_bytes(image)).hexdigest()[:32]


def slot_names(digest: str, slots: int | None) -> list[str]:
    """What the slots of a picture are kept as; None = it is not cut."""
    return [digest] if slots is None else [f"{digest}.{slot}" for slot in range(slots)]


def distinct_pictures(mixture: Sequence[MixtureEntry]) -> dict[str, Image]:
    """Digest -> picture, for every picture that the records of a mixture show.

    Records and files that cannot be read are left out: the loader meets them in its turn, and counts them.
    """
    found: dict[str, Image] = {}
    for entry in mixture:
        for image in _pictures_of(entry):
            try:
                found.setdefault(digest(image), image)
            except BadImage:
                continue
    return found


def _pictures_of(entry: MixtureEntry) -> Iterator[Image]:
    source, rng = open_source(entry.source), np.random.default_rng(0)
    for number in range(len(source)):
        try:
            yield from to_example(source[number], entry.kind, rng, entry.title).images
        except BadRecord:
            continue
