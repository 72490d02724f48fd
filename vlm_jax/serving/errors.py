"""Errors in the shape that OpenAI's clients read: {"error": {"message", "type", "param", "code"}}."""

from typing import Any


class APIError(Exception):
    """A request that cannot be answered; the message is for the client, so it names nothing of this machine."""

    def __init__(
        self, status: int, message: str, *, code: str | None = None, param: str | None = None, retry_after: int = 0
    ) -> None:
        super().__init__(message)
        self.status = status
        """The HTTP status."""
        self.message, self.code, self.param = message, code, param
        self.retry_after = retry_after
        """Seconds after which another try makes sense; 0 = nothing is known."""

    @property
    def headers(self) -> dict[str, str]:
        """HTTP headers that belong to it."""
        headers = {"Retry-After": str(self.retry_after)} if self.retry_after else {}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return headers

    def body(self) -> dict[str, Any]:
        """The response's JSON."""
        return {"error": {"message": self.message, "type": _type(self.status), "param": self.param, "code": self.code}}


def _type(status: int) -> str:
    special = {401: "authentication_error", 429: "rate_limit_error", 504: "timeout_error", 408: "timeout_error"}
    return special.get(status, "server_error" if status >= 500 else "invalid_request_error")


def invalid(message: str, param: str | None = None, code: str | None = None) -> APIError:
    """400: the request is not what the server can read."""
    return APIError(400, message, code=code, param=param)


def unauthorised() -> APIError:
    """401: no key, or a wrong one."""
    return APIError(401, "missing or wrong API key: send it as Authorization: Bearer KEY", code="invalid_api_key")


def too_large(limit: int) -> APIError:
    """413: the body is over the limit (bytes)."""
    return APIError(413, f"the request is larger than {limit} bytes", code="request_too_large")


def slow_body(seconds: float) -> APIError:
    """408: the body did not arrive."""
    return APIError(408, f"the request did not arrive within {seconds:g} s", code="request_timeout")


def queue_full(retry_after: int) -> APIError:
    """429: as many requests wait as may."""
    return APIError(
        429, f"too many requests are waiting; try again in {retry_after} s", code="queue_full", retry_after=retry_after
    )


def timed_out(what: str, seconds: float) -> APIError:
    """504: an answer took too long."""
    return APIError(504, f"{what} took longer than {seconds:g} s", code="timeout")


def shutting_down() -> APIError:
    """503: the server drains."""
    return APIError(503, "the server is shutting down; try again later", code="shutting_down", retry_after=5)


def failed() -> APIError:
    """500: a fault of the server; what it was stands in the server's own log."""
    return APIError(500, "the server failed to answer; its log says why", code="internal_error")
