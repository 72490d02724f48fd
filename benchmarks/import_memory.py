"""How much host memory an import takes, as a multiple of the bytes that the loaded model holds.

Writes a decoder with random weights to a temporary directory, then loads it in a process of its own with `load_hf`:
from one file and from shards, as stored and cast to another dtype, on one device and on a mesh of four. The peak is
that of RssAnon + RssFile + RssShmem over what the process had before, sampled every millisecond; the page cache of
files that are only read is not part of it. On a CPU the parameters themselves are host memory, so 1.00 is the least.

    python benchmarks/import_memory.py
    python benchmarks/import_memory.py --megabytes 600 --json import_memory.json
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from rich import print as show
from rich.table import Table

from vlm_jax.convert import load_hf, save_hf
from vlm_jax.models.abstract import boxed_params, build_model
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.parallel import MeshConfig, abstract_params, build_layout

CASES = {
    "float32, one file": ("float32", 1, None, 1),
    "float32, shards": ("float32", 8, None, 1),
    "bfloat16, as stored": ("bfloat16", 1, None, 1),
    "bfloat16 -> float32": ("bfloat16", 1, "float32", 1),
    "float32 -> bfloat16": ("float32", 1, "bfloat16", 1),
    "float32, 4 devices": ("float32", 1, None, 4),
}
"""Name -> (stored dtype, files, dtype asked for, devices)."""


def decoder(megabytes: int) -> DecoderConfig:
    """A decoder of about so many megabytes in float32, in the proportions of small LLMs."""
    width, layers = 512, 12
    config = DecoderConfig(
        vocabulary_size=32_000,
        width=width,
        layers=layers,
        heads=8,
        key_value_heads=4,
        head_size=64,
        mlp_width=0,
        tied_embeddings=False,
    )
    rest = megabytes * 250_000 - 2 * config.vocabulary_size * width - layers * 3 * width * width
    return DecoderConfig(**{**vars(config), "mlp_width": max(256, rest // (3 * layers * width) // 64 * 64)})


def write(config: DecoderConfig, dtype: str, files: int, directory: Path) -> None:
    """Random weights in Hugging Face format."""
    shapes = abstract_params(boxed_params(build_model(config)))
    key = jax.random.key(0)
    params = jax.tree.map(lambda leaf: jax.random.normal(key, leaf.shape, jnp.dtype(dtype)), shapes)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    save_hf(config, params, directory, shard_bytes=size // files + 1 if files > 1 else 10 * size)


def resident() -> int:
    """Bytes of memory that this process has now."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return sum(int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile", "RssShmem"))


def load_and_measure(directory: str, dtype: str | None, devices: int) -> dict[str, float]:
    """Peak over the start, and bytes held, of one import in this process."""
    layout = build_layout(MeshConfig(fsdp=2, tensor=devices // 2)) if devices > 1 else None
    jax.block_until_ready(jnp.zeros(1))
    before = peak = resident()
    done = threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, resident())
            time.sleep(0.001)

    sampler = threading.Thread(target=sample)
    sampler.start()
    start = time.perf_counter()
    _, params = load_hf(directory, dtype=dtype, layout=layout)
    jax.block_until_ready(params)
    seconds = time.perf_counter() - start
    done.set()
    sampler.join()
    held = sum(shard.data.nbytes for leaf in jax.tree.leaves(params) for shard in leaf.addressable_shards)
    return {"megabytes": held / 1e6, "peak_megabytes": (peak - before) / 1e6, "seconds": seconds}


def measure(megabytes: int) -> dict[str, dict[str, float]]:
    """Figures of every case, each in a process of its own."""
    config, figures = decoder(megabytes), {}
    for name, (stored, files, dtype, devices) in CASES.items():
        with tempfile.TemporaryDirectory() as directory:
            write(config, stored, files, Path(directory) / "model")
            flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
            command = [sys.executable, __file__, "--child", directory + "/model", str(dtype), str(devices)]
            environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
            output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
        values = json.loads(output)
        figures[name] = {**values, "ratio": values["peak_megabytes"] / values["megabytes"]}
    return figures


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=400, help="about the model's size in float32 (400)")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        directory, dtype, devices = arguments.child
        print(json.dumps(load_and_measure(directory, None if dtype == "None" else dtype, int(devices))))
        return
    figures = measure(arguments.megabytes)
    table = Table("import", "model, MB", "peak, MB", "ratio", "seconds")
    for name, values in figures.items():
        table.add_row(
            name,
            f"{values['megabytes']:.0f}",
            f"{values['peak_megabytes']:.0f}",
            f"{values['ratio']:.2f}",
            f"{values['seconds']:.1f}",
        )
    show(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
