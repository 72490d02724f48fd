"""The workdir of a run: may it be used, does it belong to this experiment, and the processor that it keeps."""

import json
import logging
from collections.abc import Iterator
from typing import Any

from etils import epath

from data_pipelines.mixture import MixtureEntry
from data_pipelines.template import ChatTemplate, Processor, TemplateConfig, load_processor
from data_pipelines.text_sample import sample_texts, stage_shares
from data_pipelines.tokenizers import train_sentencepiece, with_image_token
from vlm_jax.checkpoints.reference import load_reference_processor
from vlm_jax.config import OWN_STARTS, Experiment
from vlm_jax.convert.processors import chat_template_for
from vlm_jax.errors import UserError, shown
from vlm_jax.parallel.processes import first_does, gather_json
from vlm_jax.serialise import differences, to_json, to_plain

log = logging.getLogger(__name__)

HARMLESS = (
    "name",
    "log_every",
    "checkpoints",
    "evaluation",
    "notes",
    "bad_record_limit",
    "mesh",
    "feature_cache",
    "watchdog_seconds",
    "loss_policy",
)
"""Fields of an experiment that may differ when a run is resumed."""

HARMLESS_OF_MODELS = ("remat", "attention_kernel")
"""The same of a model's parts: they change how it is computed, and another slice may want another way."""

HARMLESS_OF_STAGES = ("validation", "cache_features", "offload_optimizer")
"""The same of a stage."""


def open_workdir(experiment: Experiment, workdir: epath.PathLike, allow_config_change: bool) -> epath.Path:
    """Makes the workdir or checks that it was begun with this experiment; keeps the config there.

    Raises:
        UserError: if it cannot be written, was begun with another config, or is not the same in all processes.
    """
    path = epath.Path(workdir).resolve()
    first_does(lambda: _open(path, experiment, allow_config_change))
    config = path / "config.json"
    blind = [i for i, sees in enumerate(gather_json(config.exists())) if not sees]
    if blind:
        raise UserError(
            f"--workdir {path}: process {blind[0]} does not see what process 0 writes there; name a directory that "
            "all hosts share, such as one in gs://"
        )
    return path


def _open(path: epath.Path, experiment: Experiment, allow_config_change: bool) -> None:
    config = path / "config.json"
    try:
        path.mkdir(parents=True, exist_ok=True)
        begun = config.read_bytes() if config.exists() else None
    except (OSError, NotADirectoryError) as error:
        raise _unusable(path, error) from None
    if begun is not None:
        _compare(path, begun, experiment, allow_config_change)
    try:
        partial = path / "config.json.partial"
        partial.write_text(to_json(experiment))
        partial.replace(config)
    except OSError as error:
        raise _unusable(path, error) from None


def _unusable(path: epath.Path, error: OSError) -> UserError:
    return UserError(f"--workdir {path}: cannot be written ({error.strerror or error}); choose another directory")


def _compare(path: epath.Path, begun: bytes, experiment: Experiment, allow: bool) -> None:
    try:
        old = json.loads(begun)
        begun_stages = [s["name"] for s in old["stages"] if _has_steps(path / "checkpoints" / str(s["name"]))]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path / 'config.json'}: damaged; remove it to accept the present config") from None
    new = to_plain(experiment)
    if not begun_stages and old != new and (path / "processor").exists():
        (path / "processor").rmtree()  # nothing depends on it yet, and it is that of another config
    changed = {field: pair for field, pair in _changes(old, new).items() if not _harmless(field, new, begun_stages)}
    if not changed:
        return
    listed = "; ".join(f"{field}: {shown(a)} -> {shown(b)}" for field, (a, b) in changed.items())
    if allow:
        log.warning("the config differs from the one this workdir was begun with: %s", listed)
        return
    raise UserError(
        f"--workdir {path} was begun with another config ({listed}); use another --workdir, undo the change, or add "
        "--allow-config-change"
    )


def _has_steps(stage: epath.Path) -> bool:
    return stage.exists() and any(entry.name.isdigit() for entry in stage.iterdir())


