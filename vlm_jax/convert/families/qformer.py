"""Q-Formers by themselves: those of BLIP-2 (Li et al. 2023) and InstructBLIP (Dai et al. 2023), whose queries are an
input. The latter embeds the text that it reads beside them.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vlm_jax.convert.families.common import affine, read_activation, refuse, whole_number, write_activation
from vlm_jax.convert.families.vision import norm
from vlm_jax.convert.names import Row
from vlm_jax.errors import UserError
from vlm_jax.models.qformer import QFormerConfig

MODEL_TYPES = ("blip_2_qformer", "instructblip_qformer")
RENAMED = ()
DROPPED = (r".*\.position_ids$",)

DEFAULTS = {
    "vocab_size": 30_522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "max_position_embeddings": 512,
    "layer_norm_eps": 1e-12,
    "cross_attention_frequency": 2,
    "encoder_hidden_size": 1408,
    "use_qformer_text_input": False,
}
"""What transformers takes for a field that config.json leaves out."""


def read_config(hf: Mapping[str, Any]) -> QFormerConfig:
    """config.json of a Blip2QFormerModel or an InstructBlipQFormerModel.

    Raises:
        UserError: if it asks for what `QFormerConfig` cannot express.
    """
    fields = {**DEFAULTS, **hf}
    kind = fields.get("position_embedding_type", "absolute")
    refuse("a Q-Former here", {f"position_embedding_type {kind}": kind != "absolute"})
    embeds = fields.get("model_type") == "instructblip_qformer"
    return QFormerConfig(
        width=whole_number(fields, "hidden_size"),
        layers=whole_number(fields, "num_hidden_layers"),
        heads=whole_number(fields, "num_attention_heads"),
        mlp_width=whole_number(fields, "intermediate_size"),
        cross_every=whole_number(fields, "cross_attention_frequency"),
        features_width=whole_number(fields, "encoder_hidden_size"),
        activation=read_activation(fields),
        norm_epsilon=float(fields["layer_norm_eps"]),
        text=embeds or bool(fields["use_qformer_text_input"]),
        text_vocabulary=whole_number(fields, "vocab_size") if embeds else 0,
        text_length=whole_number(fields, "max_position_embeddings") if embeds else QFormerConfig.text_length,
    )


def rows(config: QFormerConfig) -> list[Row]:
    """The name table."""
    embeds = "embeddings." if config.text_vocabulary else ""
    table = norm(f"{embeds}layernorm", "norm")
    if config.text_vocabulary:
        table += [
            Row("embeddings.word_embeddings.weight", "text/embedding"),
            Row("embeddings.position_embeddings.weight", "text/positions"),
        ]
    whole = config.layers // config.cross_every
    for layer in range(config.layers):
        index, block = divmod(layer, config.cross_every)
        # Layers that fill no group are not stacked.
        place = f"layers/block_{block}" if index < whole else f"rest/block_{block}"
        for row in _layer(config, cross=block == 0):
            named = dataclasses.replace(row, theirs=f"encoder.layer.{layer}.{row.theirs}", ours=f"{place}/{row.ours}")
            table.append(dataclasses.replace(named, index=index if index < whole else None))
    return table


def _layer(config: QFormerConfig, cross: bool) -> list[Row]:
    width, heads = (config.width,), (config.heads, config.width // config.heads)
    table = []
    attentions = [("attention", "attention", width)]
    if cross:
        attentions.append(("crossattention", "cross", (config.features_width,)))
    for theirs, ours, inputs in attentions:
        table += affine(f"{theirs}.attention.query", f"{ours}/query", width, heads)
        table += affine(f"{theirs}.attention.key", f"{ours}/key", inputs, heads)
        table += affine(f"{theirs}.attention.value", f"{ours}/value", inputs, heads)
        table += affine(f"{theirs}.output.dense", f"{ours}/out", heads, width)
        table += norm(f"{theirs}.output.LayerNorm", f"{ours}/norm")
    for theirs, ours in [("_query", "query")] + [("", "text")] * config.text:
        table += affine(f"intermediate{theirs}.dense", f"{ours}/mlp/up", width, (config.mlp_width,))
        table += affine(f"output{theirs}.dense", f"{ours}/mlp/down", (config.mlp_width,), width)
        table += norm(f"output{theirs}.LayerNorm", f"{ours}/norm")
    return table


def write_config(config: Any) -> dict[str, Any] | None:
    """config.json of a Q-Former; None if this is none.

    Raises:
        UserError: if it does not say how wide the features are that it looks at.
    """
    if not isinstance(config, QFormerConfig):
        return None
    if not config.features_width:
        raise UserError("a Q-Former by itself needs features_width, the width of the features that it looks at")
    kind = "InstructBlip" if config.text_vocabulary else "Blip2"
    return {"architectures": [f"{kind}QFormerModel"], **write_fields(config)}


def write_fields(config: QFormerConfig) -> dict[str, Any]:
    """The fields of config.json."""
    common = {
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_width,
        "hidden_act": write_activation(config.activation),
        "layer_norm_eps": config.norm_epsilon,
        "cross_attention_frequency": config.cross_every,
        "encoder_hidden_size": config.features_width,
    }
    if not config.text_vocabulary:
        return {"model_type": "blip_2_qformer", **common, "use_qformer_text_input": config.text}
    sizes = {"vocab_size": config.text_vocabulary, "max_position_embeddings": config.text_length}
    return {"model_type": "instructblip_qformer", **common, **sizes}
