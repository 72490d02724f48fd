"""Pictures of a request: what is one, and how large it may be."""

import struct
import zlib

import pytest
from clients import data_url, png

from vlm_jax.serving.config import ServingConfig
from vlm_jax.serving.errors import APIError
from vlm_jax.serving.images import read_picture


def bomb(width, height):
    """A PNG of a few bytes whose header promises very many pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["image/png", "IMAGE/PNG", "image/svg+xml;charset=utf-8"])
def test_the_bytes_of_a_data_url(kind):
    assert read_picture(data_url(png(), kind), "url", ServingConfig()).data == png()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "data URL"),
        ("picture.png", "data URL"),
        ("/etc/hostname", "data URL"),
        ("file:///etc/hostname", "data URL"),
        ("gs://bucket/picture.png", "data URL"),
        ("http://example.com/picture.png", "no remote pictures"),
        ("HTTPS://example.com/picture.png", "no remote pictures"),
        ("data:", "must begin with"),
        ("data:text/plain;base64,QQ==", "must begin with"),
        ("data:image/png,QQ==", "must begin with"),
        ("data:image/png;base64,", "empty"),
        ("data:image/png;base64,A", "base64"),
        ("data:image/png;base64,Q Q==", "base64"),
        ("data:image/png;base64,%%%%", "base64"),
        ("data:image/png;base64,жжжж", "base64"),
        (data_url(bomb(60_000, 60_000)), "60000 x 60000 pixels"),
        (data_url(bomb(2_147_483_647, 2_147_483_647)), "pixels"),
        (data_url(bytes(3000)), "larger than 2000 bytes"),
    ],
    ids=lambda value: value[:40],
)
def test_what_is_no_picture(url, says):
    with pytest.raises(APIError) as caught:
        read_picture(url, "messages[0].content[0].image_url.url", ServingConfig(picture_bytes=2000))
    assert (caught.value.status, caught.value.param) == (400, "messages[0].content[0].image_url.url")
    assert says in caught.value.message
