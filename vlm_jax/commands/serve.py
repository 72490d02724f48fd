"""`vlm serve`."""

import argparse
import os
import re
import sys
from typing import Any

from vlm_jax.commands.common import add_command, add_compile_cache
from vlm_jax.errors import UserError
from vlm_jax.serving.config import ServingConfig

_DESCRIPTION = """An HTTP server for OpenAI's clients: /v1/chat/completions (pictures as data URLs, streaming or not),
/v1/models, /health, and /metrics for Prometheus. Requests that wait are answered together, as one batch.

It listens on this machine only. With --host it listens elsewhere, and then clients must send an API key: the first line
of --api-key-file, or the environment variable VLM_API_KEY. SIGTERM or Ctrl-C lets running requests finish.

  vlm serve --model runs/quickstart --port 8000
  vlm serve --model runs/quickstart --host 0.0.0.0 --api-key-file key.txt"""

_LOOPBACK = ("127.0.0.1", "localhost", "::1")

_LIMITS: dict[str, tuple[str, type, str, str]] = {
    "rows": ("rows", int, "N", "answers decoded together"),
    "queue": ("queue", int, "N", "requests that may wait; past it, 429"),
    "batch-wait-ms": ("window_seconds", float, "MS", "how long a batch that is not full waits for more"),
    "max-new-tokens": ("max_new_tokens", int, "N", "longest answer that may be asked for, in tokens"),
    "default-new-tokens": ("default_new_tokens", int, "N", "longest answer where a request gives no length, in tokens"),
    "max-prompt-tokens": ("prompt_tokens", int, "N", "longest prompt in tokens"),
    "temperature": ("temperature", float, "T", "where a request gives none; 0 = greedy"),
    "max-body-mb": ("body_bytes", float, "MB", "largest request; past it, 413"),
    "max-pictures": ("pictures", int, "N", "pictures of a request"),
    "max-megapixels": ("picture_pixels", float, "N", "largest picture"),
    "wait-seconds": ("wait_seconds", float, "S", "longest wait in the queue; past it, 504"),
    "answer-seconds": ("answer_seconds", float, "S", "longest answer, waiting included; past it, 504"),
    "drain-seconds": ("drain_seconds", float, "S", "for running requests to finish after SIGTERM"),
}
"""Option: (field of ServingConfig, type, placeholder, help)."""

_UNITS = {"window_seconds": 1e-3, "body_bytes": float(1 << 20), "picture_pixels": 1e6}
"""One unit of the option in the field's own unit."""


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = add_command(subparsers, "serve", "Serve a model to OpenAI's clients over HTTP.", _DESCRIPTION)
    parser.add_argument("--model", required=True, metavar="REF", help="what `vlm generate --model` takes")
    parser.add_argument("--name", metavar="NAME", help="what clients call the model; by default the end of REF")
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="where to listen (127.0.0.1)")
    parser.add_argument(
        "--port", type=int, default=8000, metavar="PORT", help="where to listen; 0 = any free one (8000)"
    )
    parser.add_argument("--api-key-file", metavar="FILE", help="file with the key that clients must send")
    parser.add_argument(
        "--allow-remote-images",
        action="store_true",
        help="fetch pictures from http(s) addresses of the public internet",
    )
    for option, (field, type_, placeholder, what) in _LIMITS.items():
        default = getattr(ServingConfig, field) / _UNITS.get(field, 1)
        parser.add_argument(f"--{option}", type=type_, metavar=placeholder, help=f"{what} ({default:g})")
    add_compile_cache(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Serves until it is told to stop."""
    key = _api_key(arguments.api_key_file)
    if arguments.host not in _LOOPBACK and not key:
        raise UserError(
            f"--host {arguments.host} lets others in: give a key with --api-key-file FILE or the variable VLM_API_KEY"
        )
    from vlm_jax.serving.server import bind, serve
    from vlm_jax.serving.service import Service

    limits = {field: getattr(arguments, option.replace("-", "_")) for option, (field, *_) in _LIMITS.items()}
    given: dict[str, Any] = {field: _in_units(field, value) for field, value in limits.items() if value is not None}
    config = ServingConfig(**given, allow_remote_images=arguments.allow_remote_images, api_key=key)
    bound = bind(arguments.host, arguments.port)  # before the model is loaded: a port that is taken shows at once
    name = arguments.name or _name_of(arguments.model)

    from vlm_jax.checkpoints.reference import load_model
    from vlm_jax.generation import Buckets, Engine, keep_compiled

    keep_compiled(arguments.compile_cache)
    model = load_model(arguments.model)
    engine = Engine(model.config, model.params, model.processor, config.rows, buckets=Buckets(coarse=True))
    service = Service(engine, name, config)
    service.warm_up()
    host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
    address = f"http://{host}:{bound.getsockname()[1]}/v1"
    if not serve(service, bound, lambda: print(f"serving {name} at {address}", flush=True)):
        # The worker is inside a computation that cannot be broken off, and all that clients wait for is done.
        sys.stderr.flush()
        os._exit(0)


def _api_key(path: str | None) -> str:
    """The key that clients must send; '' = none."""
    if path is None:
        return os.environ.get("VLM_API_KEY", "").strip()
    try:
        with open(path, encoding="utf-8") as file:
            key = file.readline().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--api-key-file {path}: {getattr(error, 'strerror', None) or 'not text'}") from None
    if not key:
        raise UserError(f"--api-key-file {path}: its first line is empty; put the key there")
    return key


def _name_of(reference: str) -> str:
    """package://NAME/FILE.gguf -> FILE, runs/first/ -> first: nothing of where it lies."""
    end = os.path.basename(os.path.abspath(reference) if "://" not in reference else reference.rstrip("/"))
    return re.sub(r"\.gguf$", "", end) or "model"


def _in_units(field: str, value: float) -> Any:
    return type(getattr(ServingConfig, field))(value * _UNITS[field]) if field in _UNITS else value
