"""What each adapter costs beside the bare LLM on the same text, as ratios in one run.

All have the same decoder and rows of the same text, each with its pictures before it; of the pictures the encoder's
features are given, so that the adapter and the LLM are what is timed. A prompt-based adapter adds its visual tokens to
the sequence, cross-attention one position a picture and its blocks: these are their prices. The sizes of adapters are
those of `presets.ADAPTERS`, with as many visual tokens for all that can choose.

Each adapter and the bare LLM work in turn, and the ratio of each pair is taken; the median and the range are shown:

    step            forward, backward and Adam, adapter and LLM training; the LLM alone likewise
    adapter only    the same with a frozen LLM, against the same step of the bare LLM
    decode          new tokens after the prompt, without reading it
    memory          of the step: arguments, results and temporaries of the compiled program
    FLOPs           of the step, by formula (vlm_jax/models/flops.py)

    python benchmarks/adapters.py
    python benchmarks/adapters.py --preset mu --text 64 --adapters mlp cross_attention --json adapters.json
"""

import argparse
import dataclasses
import functools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from vlm_jax.batch import Batch
from vlm_jax.checkpoints import initialise_missing
from vlm_jax.commands.common import table_console
from vlm_jax.generation import Sampler, decoding
from vlm_jax.generation.samplers import settings_of
from vlm_jax.losses.next_token import next_token_objective
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.flops import stage_flops
from vlm_jax.models.layers import Precision
from vlm_jax.models.presets import ADAPTERS, PRESETS, with_adapter
from vlm_jax.models.vlm import VLM, VLMConfig
from vlm_jax.models.work import all_pairs
from vlm_jax.optim import OptimizerConfig, Rule, assign_rules, build_optimizer
from vlm_jax.parallel import Layout, MeshConfig, build_layout, use_layout
from vlm_jax.training.state import create_state
from vlm_jax.training.step import compile_step, train_step

ALL = (Rule("^encoder/", rate=0.0), Rule(".*"))
ADAPTER_ONLY = (Rule("^(encoder|decoder)/", rate=0.0), Rule(".*"))


def small() -> VLMConfig:
    """The features of ViT-S/14 at 224 pixels, and a decoder that two cores train in a fraction of a second a step."""
    decoder = DecoderConfig(
        8192, width=256, layers=8, heads=4, key_value_heads=2, head_size=64, mlp_width=704, rope_base=1e5
    )
    return dataclasses.replace(PRESETS["0.2b"](), decoder=decoder)


USUAL = ("mlp", "average_pooling", "qformer", "resampler", "cross_attention", "hybrid")

