"""Kinds: how a raw record becomes an Example. A kind decides order, template and loss flags, and nothing else."""

from collections.abc import Mapping
from typing import Any, get_args

import numpy as np

from data_pipelines.examples import Example
from data_pipelines.kinds.captions import Captions
from data_pipelines.kinds.instruct import Instruct
from data_pipelines.kinds.interleaved import Interleaved
from data_pipelines.kinds.preference import Preference
from data_pipelines.kinds.text_only import TextOnly

KindConfig = Interleaved | Captions | Instruct | TextOnly | Preference

KIND_NAMES: Mapping[str, type[KindConfig]] = {config.kind: config for config in get_args(KindConfig)}
"""Each kind's name, as `kind` of its config has it -> the config's type."""


def to_example(record: Mapping[str, Any], config: KindConfig, rng: np.random.Generator, source: str = "") -> Example:
    """Makes an example of a record, drawing from `rng` where the kind leaves something to chance.

    Raises:
        BadRecord: if the record lacks what the kind needs.
    """
    return config(record, rng, source)


__all__ = [
    "KIND_NAMES",
    "Captions",
    "Instruct",
    "Interleaved",
    "KindConfig",
    "Preference",
    "TextOnly",
    "to_example",
]
