"""Model families: one module each says how its config.json reads and what its tensors are called.

A family is found by the `model_type` of a config.json, never by the name of a model or directory. To add one, add a
module with the names of `Family` to this package.
"""

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from vlm_jax.convert.names import Row
from vlm_jax.errors import UserError


class Family(Protocol):
    """What a module of this package defines."""

    MODEL_TYPES: Sequence[str]
    """Values of `model_type` in config.json that it reads."""
    RENAMED: Sequence[tuple[str, str]]
    """(regex, replacement), applied in turn to the names in a file: older layouts, brought to the one of `rows`."""
    DROPPED: Sequence[str]
    """Regexes (from the start of the name) of tensors that are knowingly not taken."""

    def read_config(self, hf: Mapping[str, Any]) -> Any:
        """config.json -> our config.

        Raises:
            UserError: if it asks for what our models cannot do.
        """

    def rows(self, config: Any) -> list[Row]:
        """The name table of a model with this config; its left side is what transformers writes to disk."""

    def write_config(self, config: Any) -> dict[str, Any] | None:
        """Our config -> config.json, with `architectures` and `model_type`; None if this is no model of the family.

        Raises:
            UserError: if it is one, but has what the family cannot express.
        """


FAMILIES: dict[str, Family] = {}
"""model_type -> its family."""


def find_family(hf: Mapping[str, Any], where: str = "config.json") -> Family:
    """The family of a config.json.

    Raises:
        UserError: naming the model_type, if there is none.
    """
    kind = hf.get("model_type")
    if isinstance(kind, str) and kind in FAMILIES:
        return FAMILIES[kind]
    known = ", ".join(sorted(FAMILIES))
    raise UserError(f"{where}: model_type is {kind!r}, which is none of the known architectures: {known}")


def _collect() -> None:
    for module in pkgutil.iter_modules(__path__):
        family: Any = importlib.import_module(f"{__name__}.{module.name}")
        FAMILIES.update(dict.fromkeys(getattr(family, "MODEL_TYPES", ()), family))


_collect()