def _changes(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    count = max(len(old["stages"]), len(new["stages"]))

    def by_number(config: dict[str, Any]) -> dict[str, Any]:
        stages = config["stages"] + [None] * (count - len(config["stages"]))
        return {**config, "stages": stages}

    return differences(by_number(old), by_number(new))


def _harmless(field: str, new: dict[str, Any], begun_stages: list[str]) -> bool:
    parts = field.split(".")
    if parts[0] in HARMLESS or (parts[0] == "model" and parts[-1] in HARMLESS_OF_MODELS):
        return True
    if parts[0] != "stages" or not begun_stages:
        return not begun_stages
    stage = new["stages"][int(parts[1])] if int(parts[1]) < len(new["stages"]) else None
    begun = stage is None or stage["name"] in begun_stages
    return not begun or any(part in HARMLESS_OF_STAGES for part in parts[2:3])


def prepare_processor(experiment: Experiment, workdir: epath.Path) -> Processor:
    """The processor that the workdir keeps; a new run trains its tokenizer on the texts of its own stages.

    Of several processes the first one does, and the others read what it wrote.
    """
    directory = workdir / "processor"

    def make() -> None:
        if not (directory / "processor.json").exists():
            build_processor(experiment).save(directory)

    first_does(make)
    return load_processor(directory)


def build_processor(experiment: Experiment) -> Processor:
    """Joins the tokenizer with template and picture size; a pure function of the experiment and what it starts from.

    Parameters that come from another run, or from a pre-trained decoder, know the tokens of that only, so its tokenizer
    is taken over; a pre-trained one gets a token for pictures, and its own chat template.

    Raises:
        UserError: if there is no checkpoint where a stage starts from, or its tokenizer does not fit the model.
    """
    model, parts, template = experiment.model, experiment.parts, experiment.template
    references = [stage.start_from for stage in experiment.stages if stage.start_from not in OWN_STARTS]
    reference = next(iter(references), parts.tokenizer or parts.decoder)
    if reference:
        inherited = load_reference_processor(reference)
        tokenizer = with_image_token(inherited.tokenizer) if model.encoder else inherited.tokenizer
        if isinstance(template, TemplateConfig) and not isinstance(inherited.template, TemplateConfig):
            template = inherited.template
            if isinstance(template, ChatTemplate) and model.encoder and not template.image:
                template = chat_template_for(template.jinja, tokenizer, adds_bos=tokenizer.adds_bos)
    else:
        pieces, characters = experiment.tokenizer.vocabulary_size, experiment.tokenizer.characters
        log.info("training a tokenizer of %d pieces, on up to %.1f million characters", pieces, characters / 1e6)
        tokenizer = train_sentencepiece(texts(experiment), experiment.tokenizer)
    if tokenizer.vocabulary_size > model.decoder.vocabulary_size:
        raise UserError(
            f"{reference}: its tokenizer has {tokenizer.vocabulary_size} tokens, more than the model embeds; raise "
            "model.decoder.vocabulary-size"
        )
    return Processor(tokenizer, template, experiment.images, model.image_size, model.prompt_tokens, model.pictures)


def texts(experiment: Experiment, seed: int | None = None) -> Iterator[str]:
    """A sample of the texts of all stages, as `experiment.tokenizer` says.

    Args:
        experiment: whose mixtures are sampled.
        seed: chooses the places; by default the experiment's, which gives the texts that its tokenizer is trained on.
    """
    shares: list[tuple[MixtureEntry, float]] = []
    for stage in experiment.stages:
        for entry, share in zip(stage.data.mixture, stage_shares(stage.data, stage.steps), strict=True):
            same = [
                i for i, (other, _) in enumerate(shares) if (other.source, other.kind) == (entry.source, entry.kind)
            ]
            if same:
                shares[same[0]] = (shares[same[0]][0], shares[same[0]][1] + share)
            else:
                shares.append((entry, share))
    config = experiment.tokenizer
    return sample_texts(shares, config.characters, experiment.seed if seed is None else seed, config.temperature)
