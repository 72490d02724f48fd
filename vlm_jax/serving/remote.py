"""Pictures from the web, where the operator allowed it: never from this machine or the network it stands in."""

import http.client
import ipaddress
import socket
import ssl
import time
import urllib.parse
from collections.abc import Callable

from vlm_jax.serving.errors import APIError, invalid

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_REDIRECTS = 3
_CHUNK = 1 << 16
_PORTS = {"http": 80, "https": 443}
_TRANSLATED = ipaddress.ip_network("64:ff9b::/96")


def is_public(address: Address) -> bool:
    """Whether an address lies in the public internet; IPv4 addresses inside IPv6 ones are looked at themselves."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo or (None,))[0]
        if inner is None and address in _TRANSLATED:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None and not is_public(inner):
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def fetch(url: str, limit: int, seconds: float, permitted: Callable[[Address], bool] = is_public) -> bytes:
    """The bytes at an http(s) address.

    The address that a name stands for is checked and then connected to, so that a name cannot mean something else the
    second time; the same for every redirect. Proxies that the environment names are not used.

    Args:
        url: http:// or https://.
        limit: bytes, at most.
        seconds: for all of it.
        permitted: which addresses may be connected to.

    Raises:
        APIError: 400 that says what is wrong and nothing of what stands there.
    """
    deadline = time.monotonic() + seconds
    try:
        for _ in range(_REDIRECTS + 1):
            result = _get(url, limit, deadline, permitted)
            if isinstance(result, bytes):
                return result
            url = urllib.parse.urljoin(url, result)
    except (OSError, http.client.HTTPException, ValueError):
        # ValueError: characters that a request line cannot hold, numbers that are none.
        raise _refused("it cannot be fetched") from None
    raise _refused("it redirects too often")


def _get(url: str, limit: int, deadline: float, permitted: Callable[[Address], bool]) -> bytes | str:
    """The body, or where a redirect leads."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in _PORTS or not parts.hostname or parts.username is not None:
        raise _refused("only plain http and https addresses are fetched")
    host, port = parts.hostname, parts.port or _PORTS[parts.scheme]
    connection = http.client.HTTPConnection(host, port)
    connection.sock = _connect(host, port, deadline, permitted)
    if parts.scheme == "https":
        connection.sock = ssl.create_default_context().wrap_socket(connection.sock, server_hostname=host)
    try:
        path = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
        name = f"[{host}]" if ":" in host else host
        default = port == _PORTS[parts.scheme]
        headers = {"Host": name if default else f"{name}:{port}", "Accept": "image/*", "User-Agent": "vlm-jax"}
        connection.request("GET", urllib.parse.quote(path, safe="/%?&=+:,;@~!$'()*-._"), headers=headers)
        _limit_wait(connection, deadline)
        response = connection.getresponse()
        location = response.getheader("Location")
        if response.status in (301, 302, 303, 307, 308) and location:
            return location
        if response.status != 200:
            raise _refused(f"its server answered {response.status}")
        return _read(connection, response, limit, deadline)
    finally:
        connection.close()


def _connect(host: str, port: int, deadline: float, permitted: Callable[[Address], bool]) -> socket.socket:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(entry[4][0]).split("%")[0] for entry in found]
    if not addresses or not all(permitted(ipaddress.ip_address(address)) for address in addresses):
        raise _refused("its address is not in the public internet")
    return socket.create_connection((addresses[0], port), timeout=_left(deadline))


def _read(
    connection: http.client.HTTPConnection, response: http.client.HTTPResponse, limit: int, deadline: float
) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while True:
        _limit_wait(connection, deadline)
        chunk = response.read1(_CHUNK)
        if not chunk:
            return b"".join(chunks)
        size += len(chunk)
        if size > limit:
            raise _refused(f"it is larger than {limit} bytes")
        chunks.append(chunk)


def _limit_wait(connection: http.client.HTTPConnection, deadline: float) -> None:
    left = _left(deadline)
    if connection.sock is not None:  # None once the server said that it closes: what is left comes by the response
        connection.sock.settimeout(left)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise _refused("it takes too long")
    return left


def _refused(why: str) -> APIError:
    return invalid(f"the picture's address: {why}", "messages", "invalid_image_url")
