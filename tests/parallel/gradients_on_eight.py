"""Loss and gradients on meshes of eight devices, each beside what one of them makes of it; a program of its own, since
the number of devices is fixed when jax starts.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python gradients_on_eight.py OUT.json CASE ...
"""

import dataclasses
import json
import re
import sys
from pathlib import Path

import jax
import numpy as np
from flax import traverse_util

from vlm_jax.batch import Batch
from vlm_jax.checkpoints import abstract_params, initialise_missing
from vlm_jax.config import load_experiment
from vlm_jax.losses.next_token import next_token_objective
from vlm_jax.models.adapters import CrossAttentionConfig, MLPAdapterConfig
from vlm_jax.models.convnext import ConvNeXtConfig
from vlm_jax.models.presets import ADAPTERS, with_adapter
from vlm_jax.models.tile_vit import TileViTConfig
from vlm_jax.models.vlm import VLM
from vlm_jax.parallel import MeshConfig, build_layout, put_batch, use_layout
from vlm_jax.pictures import Tiling

TINY = Path(__file__).parents[1] / "training" / "tiny_experiment.py"
ROWS, LENGTH = 8, 40
"""No parameter has a dimension of 40, so that it tells activations in a compiled program."""


def plain():
    """An encoder, a linear map and a decoder."""
    return load_experiment(str(TINY)).model


def joined(memory, prompt, form="flamingo"):
    """Gated blocks that read what one adapter makes of the pictures, beside visual tokens that another makes."""
    model = plain()
    made = [ADAPTERS[name](model, model.prompt_tokens) if name else None for name in (memory, prompt)]
    return dataclasses.replace(
        model, adapter=CrossAttentionConfig(form, every=1, visible="all", memory=made[0], prompt=made[1])
    )


def of_tiles():
    """Llama 3.2's encoder, whose tiles of a picture see each other, and its blocks."""
    encoder = TileViTConfig(
        (16, 16), patch=8, grids=((1, 1), (1, 2)), tiles=2, hidden=16, local_layers=2, global_layers=1, heads=2,
        mlp_width=32, joined=(0,),
    )  # fmt: skip
    tiling = Tiling(grids=encoder.grids, slots=2, thumbnail="none")
    model = dataclasses.replace(plain(), encoder=encoder, tiling=tiling, adapter=MLPAdapterConfig(layers=1))
    return with_adapter(model, "llama_cross_attention", 4)


def convolved():
    """A ConvNeXt with a shuffling MLP of two layers."""
    encoder = ConvNeXtConfig((32, 32), patch=4, depths=(1, 1), widths=(8, 16))
    adapter = MLPAdapterConfig(layers=2, pixel_shuffle=2)
    return dataclasses.replace(plain(), encoder=encoder, adapter=adapter)


MODELS = {
    "plain": plain,
    "resampler and qformer": lambda: joined("resampler", "qformer"),
    "idefics2 resampler and pooling": lambda: joined("idefics2_resampler", "average_pooling", "llama"),
    "tiles": of_tiles,
    "convnext": convolved,
}

BY_HEADS = {
    "pictures": ("data", "fsdp"),
    **{f"vision_{name}": ("tensor",) for name in ("heads", "mlp")},
    **{f"act_vision_{name}": ("tensor",) for name in ("heads", "mlp")},
}
"""An image encoder that is split as the decoder is."""
ALL_AT_ONCE = MeshConfig(1, fsdp=2, sequence=2, tensor=2)

CASES = {
    "fsdp": ("plain", MeshConfig(1, fsdp=8)),
    "tensor": ("plain", MeshConfig(4, tensor=2)),
    "fsdp and tensor": ("plain", MeshConfig(1, fsdp=4, tensor=2)),
    "data over 2 slices, fsdp inside": ("plain", MeshConfig(2, fsdp=4, slices=2)),
    "fsdp over 4 slices, data inside": ("plain", MeshConfig(2, fsdp=4, slices=4, across_slices="fsdp")),
    "sequence of 2": ("plain", MeshConfig(2, fsdp=2, sequence=2)),
    "sequence of 4": ("plain", MeshConfig(1, fsdp=2, sequence=4)),
    "all at once, logits in chunks": ("plain", ALL_AT_ONCE, 12),
    "encoder split by heads": ("plain", MeshConfig(1, fsdp=4, tensor=2, rules=BY_HEADS)),
    "vocabulary over all": (
        "plain",
        MeshConfig(1, fsdp=4, tensor=2, rules={"vocab": ("fsdp", "tensor"), "embed": ()}),
    ),
    "resampler and qformer": ("resampler and qformer", ALL_AT_ONCE),
    "idefics2 resampler and pooling": ("idefics2 resampler and pooling", ALL_AT_ONCE),
    "tiles": ("tiles", ALL_AT_ONCE),
    "convnext": ("convnext", ALL_AT_ONCE),
}
"""Name -> model, mesh, and how many positions have logits at a time (0 = all)."""