MODELS: dict[str, Callable[[], VLMConfig]] = {"small": small, **PRESETS}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of a batch."""

    rows: int
    text: int
    """Positions of text in a row."""
    images: int
    """Pictures before it."""
    encoder: bool
    """The encoder is part of the step; else its features are given."""

    def before(self, config: VLMConfig) -> int:
        """Positions that pictures take: visual tokens, or one for each picture that is seen otherwise."""
        return self.images * (config.prompt_tokens or 1) if config.adapter else 0

    def length(self, config: VLMConfig) -> int:
        """S, positions a row."""
        return self.text + self.before(config)


def make_batch(config: VLMConfig, sizes: Sizes) -> Batch:
    """Full rows, each one example: its pictures, then random text, which is the same for all models and bears loss."""
    before, length, images = sizes.before(config), sizes.length(config), sizes.images if config.adapter else 0
    spec = Batch.spec(
        sizes.rows,
        length,
        images=images,
        image_size=config.image_size,
        in_sequence=config.prompt_tokens > 0,
        pictures=config.pictures,
    )
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        field.name: None if (leaf := getattr(spec, field.name)) is None else np.zeros(leaf.shape, leaf.dtype)
        for field in dataclasses.fields(spec)
    }
    arrays["tokens"][:, before:] = rng.integers(0, config.decoder.vocabulary_size, (sizes.rows, sizes.text), np.int32)
    arrays["targets"] = np.roll(arrays["tokens"], -1, axis=1)
    arrays["loss_weights"][:, before:-1] = 1
    arrays["segment_ids"] += 1
    arrays["positions"] += np.arange(length, dtype=np.int32)
    if images:
        fill_pictures(arrays, config, sizes, rng)
    return Batch(**arrays)


def fill_pictures(arrays: dict[str, Any], config: VLMConfig, sizes: Sizes, rng: np.random.Generator) -> None:
    """The image fields; in a row, every picture stands before all text, and may be seen from its own place on."""
    assert config.encoder is not None
    length, features = sizes.length(config), config.encoder.features
    arrays["image_ids"] += np.arange(1, sizes.images + 1, dtype=np.int32)
    arrays["tile_index"] += np.array([0, 1, 1], np.int32)
    if sizes.encoder:
        arrays["images"] = rng.integers(0, 256, arrays["images"].shape, np.uint8)
    else:
        shape = (sizes.rows, sizes.images, features.count, features.width)
        arrays["images"], arrays["features"] = None, rng.standard_normal(shape, np.float32)
    places = np.arange(length, dtype=np.int32)
    if arrays["visual_index"] is not None:
        arrays["visual_index"] += np.where(places < sizes.before(config), places, -1)
    if arrays["visible_images"] is not None:
        begun = np.minimum(places // (config.prompt_tokens or 1) + 1, sizes.images)
        first = begun - 1 if config.pictures.visible == "last" else np.zeros_like(begun)
        arrays["visible_images"] += np.stack([first, begun], axis=-1).astype(np.int32)


class Training:
    """A compiled step and its state; calling it makes a step."""

    def __init__(self, config: VLMConfig, params: Any, batch: Batch, table: tuple[Rule, ...], layout: Layout) -> None:
        model, optimizer_config = VLM(config), OptimizerConfig(table=table)
        params = jax.tree.map(jnp.copy, params)  # a step gives up what it is given
        self.adapter = sum(leaf.size for leaf in jax.tree.leaves(params.get("adapter", {})))
        """Parameters of the adapter."""
        rules = assign_rules(table, params)
        optimizer = build_optimizer(optimizer_config, rules, steps=1000)
        self.state = create_state(params, rules, optimizer, config.precision.compute, layout)
        self.batch = jax.device_put(batch)
        pure = functools.partial(
            train_step,
            objective=functools.partial(next_token_objective, model.apply, sources=1, chunk=128),
            optimizer=optimizer,
            rate=optimizer_config.schedule.build(1000),
        )
        self.step = compile_step(pure, self.state).lower(self.state, self.batch).compile()
        memory = self.step.memory_analysis()
        self.memory = (
            memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            - memory.alias_size_in_bytes
            + memory.temp_size_in_bytes
        )
        """Bytes that the step needs."""

    def __call__(self) -> float:
        """Wall seconds of a step."""
        start = time.perf_counter()
        self.state, metrics = self.step(self.state, self.batch)
        jax.block_until_ready((self.state, metrics))
        return time.perf_counter() - start


class Answering:
    """Greedy decoding after the batch's rows as prompts; calling it decodes `new` tokens a row."""

    def __init__(self, config: VLMConfig, batch: Batch, params: Any, new: int) -> None:
        rows = batch.tokens.shape[0]
        zeros = np.zeros(rows, np.int32)
        vocabulary = decoding.Vocabulary(np.array([-1], np.int32), 0, config.decoder.vocabulary_size)
        draws = decoding.Draws(zeros.astype(np.uint32), zeros, zeros)
        self.controls = decoding.Controls(vocabulary, settings_of([Sampler()] * rows), draws, zeros + new)
        self.config, self.batch, self.params, self.new = config, jax.device_put(batch), params, new
        self.unrolled = decoding.unrolled_params(config, params)
        self()

    def __call__(self) -> float:
        """Wall seconds, without those of reading the prompts."""
        unrolled, controls = self.unrolled is not None, self.controls
        length = self.batch.tokens.shape[1]
        state = decoding.start(self.config, unrolled, self.new, length, self.params, self.batch, None, controls)
        jax.block_until_ready(state)
        params = self.unrolled if unrolled else self.params
        start = time.perf_counter()
        dropped = np.zeros(len(self.batch.tokens), bool)
        jax.block_until_ready(
            decoding.advance(self.config, unrolled, params, *state, np.int32(self.new), dropped, controls)
        )
        return time.perf_counter() - start


def draw(config: VLMConfig, sizes: Sizes, layout: Layout) -> Any:
    """Random parameters, of the encoder only where it is used."""
    params = initialise_missing(VLM(config), layout, seed=0)
    return params if sizes.encoder else {name: part for name, part in params.items() if name != "encoder"}


def step_flops(config: VLMConfig, sizes: Sizes, *, adapter_only: bool = False) -> float:
    """Of a training step in which the encoder is frozen: what is trained, and what lies between it and the loss."""
    sides = (sizes.rows, sizes.length(config), sizes.images if config.adapter else 0)
    frozen = ("encoder/", "decoder/") if adapter_only else ("encoder/",)
    work, given = all_pairs(config, *sides), not sizes.encoder
    return stage_flops(config, lambda name: not name.startswith(frozen), *sides, work, features_given=given).total


