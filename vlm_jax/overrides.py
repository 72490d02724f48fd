"""Typed changes of an experiment from the command line: --stages.0.steps 10."""

import contextlib
import difflib
import io
import re
from collections.abc import Sequence
from typing import Any

import tyro

from vlm_jax.config import Experiment
from vlm_jax.errors import UserError
from vlm_jax.serialise import from_plain, to_plain


def apply_overrides(experiment: Experiment, arguments: Sequence[str]) -> Experiment:
    """The experiment with some fields changed.

    Args:
        experiment: gives every field its value unless it is overridden.
        arguments: "--model.decoder.layers", "4", …; dashes and underscores in names are the same.

    Raises:
        UserError: a field is unknown (with the nearest name) or a value has the wrong type.
    """
    if not arguments:
        return experiment
    experiment, arguments = _leave_out(experiment, list(arguments))
    fields = field_names(experiment)
    for argument in arguments:
        name = argument.split("=")[0].removeprefix("--").replace("-", "_")
        if argument.startswith("--") and name not in fields:
            _unknown(argument, name, fields)
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(errors):
            return tyro.cli(
                Experiment,
                default=experiment,
                args=list(arguments),
                add_help=False,
                config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
            )
    except SystemExit:
        raise UserError(f"override {' '.join(arguments)}: {_essence(errors.getvalue())}") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"override {' '.join(arguments)}: {error}") from None


def _leave_out(experiment: Experiment, arguments: list[str]) -> tuple[Experiment, list[str]]:
    """Carries out what tyro cannot: `--stages.1.validation None`, a whole part of the config left out."""
    plain, rest = to_plain(experiment), []
    while arguments:
        argument = arguments.pop(0)
        *parents, last = argument.removeprefix("--").replace("-", "_").split(".")
        part = _part_at(plain, parents)
        if arguments[:1] == ["None"] and isinstance(part, dict) and isinstance(part.get(last), dict):
            part[last] = None
            arguments.pop(0)
        else:
            rest.append(argument)
    return from_plain(Experiment, plain, "experiment"), rest


def _part_at(plain: Any, names: Sequence[str]) -> Any:
    for name in names:
        try:
            plain = plain[int(name)] if isinstance(plain, list) else plain[name]
        except (LookupError, TypeError, ValueError):
            return None
    return plain


def field_names(experiment: Experiment) -> dict[str, object]:
    """Every field that can be overridden, by its dotted name, with its present value."""
    names: dict[str, object] = {}

    def walk(plain: object, prefix: str) -> None:
        if isinstance(plain, dict) and "type" in plain:
            for key, value in plain.items():
                if key != "type":
                    walk(value, f"{prefix}.{key}" if prefix else key)
        elif isinstance(plain, list) and plain and isinstance(plain[0], dict):
            for i, value in enumerate(plain):
                walk(value, f"{prefix}.{i}")
        else:
            names[prefix] = plain

    walk(to_plain(experiment), "")
    return names


def _unknown(argument: str, name: str, fields: dict[str, object]) -> None:
    nearest = difflib.get_close_matches(name, fields, n=1, cutoff=0.5)
    hint = f"did you mean --{nearest[0]}?" if nearest else "--overrides lists all fields"
    raise UserError(f"unknown override {argument.split('=')[0]}; {hint}")


def _essence(message: str) -> str:
    """The words of tyro's boxed message on one line."""
    plain = re.sub(r"\x1b\[[0-9;]*m|[─│╭╮╰╯┌┐└┘|]", " ", message)
    words = re.sub(r"-{3,}", " ", plain).split("Argument helptext")[0].split()
    return " ".join(words)[:300] or "it cannot be read"
