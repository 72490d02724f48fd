"""The vision-language model: encoder -> adapter -> decoder; without encoder and adapter it is a text-only LLM."""

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from vlm_jax.batch import Batch
from vlm_jax.models.adapters import AdapterConfig
from vlm_jax.models.cache import KeyValueCache
from vlm_jax.models.decoder import Decoder, DecoderConfig
from vlm_jax.models.encoders import EncoderConfig, build_encoder, check_tiling, normalise, run_encoder, slots_together
from vlm_jax.models.insertion import Inserted
from vlm_jax.models.layers import Precision
from vlm_jax.models.masks import reference_mask, within_window
from vlm_jax.models.memory import Memory
from vlm_jax.models.placement import constrain
from vlm_jax.models.sight import Kernel, RowSight, row_sights
from vlm_jax.pictures import Pictures, Tiling


@dataclasses.dataclass(frozen=True)
class PromptLayout:
    """What an imported model expects of its prompt."""

    image_token: int
    """Id that stands where visual tokens go, once for each of them."""
    bidirectional: Literal["none", "images", "prompt"] = "none"
    """Who sees each other in both directions: nobody, the visual tokens of one picture, or the whole prompt with its
    pictures (PaliGemma, section 3.2.1).
    """
    first_position: int = 0
    """Position of the first token; PaliGemma counts from 1."""


