"""The loss of a model on held-out text: the same batches for every model that has the same tokenizer."""

import contextlib
import dataclasses
import itertools
from typing import Any

import jax
import numpy as np

from data_pipelines.loader import make_loader
from data_pipelines.mixture import DataConfig
from vlm_jax.ablation.study import Texts
from vlm_jax.checkpoints.reference import LoadedModel
from vlm_jax.losses.next_token import next_token_objective
from vlm_jax.models.vlm import VLM

_SEED = 0


@dataclasses.dataclass(frozen=True)
class _Part:
    """What the loader takes for a stage."""

    name: str
    data: DataConfig


def text_losses(model: LoadedModel, texts: Texts) -> dict[str, dict[str, float]]:
    """Cross-entropy on each of the texts, in nats a token: {title: {"loss", "targets"}}.

    Rows hold no pictures, so a VLM runs as its text LLM does, and the difference to that LLM is what training did to
    language.

    Args:
        model: with the processor that turns texts into tokens.
        texts: every entry is read once at most.

    Raises:
        UserError: if a source cannot be read, or has less text than a row.
    """
    forward = VLM(model.config).apply

    @jax.jit
    def sums(params: Any, batch: Any) -> dict[str, jax.Array]:
        return next_token_objective(forward, params, batch, 1)[1]

    found = {}
    for entry in texts.mixture:
        once = dataclasses.replace(entry, max_epochs=1.0, weight=1.0, schedule=(), augmentation=None)
        part = _Part(f"text/{entry.title}", DataConfig((once,), texts.rows, texts.length, images=0))
        with contextlib.closing(make_loader(part, model.processor, seed=_SEED)) as loader:
            measured = [
                jax.device_get(sums(model.params, batch)) for batch, _ in itertools.islice(loader, texts.batches)
            ]
        total, weight = (float(np.sum([part[key].sum() for part in measured])) for key in ("cross_entropy", "weight"))
        found[entry.title] = {"loss": total / max(weight, 1e-9), "targets": weight}
    return found
