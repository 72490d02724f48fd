"""Between the HTTP routes and the batcher: a request becomes a job, and the job's events an answer."""

import asyncio
import concurrent.futures
import functools
import logging
import secrets
import time
from collections.abc import AsyncIterator

import numpy as np

from data_pipelines.examples import Example
from data_pipelines.images import BadImage
from data_pipelines.quarantine import BadRecord
from vlm_jax.errors import UserError
from vlm_jax.generation import Compilations, Engine, Piece, Request, Sampler, compilations, question
from vlm_jax.serving.batcher import Batcher, Job
from vlm_jax.serving.config import ServingConfig
from vlm_jax.serving.errors import APIError, invalid, shutting_down, timed_out
from vlm_jax.serving.images import read_picture
from vlm_jax.serving.metrics import Metrics
from vlm_jax.serving.prompts import prompt_of
from vlm_jax.serving.protocol import ChatRequest
from vlm_jax.serving.responses import Answer, Completion

_log = logging.getLogger(__name__)

_PREPARING_THREADS = 4
_SEEDS = 1 << 31
_SMALLEST_TOP_P = 1e-9
"""OpenAI allows 0, which can only mean the likeliest token."""


class Service:
    """A model that is served under a name, its limits, its figures and its queue."""

    def __init__(self, engine: Engine, name: str, config: ServingConfig) -> None:
        self.engine, self.name, self.config = engine, name, config
        self.metrics = Metrics()
        self.batcher = Batcher(engine, config, self.metrics)
        self.created = int(time.time())
        self.draining = False
        """New requests are refused; those that run go on, until `give_up_at`."""
        self.give_up_at = float("inf")
        """On the clock of time.monotonic."""
        self.active = 0
        """Requests that are being read, answered or sent."""
        self._reading = 0
        self._pool = concurrent.futures.ThreadPoolExecutor(_PREPARING_THREADS, "prepare")
        self.metrics.watch("vlm_queue_length", "Requests that wait for a batch.", lambda: len(self.batcher))
        self.metrics.watch("vlm_compilations", "Programs this process compiled.", lambda: compilations().compiled)

    def warm_up(self) -> None:
        """Compiles what short requests need, in batches of every size, so that no client waits for it."""
        sizes = sorted({min(self.engine.buckets.rows(n + 1), self.config.rows) for n in range(self.config.rows)})
        begun, before = time.monotonic(), compilations()
        shown = [np.full((1, 1, 3), 128, np.uint8)] if self.engine.config.encoder is not None else []
        tokens = min(self.config.default_new_tokens, self.config.max_new_tokens)
        for pictures in ([], shown) if shown else ([],):
            request = Request(question("?", pictures), max_new_tokens=tokens)
            for rows in sizes:
                for _ in self.engine.stream_many([request] * rows, cancelled=lambda _: True):
                    pass
        now = compilations()
        done = Compilations(now.compiled - before.compiled, now.loaded - before.loaded, now.seconds - before.seconds)
        _log.info("warm-up for batches of %s took %.1f s: %s", sizes, time.monotonic() - begun, done)

    def start(self) -> None:
        """Starts the worker."""
        self.batcher.start()

    def drain(self, seconds: float) -> None:
        """Takes no more requests; those that run have so many seconds to finish. Any thread may call it."""
        self.draining, self.give_up_at = True, time.monotonic() + seconds

    def stop(self, seconds: float) -> bool:
        """Ends everything with 503; whether the worker ended within `seconds`."""
        self.draining = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        return self.batcher.stop(seconds)

    @property
    def healthy(self) -> bool:
        """Whether requests are answered."""
        return not self.draining and self.batcher.alive

    def admit(self) -> "Admission":
        """A place for a request while its body is read and its pictures are decoded.

        Raises:
            APIError: 503 while draining; 429 if as many requests wait as may, or are about to.
        """
        if self.draining:
            raise shutting_down()
        self.batcher.check_room(self._reading)
        return Admission(self)

    async def prepare(self, request: ChatRequest) -> "Run":
        """Puts a request in the queue.

        Raises:
            APIError: 4xx if it cannot be answered.
        """
        if request.model != self.name:
            message = f"there is no model {request.model[:100]!r}; this server has {self.name!r}"
            raise APIError(404, message, code="model_not_found", param="model")
        job_request, prompt_tokens = await asyncio.get_running_loop().run_in_executor(
            self._pool, self._engine_request, request
        )
        if self.draining:
            raise shutting_down()
        job = Job(job_request, request.stream)
        self.batcher.submit(job)
        self.metrics.prompt_tokens.inc(prompt_tokens)
        return Run(self, job, Completion(self.name, prompt_tokens))

    def _engine_request(self, request: ChatRequest) -> tuple[Request, int]:
        """On a thread: reads pictures, counts tokens and checks what only the engine knows."""
        config = self.config
        if request.n > config.rows:
            raise invalid(f"n is {request.n}: at most {config.rows}", "n")
        prompt = prompt_of(request, config, functools.partial(read_picture, config=config))
        try:
            tokens = self.engine.count_tokens(prompt)
            sampler = Sampler(
                config.temperature if request.temperature is None else request.temperature,
                request.top_k,
                max(request.top_p, _SMALLEST_TOP_P),
            )
            made = Request(
                prompt,
                max_new_tokens=self._answer_tokens(request, prompt, tokens),
                sampler=sampler,
                seed=secrets.randbelow(_SEEDS) if request.seed is None else request.seed % _SEEDS,
                stop=tuple(request.stop),
                samples=request.n,
            )
            self.engine.check(made)
        except (UserError, BadRecord) as error:
            raise invalid(str(error), "messages") from None
        except BadImage as error:
            raise invalid(f"a picture: {error}", "messages", "invalid_image") from None
        return made, tokens

    def _answer_tokens(self, request: ChatRequest, prompt: Example, tokens: int) -> int:
        """How long the answer may be; what is not asked for is cut to what there is room for."""
        config, context = self.config, self.engine.config.decoder.context
        longest = min(config.prompt_tokens, context - 1) if context else config.prompt_tokens
        if tokens > longest:
            message = f"the prompt has {tokens} tokens, at most {longest} are read"
            raise invalid(message, "messages", "context_length_exceeded")
        room = context - tokens if context else config.max_new_tokens
        wanted = request.wanted_tokens
        if wanted is None:
            return min(config.default_new_tokens, config.max_new_tokens, room)
        field = "max_tokens" if request.max_completion_tokens is None else "max_completion_tokens"
        if wanted > config.max_new_tokens:
            raise invalid(f"{field} is {wanted}: at most {config.max_new_tokens}", field)
        if wanted > room:
            message = f"{tokens} tokens of prompt and {wanted} of answer are more than the context of {context}"
            raise invalid(message, field, "context_length_exceeded")
        return wanted


