"""What trains, at which rate: a table of regular expressions over parameter names that must cover every parameter."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from flax import traverse_util

from vlm_jax.errors import UserError

Tree = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Rule:
    """One line of the table. The first rule whose pattern is found in a parameter's name decides."""

    pattern: str
    """Regular expression, searched in names such as "decoder/layers/block_0/attention/query/kernel"."""
    rate: float = 1.0
    """Multiplier of the learning rate; 0 = frozen: no gradient, no optimiser state."""
    weight_decay: float = 0.0
    """Decoupled weight decay (Loshchilov & Hutter 2019): this share of the parameter times the learning rate."""


def assign_rules(table: tuple[Rule, ...], params: Tree) -> dict[str, Rule]:
    """The rule of every parameter, by name.

    Args:
        table: rules, first match wins.
        params: a nested dictionary of arrays or abstract arrays.

    Raises:
        UserError: if a parameter has no rule (they are listed), or a pattern is not a regular expression.
    """
    try:
        patterns = [(re.compile(rule.pattern), rule) for rule in table]
    except re.error as error:
        raise UserError(
            f"optimizer.table: {error.pattern!r} is not a regular expression ({error}); correct it"
        ) from None
    rules: dict[str, Rule] = {}
    strays: list[str] = []
    for name in traverse_util.flatten_dict(dict(params), sep="/"):
        rule = next((rule for pattern, rule in patterns if pattern.search(name)), None)
        if rule is None:
            strays.append(name)
        else:
            rules[name] = rule
    if strays:
        listed = ", ".join(strays)
        raise UserError(f"optimizer.table: no rule matches {listed}; add one, with rate 0 for what shall be frozen")
    return rules


def split(params: Tree, rules: Mapping[str, Rule]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(trained, frozen): two nested dictionaries that together hold every parameter once."""
    flat = traverse_util.flatten_dict(dict(params), sep="/")
    trained = {name: leaf for name, leaf in flat.items() if rules[name].rate != 0}
    frozen = {name: leaf for name, leaf in flat.items() if rules[name].rate == 0}
    return traverse_util.unflatten_dict(trained, sep="/"), traverse_util.unflatten_dict(frozen, sep="/")


def merge(trained: Tree, frozen: Tree) -> dict[str, Any]:
    """The inverse of `split`."""
    flat = {**traverse_util.flatten_dict(dict(trained), sep="/"), **traverse_util.flatten_dict(dict(frozen), sep="/")}
    return traverse_util.unflatten_dict(flat, sep="/")