def packed(config):
    """Rows of two examples and padding. The first has two pictures, one after the other, and two branches that follow;
    the second is text. A third slot is in use in every other row only, and nobody sees it.
    """
    before, images = 2 * max(1, config.prompt_tokens), 2 if config.tiling else 3
    spec = Batch.spec(
        ROWS,
        LENGTH,
        images=images,
        image_size=config.image_size,
        in_sequence=config.prompt_tokens > 0,
        pictures=config.pictures,
    )
    arrays = {
        field.name: None if (leaf := getattr(spec, field.name)) is None else np.zeros(leaf.shape, leaf.dtype)
        for field in dataclasses.fields(spec)
    }
    rng, places = np.random.default_rng(0), np.arange(LENGTH, dtype=np.int32)
    first, second, third, end = before + 4, before + 8, before + 12, LENGTH - 3
    arrays["tokens"] = rng.integers(0, config.decoder.vocabulary_size, (ROWS, LENGTH), np.int32)
    arrays["targets"] = np.roll(arrays["tokens"], -1, axis=1)
    arrays["segment_ids"] += np.where(places < third, 1, np.where(places < end, 2, 0)).astype(np.int32)
    arrays["branch_ids"] += np.where((places >= first) & (places < third), 1 + (places >= second), 0).astype(np.int32)
    arrays["block_ids"] += np.where(places < before, 1 + places // (before // 2), 0).astype(np.int32)
    restart = np.where(places >= third, third, np.where((places >= second) & (places < third), second - first, 0))
    arrays["positions"] += (places - restart).astype(np.int32)
    wanted = rng.random((ROWS, LENGTH)) < np.linspace(0.1, 1, ROWS)[:, None]
    arrays["loss_weights"] = (wanted & (arrays["segment_ids"] > 0)).astype(np.float32)
    arrays["images"] = rng.integers(0, 256, arrays["images"].shape, np.uint8)
    arrays["image_ids"] += np.arange(1, images + 1, dtype=np.int32)
    arrays["tile_index"] += np.array([0, 1, 1], np.int32)
    if config.tiling:
        arrays["image_ids"][:], arrays["tile_index"][:] = 1, [[0, 1, 2], [1, 1, 2]]
    else:
        arrays["image_ids"][::2, 2] = 0
    if config.prompt_tokens:
        arrays["visual_index"] += np.where(places < before, places, -1)
    if arrays["visible_images"] is not None:
        arrays["visible_images"][:, :third, 1] = np.where(places < before // 2, 1, 2)[:third]
    if arrays["instructions"] is not None:
        arrays["instructions"] += 1
    return Batch(**arrays)


def opened(params):
    """Gates that are not 0, so that what stands behind them shows."""
    flat = traverse_util.flatten_dict(params, sep="/")
    return traverse_util.unflatten_dict({k: v + 0.5 if k.endswith("_gate") else v for k, v in flat.items()}, sep="/")


def gradients(config, params, layout, chunk=0):
    """(loss, gradients by name, the compiled program's text) of a packed batch."""
    model = VLM(config)
    with use_layout(layout):
        placed = jax.device_put(params, jax.tree.map(lambda x: x.sharding, abstract_params(model, layout)))
        batch = put_batch(packed(config), layout)

        def loss(params, batch):
            return next_token_objective(model.apply, params, batch, 1, chunk)[0]

        compiled = jax.jit(jax.value_and_grad(loss)).lower(placed, batch).compile()
        value, gradient = compiled(placed, batch)
    flat = traverse_util.flatten_dict(jax.tree.map(np.asarray, gradient), sep="/")
    return float(value), flat, compiled.as_text()


def gathered(text):
    """Shapes of what the program gathers: all results of its all-gather operations, without dimensions of 1."""
    found = re.findall(r"= (.*?) all-gather(?:-start)?\(", text)
    shapes = {shape for result in found for shape in re.findall(r"f32\[([\d,]+)\]", result)}
    return sorted([int(size) for size in shape.split(",") if size != "1"] for shape in shapes)


def compare(found, expected):
    """The largest difference of any gradient, as a share of its parameter's largest (or a thousandth of all's)."""
    top = max(np.abs(leaf).max() for leaf in expected.values())
    shares = {
        name: float(np.abs(found[name] - leaf).max() / max(np.abs(leaf).max(), 1e-3 * top))
        for name, leaf in expected.items()
    }
    worst = max(shares, key=shares.__getitem__)
    return {"worst": worst, "difference": shares[worst]}


def main(out, *names):
    """Writes {CASE: {loss, expected, worst, difference, gathered}}."""
    results, known = {}, {}
    alone = build_layout(MeshConfig(), jax.devices()[:1])
    for name in names:
        which, mesh, *chunk = CASES[name]
        if which not in known:
            config = MODELS[which]()
            params = opened(jax.tree.map(np.asarray, initialise_missing(VLM(config), alone, 0)))
            known[which] = config, params, *gradients(config, params, alone)[:2]
        config, params, expected, gradient = known[which]
        loss, found, text = gradients(config, params, build_layout(mesh), *chunk)
        results[name] = {"loss": loss, "expected": expected, "gathered": gathered(text), **compare(found, gradient)}
        print(name, results[name], flush=True)
    Path(out).write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
