"""LLaVA-NeXT (LLaVA-1.6, Liu et al. 2024): LLaVA over tiles of any resolution, whose rows end with a learned token.

A picture is the whole of it at the encoder's size and then its tiles; the visual tokens of the tiles are joined into
one grid, those of the padding around the picture are left out, and `image_newline` ends each row of the rest.
"""

from collections.abc import Mapping
from typing import Any

from vlm_jax.convert.families import llava, parts
from vlm_jax.convert.families.common import refuse
from vlm_jax.convert.names import Row
from vlm_jax.convert.tilings import any_resolution, write_pinpoints
from vlm_jax.errors import UserError
from vlm_jax.models.vlm import VLMConfig

MODEL_TYPES = ("llava_next",)
RENAMED = ((r"^model\.image_newline$", "image_newline"), *llava.RENAMED)
DROPPED = llava.DROPPED

constants = llava.constants


def read_config(hf: Mapping[str, Any]) -> VLMConfig:
    """config.json of a LlavaNextForConditionalGeneration.

    Raises:
        UserError: if it asks for what our models cannot do.
    """
    config = llava.read_config(hf)
    encoder = config.encoder
    assert encoder is not None
    if encoder.features.ahead:
        raise UserError(
            "config.json: vision_feature_select_strategy is 'full' and the encoder has a class token, which has no "
            "place in LLaVA-NeXT's rows of visual tokens; choose 'default'"
        )
    tiling = any_resolution(hf.get("image_grid_pinpoints"), encoder.image_size, "config.json")
    return VLMConfig(config.decoder, encoder, config.adapter, tiling, config.precision, config.layout)


def rows(config: VLMConfig) -> list[Row]:
    """The name table, in the layout of the published checkpoints."""
    return [*llava.rows(config), Row("image_newline", "adapter/separator")]


def write_config(config: Any) -> dict[str, Any] | None:
    """config.json of a LlavaNextForConditionalGeneration; None if this is no VLM with an MLP adapter and tiles.

    Raises:
        UserError: if it is one but for something that LLaVA-NeXT does not have.
    """
    found = parts.encoder_and_adapter(config, tiled=True)
    if found is None or not config.separator:
        return None
    encoder, adapter = found
    refuse("LLaVA-NeXT", {"tiles that are not square": len({*encoder.image_size}) > 1})
    fields = llava.write_fields(config, encoder, adapter, "LLaVA-NeXT")
    sizes = write_pinpoints(config.tiling, encoder.image_size)
    return {
        **fields,
        "architectures": ["LlavaNextForConditionalGeneration"],
        "model_type": "llava_next",
        "image_grid_pinpoints": sizes,
    }
