"""The table of what trains: it covers every parameter, the first match wins, and rate 0 leaves a parameter alone."""

import jax.numpy as jnp
import pytest
from flax import traverse_util

from vlm_jax.errors import UserError
from vlm_jax.optim import Rule, assign_rules, merge, split

PARAMS = {
    "encoder": {"stem": {"kernel": jnp.ones(2)}, "norm": {"scale": jnp.ones(3)}},
    "decoder": {"embedding": jnp.ones(4), "norm": {"scale": jnp.ones(5)}},
}


def test_the_first_match_wins():
    table = (Rule("^decoder/.*norm", rate=0.5), Rule("norm", rate=0.1), Rule("encoder"), Rule(".*", rate=0))
    rules = assign_rules(table, PARAMS)
    assert {name: rule.rate for name, rule in rules.items()} == {
        "encoder/stem/kernel": 1.0,
        "encoder/norm/scale": 0.1,
        "decoder/embedding": 0,
        "decoder/norm/scale": 0.5,
    }


def test_parameters_without_a_rule_are_listed():
    with pytest.raises(UserError) as caught:
        assign_rules((Rule("kernel"), Rule("embedding")), PARAMS)
    message = str(caught.value)
    assert "encoder/norm/scale" in message
    assert "decoder/norm/scale" in message
    assert "kernel" not in message
    assert "\n" not in message


def test_a_pattern_that_is_no_regular_expression_is_named():
    with pytest.raises(UserError, match=r"'\(norm'.*regular expression"):
        assign_rules((Rule("(norm"),), PARAMS)


def test_split_and_merge_hold_every_parameter_once():
    rules = assign_rules((Rule("norm", rate=0), Rule(".*")), PARAMS)
    trained, frozen = split(PARAMS, rules)
    names = [set(traverse_util.flatten_dict(tree, sep="/")) for tree in (trained, frozen)]
    assert names == [{"encoder/stem/kernel", "decoder/embedding"}, {"encoder/norm/scale", "decoder/norm/scale"}]
    together = traverse_util.flatten_dict(merge(trained, frozen), sep="/")
    assert all(together[name] is leaf for name, leaf in traverse_util.flatten_dict(PARAMS, sep="/").items())
