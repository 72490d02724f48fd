"""The image encoder of Llama 3.2 Vision: `TileViT`."""

from collections.abc import Mapping
from typing import Any

from vlm_jax.convert.families.common import affine, read_activation, refuse, whole_number, write_activation
from vlm_jax.convert.families.vision import CONV_KERNEL, norm, pair, three_channels
from vlm_jax.convert.names import Reshape, Row
from vlm_jax.errors import UserError
from vlm_jax.models.tile_vit import TileViTConfig
from vlm_jax.pictures import Grid

MODEL_TYPES = ("mllama_vision_model",)
RENAMED = ((r"^vision_model\.", ""),)
DROPPED = ()

DEFAULTS: dict[str, Any] = {
    "hidden_size": 1280,
    "hidden_act": "gelu",
    "num_hidden_layers": 32,
    "num_global_layers": 8,
    "attention_heads": 16,
    "num_channels": 3,
    "intermediate_size": 5120,
    "vision_output_dim": 7680,
    "image_size": 448,
    "patch_size": 14,
    "norm_eps": 1e-5,
    "max_num_tiles": 4,
    "intermediate_layers_indices": [3, 7, 15, 23, 30],
    "supported_aspect_ratios": [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]],
}
"""What transformers takes for a field that config.json leaves out."""


def read_config(hf: Mapping[str, Any]) -> TileViTConfig:
    """config.json of an MllamaVisionModel.

    Raises:
        UserError: if it asks for what `TileViT` cannot do.
    """
    fields = {**DEFAULTS, **{name: value for name, value in hf.items() if value is not None}}
    three_channels(fields)
    height, width = pair(fields["patch_size"], "patch_size")
    size = pair(fields["image_size"], "image_size")
    if height != width or size[0] != size[1] or size[0] % height:
        raise UserError(
            f"config.json: image_size is {fields['image_size']} and patch_size {fields['patch_size']}; only square "
            "tiles of whole square patches are known"
        )
    layers, tiles = whole_number(fields, "num_hidden_layers"), whole_number(fields, "max_num_tiles")
    config = TileViTConfig(
        image_size=size,
        patch=height,
        grids=_grids(fields["supported_aspect_ratios"], tiles),
        tiles=tiles,
        hidden=whole_number(fields, "hidden_size"),
        local_layers=layers,
        global_layers=int(fields["num_global_layers"]),
        heads=whole_number({**fields, "attention_heads": _heads(fields)}, "attention_heads"),
        mlp_width=whole_number(fields, "intermediate_size"),
        joined=_joined(fields["intermediate_layers_indices"], layers),
        activation=read_activation(fields),
        norm_epsilon=float(fields["norm_eps"]),
    )
    if fields["vision_output_dim"] != config.width:
        raise UserError(
            f"config.json: vision_output_dim is {fields['vision_output_dim']}, but hidden_size {config.hidden} and "
            f"{len(config.joined)} intermediate_layers_indices make {config.width}"
        )
    return config


def _heads(fields: Mapping[str, Any]) -> Any:
    return fields.get("num_attention_heads") or fields["attention_heads"]


def _grids(given: Any, tiles: int) -> tuple[Grid, ...]:
    found = []
    for ratio in given if isinstance(given, (list, tuple)) else [given]:
        rows, columns = pair(ratio, "supported_aspect_ratios")
        if rows * columns > tiles:
            raise UserError(
                f"config.json: supported_aspect_ratios has {rows} x {columns} tiles, but max_num_tiles is {tiles}"
            )
        found.append((rows, columns))
    if not found or len({*found}) != len(found):
        raise UserError("config.json: supported_aspect_ratios must be different pairs of rows and columns of tiles")
    return tuple(found)


def _joined(given: Any, layers: int) -> tuple[int, ...]:
    for layer in given if isinstance(given, (list, tuple)) else [given]:
        if type(layer) is not int or not -layers <= layer < layers:
            raise UserError(f"config.json: intermediate_layers_indices has {layer!r}, but there are {layers} layers")
    return tuple(layer % layers for layer in given)


