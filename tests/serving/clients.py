"""Servers in this process, the real OpenAI client for them, and what it may ask."""

import base64
import contextlib

import cv2
import numpy as np
import openai

from data_pipelines.examples import Image
from vlm_jax.serving.config import ServingConfig
from vlm_jax.serving.server import running
from vlm_jax.serving.service import Service

ROWS = 4


@contextlib.contextmanager
def server(engine, **limits):
    """(service, client) of a server in this process, on a free port."""
    service = Service(engine, "tiny", ServingConfig(**{"rows": ROWS, "temperature": 0.0, **limits}))
    with running(service) as address, connect(address, service.config.api_key) as client:
        yield service, client


def connect(address, key=""):
    """The real client; it tries once."""
    return openai.OpenAI(base_url=f"{address}/v1", api_key=key or "none", max_retries=0, timeout=60)


def png(seed=0, size=(32, 32)):
    """A picture's file."""
    return cv2.imencode(".png", np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8))[1].tobytes()


def data_url(data, kind="image/png"):
    """A data URL."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def asked(text, *pictures):
    """One user's message with pictures by their bytes."""
    shown = [{"type": "image_url", "image_url": {"url": data_url(data)}} for data in pictures]
    return [{"role": "user", "content": [*shown, {"type": "text", "text": text}]}]


def images(*pictures):
    """Pictures as an engine takes them."""
    return [Image(data=data) for data in pictures]
