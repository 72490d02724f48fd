"""Configs as JSON and back: a dataclass is written with its type's name, so that unions come back as they were."""

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar, Union, get_args, get_origin

from vlm_jax.errors import UserError

T = TypeVar("T")


def to_plain(value: Any) -> Any:
    """Configs -> JSON types; a dataclass becomes {"type": its name, field: value, …}."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"type": type(value).__name__, **fields}
    if isinstance(value, Mapping):
        return {str(key): to_plain(entry) for key, entry in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_plain(entry) for entry in value]
    return value


def from_plain(annotation: type[T], plain: Any, where: str = "config") -> T:
    """The inverse of `to_plain` for a value of the annotated type.

    Raises:
        UserError: naming the field that does not fit.
    """
    return _read(annotation, plain, where)


def to_json(value: Any) -> str:
    """`to_plain` as text."""
    return json.dumps(to_plain(value), indent=2, ensure_ascii=False) + "\n"


def differences(old: Any, new: Any, where: str = "") -> dict[str, tuple[Any, Any]]:
    """Where two plain configs differ: {"stages.0.steps": (10, 20), …}; a field of one only is None in the other."""
    if isinstance(old, dict) and isinstance(new, dict):
        pairs = [(key, old.get(key), new.get(key)) for key in sorted({*old, *new})]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = [(str(i), a, b) for i, (a, b) in enumerate(zip(old, new, strict=True))]
    else:
        return {} if old == new else {where: (old, new)}
    found: dict[str, tuple[Any, Any]] = {}
    for key, a, b in pairs:
        found |= differences(a, b, f"{where}.{key}" if where else key)
    return found


def _read(annotation: Any, plain: Any, where: str) -> Any:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return _read_union(arguments, plain, where)
    if dataclasses.is_dataclass(annotation):
        return _read_dataclass(annotation, plain, where)
    if origin is tuple:
        return _read_tuple(arguments, plain, where)
    if origin is typing.Literal:
        return _expect(plain in arguments, plain, f"one of {', '.join(map(str, arguments))}", where)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        _expect(isinstance(plain, dict), plain, "a mapping", where)
        return {key: _read(arguments[1], entry, f"{where}.{key}") for key, entry in plain.items()}
    if annotation is float:
        return float(_expect(isinstance(plain, (int, float)) and not isinstance(plain, bool), plain, "a number", where))
    if annotation in (int, str, bool, type(None)):
        return _expect(type(plain) is annotation, plain, f"of type {annotation.__name__}", where)
    raise TypeError(f"{where}: configs cannot hold {annotation}")


def _read_union(options: tuple[Any, ...], plain: Any, where: str) -> Any:
    if plain is None and type(None) in options:
        return None
    classes: dict[str, Any] = {
        getattr(option, "__name__", ""): option for option in options if dataclasses.is_dataclass(option)
    }
    if isinstance(plain, dict) and plain.get("type") in classes:
        return _read_dataclass(classes[plain["type"]], plain, where)
    rest = [option for option in options if option is not type(None) and not dataclasses.is_dataclass(option)]
    for option in rest:
        try:
            return _read(option, plain, where)
        except UserError:
            continue
    given = plain.get("type") if isinstance(plain, dict) else plain
    names = [getattr(option, "__name__", str(option)) for option in options]
    raise UserError(f"{where} is {given!r}; it can be {' or '.join(names)}")


def _read_dataclass(annotation: Any, plain: Any, where: str) -> Any:
    _expect(isinstance(plain, dict), plain, f"a {annotation.__name__}", where)
    given = {key: value for key, value in plain.items() if key != "type"}
    hints = typing.get_type_hints(annotation)
    names = [field.name for field in dataclasses.fields(annotation)]
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise UserError(f"{where} has no field {', '.join(unknown)}; {annotation.__name__} has {', '.join(names)}")
    try:
        return annotation(**{key: _read(hints[key], value, f"{where}.{key}") for key, value in given.items()})
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from None


def _read_tuple(arguments: tuple[Any, ...], plain: Any, where: str) -> tuple[Any, ...]:
    _expect(isinstance(plain, list), plain, "a list", where)
    if arguments[1:] == (...,):
        return tuple(_read(arguments[0], entry, f"{where}.{i}") for i, entry in enumerate(plain))
    _expect(len(plain) == len(arguments), plain, f"a list of {len(arguments)}", where)
    return tuple(
        _read(kind, entry, f"{where}.{i}") for i, (kind, entry) in enumerate(zip(arguments, plain, strict=True))
    )


def _expect(fits: bool, plain: Any, wanted: str, where: str) -> Any:
    if not fits:
        raise UserError(f"{where} is {plain!r}; it must be {wanted}")
    return plain
