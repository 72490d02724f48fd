"""The routes."""

import hashlib
import hmac
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vlm_jax.generation import Piece
from vlm_jax.serving import metrics
from vlm_jax.serving.body import discard_body, read_body
from vlm_jax.serving.errors import APIError, failed, unauthorised
from vlm_jax.serving.protocol import ChatRequest, parse_request
from vlm_jax.serving.responses import EventStream, error_response, event, model_card, unless_disconnected
from vlm_jax.serving.service import Run, Service

_PATHS = ("/health", "/metrics", "/v1/models", "/v1/chat/completions")
"""What is counted by name, so that no client can make up figures without end."""
_CLIENT_CLOSED = 499
"""Nobody reads this status but the server's own figures and log (nginx's number)."""
_UNREAD = 1 << 20

_log = logging.getLogger(__name__)


def create_app(service: Service) -> FastAPI:
    """The application that answers for a service."""
    # No pages that describe the API: they would load scripts from the web.
    app = FastAPI(title="vlm-jax", openapi_url=None, docs_url=None, redoc_url=None)
    app.add_middleware(_Account, service=service)
    app.add_exception_handler(APIError, _on_error(service))
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(ClientDisconnect, _on_hang_up)
    app.add_exception_handler(Exception, _on_fault)
    key = [Depends(_key_check(service.config.api_key))]

    @app.get("/health")
    async def health() -> Response:
        status = "ok" if service.healthy else "draining" if service.draining else "failed"
        return JSONResponse({"status": status}, status_code=200 if service.healthy else 503)

    @app.get("/metrics", dependencies=key)
    async def figures() -> Response:
        return Response(service.metrics.text(), headers={"Content-Type": metrics.CONTENT_TYPE})

    @app.get("/v1/models", dependencies=key)
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [model_card(service.name, service.created)]})

    @app.get("/v1/models/{name:path}", dependencies=key)
    async def model(name: str) -> Response:
        if name != service.name:
            raise APIError(404, f"there is no model {name[:100]!r}", code="model_not_found", param="model")
        return JSONResponse(model_card(service.name, service.created))

    @app.post("/v1/chat/completions", dependencies=key)
    async def chat_completions(request: Request) -> Response:
        return await _complete(service, request)

    return app


async def _complete(service: Service, http: Request) -> Response:
    config = service.config
    try:
        with service.admit():
            asked = parse_request(await read_body(http, config.body_bytes, config.body_seconds))
            run = await unless_disconnected(service.prepare(asked), http.receive)
    except APIError as error:
        if error.status != 408:  # whoever sends that slowly will not be waited for again
            await discard_body(http, config.body_bytes)
        raise
    if run is None:
        raise ClientDisconnect
    try:
        if not asked.stream:
            answers = await unless_disconnected(run.finish(), http.receive)
            if answers is None:
                raise ClientDisconnect
            return JSONResponse(run.completion.whole(answers))
        # The first piece is awaited here, so that what goes wrong before it is an error with a status of its own.
        pieces = run.pieces()
        first = await unless_disconnected(anext(pieces), http.receive)
        if first is None:
            raise ClientDisconnect
    except BaseException:
        run.close()
        raise
    return EventStream(_events(run, asked, first, pieces), config.answer_seconds, run.close)


async def _events(run: Run, asked: ChatRequest, first: Piece, pieces: AsyncIterator[Piece]) -> AsyncIterator[bytes]:
    """The stream of a request: per answer the role, its pieces and its end; then the usage, if asked, and [DONE]."""
    completion = run.completion
    begun: set[int] = set()
    try:
        async for piece in _with_first(first, pieces):
            if piece.sample not in begun:
                begun.add(piece.sample)
                yield event(completion.chunk(piece.sample, {"role": "assistant", "content": ""}))
            if piece.text:
                yield event(completion.chunk(piece.sample, {"content": piece.text}))
            if piece.finish is not None:
                yield event(completion.chunk(piece.sample, {}, piece.finish))
    except APIError as error:
        yield event(error.body())
        return
    if asked.stream_options is not None and asked.stream_options.include_usage:
        yield event(completion.usage_chunk(run.answers))
    yield event("[DONE]")


async def _with_first(first: Piece, rest: AsyncIterator[Piece]) -> AsyncIterator[Piece]:
    yield first
    async for piece in rest:
        yield piece


def _key_check(key: str) -> Callable[[Request], Awaitable[None]]:
    expected = hashlib.sha256(key.encode()).digest()

    async def check(request: Request) -> None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        # Digests have one length, so the time of the comparison tells nothing about the key. Headers come as Latin-1.
        same = hmac.compare_digest(hashlib.sha256(given.strip().encode("latin-1")).digest(), expected)
        if key and (scheme.lower() != "bearer" or not same):
            await discard_body(request, _UNREAD)
            raise unauthorised()

    return check


def _on_error(service: Service) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def respond(_: Request, error: Exception) -> Response:
        assert isinstance(error, APIError)
        service.metrics.rejected.labels(error.code or "invalid").inc()
        return error_response(error)

    return respond


async def _on_http_error(request: Request, error: Exception) -> Response:
    """Unknown paths and methods."""
    assert isinstance(error, HTTPException)
    code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code)
    what = f"{request.method} {request.url.path[:100]}: {str(error.detail).lower()}"
    response = error_response(APIError(error.status_code, what, code=code))
    response.headers.update(error.headers or {})
    return response


async def _on_fault(_: Request, error: Exception) -> Response:
    return error_response(failed())


async def _on_hang_up(_: Request, error: Exception) -> Response:
    return Response(status_code=_CLIENT_CLOSED)


class _Account:
    """Counts and logs every request by its path and status."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes everything on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        service, started, status = self._service, time.monotonic(), 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        service.active += 1
        try:
            await self._app(scope, receive, watched)
        finally:
            service.active -= 1
            path = scope["path"] if scope["path"] in _PATHS else "other"
            service.metrics.responses.labels(path, status).inc()
            _log.debug("%s %s %d %.2f s", scope["method"], path, status, time.monotonic() - started)
