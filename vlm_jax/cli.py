"""The command line: `vlm SUBCOMMAND`. It parses, calls and prints; what a command does is in the packages."""

import argparse
import importlib
import importlib.metadata
import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vlm_jax.errors import Preempted, RunError, UserError, refused_by_disk

DONE, FAULT, WRONG_INPUT, PREEMPTED = 0, 1, 2, 75

_DESCRIPTION = """Vision-language models in JAX: train, evaluate and use them.

A first run:
  vlm train experiments/quickstart.py --workdir runs/quickstart
  vlm eval experiments/quickstart.py --workdir runs/quickstart
  vlm generate --model runs/quickstart --image picture.png --prompt "what shape is present?"
"""

_COMMANDS = ("train", "eval", "compare", "generate", "serve", "convert", "data", "ablate", "rehearse")
"""Each is a module of vlm_jax/commands with `add_parser(subparsers)`; the parser's default `run` does the work."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> None:  # type: ignore[override]
        """Raises UserError instead of printing the usage."""
        raise UserError(f"{message}; `{self.prog} --help` explains")


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point of `vlm`; exits with 0 done, 2 wrong input, 75 preempted after a complete save, 1 fault."""
    sys.unraisablehook = _report_unraisable
    _pass_over_absent_tpus()
    code = run(sys.argv[1:] if arguments is None else arguments)
    if code != DONE:  # threads of a save that failed may be at work yet, and would print over the one line
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _pass_over_absent_tpus(devices: Path = Path("/sys/bus/pci/devices")) -> None:
    """Where the TPU compiler is installed for rehearsals only, jax would look for TPUs, and complain at length.

    Nothing happens on machines with a device by Google (PCI vendor 0x1ae0), with a plug-in for other accelerators, or
    where JAX_PLATFORMS says what to use.
    """
    if "JAX_PLATFORMS" in os.environ or importlib.util.find_spec("libtpu") is None:
        return
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    vendors = (vendor.read_text().strip() for vendor in devices.glob("*/vendor"))
    if devices.exists() and not plugins and "0x1ae0" not in vendors:
        os.environ["JAX_PLATFORMS"] = "cpu"


def run(arguments: Sequence[str]) -> int:
    """Runs a command and returns its exit code."""
    try:
        parser = build_parser()
        parsed, rest = parser.parse_known_args(list(arguments))
        if rest and not getattr(parsed, "takes_overrides", False):
            raise UserError(f"unknown argument {rest[0]}; `vlm {parsed.command} --help` lists those there are")
        parsed.overrides = rest
        _set_up_logging(parsed.verbose)
        command: Callable[[argparse.Namespace], None] = parsed.run
        command(parsed)
    except UserError as error:
        return _fail(str(error), WRONG_INPUT)
    except Preempted as error:
        return _fail(str(error), PREEMPTED)
    except RunError as error:
        return _fail(str(error), FAULT)
    except KeyboardInterrupt:
        return _fail("interrupted; what was saved before stays usable", 130)
    except OSError as error:
        refused = refused_by_disk(error)
        if refused is None:
            raise
        return _fail(str(refused), WRONG_INPUT)
    return DONE


def build_parser() -> Parser:
    """The parser with all subcommands."""
    parser = Parser(prog="vlm", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in _COMMANDS:
        importlib.import_module(f"vlm_jax.commands.{name}").add_parser(subparsers)
    return parser


def _set_up_logging(verbose: bool) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    logging.getLogger("vlm_jax").setLevel(logging.DEBUG if verbose else logging.INFO)
    logging.getLogger("jax").setLevel(logging.INFO if verbose else logging.ERROR)
    for noisy in ("absl", "asyncio"):  # orbax logs through them, with a traceback, what it then raises
        logging.getLogger(noisy).setLevel(logging.INFO if verbose else logging.CRITICAL)


def _report_unraisable(unraisable: Any) -> None:
    """The usual report, but not of writes that orbax abandons when one of them has failed: that one is raised."""
    error = unraisable.exc_value
    if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
        sys.__unraisablehook__(unraisable)


def _fail(message: str, code: int) -> int:
    print(f"vlm: {' '.join(message.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
