"""What blocks keep for their backward pass, by name; the rest is computed again (Chen et al. 2016, section 3).

Some results in a block carry names, and a policy says which of them stay, and where: in the device's memory, or in its
host's until the backward pass asks for them. A block of width D with H heads of size K, G heads of keys and values, and
an MLP of M, keeps of each position its input (D numbers) and besides it:

    policy            numbers kept                  products computed again in the backward pass
    none              all that gradients need       none
    full              0                             all but the MLP's last
    save_attention    HK                            all but attention and the MLP's last
    save_qkv          2HK + 2GK                     attention's map out; the MLP but for its last
    save_all_but_mlp  2HK + 2GK + D                 the MLP but for its last
    save_products     2HK + 2GK + D + 2M            none
    save_weight_dots  HK + 2GK + D + 2M             attention
    save_dots         that, HK and HS of scores     none
    offload_...       as save_..., on the host      as save_...

Where names are kept, "attention" is what a kernel needs so as not to run again: its output, and the log-sum-exp of each
head, one float32. XLA's attention over S positions has no such thing: it computes the scores again, unless save_dots
keeps them, or none in rows that are not so long that queries go group by group.
"""

from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

RematPolicy = Literal[
    "none",
    "full",
    "save_attention",
    "save_qkv",
    "save_all_but_mlp",
    "save_products",
    "save_weight_dots",
    "save_dots",
    "offload_attention",
    "offload_qkv",
    "offload_products",
]
"""What a block keeps for its backward pass: the module's docstring has a table, docs/speed.md says which to take."""

Name = Literal["query", "key", "value", "attention", "attention_out", "mlp_up", "mlp_gate"]
"""Results in a block: queries, keys and values as attention takes them (normed, turned), what attention gives, its map
to the width, and the one or two products that the MLP begins with."""

_ATTENTION: tuple[Name, ...] = ("attention",)
_QKV: tuple[Name, ...] = ("query", "key", "value", *_ATTENTION)
_ALL_BUT_MLP: tuple[Name, ...] = (*_QKV, "attention_out")
_PRODUCTS: tuple[Name, ...] = (*_ALL_BUT_MLP, "mlp_up", "mlp_gate")


def _save(names: tuple[Name, ...]) -> Callable[..., Any]:
    policy: Callable[..., Any] = jax.checkpoint_policies.save_only_these_names(*names)
    return policy


def _offload(names: tuple[Name, ...]) -> Callable[..., Any]:
    policy: Callable[..., Any] = jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=list(names),
        offload_src="device",
        offload_dst="pinned_host",
    )
    return policy


_POLICIES: dict[str, Callable[..., Any]] = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "save_attention": _save(_ATTENTION),
    "save_qkv": _save(_QKV),
    "save_all_but_mlp": _save(_ALL_BUT_MLP),
    "save_products": _save(_PRODUCTS),
    "save_weight_dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "save_dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_saveable, _save(_ATTENTION)
    ),
    "offload_attention": _offload(_ATTENTION),
    "offload_qkv": _offload(_QKV),
    "offload_products": _offload(_PRODUCTS),
}


def remat(block: Any, policy: RematPolicy) -> Any:
    """The same module class, which recomputes in its backward pass what `policy` does not keep."""
    if policy == "none":
        return block
    return nn.remat(block, prevent_cse=False, policy=_POLICIES[policy])


def named(name: Name, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The same array, which policies know by this name."""
    y: Array = checkpoint_name(x, name)
    return y
