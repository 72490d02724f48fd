"""RoPE in config.json: `rope_parameters` as transformers 5 writes it, `rope_theta` and `rope_scaling` as before."""

import math
from collections.abc import Mapping
from typing import Any

from vlm_jax.convert.families.common import whole_number
from vlm_jax.errors import UserError
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.rope import DynamicRope, LinearRope, Llama3Rope, RopeScaling, YarnRope

UNLIMITED = 131_072
"""Positions that are written where no limit is known."""

_TYPES = ("default", "linear", "dynamic", "llama3", "yarn")
_REFUSED = ("mrope_section", "short_factor", "long_factor")


def read_rope(fields: Mapping[str, Any]) -> tuple[float, RopeScaling | None, int]:
    """(base, scaling, longest sequence in positions) of a config.json.

    With linear and dynamic scaling `max_position_embeddings` counts the positions before scaling.

    Raises:
        UserError: if the kind of RoPE is not implemented.
    """
    given = fields.get("rope_scaling") or fields.get("rope_parameters") or {}
    if not isinstance(given, Mapping):
        raise UserError(f"config.json: rope_scaling is {given!r}; it must be an object or null")
    if any(isinstance(value, Mapping) for value in given.values()):
        raise UserError("config.json: rope_parameters differ between types of layers, which is not supported")
    for name in _REFUSED:
        if given.get(name):
            raise UserError(f"config.json: RoPE with {name} is not supported")
    share = given.get("partial_rotary_factor") or fields.get("partial_rotary_factor") or 1.0
    if share != 1.0:
        raise UserError(f"config.json: partial_rotary_factor {share} is not supported; only whole heads are turned")
    base = given.get("rope_theta") or fields.get("rope_theta") or 10_000.0
    positions = whole_number(fields, "max_position_embeddings")
    kind = given.get("rope_type") or given.get("type") or "default"
    if kind not in _TYPES:
        raise UserError(f"config.json: RoPE of type {kind!r} is not supported; supported are {', '.join(_TYPES)}")
    if kind == "default":
        return float(base), None, positions
    scaling = _read_scaling(kind, given, positions)
    if isinstance(scaling, LinearRope | DynamicRope):
        return float(base), scaling, round(positions * scaling.factor)
    if isinstance(scaling, YarnRope):
        return float(base), scaling, max(positions, round(scaling.factor * scaling.original_context))
    return float(base), scaling, positions


def _read_scaling(kind: str, given: Mapping[str, Any], positions: int) -> RopeScaling:
    original = given.get("original_max_position_embeddings") or positions
    if kind == "yarn":
        factor = float(given.get("factor") or positions / original)
        return YarnRope(
            factor,
            original,
            float(given.get("beta_fast") or YarnRope.beta_fast),
            float(given.get("beta_slow") or YarnRope.beta_slow),
            _yarn_attention(given, factor),
            bool(given.get("truncate", True)),
        )
    factor = float(given["factor"])
    if kind == "linear":
        return LinearRope(factor)
    if kind == "dynamic":
        return DynamicRope(factor, positions)
    return Llama3Rope(factor, float(given["low_freq_factor"]), float(given["high_freq_factor"]), original)


def _yarn_attention(given: Mapping[str, Any], factor: float) -> float:
    """What queries and keys are multiplied by; 0 = by the paper's formula. `mscale` is DeepSeek's way to say it."""
    if given.get("attention_factor") is not None:
        return float(given["attention_factor"])
    if not (given.get("mscale") and given.get("mscale_all_dim")) or factor <= 1:
        return 0.0
    above, below = (0.1 * given[name] * math.log(factor) + 1 for name in ("mscale", "mscale_all_dim"))
    return above / below


def write_rope(config: DecoderConfig) -> dict[str, Any]:
    """The RoPE fields of config.json, for readers of the new and of the old form."""
    scaling, positions = config.rope_scaling, config.context or UNLIMITED
    if isinstance(scaling, LinearRope):
        positions = round(positions / scaling.factor)
    if isinstance(scaling, DynamicRope):
        positions = scaling.original_context
    given = _write_scaling(scaling)
    fields = {
        "max_position_embeddings": positions,
        "rope_theta": config.rope_base,
        "rope_parameters": {"rope_type": "default", **given, "rope_theta": config.rope_base},
    }
    return {**fields, "rope_scaling": given} if given else fields


def _write_scaling(scaling: RopeScaling | None) -> dict[str, Any]:
    match scaling:
        case None:
            return {}
        case LinearRope():
            return {"rope_type": "linear", "factor": scaling.factor}
        case DynamicRope():
            return {"rope_type": "dynamic", "factor": scaling.factor}
        case Llama3Rope():
            return {
                "rope_type": "llama3",
                "factor": scaling.factor,
                "low_freq_factor": scaling.low_frequency_factor,
                "high_freq_factor": scaling.high_frequency_factor,
                "original_max_position_embeddings": scaling.original_context,
            }
        case YarnRope():
            given = {
                "rope_type": "yarn",
                "factor": scaling.factor,
                "original_max_position_embeddings": scaling.original_context,
                "beta_fast": scaling.beta_fast,
                "beta_slow": scaling.beta_slow,
                "truncate": scaling.truncate,
            }
            return {**given, "attention_factor": scaling.attention_factor} if scaling.attention_factor else given
