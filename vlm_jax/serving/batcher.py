"""Dynamic batching: a bounded queue, and one thread that decodes what waits as one batch."""

import asyncio
import collections
import dataclasses
import logging
import threading
import time
from collections.abc import Sequence

from vlm_jax.generation import Engine, Piece, Request
from vlm_jax.serving.config import ServingConfig
from vlm_jax.serving.errors import APIError, failed, queue_full, shutting_down
from vlm_jax.serving.metrics import Metrics

_LONGEST_RETRY = 60

_log = logging.getLogger(__name__)


class Job:
    """One request between the event loop, which made it, and the worker, which answers it."""

    def __init__(self, request: Request, stream: bool = True) -> None:
        """stream: whether pieces are wanted as they come; else there is one piece an answer, when it has ended."""
        self.request = request
        self.events: asyncio.Queue[Piece | APIError | None] = asyncio.Queue()
        """What the worker says: None when the batch begins, then pieces, or an error that ends it."""
        self.queued = time.monotonic()
        self.abandoned = False
        """Nobody waits for the answer any more. Set by the event loop, read by the worker."""
        self.told = False
        """Whether a piece has been given; only the worker's."""
        self.unfinished = set(range(request.samples))
        """Samples that have not ended; only the worker's."""
        self._kept: dict[int, str] | None = None if stream else dict.fromkeys(range(request.samples), "")
        self._loop = asyncio.get_running_loop()

    def tell(self, event: Piece | APIError | None) -> None:
        """Called by the worker."""
        if isinstance(event, APIError):
            self.unfinished.clear()
        if isinstance(event, Piece):
            self.told = True
            if event.finish is not None:
                self.unfinished.discard(event.sample)
            if self._kept is not None:
                self._kept[event.sample] += event.text
                if event.finish is None:
                    return
                event = dataclasses.replace(event, text=self._kept[event.sample])
        try:
            self._loop.call_soon_threadsafe(self.events.put_nowait, event)
        except RuntimeError:  # the loop is closed: the server has gone without waiting
            self.abandoned = True


class Batcher:
    """Takes jobs from a queue in their order, as many as fit in a batch, and decodes them together.

    Jobs that come while a batch is decoded wait for its end. A job that is abandoned in the queue leaves it at once, in
    a batch with the next token.
    """

    def __init__(self, engine: Engine, config: ServingConfig, metrics: Metrics) -> None:
        self._engine, self._config, self._metrics = engine, config, metrics
        self._waiting: collections.deque[Job] = collections.deque()
        self._running: Sequence[Job] = ()
        self._changed = threading.Condition()
        self._stopping = False
        self._batch_seconds = 1.0
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)

    def start(self) -> None:
        """Starts the worker."""
        self._thread.start()

    def stop(self, seconds: float) -> bool:
        """Ends what waits and what runs with 503; whether the worker ended within `seconds`."""
        with self._changed:
            self._stopping = True
            ending = [*self._waiting, *self._running]
            self._waiting.clear()
            self._changed.notify_all()
        for job in ending:
            job.tell(shutting_down())
        if self._thread.ident is not None:
            self._thread.join(seconds)
        return not self._thread.is_alive()

    @property
    def alive(self) -> bool:
        """Whether the worker can answer."""
        return self._thread.is_alive()

    def __len__(self) -> int:
        """Jobs that wait."""
        return len(self._waiting)

    def check_room(self, beside: int = 0) -> None:
        """Raises APIError 429 if no more may wait; `beside` counts requests that are about to."""
        if len(self._waiting) + beside >= self._config.queue:
            raise queue_full(min(_LONGEST_RETRY, max(1, round(self._batch_seconds))))

    def submit(self, job: Job) -> None:
        """Puts a job at the queue's end.

        Raises:
            APIError: 429 if the queue is full, 503 if the batcher stops.
        """
        with self._changed:
            if self._stopping:
                raise shutting_down()
            self.check_room()
            self._waiting.append(job)
            self._changed.notify_all()

    def abandon(self, job: Job) -> None:
        """Nobody waits for the job any more."""
        with self._changed:
            job.abandoned = True
            if job in self._waiting:
                self._waiting.remove(job)

    def _work(self) -> None:
        while not self._stopping:
            jobs = self._take()
            if not jobs:
                continue
            started = time.monotonic()
            self._metrics.batch_rows.observe(sum(job.request.samples for job in jobs))
            self._metrics.running.set(len(jobs))
            for job in jobs:
                self._metrics.wait.observe(started - job.queued)
                job.tell(None)
            self._answer(jobs)
            self._running = ()
            self._metrics.running.set(0)
            self._batch_seconds = 0.5 * (self._batch_seconds + time.monotonic() - started)

    def _take(self) -> list[Job]:
        """The next batch; waits for one. Empty when the batcher stops, or when all that waited was abandoned."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._stopping)
            self._changed.wait_for(
                lambda: self._stopping or sum(job.request.samples for job in self._waiting) >= self._config.rows,
                self._config.window_seconds,
            )
            jobs: list[Job] = []
            room = self._config.rows
            while self._waiting and self._waiting[0].request.samples <= room:
                jobs.append(self._waiting.popleft())
                room -= jobs[-1].request.samples
            self._running = jobs
            return jobs

    def _answer(self, jobs: Sequence[Job]) -> None:
        """Decodes jobs together; those of a batch that fails before it says anything are tried one by one."""
        try:
            for piece in self._engine.stream_many(
                [job.request for job in jobs], cancelled=lambda number: self._stopping or jobs[number].abandoned
            ):
                job = jobs[piece.request]
                if not job.told:
                    self._metrics.first_piece.observe(time.monotonic() - job.queued)
                job.tell(piece)
        except Exception:  # whatever one batch runs into, the server goes on
            if len(jobs) > 1 and not any(job.told for job in jobs):
                _log.warning("a batch of %d requests failed; they are answered one by one", len(jobs))
                for job in jobs:
                    self._answer([job])
                return
            _log.exception("a batch failed")
        for job in jobs:
            if job.unfinished and not job.abandoned and not self._stopping:
                job.tell(failed())