class Admission:
    """Counts a request that is being read, until it is closed."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def __enter__(self) -> None:
        self._service._reading += 1

    def __exit__(self, *_: object) -> None:
        self._service._reading -= 1


class Run:
    """A request in the queue or in a batch."""

    def __init__(self, service: Service, job: Job, completion: Completion) -> None:
        self._service, self._job = service, job
        self.completion = completion
        self.answers = [Answer() for _ in range(job.request.samples)]
        self._ended = False

    async def pieces(self) -> AsyncIterator[Piece]:
        """What the answers grow by, until all of them have ended; `answers` follows.

        Raises:
            APIError: 504 if it takes too long, 503 if the server stops, 500 if it fails.
        """
        config, metrics = self._service.config, self._service.metrics
        limit, what = config.wait_seconds, "waiting in the queue"
        unfinished = len(self.answers)
        try:
            while unfinished:
                left = self._job.queued + limit - time.monotonic()
                try:
                    async with asyncio.timeout(max(left, 0)):
                        event = await self._job.events.get()
                except TimeoutError:
                    raise timed_out(what, limit) from None
                if isinstance(event, APIError):
                    raise event
                if event is None:
                    limit, what = config.answer_seconds, "the answer"
                    continue
                answer = self.answers[event.sample]
                metrics.generated_tokens.inc(event.tokens - answer.tokens)
                answer.text += event.text
                answer.tokens, answer.finish = event.tokens, event.finish
                unfinished -= event.finish is not None
                yield event
            metrics.answer.observe(time.monotonic() - self._job.queued)
            self._ended = True
        except APIError:
            self._ended = True
            raise
        finally:
            self.close()

    async def finish(self) -> list[Answer]:
        """The whole answers; raises what `pieces` does."""
        async for _ in self.pieces():
            pass
        return self.answers

    def close(self) -> None:
        """Nobody reads any more: gives the row back."""
        if not self._job.abandoned:
            self._service.metrics.hung_up.inc(not self._ended)
            self._service.batcher.abandon(self._job)
