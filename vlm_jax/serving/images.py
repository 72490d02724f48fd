"""Pictures of a request: from a data URL, or from the web where that is allowed, to checked bytes."""

import base64
import binascii
import re

from data_pipelines.examples import Image
from data_pipelines.image_files import size_in_header
from vlm_jax.serving.config import ServingConfig
from vlm_jax.serving.errors import APIError, invalid
from vlm_jax.serving.remote import fetch

_DATA = re.compile(r"data:image/[\w.+-]+(?:;[\w.+-]+=[\w.+-]*)*;base64,", re.ASCII | re.IGNORECASE)
_HEADER = 128
"""No data URL says more than this before its data."""


def read_picture(url: str, where: str, config: ServingConfig) -> Image:
    """The picture of a URL; whether it can be decoded is the engine's to check.

    Args:
        url: data:image/...;base64,... or http(s), where the config allows it.
        where: the field, for the message.
        config: the limits.

    Raises:
        APIError: 400, if it is no data URL of a picture, is larger than the limits, or may not be fetched.
    """
    if url[:5].lower() == "data:":
        data = _of_data_url(url, where)
    elif not url.lower().startswith(("http://", "https://")):
        raise invalid(f"{where}: give a data URL (data:image/png;base64,...)", where, "invalid_image_url")
    elif not config.allow_remote_images:
        message = f"{where}: this server fetches no remote pictures; send a data URL (data:image/png;base64,...)"
        raise invalid(message, where, "invalid_image_url")
    else:
        data = fetch(url, config.picture_bytes, config.remote_seconds)
    if not data:
        raise _bad("the picture is empty", where)
    if len(data) > config.picture_bytes:
        raise _bad(f"the picture is larger than {config.picture_bytes} bytes", where)
    size = size_in_header(data)
    if size is not None and size[0] * size[1] > config.picture_pixels:
        raise _bad(f"{size[0]} x {size[1]} pixels, at most {config.picture_pixels} are decoded", where)
    return Image(data=data)


def _of_data_url(url: str, where: str) -> bytes:
    header = _DATA.match(url[:_HEADER])
    if header is None:
        raise _bad("the data URL must begin with data:image/FORMAT;base64,", where)
    try:
        return base64.b64decode(url[header.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise _bad("the data URL is not valid base64", where) from None


def _bad(why: str, where: str) -> APIError:
    return invalid(f"{where}: {why}", where, "invalid_image")
