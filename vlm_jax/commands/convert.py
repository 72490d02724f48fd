"""`vlm convert`."""

import argparse
from collections.abc import Callable
from typing import Any

from vlm_jax.commands.common import add_command

_DESCRIPTION = """What comes in becomes a directory that --model takes everywhere; what goes out is read by transformers
and vLLM. DST must not exist, or be empty. Nothing is fetched from a network.

  vlm convert from-hf  path/to/SmolLM2 models/smollm2
  vlm convert from-gguf SmolLM2.gguf models/smollm2
  vlm convert from-onnx model.onnx models/dinov2
  vlm convert to-hf runs/quickstart exported"""

_IMPORTS = {
    "from-hf": (
        "Import a Hugging Face directory.",
        "local directory with config.json and safetensors",
        "  vlm convert from-hf path/to/SmolLM2 models/smollm2",
    ),
    "from-gguf": (
        "Import an LLM from a GGUF file.",
        ".gguf file",
        "  vlm convert from-gguf SmolLM2.gguf models/smollm2",
    ),
    "from-onnx": (
        "Import a DINOv2 image encoder from an ONNX file.",
        ".onnx file",
        "  vlm convert from-onnx model.onnx models/dinov2",
    ),
}
"""Direction -> (what it does, its source, an example)."""

_EXPORT_EXAMPLES = """  vlm convert to-hf runs/quickstart exported
  vlm convert to-hf runs/quickstart exported --part decoder"""


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand."""
    about = "Bring pre-trained models in, and trained ones out."
    parser = add_command(subparsers, "convert", about, _DESCRIPTION)
    directions = parser.add_subparsers(dest="direction", required=True, metavar="DIRECTION")
    for name, (about, source, example) in _IMPORTS.items():
        inward = add_command(directions, name, about, example)
        inward.add_argument("source", metavar="SRC", help=f"{source}, or package://NAME/FILE")
        inward.add_argument("target", metavar="DST", help="directory to make, which --model then takes")
        inward.add_argument(
            "--dtype", choices=("float32", "bfloat16"), help="keep parameters in this number format (as stored)"
        )
        inward.set_defaults(run=run_import)
    directions.choices["from-hf"].add_argument(
        "--part",
        choices=("model", "encoder", "decoder", "qformer"),
        default="model",
        help="take only this part of a vision-language model (model)",
    )
    directions.choices["from-onnx"].add_argument(
        "--prefix", metavar="P", help="where the encoder is in the exported module, such as backbone. (found by itself)"
    )
    outward = add_command(directions, "to-hf", "Export a model to a Hugging Face directory.", _EXPORT_EXAMPLES)
    outward.add_argument("source", metavar="SRC", help="model: whatever --model takes")
    outward.add_argument("target", metavar="DST", help="directory to make")
    outward.add_argument(
        "--part", choices=("model", "encoder", "decoder"), default="model", help="export only this part of it (model)"
    )
    outward.set_defaults(run=run_export)


def run_import(arguments: argparse.Namespace) -> None:
    """Converts into a step directory."""
    from vlm_jax.checkpoints.conversion import import_model

    with _Display("reading") as display:
        format: Any = arguments.direction.removeprefix("from-")
        config = import_model(
            arguments.source,
            arguments.target,
            format,
            part=getattr(arguments, "part", "model"),
            dtype=arguments.dtype,
            prefix=getattr(arguments, "prefix", None),
            progress=display,
        )
    print(_summary(config, arguments.target))


def run_export(arguments: argparse.Namespace) -> None:
    """Converts into a Hugging Face directory."""
    from vlm_jax.checkpoints.conversion import export_hf

    with _Display("writing") as display:
        config = export_hf(arguments.source, arguments.target, arguments.part, display)
    print(_summary(config, arguments.target))


def _summary(config: Any, target: str) -> str:
    import math

    import jax

    from vlm_jax.models.abstract import boxed_params, build_model

    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(boxed_params(build_model(config))))
    return f"{target}: {type(config).__name__.removesuffix('Config')} of {count / 1e6:,.1f} M parameters"


class _Display:
    """How many bytes are done: a bar on a terminal, else a line for each quarter."""

    def __init__(self, verb: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        self._console = Console(stderr=True)
        self._bar = Progress(*columns, console=self._console, disable=not self._console.is_terminal, transient=True)
        self._task = self._bar.add_task(verb, total=None)
        self._verb, self._told = verb, 0

    def __enter__(self) -> Callable[[int, int], None]:
        self._bar.start()
        return self._update

    def __exit__(self, *_: Any) -> None:
        self._bar.stop()

    def _update(self, done: int, total: int) -> None:
        self._bar.update(self._task, completed=done, total=total)
        quarter = 4 * done // max(total, 1)
        if quarter > self._told and not self._console.is_terminal:
            self._told = quarter
            self._console.print(f"{self._verb}: {done / 1e6:,.0f} of {total / 1e6:,.0f} MB")