def spread(values: list[float]) -> dict[str, float]:
    """The median and the range."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


class Bare:
    """The LLM by itself: what the others are measured against."""

    def __init__(self, config: VLMConfig, sizes: Sizes, layout: Layout, new: int) -> None:
        config = VLMConfig(config.decoder, precision=config.precision)
        batch = make_batch(config, sizes)
        self.flops = step_flops(config, sizes)
        params = draw(config, sizes, layout)
        self.training = Training(config, params, batch, (Rule(".*"),), layout)
        self.answering = Answering(config, batch, params, new)
        self.training()

    def figures(self, sizes: Sizes, repeats: int) -> dict[str, Any]:
        """What a ratio of 1 is."""
        return {
            "adapter": "none",
            "visual_tokens": 0,
            "positions": sizes.text,
            "parameters_added": 0,
            "step_seconds": spread([self.training() for _ in range(repeats)])["median"],
            "decode_seconds": spread([self.answering() for _ in range(repeats)])["median"],
            "memory_bytes": self.training.memory,
            "step_flops": self.flops,
        }


def measure(name: str, model: VLMConfig, bare: Bare, sizes: Sizes, layout: Layout, arguments: Any) -> dict[str, Any]:
    """Figures of one adapter, each a ratio to the bare LLM's beside it."""
    config = with_adapter(model, name, arguments.tokens)
    batch = make_batch(config, sizes)
    params = draw(config, sizes, layout)
    whole, alone = (Training(config, params, batch, table, layout) for table in (ALL, ADAPTER_ONLY))
    decoder = Answering(config, batch, params, arguments.new)
    whole(), alone()
    ratios: dict[str, list[float]] = {"step": [], "adapter_only": [], "decode": []}
    for _ in range(arguments.repeats):
        unit = bare.training()
        ratios["step"].append(whole() / unit)
        ratios["adapter_only"].append(alone() / unit)
        unit = bare.answering()
        ratios["decode"].append(decoder() / unit)
    assert config.encoder is not None
    return {
        "adapter": name,
        "visual_tokens": config.prompt_tokens,
        "memory_tokens": config.memory_tokens,
        "positions": sizes.length(config),
        "parameters_added": whole.adapter,
        **{f"{key}_ratio": spread(values) for key, values in ratios.items()},
        "memory_bytes": whole.memory,
        "memory_ratio": whole.memory / bare.training.memory,
        "adapter_only_memory_ratio": alone.memory / bare.training.memory,
        "flops_ratio": step_flops(config, sizes) / bare.flops,
        "adapter_only_flops_ratio": step_flops(config, sizes, adapter_only=True) / bare.flops,
    }


def table_of(results: list[dict[str, Any]], title: str) -> Table:
    """A line an adapter; ratios as median and range."""
    columns = (
        "adapter",
        "visual tokens",
        "positions",
        "parameters",
        "step",
        "adapter only",
        "decode",
        "memory",
        "FLOPs",
    )
    table = Table(*columns, title=title)

    def ratio(values: dict[str, float]) -> str:
        return f"{values['median']:.2f} ({values['min']:.2f}–{values['max']:.2f})"

    for result in results:
        measured = [ratio(result[f"{key}_ratio"]) for key in ("step", "adapter_only", "decode")]
        formal = [f"{result[f'{key}_ratio']:.2f}" for key in ("memory", "flops")]
        visual, positions = str(result["visual_tokens"]), str(result["positions"])
        table.add_row(result["adapter"], visual, positions, f"{result['parameters_added']:,}", *measured, *formal)
    return table


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=MODELS, default="small", help="encoder and decoder (small)")
    parser.add_argument("--adapters", nargs="+", choices=ADAPTERS, default=USUAL, help=f"which ({' '.join(USUAL)})")
    parser.add_argument("--tokens", type=int, default=0, help="visual tokens a picture (as many as the preset has)")
    parser.add_argument("--rows", type=int, default=4, help="rows a batch (4)")
    parser.add_argument("--text", type=int, default=192, help="positions of text in a row (192)")
    parser.add_argument("--images", type=int, default=1, help="pictures a row (1)")
    parser.add_argument("--encoder", action="store_true", help="the encoder, frozen, is part of the steps")
    parser.add_argument("--new", type=int, default=32, help="new tokens a row when decoding (32)")
    parser.add_argument("--repeats", type=int, default=5, help="timed pairs (5)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="compute dtype (float32)")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()

    model = dataclasses.replace(MODELS[arguments.preset](), precision=Precision(compute=arguments.dtype))
    sizes = Sizes(arguments.rows, arguments.text, arguments.images, arguments.encoder)
    layout = build_layout(MeshConfig())
    with use_layout(layout):
        bare = Bare(model, sizes, layout, arguments.new)
        results = [measure(name, model, bare, sizes, layout, arguments) for name in arguments.adapters]
        reference = bare.figures(sizes, arguments.repeats)
    table_console().print(
        table_of(
            results,
            f"adapters beside the bare LLM, preset {arguments.preset}: {sizes.rows} rows of {sizes.text} positions of "
            f"text and {sizes.images} pictures; the LLM: {1000 * reference['step_seconds']:.0f} ms a step, "
            f"{reference['memory_bytes'] / 2**20:,.0f} MiB",
        )
    )
    if arguments.json:
        figures = {
            "preset": arguments.preset,
            **dataclasses.asdict(sizes),
            "new_tokens": arguments.new,
            "dtype": arguments.dtype,
            "devices": f"{jax.device_count()} {jax.devices()[0].device_kind}",
            "bare": reference,
            "results": results,
        }
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