def rows(config: TileViTConfig) -> list[Row]:
    """The name table."""
    count, width, grids = config.features.count, config.hidden, len(config.grids) + 1

    def table(name: str, ours: str) -> list[Row]:
        form = Reshape((grids, config.tiles * width), (grids, config.tiles, width))
        return [
            Row(f"{name}.embedding.weight", f"{ours}_embedding", form),
            Row(f"{name}.gate", f"{ours}_gate"),
        ]

    positions = Reshape((grids, config.tiles * count * width), (grids, config.tiles, count, width))
    found = [
        Row("patch_embedding.weight", "patch/kernel", CONV_KERNEL),
        Row("class_embedding", "class_token"),
        Row("gated_positional_embedding.embedding", "positions"),
        Row("gated_positional_embedding.gate", "positions_gate"),
        Row("gated_positional_embedding.tile_embedding.weight", "tile_positions", positions),
        *table("pre_tile_positional_embedding", "inner_tile"),
        *table("post_tile_positional_embedding", "outer_tile"),
        *norm("layernorm_pre", "embedding_norm"),
        *norm("layernorm_post", "local_norm"),
    ]
    first = 0
    for number, length in enumerate(config.local_runs):
        found += _layers(config, "transformer", f"local_{number}", first, length)
        first += length
    gates = [Row("gate_attn", "attention_gate"), Row("gate_ffn", "mlp_gate")]
    return found + _layers(config, "global_transformer", "global", 0, config.global_layers, gates)


def _layers(
    config: TileViTConfig, theirs: str, ours: str, first: int, count: int, more: list[Row] | None = None
) -> list[Row]:
    """Rows of their layers first, first + 1, …, which are a stack of `count` here."""
    width, heads = (config.hidden,), (config.heads, config.hidden // config.heads)
    block = [
        *norm("input_layernorm", "attention_norm"),
        *(
            row
            for name in ("query", "key", "value")
            for row in affine(f"self_attn.{name[0]}_proj", name, width, heads, bias=False)
        ),
        *affine("self_attn.o_proj", "out", heads, width, bias=False),
        *norm("post_attention_layernorm", "mlp_norm"),
        *affine("mlp.fc1", "mlp/up", width, (config.mlp_width,)),
        *affine("mlp.fc2", "mlp/down", (config.mlp_width,), width),
        *(more or []),
    ]
    found = []
    for layer in range(count):
        names = [Row(f"{theirs}.layers.{first + layer}.{row.theirs}", f"{ours}/{row.ours}", row.form) for row in block]
        found += [Row(row.theirs, row.ours, row.form, index=layer) for row in names]
    return found


def write_config(config: Any) -> dict[str, Any] | None:
    """config.json of an MllamaVisionModel; None if this is no `TileViTConfig`.

    Raises:
        UserError: if it is one that transformers cannot express.
    """
    if not isinstance(config, TileViTConfig):
        return None
    refuse(
        "Llama 3.2's encoder",
        {
            "tiles that are not square": config.image_size[0] != config.image_size[1],
            "features of the last layer alone (joined is empty)": not config.joined,
        },
    )
    return {"architectures": ["MllamaVisionModel"], "model_type": "mllama_vision_model", **write_fields(config)}


def write_fields(config: TileViTConfig) -> dict[str, Any]:
    """The fields of config.json, also inside a whole model."""
    return {
        "hidden_size": config.hidden,
        "hidden_act": write_activation(config.activation),
        "num_hidden_layers": config.local_layers,
        "num_global_layers": config.global_layers,
        "attention_heads": config.heads,
        "num_channels": 3,
        "intermediate_size": config.mlp_width,
        "vision_output_dim": config.width,
        "image_size": config.image_size[0],
        "patch_size": config.patch,
        "norm_eps": config.norm_epsilon,
        "max_num_tiles": config.tiles,
        "intermediate_layers_indices": list(config.joined),
        "supported_aspect_ratios": [list(grid) for grid in config.grids],
    }
