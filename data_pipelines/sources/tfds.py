"""The TFDS source: built data sets of tensorflow-datasets in ArrayRecord or Parquet files, read without TensorFlow."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class TFDS:
    """A data set that tensorflow-datasets built.

    path: the directory of its version ('DIR/name/1.0.0', with features.json), or 'name' or 'name/config:1.0.0' where
        `data_dir` is given.
    split: as TFDS writes it: 'train', 'train[:80%]', 'train[10000:]'.
    data_dir: directory below which data sets lie by name; '' = `path` is a directory.
    fields: (field of a record, where it stands in an example) pairs, such as (('image', 'picture/jpeg'),) with dots or
        slashes into nested features; () = the example is a record as it stands.
    name: of the source; '' = the end of the path.
    """

    path: str
    split: str = "train"
    data_dir: str = ""
    fields: tuple[tuple[str, str], ...] = ()
    name: str = ""
