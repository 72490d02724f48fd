"""Whether a stage's examples have branches or blocks: some attention kernels cannot tell them apart."""

from collections.abc import Sequence
from typing import NamedTuple

from data_pipelines.chat_template import ChatTemplate
from data_pipelines.kinds import Captions, Instruct, KindConfig, Preference
from data_pipelines.mixture import DataConfig
from data_pipelines.rendered import Rendered
from data_pipelines.template import PrefixTemplate, Template, TemplateConfig
from vlm_jax.errors import UserError


class Emits(NamedTuple):
    """What makes them, in words; '' = nothing does.

    One branch alone is not called one: its example reads from top to bottom.
    """

    branches: str = ""
    blocks: str = ""


def emits(data: DataConfig, template: Template) -> Emits:
    """What the examples of a stage may have: by its config, before any record is read."""
    branches = ((entry.title, _branches(entry.kind)) for entry in data.mixture)
    named = (f"the {how} of mixture entry '{title}' are branches of one example" for title, how in branches if how)
    return Emits(next(named, ""), _blocks(template, data.images))


def check_one_path(examples: Sequence[Rendered]) -> None:
    """Makes sure that examples have neither branches nor blocks, for a kernel to which all of a row is one path.

    Raises:
        UserError: naming the first that has.
    """
    for example in examples:
        branches, blocks = int(example.branch_ids.max(initial=0)), int(example.block_ids.max(initial=0))
        if branches > 1 or blocks:
            has = f"{branches} branches" if branches > 1 else "positions that see each other both ways"
            raise UserError(
                f"example {example.id} of source '{example.source}' has {has}, which the stage's attention kernel "
                "cannot express; set model.decoder.attention-kernel to auto or xla"
            )


def _branches(kind: KindConfig) -> str:
    match kind:
        case Preference():
            return "answers"
        case Instruct() if kind.questions != 1:
            return "questions (kind instruct, questions is not 1)"
        case Captions() if kind.captions != 1 and kind.bare < 1:
            return "captions (kind captions, captions is not 1)"
    return ""


def _blocks(template: Template, images: int) -> str:
    match template:
        case PrefixTemplate():
            return "the template's prompts (PrefixTemplate) are blocks"
        case TemplateConfig() | ChatTemplate() if template.bidirectional_images and images:
            return "pictures (the template's bidirectional_images) are blocks"
    return ""