@dataclasses.dataclass(frozen=True)
class VLMConfig:
    """What the model is made of. Owns what its parts share: the number formats."""

    decoder: DecoderConfig = dataclasses.field(default_factory=DecoderConfig)
    encoder: EncoderConfig | None = None
    adapter: AdapterConfig | None = None
    tiling: Tiling | None = None
    """How pictures larger than the encoder's are cut; None = every picture goes in whole."""
    precision: Precision = Precision()
    layout: PromptLayout | None = None
    """Of an imported model; None = trained here, with a prompt as its template makes it."""

    def __post_init__(self) -> None:
        if (self.encoder is None) != (self.adapter is None):
            raise ValueError("VLMConfig: give both encoder and adapter, or neither (a text-only LLM)")
        if self.encoder is not None:
            check_tiling(self.encoder, self.tiling)
        if self.tiling is not None and self.encoder is None:
            raise ValueError("VLMConfig: tiling is set, but there is no encoder whose tiles pictures could be cut into")
        pictures = self.pictures  # refuses thumbnails in the sequence where there are none
        if self.separator and 0 in pictures.token_grid:
            raise ValueError(
                "VLMConfig: tiling.separator ends rows of visual tokens, but this adapter's tokens form no rows; leave "
                "it off, or choose an adapter that keeps the grid"
            )
        if self.encoder is not None and self.adapter is not None:
            self.adapter.check(self.encoder.features, self.decoder)

    @property
    def separator(self) -> bool:
        """Whether an image slot gives a separator of rows besides its visual tokens."""
        return self.tiling is not None and self.tiling.separator

    @property
    def prompt_tokens(self) -> int:
        """N, the visual tokens that an image slot gives to the sequence, a separator included; 0 = none."""
        if self.encoder is None or self.adapter is None:
            return 0
        return self.adapter.prompt_tokens(self.encoder.features) + self.separator

    @property
    def memory_tokens(self) -> int:
        """M, the keys and values that an image slot gives to cross-attention; 0 = there is none."""
        if self.encoder is None or self.adapter is None:
            return 0
        return self.adapter.memory_tokens(self.encoder.features)

    @property
    def pictures(self) -> Pictures:
        """What the packer must know of the model besides `prompt_tokens` and `image_size`."""
        if self.encoder is None or self.adapter is None:
            return Pictures()
        return dataclasses.replace(self.adapter.pictures(self.encoder.features), tiling=self.tiling)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the pictures that the model takes; (0, 0) for a text-only LLM."""
        return self.encoder.image_size if self.encoder else (0, 0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Output:
    """What a forward pass gives: logits or hidden states, as asked, and named extras."""

    logits: Float[Array, "B S V"] | None = None
    hidden: Float[Array, "B S D"] | None = None
    aux: dict[str, Any] = dataclasses.field(default_factory=dict)


class VLM(nn.Module):
    """`VLM(config).apply({'params': params}, batch) -> Output`."""

    config: VLMConfig
    unrolled: bool = False
    """The decoder's: what it is for is written there."""
    kernel: Kernel = "xla"
    """Of self-attention over packed rows; "splash" is for rows without branches and blocks. Attention over a cache has
    one way only."""
    interpret: bool = False
    """Pallas kernels are run by jax's interpreter, where there is no TPU; for tests."""

    def setup(self) -> None:
        c = self.config
        self.decoder = Decoder(c.decoder, c.precision, self.unrolled)
        if c.encoder is not None and c.adapter is not None:
            self.encoder = build_encoder(c.encoder, c.precision)
            self.adapter = c.adapter.build_for(c.encoder.features, c.decoder, c.precision, c.separator)

    def __call__(self, batch: Batch, output: Literal["logits", "hidden"] = "logits") -> Output:
        """One forward pass over packed rows.

        Args:
            batch: packed rows (`vlm_jax/batch.py`).
            output: "logits" float32[B, S, V], or "hidden" [B, S, D] for a loss that unembeds in chunks.
        """
        x, memory = self.read(batch)
        hidden, _ = self.decoder(x, batch.positions, self._masks(batch), None, self._inserted(memory))
        if output == "hidden":
            return Output(hidden=hidden)
        return Output(logits=self.decoder.unembed(hidden))

    def hidden_states(self, batch: Batch) -> tuple[Float[Array, "B S D"], ...]:
        """What the decoder makes of packed rows layer by layer (`Decoder.hidden_states`)."""
        x, memory = self.read(batch)
        return self.decoder.hidden_states(x, batch.positions, self._masks(batch), self._inserted(memory))

    def encode(
        self, images: UInt8[Array, "N H W 3"], tile_index: Int[Array, "N 3"] | None = None
    ) -> Float[Array, "N P D"]:
        """Image slots -> the encoder's features, which `Batch.features` may carry in place of pictures.

        Args:
            images: pixels.
            tile_index: of the slots, for encoders whose tiles see each other (`encoders.slots_together` in a row).
        """
        encoder = self.config.encoder
        if encoder is None:
            raise ValueError("VLM: this model has no image encoder, but the batch holds pictures; give it text only")
        return run_encoder(self.encoder, normalise(images, encoder), tile_index)

    def embed(self, batch: Batch) -> Float[Array, "B S D"]:
        """Input embeddings: token embeddings, with visual tokens where `visual_index` says so."""
        return self.read(batch)[0]

    def read(self, batch: Batch) -> tuple[Float[Array, "B S D"], Memory | None]:
        """Input embeddings, and what cross-attention reads of the pictures, if the model has it and there are any."""
        x = self.decoder.embed(batch.tokens)
        features = batch.features
        if batch.images is not None:
            rows, slots = batch.images.shape[:2]
            together = 1 if self.config.encoder is None else slots_together(self.config.encoder)
            if slots % together:
                raise ValueError(f"VLM: rows have {slots} image slots, but pictures take {together} each")
            tiles = None if batch.tile_index is None else batch.tile_index.reshape(-1, 3)
            images = batch.images.reshape(rows * slots, *batch.images.shape[2:])
            encoded = self.encode(constrain(images, ("pictures", None, None, None)), tiles)
            features = encoded.reshape(rows, slots, *encoded.shape[1:])
        if features is None:
            return x, None
        rows, slots = features.shape[:2]
        instructions = batch.instructions
        if instructions is not None:
            instructions = instructions.reshape(rows * slots, -1)
        flat = constrain(features.reshape(rows * slots, *features.shape[2:]), ("pictures", "patches", "act_embed"))
        memory = None
        if self.config.memory_tokens:
            memory = Memory(self.adapter.sight(batch), _of_rows(self.adapter.remember(flat, instructions), rows))
        if not self.config.prompt_tokens:
            return x, memory
        visual = _of_rows(self.adapter(flat, instructions), rows)
        index = batch.visual_index
        assert index is not None, "a batch with pictures has a visual_index"
        gathered = jnp.take_along_axis(visual, jnp.maximum(index, 0)[:, :, None], axis=1)
        x = jnp.where((index >= 0)[:, :, None], gathered.astype(x.dtype), x)
        return constrain(x, ("batch", "length", "act_embed")), memory

    def _inserted(self, memory: Memory | None) -> Inserted | None:
        return self.adapter.inserted(memory) if self.config.memory_tokens else None

    def unembed(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Hidden states -> logits, float32."""
        return self.decoder.unembed(hidden)

    def prefill(self, batch: Batch, length: int) -> tuple[Float[Array, "B S D"], KeyValueCache]:
        """Runs prompts and keeps their keys and values in a new cache of `length` slots, length >= S."""
        x, cache = self.begin(batch, length)
        return self.prefill_part(x, batch, 0, cache)

    def begin(self, batch: Batch, length: int) -> tuple[Float[Array, "B S D"], KeyValueCache]:
        """Input embeddings of prompts, and a cache of `length` slots that holds nothing but the memory of pictures.

        The memory's keys and values are made here, once; what continues a prompt sees what its last token sees.
        """
        x, memory = self.read(batch)
        cache = self.empty_cache(batch.tokens.shape[0], length)
        if memory is None:
            return x, cache
        real = jnp.asarray(batch.segment_ids) != 0
        last = (jnp.arange(real.shape[1]) * real).max(1)
        kept = self.adapter.keep(dataclasses.replace(memory, sight=memory.sight.at(last)))
        return x, dataclasses.replace(cache, memory=kept)

    def prefill_part(
        self, x: Float[Array, "B C D"], batch: Batch, start: int | Int[Array, ""], cache: KeyValueCache
    ) -> tuple[Float[Array, "B C D"], KeyValueCache]:
        """Runs C positions of prompts from `start` on; the cache holds all before. No block may go past its part.

        Args:
            x: embeddings of these positions, a slice of `embed(batch)`.
            batch: whole prompts.
            start: a multiple of C.
            cache: with at least S slots, of which `start` are used; `begin` makes it.
        """
        count, length = x.shape[1], batch.tokens.shape[1]
        widen = ((0, 0), (0, 0), (0, cache.length - length))
        pattern = self.config.decoder.pattern
        masks = tuple(jnp.pad(reference_mask(batch, block.window, start, count), widen) for block in pattern)

        def part(plane: Array) -> Array:
            return jax.lax.dynamic_slice_in_dim(jnp.asarray(plane), start, count, axis=1)

        positions = part(batch.positions)
        memory = cache.memory
        if memory is not None:
            memory = dataclasses.replace(memory, sight=self.adapter.sight(batch).part(start, count))
        return self._continue(x, positions, masks, cache.append(positions, part(batch.segment_ids) != 0), memory)

    def empty_cache(self, rows: int, length: int) -> KeyValueCache:
        """See `Decoder.empty_cache`."""
        return self.decoder.empty_cache(rows, length)

    def step(
        self,
        tokens: Int[Array, "B S"],
        positions: Int[Array, "B S"],
        valid: Bool[Array, "B S"],
        cache: KeyValueCache,
    ) -> tuple[Float[Array, "B S D"], KeyValueCache]:
        """Continues every row by S text tokens: hidden states, and the cache with S more slots.

        Args:
            tokens, positions: the new tokens and their positions in their rows.
            valid: False where a row has no new token (its slot stays invisible).
            cache: with at least S free slots.
        """
        before = cache.used
        cache = cache.append(positions, valid)
        slots = jnp.arange(cache.length)
        causal = slots[None, :] <= before + jnp.arange(tokens.shape[1])[:, None]
        sees = cache.valid[:, None, :] & causal[None]
        masks = tuple(self._windowed(sees, positions, cache, block.window) for block in self.config.decoder.pattern)
        memory = cache.memory
        if memory is not None:
            memory = dataclasses.replace(memory, sight=memory.sight.repeated(tokens.shape[1]))
        return self._continue(self.decoder.embed(tokens), positions, masks, cache, memory)

    def _continue(
        self,
        x: Float[Array, "B C D"],
        positions: Int[Array, "B C"],
        masks: tuple[Bool[Array, "B C T"], ...],
        cache: KeyValueCache,
        memory: Memory | None,
    ) -> tuple[Float[Array, "B C D"], KeyValueCache]:
        """The decoder on C positions that the cache has room for; `memory` is the cache's, as they see it."""
        inserted = self._inserted(memory)
        hidden, filled = self.decoder(x, positions, masks, dataclasses.replace(cache, memory=None), inserted)
        assert filled is not None
        return hidden, dataclasses.replace(filled, memory=cache.memory)

    def _masks(self, batch: Batch) -> tuple[RowSight, ...]:
        windows = [block.window for block in self.config.decoder.pattern]
        return row_sights(batch, windows, self.kernel, interpret=self.interpret)

    @staticmethod
    def _windowed(sees: Array, positions: Array, cache: KeyValueCache, window: int) -> Array:
        return sees & within_window(positions, cache.positions, window) if window else sees


def _of_rows(tokens: Float[Array, "N T W"], rows: int) -> Float[Array, "B T W"]:
    """Tokens of image slots as those of rows, each row's whole where any of its positions is."""
    return constrain(tokens.reshape(rows, -1, tokens.shape[-1]), ("batch", "key_length", "act_embed"))
