"""The key-value cache of a decoder: what generation keeps between tokens."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vlm_jax.models.memory import Memory


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeyValueCache:
    """Keys and values of T slots, in one order for all rows; a row's padding slots are not valid.

    Prompts of several lengths are padded at the end, prefilled together and continued in the same slots:

        slots      0 1 2 3 4 | 5 6 7      prompt of 5 slots, then one slot a generated token
        row 0      a b c d e | f g .
        row 1      a b c . . | d e .      slots 3, 4 stay invalid; positions of d, e are 3, 4
    """

    keys: tuple[Float[Array, "R B G K T"], ...]
    """One array for each block of the decoder's pattern; R = how often the pattern repeats. See `unrolled`."""
    values: tuple[Float[Array, "R B G T K"], ...]
    positions: Int[Array, "B T"]
    valid: Bool[Array, "B T"]
    used: Int[Array, ""]
    """The number of slots written; the next token goes here."""
    memory: Memory | None = None
    """What cross-attention reads of the rows' pictures, and what of it new tokens see; None = there is none."""

    @property
    def length(self) -> int:
        """T, the number of slots."""
        return self.positions.shape[1]

    def append(self, positions: Int[Array, "B S"], valid: Bool[Array, "B S"]) -> "KeyValueCache":
        """The same cache with the next S slots claimed; their keys and values are written by the blocks."""
        start = (0, self.used)
        return dataclasses.replace(
            self,
            positions=jax.lax.dynamic_update_slice(self.positions, positions, start),
            valid=jax.lax.dynamic_update_slice(self.valid, valid, start),
            used=self.used + positions.shape[1],
        )

    def unrolled(self) -> "KeyValueCache":
        """The same with an array for each layer, in their order, without R: what an unrolled decoder takes."""

        def split(stacks: tuple[Array, ...]) -> tuple[Array, ...]:
            repeats = stacks[0].shape[0]
            return tuple(stack[repeat] for repeat in range(repeats) for stack in stacks)

        memory = self.memory and self.memory.unrolled()
        return dataclasses.replace(self, keys=split(self.keys), values=split(self.values), memory=memory)

    def take_rows(self, rows: Int[Array, " Q"]) -> "KeyValueCache":
        """A cache whose row q is this one's row rows[q]: several continuations of one prompt share its prefill."""
        return dataclasses.replace(
            self,
            keys=tuple(jnp.take(keys, rows, axis=-4) for keys in self.keys),
            values=tuple(jnp.take(values, rows, axis=-4) for values in self.values),
            positions=self.positions[rows],
            valid=self.valid[rows],
            memory=self.memory and self.memory.take_rows(rows),
        )


def empty_cache(
    pattern: int, repeats: int, rows: int, length: int, heads: int, head_size: int, dtype: jnp.dtype
) -> KeyValueCache:
    """An empty cache: for each block of the pattern an array of keys and one of values."""

    def zeros(*shape: int) -> tuple[Array, ...]:
        return tuple(jnp.zeros((repeats, rows, heads, *shape), dtype) for _ in range(pattern))

    return KeyValueCache(
        keys=zeros(head_size, length),
        values=zeros(length, head_size),
        positions=jnp.zeros((rows, length), jnp.int32),
        valid=jnp.zeros((rows, length), bool),
        used=jnp.zeros((), jnp.int32),
    )
