"""Reading a request's body within limits."""

import asyncio
import contextlib

from fastapi import Request
from starlette.requests import ClientDisconnect

from vlm_jax.serving.errors import slow_body, too_large

_DISCARDED = 8
"""Times the limit: what is read, and thrown away, of a body that is refused."""
_DISCARD_SECONDS = 10.0


async def read_body(request: Request, limit: int, seconds: float) -> bytes:
    """The body.

    Raises:
        APIError: 413 if it is larger than `limit` bytes, 408 if it does not arrive within `seconds`.
    """
    chunks, size = [], 0
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    break
                chunks.append(chunk)
    except TimeoutError:
        raise slow_body(seconds) from None
    if size > limit:
        chunks.clear()
        raise too_large(limit)
    return b"".join(chunks)


async def discard_body(request: Request, limit: int) -> None:
    """Reads what is left of a refused body, within limits.

    A connection that is closed over unread bytes is reset, and the client would see that and not the answer.
    """
    size = 0
    with contextlib.suppress(TimeoutError, ClientDisconnect, RuntimeError):  # RuntimeError: it was read before
        async with asyncio.timeout(_DISCARD_SECONDS):
            async for chunk in request.stream():
                size += len(chunk)
                if size > _DISCARDED * limit:
                    return
