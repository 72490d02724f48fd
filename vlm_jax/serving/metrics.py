"""What /metrics tells, in Prometheus's text format."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
"""Of what `Metrics.text` gives."""

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The figures of one server; each server has its own registry, so several may run in one process."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.responses = Counter(
            "vlm_requests", "Requests by their HTTP status.", ["path", "status"], registry=registry
        )
        self.rejected = Counter("vlm_rejected", "Requests refused, by the error's code.", ["code"], registry=registry)
        self.hung_up = Counter("vlm_hung_up", "Requests whose client left before the end.", registry=registry)
        self.prompt_tokens = Counter("vlm_prompt_tokens", "Tokens of accepted prompts.", registry=registry)
        self.generated_tokens = Counter("vlm_generated_tokens", "Tokens of answers.", registry=registry)
        self.running = Gauge("vlm_running_requests", "Requests in the batch that is decoded now.", registry=registry)
        self.batch_rows = Histogram("vlm_batch_rows", "Rows of a batch.", buckets=_ROWS, registry=registry)
        self.wait = self._seconds("vlm_wait_seconds", "From the queue's end to the batch.")
        self.first_piece = self._seconds("vlm_first_piece_seconds", "From the queue's end to the first text.")
        self.answer = self._seconds("vlm_answer_seconds", "From the queue's end to the end of the answer.")

    def watch(self, name: str, what: str, value: Callable[[], float]) -> None:
        """A gauge that is read when somebody asks."""
        Gauge(name, what, registry=self._registry).set_function(value)

    def text(self) -> bytes:
        """All figures."""
        return generate_latest(self._registry)

    def _seconds(self, name: str, what: str) -> Histogram:
        return Histogram(name, what, buckets=_SECONDS, registry=self._registry)
