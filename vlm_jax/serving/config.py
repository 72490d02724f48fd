"""What a server allows and how long it waits."""

import dataclasses
import math

from vlm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class ServingConfig:
    """Limits of a server. Each is a bound on what one client, or all of them together, can make it hold or do.

    Raises:
        UserError: if a limit is not positive, or a temperature is not between 0 and 2.
    """

    rows: int = 16
    """Answers that are decoded together; a request with n samples takes n rows."""
    queue: int = 64
    """Requests that may wait for a batch; past it, 429."""
    window_seconds: float = 0.005
    """How long a batch that is not full waits for more requests."""
    max_new_tokens: int = 2048
    """Longest answer that may be asked for, in tokens."""
    default_new_tokens: int = 512
    """Longest answer where a request gives no length, in tokens."""
    prompt_tokens: int = 8192
    """Longest prompt, in tokens; the model's own context may be shorter."""
    temperature: float = 1.0
    """Where a request gives none."""
    text_bytes: int = 1 << 20
    """All text of a request, in bytes of UTF-8."""
    body_bytes: int = 32 << 20
    """A request's body; past it, 413."""
    pictures: int = 16
    """Pictures of one request, over all its turns."""
    picture_bytes: int = 16 << 20
    """One picture's encoded file."""
    picture_pixels: int = 32_000_000
    """Height times width of one picture, read from its header before it is decoded."""
    body_seconds: float = 30.0
    """For the body to arrive; past it, 408."""
    wait_seconds: float = 60.0
    """In the queue; past it, 504."""
    answer_seconds: float = 300.0
    """From the request to the end of its answer; past it, 504."""
    drain_seconds: float = 30.0
    """For running requests to finish once the server was told to stop."""
    allow_remote_images: bool = False
    """Whether pictures may be http(s) addresses."""
    remote_seconds: float = 10.0
    """For one remote picture, redirects included."""
    api_key: str = dataclasses.field(default="", repr=False)
    """What clients must send as their bearer token; empty = nothing."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            lowest = 0 if field.name in ("window_seconds", "drain_seconds", "pictures", "temperature") else None
            if not math.isfinite(value) or value < 0 or (lowest is None and value == 0):
                least = "0 or more" if lowest == 0 else "more than 0"
                raise UserError(f"{field.name.replace('_', ' ')} is {value}: give {least}")
        if self.temperature > 2:
            raise UserError(f"temperature is {self.temperature}: give 0 (greedy) to 2")
