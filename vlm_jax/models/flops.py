"""Model FLOPs of a step: what has to be computed, whatever the compiler makes of it.

A matrix product counts two for each multiplication, as in Chowdhery et al. 2022 (PaLM), appendix B; recomputation, the
optimiser, norms, softmax and look-ups of embeddings count nothing. Unlike there, attention counts the pairs of a query
and a key that may see each other, and the backward pass what its gradients need: nothing for a weight that is frozen,
and nothing below everything that trains (`ledger`). Layers that run in one scan are one: what one needs, all compute.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax

from vlm_jax.models.abstract import boxed_params
from vlm_jax.models.encoder_flops import count_encoder
from vlm_jax.models.gated import BlockWork
from vlm_jax.models.insertion import Run, runs
from vlm_jax.models.ledger import Depends, Ledger
from vlm_jax.models.vlm import VLM, VLMConfig
from vlm_jax.models.work import Work, all_pairs, full_rows

Trains = Callable[[str], bool]
"""Whether the parameter of this name trains."""


@dataclasses.dataclass(frozen=True)
class StepFlops:
    """Model FLOPs of one or more steps, over all devices."""

    forward: float
    input_gradients: float
    """Gradients of activations."""
    weight_gradients: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.forward + self.input_gradients + self.weight_gradients


def stage_flops(
    config: VLMConfig,
    trains: Trains | None,
    rows: int,
    length: int,
    slots: int,
    work: Work | None = None,
    *,
    features_given: bool = False,
) -> StepFlops:
    """Model FLOPs of a stage's step.

    Args:
        config: of the model.
        trains: such as `lambda name: rules[name].rate != 0`; None = everything trains.
        rows, length, slots: of a batch: rows, positions a row, image slots a row.
        work: what is in it (`work.work_of`); None = full rows of one causal example each (`work.full_rows`).
        features_given: the encoder's features come with the batch, so that it does not run.
    """
    work = full_rows(config, rows, length, slots) if work is None else work
    return work_flops(config, trained_names(config, trains), work, features_given=features_given)


def trained_names(config: VLMConfig, trains: Trains | None) -> frozenset[str] | None:
    """Names of the parameters that train; None = all."""
    return None if trains is None else frozenset(name for name in _names(config) if trains(name))


@functools.lru_cache(maxsize=8)
def _names(config: VLMConfig) -> tuple[str, ...]:
    leaves = jax.tree_util.tree_leaves_with_path(boxed_params(VLM(config)), is_leaf=lambda x: hasattr(x, "unbox"))
    return tuple(jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves)


def work_flops(
    config: VLMConfig, trained: frozenset[str] | None, work: Work, *, features_given: bool = False
) -> StepFlops:
    """Model FLOPs of steps that have so much work; linear in it.

    Args:
        config: of the model.
        trained: `trained_names`.
        work: of one batch or of several.
        features_given: see `stage_flops`.
    """
    ledger = Ledger(trained)
    visual, memory = _count_pictures(ledger, config, work, features_given=features_given)
    x = _count_layers(ledger, config, work, ledger.learned("decoder/embedding", visual), memory)
    c = config.decoder
    head = "embedding" if c.tied_embeddings else "head"
    with ledger.within("decoder"):
        x = ledger.learned("norm", x)
        ledger.linear(head, work.positions * c.width * c.vocabulary_size, x)
    return StepFlops(ledger.forward, ledger.input_gradients, ledger.weight_gradients)


def _count_pictures(ledger: Ledger, config: VLMConfig, work: Work, *, features_given: bool) -> tuple[Depends, Depends]:
    """Encoder and adapter; gives what visual tokens and the memory depend on."""
    if config.encoder is None or config.adapter is None:
        return False, False
    with ledger.times(work.slots):
        features = False
        if not features_given:
            with ledger.within("encoder"):
                features = count_encoder(ledger, config.encoder)
        with ledger.within("adapter"):
            visual, memory = config.adapter.count_slot(ledger, config.encoder.features, config.decoder, features)
            return ledger.learned("separator", visual), memory


def _count_layers(ledger: Ledger, config: VLMConfig, work: Work, x: Depends, memory: Depends) -> Depends:
    """The decoder's layers and the blocks between them, in the scans that `insertion.scan_with_inserted` makes."""
    c = config.decoder
    places = tuple(place // len(c.pattern) for place in config.adapter.places(c)) if config.adapter else ()
    if not places or not (work.readers or work.slots):
        return ledger.layers(c.repeats, lambda x: _count_pattern(ledger, config, work, x), x)
    assert config.adapter is not None
    assert config.encoder is not None
    adapter, features = config.adapter, config.encoder.features
    memory_tokens = work.slots * config.memory_tokens
    block = BlockWork(work.readers, memory_tokens, work.memory_pairs)

    for run in runs(places, c.repeats):

        def group(x: Depends, run: Run = run) -> Depends:
            if run.block >= 0:
                with ledger.within("adapter"):
                    x = adapter.count_block(ledger, features, c, block, x, memory)
            return ledger.layers(run.length, lambda x: _count_pattern(ledger, config, work, x), x)

        x = ledger.layers(run.groups, group, x)
    return x


def _count_pattern(ledger: Ledger, config: VLMConfig, work: Work, x: Depends) -> Depends:
    """One repeat of the decoder's pattern."""
    c, positions = config.decoder, work.positions
    heads, groups = c.heads * c.head_size, c.key_value_heads * c.head_size
    for place, pairs in enumerate(work.pairs or (0.0,) * len(c.pattern)):
        with ledger.within(f"decoder/layers/block_{place}"):
            y = ledger.learned("attention_norm", x)
            with ledger.within("attention"):
                queries = ledger.learned("query_norm", ledger.linear("query", positions * c.width * heads, y))
                keys, values = (ledger.linear(name, positions * c.width * groups, y) for name in ("key", "value"))
                y = ledger.attention(pairs, heads, queries, ledger.learned("key_norm", keys), values)
                y = ledger.linear("out", positions * heads * c.width, y)
            x |= ledger.learned("attention_post_norm", y)
            y = ledger.mlp("mlp", positions, c.width, c.mlp_width, ledger.learned("mlp_norm", x), gated=True)
            x |= ledger.learned("mlp_post_norm", y)
    return x


def forward_flops(config: VLMConfig, work: Work, *, features_given: bool = False) -> float:
    """FLOPs of the forward pass."""
    return work_flops(config, frozenset(), work, features_given=features_given).forward


def decoder_flops(config: VLMConfig, length: int, slots: int = 0) -> float:
    """Forward FLOPs of one token in a row of `length` positions and `slots` image slots, logits included.

    It attends to `length` positions, or to no more than a layer's window, as the convention is (PaLM, appendix B); in
    an adapter's blocks between the layers, to all of the row's image slots.
    """
    pairs = tuple(float(min(block.window or length, length)) for block in config.decoder.pattern)
    readers = min(1.0, full_rows(config, 1, 1, slots).readers)
    return forward_flops(config, Work(1.0, 0.0, pairs, readers, float(slots * config.memory_tokens)))


def encoder_flops(config: VLMConfig) -> float:
    """Forward FLOPs of one image slot: stem, blocks and adapter (the memory's keys and values too); 0 for text only."""
    return forward_flops(config, Work(slots=1.0))


def training_flops(config: VLMConfig, rows: int, length: int, images: int) -> float:
    """FLOPs of a step in which all trains, by the convention: over full rows, every position attending to all."""
    return stage_flops(config, None, rows, length, images, all_pairs(config, rows, length, images)).total
