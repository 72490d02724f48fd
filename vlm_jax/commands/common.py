"""Arguments and help texts that several subcommands share."""

import argparse
import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

OVERRIDES = """Any field of the experiment can be changed here by its name, such as --stages.0.steps 10 or
--model.decoder.layers 4; --overrides lists them all with their values."""


def add_command(
    subparsers: Any, name: str, help: str, description: str = "", overrides: bool = False
) -> argparse.ArgumentParser:
    """A subcommand's parser, with what all of them have."""
    text = f"{help}\n\n{description}".strip() + (f"\n\n{OVERRIDES}" if overrides else "")
    parser = subparsers.add_parser(
        name, help=help, description=text, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="also show what the libraries log")
    parser.set_defaults(takes_overrides=overrides)
    return parser


def add_experiment(
    parser: argparse.ArgumentParser, nargs: Any = None, metavar: str = "EXPERIMENT", or_else: str = ""
) -> None:
    """The positional experiment file, and --overrides; `or_else` says what may stand in the file's place."""
    file = "Python file that defines experiment(), see experiments/"
    parser.add_argument("experiment", nargs=nargs, metavar=metavar, help=f"{file}; or {or_else}" if or_else else file)
    parser.add_argument(
        "--overrides", dest="list_overrides", action="store_true", help="list every field with its value, and stop"
    )


def experiment_of(arguments: argparse.Namespace) -> Any:
    """The experiment with its overrides applied."""
    from vlm_jax.config import load_experiment
    from vlm_jax.overrides import apply_overrides

    return apply_overrides(load_experiment(arguments.experiment), arguments.overrides)


def listed_overrides(arguments: argparse.Namespace) -> bool:
    """Prints every field if that was asked for, and says whether it did."""
    if not arguments.list_overrides:
        return False
    from vlm_jax.overrides import field_names

    for name, value in field_names(experiment_of(arguments)).items():
        print(f"--{name.replace('_', '-')} {value!r}")
    return True


def set_tpu_flags(experiments: Iterable[Any]) -> None:
    """The compiler's flags for what this process is going to train; they count if jax has not started its backend."""
    from vlm_jax.parallel.xla_flags import attached_generation, set_flags

    trained = list(experiments)
    slices = max(experiment.mesh.slices for experiment in trained)
    set_flags(attached_generation(), slices, offload=any(experiment.offloads() for experiment in trained))


def add_compile_cache(parser: argparse.ArgumentParser) -> None:
    """--compile-cache; `generation.keep_compiled` takes it."""
    parser.add_argument(
        "--compile-cache",
        metavar="DIR",
        help="where compiled programs are kept between runs; none = nowhere "
        "(the variable JAX_COMPILATION_CACHE_DIR, or ~/.cache/vlm-jax)",
    )


def table_console() -> Any:
    """A rich console for tables and plain lines: as wide as the terminal, and wide where the output is no terminal."""
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=160)


@contextlib.contextmanager
def progress_bar(what: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar on stderr, where that is a terminal; calling what it gives moves it on by one."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda: progress.advance(task)
