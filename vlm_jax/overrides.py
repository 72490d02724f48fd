"""Typed changes of an experiment from the command line: --stages.0.steps 10."""

import contextlib
import dataclasses
import difflib
import io
import re
import types
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

import tyro

from vlm_jax.config import Experiment
from vlm_jax.errors import UserError
from vlm_jax.serialise import from_plain, to_plain

T = TypeVar("T")


def apply_overrides(experiment: Experiment, arguments: Sequence[str]) -> Experiment:
    """The experiment with some fields changed.

    Args:
        experiment: gives every field its value unless it is overridden.
        arguments: "--model.decoder.layers", "4", …; dashes and underscores in names are the same. Where a field can be
            one of several configs, the name of one takes its place ("--model.adapter", "MLPAdapterConfig"), with its
            default values and what is said of its fields beside it ("--model.adapter.layers", "1").

    Raises:
        UserError: a field is unknown (with the nearest name) or a value has the wrong type.
    """
    return _changed(Experiment, experiment, arguments, "")


def _changed(kind: type[T], config: T, arguments: Sequence[str], where: str) -> T:
    """A config of a kind with some fields changed; `where` is its own name among the fields, with a dot behind it."""
    if not arguments:
        return config
    config, arguments = _replace_parts(kind, config, list(arguments), where)
    if not arguments:
        return config
    fields = field_names(config)
    for argument in arguments:
        name = _name(argument)
        if argument.startswith("--") and name not in fields:
            _unknown(config, argument, name, fields, where)
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(errors):
            return tyro.cli(
                kind,
                default=config,
                args=list(arguments),
                add_help=False,
                config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
            )
    except SystemExit:
        raise UserError(f"override {_joined(arguments, where)}: {_essence(errors.getvalue())}") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"override {_joined(arguments, where)}: {error}") from None


def _name(argument: str) -> str:
    return argument.split("=")[0].removeprefix("--").replace("-", "_")


def _joined(arguments: Sequence[str], where: str) -> str:
    return " ".join(f"--{where}{argument[2:]}" if argument.startswith("--") else argument for argument in arguments)


def _replace_parts(kind: type[T], config: T, arguments: list[str], where: str) -> tuple[T, list[str]]:
    """Carries out what tyro cannot: a whole part of the config left out (`--stages.1.validation None`), or put in
    another one's place (`--model.adapter MLPAdapterConfig`).
    """
    plain, rest = to_plain(config), []
    arguments = [part for argument in arguments for part in _halves(argument)]
    while arguments:
        argument = arguments.pop(0)
        *parents, last = _name(argument).split(".")
        part = _part_at(plain, parents)
        value = arguments[0] if arguments else None
        if not argument.startswith("--") or not isinstance(part, dict) or last not in part:
            rest.append(argument)
        elif value == "None" and (part[last] is None or isinstance(part[last], dict)):
            part[last] = None
            arguments.pop(0)
        elif choice := _choices(kind, plain, [*parents, last]).get(value or ""):
            arguments.pop(0)
            prefix = f"{_name(argument)}."
            own, arguments = _belonging(arguments, prefix)
            earlier, rest = _belonging(rest, prefix)
            part[last] = to_plain(_changed(choice, _default(choice, where + prefix), earlier + own, where + prefix))
        else:
            rest.append(argument)
    return from_plain(kind, plain, where.rstrip(".") or "experiment"), rest


def _halves(argument: str) -> list[str]:
    """--field=Value -> --field Value, where the value may be the name of a config."""
    name, equals, value = argument.partition("=")
    return [name, value] if name.startswith("--") and equals and value.isidentifier() else [argument]


def _belonging(arguments: Sequence[str], prefix: str) -> tuple[list[str], list[str]]:
    """(what is said of the fields below a prefix, without the prefix; the rest)."""
    own: list[str] = []
    rest: list[str] = []
    chosen = rest
    for argument in arguments:
        if argument.startswith("--"):
            chosen = own if _name(argument).startswith(prefix) else rest
            argument = f"--{argument[2 + len(prefix) :]}" if chosen is own else argument
        chosen.append(argument)
    return own, rest


def _default(kind: type[T], where: str) -> T:
    try:
        return kind()
    except TypeError as error:
        raise UserError(f"--{where.rstrip('.')} {kind.__name__}: {error}; write it in the experiment file") from None


def _choices(kind: Any, plain: Any, names: Sequence[str]) -> dict[str, Any]:
    """The configs, by name, that a field can be; empty where it can be one at most."""
    annotation: Any = kind
    for name in names:
        options = _configs_of(annotation)
        if isinstance(plain, dict):
            owner = options.get(plain.get("type", ""))
            if owner is None:
                return {}
            annotation = typing.get_type_hints(owner).get(name)
            plain = plain.get(name)
        elif isinstance(plain, list) and name.isdigit() and int(name) < len(plain):
            arguments = typing.get_args(annotation)
            annotation = arguments[0] if arguments[-1:] == (Ellipsis,) else arguments[int(name)]
            plain = plain[int(name)]
        else:
            return {}
    found = _configs_of(annotation)
    return found if len(found) > 1 or annotation not in found.values() else {}


def _configs_of(annotation: Any) -> dict[str, Any]:
    """The configs of an annotation, by name: itself, or those of its union."""
    options = typing.get_args(annotation) if typing.get_origin(annotation) in (typing.Union, types.UnionType) else ()
    classes: Any = [option for option in options or (annotation,) if dataclasses.is_dataclass(option)]
    return {option.__name__: option for option in classes}


def _part_at(plain: Any, names: Sequence[str]) -> Any:
    for name in names:
        try:
            plain = plain[int(name)] if isinstance(plain, list) else plain[name]
        except (LookupError, TypeError, ValueError):
            return None
    return plain


def field_names(config: Any) -> dict[str, object]:
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

    walk(to_plain(config), "")
    return names


def _unknown(config: Any, argument: str, name: str, fields: dict[str, object], where: str) -> None:
    """Raises UserError with the nearest name, or with the config that would have such a field."""
    nearest = difflib.get_close_matches(name, fields, n=1, cutoff=0.5)
    hint = f"did you mean --{where}{nearest[0]}?" if nearest else "--overrides lists all fields"
    plain, (*parents, last) = to_plain(config), name.split(".")
    owner, part = f"{where}{'.'.join(parents)}".rstrip("."), _part_at(plain, parents)
    if whole := _choices(type(config), plain, [*parents, last]):
        hint = f"--{where}{name} takes the name of a config: {', '.join(whole)}"
    elif owner and (part is None or (isinstance(part, dict) and "type" in part)):
        kind = part["type"] if part else "None"
        others = _choices(type(config), plain, parents) if parents else {}
        having = [other for other, one in others.items() if last in {f.name for f in dataclasses.fields(one)}]
        if having:
            hint = f"{owner} is {kind}; --{owner} {having[0]} makes it one that has this field"
        elif part and not nearest:
            hint = f"{owner} is {kind}, whose fields are {', '.join(key for key in part if key != 'type')}"
    raise UserError(f"unknown override --{where}{argument.split('=')[0].removeprefix('--')}; {hint}")


def _essence(message: str) -> str:
    """The words of tyro's boxed message on one line."""
    plain = re.sub(r"\x1b\[[0-9;]*m|[─│╭╮╰╯┌┐└┘|]", " ", message)
    words = re.sub(r"-{3,}", " ", plain).split("Argument helptext")[0].split()
    return " ".join(words)[:300] or "it cannot be read"
