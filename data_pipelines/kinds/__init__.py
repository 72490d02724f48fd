"""Kinds: how a raw record becomes an Example. A kind decides order, template and loss flags, and nothing else."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from data_pipelines.examples import Example
from data_pipelines.kinds.captions import Captions
from data_pipelines.kinds.instruct import Instruct

KindConfig = Captions | Instruct


def to_example(record: Mapping[str, Any], config: KindConfig, rng: np.random.Generator, source: str = "") -> Example:
    """Makes an example of a record, drawing from `rng` where the kind leaves something to chance.

    Raises:
        BadRecord: if the record lacks what the kind needs.
    """
    return config(record, rng, source)


__all__ = ["Captions", "Instruct", "KindConfig", "to_example"]
