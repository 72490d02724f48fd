"""Fetching pictures: from a real server, and never from this machine's own network."""

import http.server
import ipaddress
import threading
import time

import pytest

from vlm_jax.serving.errors import APIError
from vlm_jax.serving.remote import fetch, is_public

PICTURE = b"picture" * 1000


class _Pages(http.server.BaseHTTPRequestHandler):
    """/picture, /unnamed, /slow, /missing, and /to?ADDRESS that redirects."""

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        if path == "/to":
            self.send_response(302)
            self.send_header("Location", query)
            self.end_headers()
        elif path == "/slow":
            self.send_response(200)
            self.end_headers()
            for _ in range(50):
                self.wfile.write(b"x")
                time.sleep(0.1)
        elif path in ("/picture", "/unnamed"):
            self.send_response(200)
            if path == "/picture":
                self.send_header("Content-Length", str(len(PICTURE)))
            self.end_headers()
            self.wfile.write(PICTURE)
        else:
            self.send_error(404)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def pages():
    """The base address of a web server on the loopback interface."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Pages)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def loopback_too(address):
    return is_public(address) or address.is_loopback


def refused(url, permitted=loopback_too, limit=1 << 20, seconds=5.0):
    with pytest.raises(APIError) as caught:
        fetch(url, limit, seconds, permitted)
    assert caught.value.status == 400
    return caught.value.message


@pytest.mark.parametrize("path", ["/picture", "/unnamed", "/to?/picture", "/to?/to?/to?/picture"])
def test_a_picture_is_fetched(pages, path):
    assert fetch(pages + path, 1 << 20, 5.0, loopback_too) == PICTURE


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/missing", "answered 404"),
        ("/to?/to?/to?/to?/picture", "too often"),
        ("/to?file:///etc/hostname", "only plain http"),
        ("/to?gopher://127.0.0.1/", "only plain http"),
        ("/to?http://10.0.0.1/", "not in the public internet"),
        ("/to?http://169.254.169.254/latest/meta-data/", "not in the public internet"),
    ],
)
def test_what_is_not_fetched(pages, path, says):
    assert says in refused(pages + path)


def test_limits_of_size_and_time(pages):
    assert "larger than 100 bytes" in refused(f"{pages}/picture", limit=100)
    begun = time.monotonic()
    refused(f"{pages}/slow", seconds=0.5)
    assert time.monotonic() - begun < 2


def test_this_machine_is_not_asked(pages):
    assert "not in the public internet" in refused(f"{pages}/picture", is_public)
    port = pages.rsplit(":", 1)[1]
    for host in ("localhost", "[::1]", "0.0.0.0", "127.1", "2130706433", "[::ffff:127.0.0.1]"):
        said = refused(f"http://{host}:{port}/picture", is_public)
        assert "not in the public internet" in said or "cannot be fetched" in said


@pytest.mark.parametrize(
    "url", ["http://", "http://a:b@example.com/", "http://example.com:99999/", "http://[x]/", "ftp://x/"]
)
def test_addresses_that_are_none(url):
    refused(url)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1", False),
        ("fd00::1", False),
        ("ff02::1", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::a00:1", False),
        ("2002:7f00:1::", False),
    ],
)
def test_public_addresses(address, public):
    assert is_public(ipaddress.ip_address(address)) is public
